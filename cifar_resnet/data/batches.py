"""Collate samples into batches of images and labels, and identify the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate, default_convert

from cifar_resnet.data.datasets import on_cpu
from cifar_resnet.data.metadata import IMAGES, LABELS

Collate = Callable[[list[Any]], Any]
UNKNOWN = -1


class CollateNumbered:
    """Collate samples, and return the positions of the resulting rows among these samples.

    Called with a list of samples, it returns their number and a list of (positions, batch).
    Positions are int64 (B,), -1 where unknown. By default, samples with images of different sizes
    come in several batches, and only images and labels are collated. The result of any other
    `collate` is compared with the samples, because it may drop or reorder them.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> tuple[int, list[tuple[Tensor, Any]]]:
        if self.collate is default_collate:
            return len(samples), list(_collated(samples))
        batch = self.collate(samples)
        return len(samples), [(positions_of(batch, samples, self.collate), batch)]


def _collated(samples: list[Any]) -> Iterator[tuple[Tensor, Any]]:
    pairs = [(_from_array(image), label) for image, label in map(image_and_label, samples)]
    by_shape: dict[Any, list[int]] = {}
    for position, (image, _) in enumerate(pairs):
        by_shape.setdefault(getattr(image, "shape", None), []).append(position)
        refuse_picture(image)
    for positions in by_shape.values():
        try:
            with on_cpu():
                batch = default_collate([pairs[row] for row in positions])
        except (TypeError, RuntimeError) as error:
            raise _not_numbers(str(error)) from error
        yield torch.tensor(positions, device="cpu"), batch


class ConvertNumbered:
    """Convert an item of a dataset that is read without batching: a sample or a whole batch.

    The result is as that of `CollateNumbered`. A sample becomes a batch of one.
    """

    def __init__(self, convert: Collate) -> None:
        self.convert = convert

    def __call__(self, item: Any) -> tuple[int, list[tuple[Tensor, Any]]]:
        batch = self.convert(item)
        if not is_batch(batch):
            return 1, list(_collated([batch]))
        rows = len(images_and_labels(batch)[1])
        if self.convert is default_convert:
            return rows, [(torch.arange(rows, device="cpu"), batch)]
        samples = list(zip(*image_and_label(item), strict=True))
        return len(samples), [(positions_of(batch, samples), batch)]


def positions_of(batch: Any, samples: Sequence[Any], collate: Collate | None = None) -> Tensor:
    """Return the positions of the rows of a batch among the samples it was collated from.

    A row is identified by its pixels and label, which are those of a sample, or of the result for
    this sample alone if `collate` changes the images. The position is -1 if no sample or several
    samples are equal to the row.
    """
    try:
        images, labels = images_and_labels(batch)
    except (TypeError, ValueError):  # raised again where the batch is used
        return torch.full((len(samples),), UNKNOWN, device="cpu")
    rows = [_fingerprint(*row) for row in zip(images, labels, strict=True)]
    positions = _matches(rows, [_fingerprint(*_parts(sample)) for sample in samples])
    if UNKNOWN in positions and collate is not None:
        alone = [_fingerprint(*_alone(sample, collate)) for sample in samples]
        positions = list(map(max, positions, _matches(rows, alone)))
    return torch.tensor(positions, dtype=torch.int64, device="cpu")


def _matches(rows: list[Any], samples: list[Any]) -> list[int]:
    if None not in rows and rows == samples:
        return list(range(len(rows)))
    positions: dict[Any, int] = {}
    for position, sample in enumerate(samples):
        positions[sample] = UNKNOWN if sample in positions or sample is None else position
    return [positions.get(row, UNKNOWN) for row in rows]


def _fingerprint(image: Any, label: Any) -> Any:
    """Return a value that is equal for equal pixels and labels. None if it cannot be computed."""
    try:
        pixels = _from_array(image).detach().cpu().contiguous()
        return pixels.dtype, pixels.shape, int(label), pixels.view(torch.uint8).numpy().tobytes()
    except (TypeError, ValueError, RuntimeError, AttributeError):  # for a PIL image, for example
        return None


def _parts(sample: Any) -> tuple[Any, Any]:
    try:
        return image_and_label(sample)
    except ValueError:
        return None, None


def _alone(sample: Any, collate: Collate) -> tuple[Any, Any]:
    try:
        images, labels = images_and_labels(collate([sample]))
    except Exception:  # somebody else's function, which may not accept any single sample
        return None, None
    return (images[0], labels[0]) if len(images) == 1 else (None, None)


def image_and_label(item: Any) -> tuple[Any, Any]:
    """Return the images and the labels of a sample or of a batch."""
    if isinstance(item, Mapping):
        image = next((name for name in IMAGES if name in item), None)
        label = next((name for name in LABELS if name in item), None)
        if image is None or label is None:
            raise ValueError(
                "A sample or batch must hold images and labels, as (images, labels) or under keys "
                f"such as {IMAGES[1]!r} and {LABELS[0]!r}, but has the keys {list(item)}."
            )
        return item[image], item[label]
    if isinstance(item, list | tuple) and len(item) >= 2:
        return item[0], item[1]
    what = f"a {type(item).__name__}" if item is not None else "None"
    what += f" of {len(item)}" if hasattr(item, "__len__") else ""
    raise ValueError(
        f"A sample or batch must be (images, labels), but is {what}. Errors cannot be found in "
        "data without labels."
    )


def is_batch(item: Any) -> bool:
    """Return whether an item of somebody else's iteration is a batch rather than a sample."""
    image, label = image_and_label(item)
    return not is_picture(image) and (np.ndim(image) > 3 or isinstance(label, list))


def is_picture(image: Any) -> bool:
    """Return whether a value is a PIL image."""
    return any(kind.__module__.startswith("PIL.") for kind in type(image).__mro__)


def refuse_picture(image: Any) -> None:
    """Raise an error for a PIL image."""
    if is_picture(image):
        raise TypeError(
            "The dataset gives PIL images, which a network cannot take: give it a transform, such "
            "as CIFAR10DataModule.default_transforms(). A Hugging Face dataset applies the "
            "function that with_transform or set_transform receives."
        )


def images_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the images (N, C, H, W) and the int64 labels (N,) of a batch."""
    images, labels = map(_as_tensor, image_and_label(batch))
    if images.dim() != 4:
        raise ValueError(
            f"A batch must hold images (N, C, H, W), but they have shape {tuple(images.shape)}."
        )
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 1 or len(labels) != len(images) or labels.is_floating_point():
        raise ValueError(
            f"Labels must be class numbers (N,) for {len(images)} images, but are {labels.dtype} "
            f"of shape {tuple(labels.shape)}."
        )
    return images, labels.long()


def _as_tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values
    first = values[0] if isinstance(values, list | tuple) and values else values
    refuse_picture(first)
    try:
        if isinstance(first, Tensor):
            return torch.stack(list(values))
        return torch.as_tensor(_from_array(values), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise _not_numbers(f"{type(first).__name__}: {error}") from error


def _from_array(values: Any) -> Any:
    """Return an array as a tensor, also if it is read-only or flipped; other values unchanged."""
    if not isinstance(values, np.ndarray):
        return values
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _not_numbers(got: str) -> ValueError:
    return ValueError(
        "Images and labels must be tensors or arrays of numbers, the images of a batch of one "
        f"size, but got {got}"
    )
