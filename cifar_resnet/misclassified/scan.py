"""Run a model over a data set and collect its errors."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cifar_resnet import arguments
from cifar_resnet.data.reading import Batch, as_source
from cifar_resnet.misclassified.collector import ErrorCollector, ScanOptions
from cifar_resnet.misclassified.execution import run_on_device
from cifar_resnet.misclassified.image_range import warn_if_not_normalized
from cifar_resnet.misclassified.progress import progress_bar
from cifar_resnet.misclassified.records import MisclassifiedSamples
from cifar_resnet.misclassified.scores import class_scores
from cifar_resnet.model_state import preserve_state, unwrap_compiled

__all__ = ["find_misclassified"]


def find_misclassified(
    model: nn.Module,
    data: Any = None,
    *,
    n: int | None = None,
    sort_by: str = "loss",
    true_class: int | str | None = None,
    pred_class: int | str | None = None,
    batch_size: int | None = None,
    max_samples: int | None = None,
    device: torch.device | str | None = None,
    class_names: Sequence[str] | Mapping[Any, Any] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    seed: int = 0,
) -> MisclassifiedSamples:
    """Find the images that a classifier gets wrong, and count its predictions for all images.

    Each image passes through the model once, in evaluation mode and without gradients. The model is
    left unchanged. Only the errors that are kept take memory, and 28 bytes for each image. An
    active autocast context is respected. A warning is issued if weights of the package get images
    that are not normalized. A progress bar appears in a terminal or a notebook if it takes longer
    than two seconds.

    Args:
        model: Any module from images to class scores (N, classes): logits, log-probabilities, or
            probabilities, which are rows that are not negative and sum to 1. The output of a
            sigmoid is not a distribution over the classes; the softmax of the values before it is
            taken, as for a model that returns those values.
        data: A `Dataset` or list of (image, label), a `DataLoader` (each of its samples once, in
            the order of the dataset), a `LightningDataModule` (its test data), a pair of arrays
            or tensors (images, labels), or an iterable of samples or batches. Samples and batches
            may be dictionaries with keys such as "image" and "label". If None, use the CIFAR-10
            test set.
        n: Maximum number of errors to keep. If None, keep all.
        sort_by: "loss", "confidence" (probability of the predicted class) or "margin" (how far that
            probability exceeds the one of the true class) in descending order, "index" in ascending
            order (unknown indices last), or "random". With "index" and `n`, an iterable
            without a length is read until `n` errors are found.
        true_class: Keep only errors on images of this class, given by number or name.
        pred_class: Keep only errors predicted as this class.
        batch_size: Number of images processed at once, unless `data` determines it. If None, 500,
            or fewer if the first image has more than 32 x 32 pixels: 10 at 224 x 224.
        max_samples: Maximum number of samples to read. If None, read all.
        device: Device to compute on. If None, the model's device. The model is not moved.
        class_names: Names of the classes: a sequence or an array, a dictionary between numbers and
            names in either direction, or the `ClassLabel` or `Features` of a Hugging Face dataset.
            If None, use those of the data, or numbers. The class number is added to a name that
            several classes share.
        mean: Mean of each channel that was subtracted from the images. If None, use that of the
            data.
        std: Standard deviation of each channel that the images were divided by.
        seed: Random seed for the random order.

    Returns:
        An immutable sequence of the errors, with totals, confusion matrix and calibration.

    Raises:
        TypeError: If `model` or `data` is none of the above, or another argument has the wrong
            type.
        ValueError: If an argument is out of its range, a score is not finite, the model does not
            return (N, classes) or applies a softmax over the images, the data have no labels, or
            the images cannot be displayed because their normalization is unknown, which the first
            batch shows.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import CustomResNet, find_misclassified
        >>> images, labels = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
        >>> found = find_misclassified(CustomResNet(width=4), TensorDataset(images, labels), n=3)
        >>> len(found), found.total, found[0].image.shape
        (3, 20, torch.Size([3, 32, 32]))
    """
    if n is not None:
        n = arguments.integer("n", n, minimum=1, instead=", or None for all")
    options = ScanOptions(
        sort_by=sort_by,
        true_class=true_class,
        pred_class=pred_class,
        batch_size=batch_size,
        max_samples=max_samples,
        device=device,
        class_names=class_names,
        mean=mean,
        std=std,
        seed=seed,
    )
    return scan(model, data, n, options, show_progress=True)


def scan(
    model: nn.Module,
    data: Any,
    n: int | None,
    options: ScanOptions,
    *,
    show_progress: bool = False,
) -> MisclassifiedSamples:
    """Find the misclassified images with options that are already checked."""
    (found,) = scan_all([model], data, n, options, show_progress=show_progress)
    return found


def scan_all(
    models: Sequence[nn.Module],
    data: Any,
    n: int | None,
    options: ScanOptions,
    *,
    show_progress: bool = False,
) -> list[MisclassifiedSamples]:
    """Find the misclassified images of several models, which get the same batches."""
    models = [unwrap_compiled(model) for model in models]
    source = as_source(data, options.batch_size, options.max_samples)
    collectors = [ErrorCollector(n, options, source) for _ in models]
    with (
        # all at once, so that threads acquire the locks of all modules in the same order
        preserve_state(models[0] if len(models) == 1 else nn.ModuleList(models)),
        torch.inference_mode(False),  # the errors should hold ordinary tensors
        torch.no_grad(),
        contextlib.ExitStack() as stack,
        progress_bar(source.size, options.max_samples, show=show_progress) as advance,
        contextlib.closing(limited(source.batches(), options.max_samples)) as batches,
    ):
        moves = [stack.enter_context(run_on_device(model, options.device)) for model in models]
        for indices, inputs, labels in batches:
            first = collectors[0].read == 0
            if first:
                collectors[0].check_images(indices, inputs)
            for model, move_inputs, collector in zip(models, moves, collectors, strict=True):
                moved = move_inputs(inputs)
                if moved.untyped_storage().data_ptr() == inputs.untyped_storage().data_ptr():
                    moved = moved.clone()  # the model may modify its input in place
                with warn_if_not_normalized(model) if first else contextlib.nullcontext():
                    scores = class_scores(model, moved).float()
                collector.add(indices, inputs, labels.to(scores.device), scores)
            advance(len(labels))
            if source.endless and options.sort_by == "index" and _all_have(collectors, n):
                break
        return [collector.result() for collector in collectors]


def _all_have(collectors: Sequence[ErrorCollector], n: int | None) -> bool:
    return all(len(collector.errors) == n for collector in collectors)


def limited(batches: Iterator[Batch], limit: int | None) -> Generator[Batch, None, None]:
    """Yield batches that are not empty, up to `limit` samples in total."""
    read = 0
    for batch in batches:
        size = len(batch[2])
        if limit is not None and read + size > limit:
            indices, inputs, labels = (part[: limit - read] for part in batch)
            batch = indices, inputs, labels
        if size:
            yield batch
        read += size
        if limit is not None and read >= limit:
            return
