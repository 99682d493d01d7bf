"""The custom ResNet for small images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet import arguments, pretrained
from cifar_resnet.network_input import as_size, check_input

__all__ = ["CustomResNet"]

if TYPE_CHECKING:
    _class_only = classmethod
else:

    class _class_only(classmethod):  # noqa: N801
        """A class method that raises when called on an instance, which it would not change."""

        def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
            if instance is None:
                return super().__get__(instance, owner)

            @wraps(self.__func__)
            def refuse(*args: Any, **kwargs: Any) -> None:
                call = f"{type(instance).__name__}.{self.__func__.__name__}"
                raise TypeError(
                    f"{call} was called on an instance, which it would leave unchanged. It returns "
                    f"a new network: call it on the class, network = {call}(...)."
                )

            return refuse


class CustomResNet(nn.Module):
    """The custom ResNet for small images: three stages, two of them with a residual block.

    | block     | layers (conv is 3x3, stride 1, padding 1, no bias)     | output of 32x32 images |
    | --------- | ------------------------------------------------------ | ------------ |
    | prep      | conv `in_channels`-64, ReLU, BatchNorm                 | 64 x 32 x 32 |
    | layer1    | conv 64-128, MaxPool 2, ReLU, BatchNorm                | 128 x 16 x 16 |
    | residual1 | 2 x (conv 128-128, ReLU, BatchNorm), added to its input | 128 x 16 x 16 |
    | layer2    | conv 128-256, MaxPool 2, ReLU, BatchNorm               | 256 x 8 x 8  |
    | layer3    | conv 256-512, MaxPool 2, ReLU, BatchNorm               | 512 x 4 x 4  |
    | residual3 | 2 x (conv 512-512, ReLU, BatchNorm), added to its input | 512 x 4 x 4  |
    | pool      | MaxPool 4                                              | 512 x 1 x 1  |
    | head      | linear 512-`num_classes`, no bias                      | `num_classes` |

    The order inside a block is convolution, pooling, ReLU, BatchNorm: BatchNorm comes *after*
    ReLU. With the default arguments the network has 6,573,120 parameters. The layout is based on
    David Page, "How to train your ResNet" (2018). The keyword-only options change it; each is off
    by default. The last maps have an eighth of the image's height and width, and `pool` is their
    maximum, so the weights do not depend on `image_size`.

    Args:
        width: Channels of the first block; the later blocks have 2, 4 and 8 times as many.
            At least 1. The quarter-width network, `width=16`, trains on a CPU in minutes.
        num_classes: Number of classes, at least 1.
        in_channels: Channels of the input images, at least 1.
        norm_first: If True, BatchNorm comes before the activation, as in the paper that introduced
            it (Ioffe and Szegedy 2015).
        activation: `"relu"`, or `"gelu"` (Hendrycks and Gimpel 2016) in its exact form.
        residual2: If True, a residual block called `residual2` follows `layer2`.
        head_scale: Factor by which the logits are multiplied, greater than 0; Page uses 1/8.
        image_size: Height and width of the images in pixels, or one number for both; multiples of
            8.

    Raises:
        TypeError: If `width`, `num_classes` or `in_channels` is not an integer, or another option
            has the wrong type.
        ValueError: If an integer is smaller than 1, the activation is unknown, the scale is not a
            finite number greater than 0, or a size is not a multiple of 8.

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet
        >>> model = CustomResNet()
        >>> sum(p.numel() for p in model.parameters())
        6573120
        >>> images = torch.randn(2, 3, 32, 32)
        >>> model(images).exp().sum(dim=1).round(decimals=3).tolist()  # probabilities
        [1.0, 1.0]
        >>> CustomResNet(width=16, num_classes=100).logits(images).shape
        torch.Size([2, 100])
        >>> varied = CustomResNet(16, norm_first=True, activation="gelu", residual2=True)
        >>> [type(layer).__name__ for layer in varied.prep]
        ['Conv2d', 'BatchNorm2d', 'GELU']
    """

    def __init__(
        self,
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        norm_first: bool = False,
        activation: str = "relu",
        residual2: bool = False,
        head_scale: float = 1.0,
        image_size: int | Sequence[int] = 32,
    ) -> None:
        super().__init__()
        self.width = width = arguments.integer("width", width, minimum=1)
        self.num_classes = num_classes = arguments.integer("num_classes", num_classes, minimum=1)
        self.in_channels = in_channels = arguments.integer("in_channels", in_channels, minimum=1)
        self.norm_first = arguments.boolean("norm_first", norm_first)
        self.activation = activation = arguments.choice("activation", activation, (*_ACTIVATIONS,))
        arguments.boolean("residual2", residual2)
        self.head_scale = arguments.number("head_scale", head_scale, arguments.POSITIVE)

        block = partial(_conv_block, norm_first=norm_first, activation=activation)
        self.prep = block(in_channels, width)
        self.layer1 = block(width, 2 * width, pool=True)
        self.residual1 = _Residual(block, 2 * width)
        self.layer2 = block(2 * width, 4 * width, pool=True)
        self.residual2 = _Residual(block, 4 * width) if residual2 else None
        self.layer3 = block(4 * width, 8 * width, pool=True)
        self.residual3 = _Residual(block, 8 * width)
        self.pool = nn.MaxPool2d(1)
        self._set_size(as_size(image_size))
        self.head = nn.Linear(8 * width, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the log-probabilities of the classes, the log-softmax of `logits`.

        Args:
            images: Float tensor (N, in_channels, height, width), normalized.

        Returns:
            Tensor (N, num_classes); `exp()` of each row sums to 1.

        Raises:
            TypeError: If `images` is not a tensor, or its dtype differs from that of the weights.
            ValueError: If `images` has a different shape.
        """
        return F.log_softmax(self.logits(images), dim=1)

    def logits(self, images: Tensor) -> Tensor:
        """Compute unnormalized class scores (N, num_classes) from the same input as `forward`."""
        scores: Tensor = self.head(self.features(images))
        return scores if self.head_scale == 1 else scores * self.head_scale

    def features(self, images: Tensor) -> Tensor:
        """Compute the vector before the head: the maximum of each channel of the last maps.

        `logits` multiplies it by the weights of the head (and by `head_scale`).

        Args:
            images: Float tensor (N, in_channels, height, width), normalized.

        Returns:
            Tensor (N, 8 * width), of the dtype of the weights.

        Raises:
            TypeError: If `images` is not a tensor, or its dtype differs from that of the weights.
            ValueError: If `images` has a different shape.

        Examples:
            >>> import torch
            >>> from cifar_resnet import CustomResNet
            >>> model, images = CustomResNet(width=4), torch.randn(2, 3, 32, 32)
            >>> features = model.features(images)
            >>> features.shape, torch.equal(model.head(features), model.logits(images))
            (torch.Size([2, 32]), True)
        """
        weight: Any = self.prep[0].weight
        check_input(images, self.in_channels, self.image_size, weight)
        x = self.prep(images)  # (N, w, 32, 32)
        x = self.residual1(self.layer1(x))  # (N, 2w, 16, 16)
        x = self.layer2(x)  # (N, 4w, 8, 8)
        if self.residual2 is not None:
            x = self.residual2(x)
        x = self.residual3(self.layer3(x))  # (N, 8w, 4, 4)
        vector: Tensor = self.pool(x).flatten(1)
        return vector

    @contextmanager
    def at_size(self, image_size: int | Sequence[int]) -> Iterator[None]:
        """Take images of another size within a `with` statement; the weights fit any size.

        `image_size` is as for the constructor, with the same errors.

        Examples:
            >>> import torch
            >>> from cifar_resnet import CustomResNet
            >>> model = CustomResNet(width=4)
            >>> with model.at_size(24):
            ...     model(torch.randn(2, 3, 24, 24)).shape
            torch.Size([2, 10])
            >>> model.image_size
            (32, 32)
        """
        usual = self.image_size
        self._set_size(as_size(image_size))
        try:
            yield
        finally:
            self._set_size(usual)

    def _set_size(self, size: tuple[int, int]) -> None:
        self.image_size = size
        rows, columns = (side // 8 for side in size)  # of the last maps
        self.pool.kernel_size = self.pool.stride = rows if rows == columns else (rows, columns)

    @_class_only
    def from_pretrained(cls, source: str | Path) -> Self:  # noqa: N805
        """Load a trained network in evaluation mode, with float32 weights on the CPU.

        Args:
            source: One of

                - the name of weights that come with the package and need no internet connection:
                  `"full"` (the default network), `"quarter"` (the same at width 16) or
                  `"quarter-best"` (width 16 and the options of the recipe `"best"`);
                  `pretrained_weights()` lists them with their accuracies;
                - the path of a `.safetensors` file from `save_pretrained`;
                - the path of a Lightning checkpoint (`.ckpt`) that was saved while an
                  `ImageClassifier` trained a `CustomResNet`.

        Returns:
            A new network, built with the arguments stored in the file.

        Raises:
            TypeError: If `source` is neither a string nor a path, or if the method is called on an
                instance, which would keep its own weights.
            ValueError: If there are no weights of that name, or the file is damaged, does not say
                which network it holds, or does not fit the network that it describes.
            FileNotFoundError: If there is no file at that path.

        Examples:
            >>> from cifar_resnet import CustomResNet
            >>> model = CustomResNet.from_pretrained("quarter")
            >>> model.width, model.training
            (16, False)
        """
        path, config, tensors = pretrained.read(source)
        try:
            # On the meta device: a file may claim any size, and its tensors are yet to be compared.
            with torch.device("meta"):
                network = cls(**config)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} has no valid arguments of CustomResNet: {error}") from None
        if differences := pretrained.shape_differences(tensors, network.state_dict()):
            raise ValueError(f"{path} does not fit its own description: {differences[0]}.")
        network.load_state_dict(tensors, assign=True)
        return network.eval()

    def save_pretrained(
        self,
        path: str | Path,
        *,
        half: bool = False,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the weights and the constructor arguments to a file for `from_pretrained`.

        Args:
            path: File name that ends in `.safetensors`. The file is written atomically.
            half: If True, the weights of the convolutions and the head are stored in half
                precision, which halves the size of the file. Those of BatchNorm keep theirs.
            training: Information about the origin of the weights to store in the file; anything
                that JSON can represent.

        Raises:
            TypeError: If an argument has the wrong type, or `training` holds a value that JSON
                cannot represent.
            ValueError: If `path` has a different suffix, a layer was replaced without adjusting
                `num_classes`, a weight does not fit into half precision, or a number in `training`
                is not finite.
            FileNotFoundError: If the folder does not exist.
        """
        with torch.device("meta"):
            described = type(self)(**self.config()).state_dict()
        state = {pretrained.uncompiled(name): t for name, t in self.state_dict().items()}
        if differences := pretrained.shape_differences(state, described):
            raise ValueError(
                f"The weights do not fit num_classes={self.num_classes} and the other arguments of "
                f"the network: {differences[0]}. If you have replaced the last layer, set "
                "network.num_classes to its number of outputs; save a network with other layers "
                "with torch.save(network.state_dict(), path)."
            )
        pretrained.write(path, self.config(), state, half=half, training=training)

    def config(self) -> dict[str, Any]:
        """Return all constructor arguments: `CustomResNet(**network.config())` is the same network
        with new weights.

        Examples:
            >>> from cifar_resnet import CustomResNet
            >>> CustomResNet(16, norm_first=True).config()["norm_first"]
            True
        """
        height, width = self.image_size
        return {
            "width": self.width,
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "norm_first": self.norm_first,
            "activation": self.activation,
            "residual2": self.residual2 is not None,
            "head_scale": self.head_scale,
            "image_size": height if height == width else [height, width],
        }

    def extra_repr(self) -> str:
        # The sizes are always shown, the keyword-only options if they are not the default.
        defaults = CustomResNet.__init__.__kwdefaults__ or {}
        shown = {name: v for name, v in self.config().items() if v != defaults.get(name)}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


def _conv_block(
    in_channels: int,
    out_channels: int,
    *,
    pool: bool = False,
    norm_first: bool,
    activation: str,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    ]
    if pool:
        layers.append(nn.MaxPool2d(2))
    # Not in-place: that would overwrite the output that a hook on the convolution has stored.
    last = [_ACTIVATIONS[activation](), nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers, *(reversed(last) if norm_first else last))


class _Residual(nn.Module):
    """Compute x + block(block(x)), without an activation after the sum."""

    def __init__(self, block: Callable[[int, int], nn.Module], channels: int) -> None:
        super().__init__()
        self.block1 = block(channels, channels)
        self.block2 = block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block2(self.block1(x))
        return out
