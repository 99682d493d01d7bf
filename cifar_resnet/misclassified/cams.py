"""Class activation maps of a batch of images. It knows models and images; it must not know where
they come from or how they are drawn. The methods' arithmetic is that of the grad-cam library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.misclassified.execution import placed
from cifar_resnet.misclassified.layers import (
    Reshape,
    TargetLayer,
    check_target_layers,
    find_target_layers,
    recorded,
)
from cifar_resnet.misclassified.scores import class_scores
from cifar_resnet.model_state import preserve_state, unwrap_compiled

__all__ = ["compute_cams"]

# By our name: the class in pytorch_grad_cam, and what people call it.
METHODS = {
    "gradcam": ("GradCAM", "Grad-CAM"),
    "gradcam++": ("GradCAMPlusPlus", "Grad-CAM++"),
    "hirescam": ("HiResCAM", "HiResCAM"),
    "layercam": ("LayerCAM", "LayerCAM"),
    "xgradcam": ("XGradCAM", "XGrad-CAM"),
    "gradcamelementwise": ("GradCAMElementWise", "element-wise Grad-CAM"),
    "eigencam": ("EigenCAM", "EigenCAM"),
    "eigengradcam": ("EigenGradCAM", "EigenGradCAM"),
}


def compute_cams(
    model: nn.Module,
    images: Tensor,
    classes: Tensor | Sequence[int] | int | None = None,
    *,
    against: Tensor | Sequence[int] | int | None = None,
    method: str = "gradcam",
    target_layers: str | nn.Module | Sequence[str | nn.Module] | None = None,
    reshape_transform: Reshape | None = None,
    raw: bool = False,
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Where in each image a class finds its evidence, by a class activation map.

    The score that is explained is the logit, also where the model ends in a softmax. Everything is
    computed in float32, image by image independently; the model stays as it is.

    Args:
        model: Any module from images to class scores (N, classes).
        images: Float (N, C, H, W), as the model gets them.
        classes: The class to explain, one for each image or one for all; None for the predicted.
        against: Classes whose score is subtracted: why one class rather than the other.
        method: "gradcam" (Selvaraju et al., ICCV 2017), "gradcam++" (Chattopadhay et al., WACV
            2018), "hirescam" (Draelos and Carin, 2020), "layercam" (Jiang et al., TIP 2021),
            "xgradcam" (Fu et al., BMVC 2020), "gradcamelementwise", "eigencam" (Muhammad and
            Yeasin, IJCNN 2020; it knows no class) or "eigengradcam".
        target_layers: Names or submodules, one or several, whose maps are averaged; None for the
            last layer with several places that the scores depend on.
        reshape_transform: From a target layer's output to (N, C, height, width). Not needed for
            feature maps, and for tokens on a square grid or on that of the patch embedding.
        raw: Whether to give the map of one layer as the method computes it: at the layer's own grid
            and with its sign. With "hirescam" it sums to the logit where all that follows the layer
            is linear without a bias (a maximum pooling counts as linear for a given image).
        batch_size: Images at once.
        device: Where to compute; None for where the model is. The model is not moved.

    Returns:
        float32 (N, H, W) on the CPU, in [0, 1]: positive evidence as a share of the image's
        largest; all 0 where there is none. With `raw` (N, height, width) of the layer.

    Raises:
        TypeError: If `model` is no module, `images` no tensor, or another argument has the wrong
            type.
        ValueError: If an argument is out of its range, a layer is not there or has no places, or
            the model fails on the images or returns anything but finite (N, classes).

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet, compute_cams
        >>> model, images = CustomResNet(width=4), torch.randn(2, 3, 32, 32)
        >>> compute_cams(model, images, classes=3).shape
        torch.Size([2, 32, 32])
        >>> raw = compute_cams(model, images, 3, method="hirescam", raw=True)
        >>> torch.allclose(raw.sum((1, 2)), model.eval().logits(images)[:, 3], atol=1e-4)
        True
    """
    return explain(
        model,
        images,
        classes,
        against=against,
        method=method,
        target_layers=target_layers,
        reshape_transform=reshape_transform,
        raw=raw,
        batch_size=batch_size,
        device=device,
    )[0]


def explain(
    model: nn.Module,
    images: Tensor,
    classes: Any = None,
    *,
    against: Any = None,
    method: str = "gradcam",
    target_layers: Any = None,
    reshape_transform: Reshape | None = None,
    raw: bool = False,
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> tuple[Tensor, list[TargetLayer]]:
    """`compute_cams`, and the layers that it took."""
    model = unwrap_compiled(model)
    check_method(method)
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor (N, C, H, W), but got {type(images).__name__}.")
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be float (N, C, H, W) as the model gets them, but got {images.dtype} of "
            f"shape {tuple(images.shape)}."
        )
    check_target_layers(target_layers)
    check_reshape(reshape_transform)
    arguments.boolean("raw", raw)
    batch_size = arguments.integer("batch_size", batch_size, minimum=1)
    if device is not None:
        device = arguments.device("device", device)
    if len(images) == 0:
        return torch.zeros(0, *images.shape[2:]), []
    number = len(images)
    wanted, other = _classes(classes, number, "classes"), _classes(against, number, "against")
    maps = []
    with (
        preserve_state(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cuda", enabled=False),
        torch.autocast("cpu", enabled=False),
        placed(model, device, torch.float32) as (run, place),
    ):
        first = place(images[:1].detach().clone()).requires_grad_()
        layers = find_target_layers(model, run, first, target_layers, reshape_transform)
        if raw and len(layers) > 1:
            raise ValueError(f"raw maps are of one layer, but target_layers has {len(layers)}.")
        method_image = _method(method)
        for start in range(0, number, batch_size):
            rows = slice(start, start + batch_size)
            batch = place(images[rows].detach().clone()).requires_grad_()
            chosen = wanted and wanted[rows], other and other[rows]
            maps.append(_batch_maps(run, batch, start, layers, chosen, method_image, raw))
    return torch.cat(maps), layers


MethodImage = Callable[[Tensor, Tensor], Tensor]
Chosen = tuple[list[int] | None, list[int] | None]


def _batch_maps(
    run: nn.Module,
    batch: Tensor,
    start: int,
    layers: Sequence[TargetLayer],
    chosen: Chosen,
    method_image: MethodImage,
    raw: bool,
) -> Tensor:
    with recorded(layers) as outputs:
        scores = class_scores(run, batch)
    finite = scores.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(
            f"The scores of image {start + row} are not finite: {scores[row].tolist()[:10]}. "
            "Check the model's weights and the images' range."
        )
    score = _chosen_scores(scores, *chosen).sum()
    tensors = [outputs[layer.name] for layer in layers]
    grads = torch.autograd.grad(score, tensors, allow_unused=True)
    total = torch.zeros(len(batch), *batch.shape[2:])
    for layer, values, grad in zip(layers, tensors, grads, strict=True):
        if grad is None:
            raise ValueError(f"The scores do not depend on the output of layer {layer.name!r}.")
        image = method_image(layer.to_map(values.detach()), layer.to_map(grad))
        if raw:
            return image
        total += _scaled(F.interpolate(image.relu()[:, None], batch.shape[2:], mode="bilinear"))
    return _scaled(total[:, None])


def _chosen_scores(scores: Tensor, wanted: list[int] | None, other: list[int] | None) -> Tensor:
    classes = scores.shape[1]
    for name, numbers in (("classes", wanted), ("against", other)):
        outside = [number for number in numbers or () if not 0 <= number < classes]
        if outside:
            raise ValueError(
                f"{name} holds {outside[0]}, but the model has the classes 0 to {classes - 1}."
            )
    if wanted is None:
        chosen = scores.amax(1)
    else:
        chosen = scores.gather(1, torch.tensor(wanted, device=scores.device)[:, None])[:, 0]
    if other is not None:
        chosen = chosen - scores.gather(1, torch.tensor(other, device=scores.device)[:, None])[:, 0]
    return chosen


def _scaled(maps: Tensor) -> Tensor:
    """(N, 1, H, W) to (N, H, W), each with a largest value of 1 unless it is all 0."""
    largest = maps.amax((2, 3), keepdim=True)
    return (maps / torch.where(largest > 0, largest, 1))[:, 0]


def _method(name: str) -> MethodImage:
    """The arithmetic of a method: activations and gradients (N, C, h, w) to maps (N, h, w)."""
    import pytorch_grad_cam  # takes a second, so only where it is needed

    cam = getattr(pytorch_grad_cam, METHODS[name][0])(_Shell(), [])

    def image(activations: Tensor, grads: Tensor) -> Tensor:
        arrays = (tensor.cpu().numpy() for tensor in (activations, grads))
        # input, layer and targets matter to methods that run the model again only
        return torch.from_numpy(cam.get_cam_image(None, None, None, *arrays, False)).float()

    return image


class _Shell(nn.Module):
    """What the library asks of a model: a parameter, whose device it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(()))


def check_method(method: object) -> None:
    arguments.choice("method", method, (*METHODS,))


def check_reshape(reshape_transform: object) -> None:
    arguments.function(
        "reshape_transform", reshape_transform, "a function from a layer's output to its maps"
    )


def _classes(given: Any, number: int, name: str) -> list[int] | None:
    if given is None:
        return None
    expected = f"a class number, or one for each of the {number} images"
    values = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    if arguments.is_integer(values):
        return [int(values)] * number
    values = arguments.sequence(name, values, expected)
    message = f"{name} must be {expected}, but got {given!r}."
    if not all(map(arguments.is_integer, values)):
        raise TypeError(message)
    if len(values) != number:
        raise ValueError(message)
    return [int(value) for value in values]
