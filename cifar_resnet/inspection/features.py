"""Compute the features of images: the vector before the last layer of a classifier."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.data.reading import Batch, Source, as_source
from cifar_resnet.inspection.heads import find_head, input_of, watch_calls
from cifar_resnet.misclassified.cams import check_visible
from cifar_resnet.misclassified.execution import run_on_device
from cifar_resnet.misclassified.scan import limited
from cifar_resnet.misclassified.scores import class_scores
from cifar_resnet.model_state import preserve_state, unwrap_compiled

__all__ = ["compute_features"]

_PIXELS = 500 * 32 * 32  # of a batch of images that are given as one tensor


def compute_features(
    model: nn.Module,
    data: Any = None,
    *,
    layer: str | nn.Module | None = None,
    batch_size: int | None = None,
    max_samples: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Compute the vector before the head of a classifier for each image.

    It is the input of the last linear layer, whose output are the class scores. That this layer
    computes the scores is verified. `CustomResNet.features` returns the same without this search,
    with gradients. The model runs in evaluation mode and is left unchanged.

    Args:
        model: Any module from images to class scores (N, classes), as for `find_misclassified`.
            Scripted and exported programs are refused.
        data: Images (N, C, H, W), as the model expects them, or images with labels, as for
            `find_misclassified`. If None, use the CIFAR-10 test set.
        layer: Name or submodule of the layer whose input are the features, a vector for each
            image. If None, the last linear layer.
        batch_size: Number of images processed at once, unless `data` determines it. If None, 500,
            or fewer if the first image has more than 32 x 32 pixels.
        max_samples: Maximum number of images to read. If None, read all.
        device: Device to compute on. If None, the model's device. The model is not moved.

    Returns:
        float32 (N, D) on the CPU, in the order of the dataset, or in the order of reading if an
        index is unknown.

    Raises:
        TypeError: If `model` or `data` is none of the above, or another argument has the wrong
            type.
        ValueError: If there is no such layer, or not exactly one linear layer that computes the
            scores; if it has no vector for each image, or one that is not finite; if there are no
            images, an argument is out of its range, or as for `find_misclassified`.

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet, compute_features
        >>> model, images = CustomResNet(width=4).eval(), torch.randn(5, 3, 32, 32)
        >>> features = compute_features(model, images)
        >>> features.shape, torch.allclose(features, model.features(images), atol=1e-6)
        (torch.Size([5, 32]), True)
    """
    options = FeatureOptions(layer, batch_size, max_samples, device)
    with contextlib.closing(feature_batches(model, data, options)) as batches:
        parts = [(batch[0], vectors) for batch, vectors in batches]
    indices = torch.cat([indices for indices, _ in parts])
    features = torch.cat([vectors for _, vectors in parts])
    return features if bool((indices < 0).any()) else features[indices.argsort(stable=True)]


@dataclass(frozen=True)
class FeatureOptions:
    """Checked options of `compute_features`."""

    layer: str | nn.Module | None = None
    batch_size: int | None = None
    max_samples: int | None = None
    device: Any = None  # converted to torch.device | None

    def __post_init__(self) -> None:
        if self.layer is not None and not isinstance(self.layer, str | nn.Module):
            raise TypeError(
                "layer must be the name of a submodule or the submodule, or None, but got "
                f"{self.layer!r}."
            )
        for name in ("batch_size", "max_samples"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, arguments.integer(name, value, minimum=1))
        if self.device is not None:
            object.__setattr__(self, "device", arguments.device("device", self.device))


def feature_batches(
    model: nn.Module, data: Any, options: FeatureOptions
) -> Generator[tuple[Batch, Tensor], None, None]:
    """Yield the batches of the data with their features, float32 (B, D) on the CPU.

    Raises:
        ValueError: As `compute_features`.
    """
    model = unwrap_compiled(model)
    check_visible(model)
    source = source_of(data, options)
    head: str | None = None
    read = 0
    with (
        preserve_state(model),
        torch.inference_mode(False),
        torch.no_grad(),
        run_on_device(model, options.device) as move_inputs,
        contextlib.closing(limited(source.batches(), options.max_samples)) as batches,
    ):
        for batch in batches:
            inputs = move_inputs(batch[1].detach().clone())  # the model may write to it
            if head is None:
                head = find_head(model, options.layer, inputs)
            with watch_calls({head: model.get_submodule(head)}) as calls:
                class_scores(model, inputs)
            vectors = input_of(calls[head], head, len(inputs))
            finite = vectors.isfinite().all(1)
            if not bool(finite.all()):
                row = int((~finite).nonzero()[0])
                raise ValueError(
                    f"The features of image {read + row} are not finite: "
                    f"{vectors[row].tolist()[:10]}. Check the model's weights and the images' "
                    "range."
                )
            read += len(vectors)
            yield batch, vectors
    if head is None:
        raise ValueError("The data contain no images.")


def source_of(data: Any, options: FeatureOptions) -> Source:
    """Return images with or without labels as a source; labels that are not given are -1."""
    if not isinstance(data, Tensor):
        return as_source(data, options.batch_size, options.max_samples)
    if data.dim() != 4 or data.is_complex():
        raise ValueError(
            f"Images must have the shape (N, C, H, W), as the model expects them, but got "
            f"{data.dtype} of shape {tuple(data.shape)}."
        )
    pixels = data.shape[2] * data.shape[3]
    size = options.batch_size or min(max(_PIXELS // max(pixels, 1), 1), 500)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(data), size):
            images = data[start : start + size]
            indices = torch.arange(start, start + len(images), device="cpu")
            yield indices, images, torch.full_like(indices, -1)

    return Source(batches, size=len(data))
