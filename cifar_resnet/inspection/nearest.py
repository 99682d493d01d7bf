"""Find the training images whose features are most similar to those of an image."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.data.class_names import as_class_names
from cifar_resnet.data.reading import Batch
from cifar_resnet.inspection.features import FeatureOptions, feature_batches, source_of
from cifar_resnet.misclassified.records import MisclassifiedSample
from cifar_resnet.model_state import unwrap_compiled
from cifar_resnet.normalization import Statistics, as_statistics, in_unit_range

__all__ = ["NearestImage", "NearestImages", "find_nearest"]


@dataclass(frozen=True, eq=False)
class NearestImage:
    """One of the images that are nearest to another one.

    Attributes:
        index: Index in the dataset; None if unknown.
        image: The image for display: float32 (C, H, W) in [0, 1], without the normalization.
        label: Class number of the label.
        name: Name of this class.
        distance: Cosine distance of the features, 1 minus the cosine of their angle, in [0, 2].
    """

    index: int | None
    image: Tensor = field(repr=False)
    label: int
    name: str
    distance: float


@dataclass(frozen=True, eq=False)
class NearestImages:
    """An image and the images that are nearest to it.

    Attributes:
        index: Index of the image in its dataset, or in the tensor of images; None if unknown.
        image: The image for display: float32 (C, H, W) in [0, 1], without the normalization.
        true: Class number of its label; None if unknown.
        predicted: Class number of the wrong prediction; None if the image is not given as an error.
        true_name: Name of the label's class; None if unknown.
        predicted_name: Name of the predicted class; None if unknown.
        neighbors: The nearest images, the nearest one first.
    """

    index: int | None
    image: Tensor = field(repr=False)
    true: int | None
    predicted: int | None
    true_name: str | None
    predicted_name: str | None
    neighbors: tuple[NearestImage, ...]

    @property
    def same_label(self) -> int | None:
        """Number of neighbors with the label of the image; None if that is unknown."""
        return None if self.true is None else self._count(self.true)

    @property
    def same_prediction(self) -> int | None:
        """Number of neighbors whose label is the predicted class; None if that is unknown."""
        return None if self.predicted is None else self._count(self.predicted)

    def _count(self, label: int) -> int:
        return sum(neighbor.label == label for neighbor in self.neighbors)


def find_nearest(
    model: nn.Module,
    errors: Sequence[MisclassifiedSample] | Tensor,
    data: Any = None,
    *,
    k: int = 5,
    layer: str | nn.Module | None = None,
    batch_size: int | None = None,
    max_samples: int | None = None,
    device: torch.device | str | None = None,
    class_names: Any = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> list[NearestImages]:
    """Find the training images that are nearest to errors or other images, by their features.

    The distance is the cosine distance of the vectors from `compute_features`. Vectors of zeros
    have the distance 1 to all others, as in scikit-learn. Images at the same distance come in the
    order of the data. The images of the data are read in batches; only the nearest ones are kept.

    An image that is itself in the data is its own nearest image.

    Args:
        model: As for `compute_features`.
        errors: Result of `find_misclassified`, or some of its samples; or images (N, C, H, W), as
            the model expects them.
        data: Images with labels to search, as for `find_misclassified`. Of an `ImageDataModule`,
            the training images without augmentation; of another data module, the samples of its
            training loader. If None, use the 50,000 training images of CIFAR-10.
        k: Number of nearest images.
        layer: As for `compute_features`.
        batch_size: As for `compute_features`.
        max_samples: Maximum number of images of the data to read. If None, read all.
        device: As for `compute_features`.
        class_names: As for `find_misclassified`.
        mean: As for `find_misclassified`.
        std: As for `find_misclassified`.

    Returns:
        For each error or image, the nearest images with their labels and distances.

    Raises:
        TypeError: If `errors` is none of the above, or another argument has the wrong type.
        ValueError: If `errors` is empty, there are fewer than `k` images or no labels in the data,
            the data name other classes than the errors, or images cannot be displayed because
            their normalization is unknown; or as for `compute_features`.

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet, find_nearest
        >>> model, data = CustomResNet(width=4), (torch.rand(20, 3, 32, 32), torch.arange(20) % 10)
        >>> (nearest,) = find_nearest(model, data[0][3:4], data, k=2)
        >>> nearest.neighbors[0].index, round(nearest.neighbors[0].distance, 5)
        (3, 0.0)
    """
    model = unwrap_compiled(model)
    k = arguments.integer("k", k, minimum=1)
    options = FeatureOptions(layer, batch_size, max_samples, device)
    given_names = as_class_names(class_names)
    given = as_statistics(mean, std)
    queries = _as_queries(errors)
    source = source_of(_training_data(data), options)
    sizes = [size for size in (source.size, options.max_samples) if size is not None]
    if sizes and min(sizes) < k:
        raise ValueError(
            f"k is {k}, but only {min(sizes):,} images are searched. Pass a smaller k."
        )
    statistics = given or source.statistics
    names = given_names or source.class_names
    _check_names(queries, names)
    shown = [_displayed(q, n, statistics, given is not None) for n, q in enumerate(queries)]
    vectors = _features_of(model, queries, options)
    search = _Search(F.normalize(vectors), k, statistics, clip=given is not None)
    with contextlib.closing(feature_batches(model, source, options)) as batches:
        for batch, features in batches:
            search.add(batch, F.normalize(features))
    if search.read < k:
        raise ValueError(
            f"k is {k}, but the data have only {search.read:,} images. Pass a smaller k."
        )
    return [
        NearestImages(
            query.index,
            image,
            query.true,
            query.predicted,
            query.true_name,
            query.predicted_name,
            search.neighbors(row, names),
        )
        for row, (query, image) in enumerate(zip(queries, shown, strict=True))
    ]


# --- the images to start from --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Query:
    inputs: Tensor
    index: int | None = None
    image: Tensor | None = None
    true: int | None = None
    predicted: int | None = None
    true_name: str | None = None
    predicted_name: str | None = None


def _as_queries(errors: Any) -> list[_Query]:
    if isinstance(errors, Tensor):
        if errors.dim() != 4 or errors.is_complex():
            raise ValueError(
                "errors must be images of shape (N, C, H, W), as the model expects them, but are "
                f"{errors.dtype} of shape {tuple(errors.shape)}."
            )
        queries = [_Query(image, index) for index, image in enumerate(errors.detach())]
    else:
        expected = "the result of find_misclassified, some of its samples, or a tensor of images"
        samples = [errors] if isinstance(errors, MisclassifiedSample) else errors
        samples = arguments.sequence("errors", samples, expected)
        for sample in samples:
            if not isinstance(sample, MisclassifiedSample):
                raise TypeError(
                    f"errors must be {expected}, but one of them is {type(sample).__name__}."
                )
        queries = [
            _Query(s.inputs, s.index, s.image, s.true, s.predicted, s.true_name, s.predicted_name)
            for s in samples
        ]
    if not queries:
        raise ValueError("errors is empty; expected at least one image to start from.")
    return queries


def _check_names(queries: Sequence[_Query], names: tuple[str, ...] | None) -> None:
    """Raise if a class of an error has another name, or none, in the data."""
    for query in queries:
        for number, name in (
            (query.true, query.true_name),
            (query.predicted, query.predicted_name),
        ):
            if names is None or number is None or str(number) == name:
                continue
            if number >= len(names) or names[number] != name:
                raise ValueError(
                    f"Class {number} is called {name!r} for the errors, but the data have the "
                    f"classes {', '.join(names[:12])}. Pass data with the same classes."
                )


def _displayed(query: _Query, number: int, statistics: Statistics | None, clip: bool) -> Tensor:
    if query.image is not None:
        return query.image
    image = query.inputs.detach().cpu()
    return in_unit_range(image, statistics, name=f"Image {number} of errors", clip=clip)


def _features_of(model: nn.Module, queries: Sequence[_Query], options: FeatureOptions) -> Tensor:
    """Return the features (N, D) of images that may differ in size."""
    rows: list[Tensor | None] = [None] * len(queries)
    by_shape: dict[torch.Size, list[int]] = {}
    for number, query in enumerate(queries):
        by_shape.setdefault(query.inputs.shape, []).append(number)
    same = FeatureOptions(options.layer, options.batch_size, None, options.device)
    for numbers in by_shape.values():
        images = torch.stack([queries[number].inputs for number in numbers])
        with contextlib.closing(feature_batches(model, images, same)) as batches:
            vectors = torch.cat([features for _, features in batches])
        for number, vector in zip(numbers, vectors, strict=True):
            rows[number] = vector
    return torch.stack([row for row in rows if row is not None])


# --- the images to search ------------------------------------------------------------------------


def _training_data(data: Any) -> Any:
    """Return the training samples of a data module, and other data unchanged."""
    if data is None:
        from cifar_resnet.data.cifar_modules import CIFAR10DataModule

        data = CIFAR10DataModule(val_split=0)
    if isinstance(data, Tensor):
        raise ValueError(
            "data must be images with labels, such as (images, labels), but got a tensor of shape "
            f"{tuple(data.shape)}."
        )
    if not all(hasattr(data, name) for name in ("prepare_data", "setup", "train_dataloader")):
        return data
    from cifar_resnet.data.module import ImageDataModule
    from cifar_resnet.data.unaugmented import unaugmented

    if isinstance(data, ImageDataModule):
        return unaugmented(data).train_dataloader()
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader()


class _Search:
    """Keep the nearest images of each query among those read so far.

    Args:
        vectors: Features of the queries (Q, D) of length 1.
        k: Number of images to keep for each.
        statistics: Normalization of the images.
        clip: Whether to clip images to [0, 1] for display.
    """

    def __init__(
        self, vectors: Tensor, k: int, statistics: Statistics | None, *, clip: bool
    ) -> None:
        self.vectors, self.k = vectors, k
        self.statistics, self.clip = statistics, clip
        self.read = 0
        self._similarity = torch.empty(len(vectors), 0, device="cpu")
        self._positions = torch.empty(len(vectors), 0, dtype=torch.int64, device="cpu")
        self._kept: dict[int, tuple[int, Tensor, int]] = {}  # index, image and label by position

    def add(self, batch: Batch, features: Tensor) -> None:
        indices, inputs, labels = batch
        if features.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"The features of the errors have {self.vectors.shape[1]} values, but those of the "
                f"data have {features.shape[1]}. Pass images of the same size."
            )
        positions = torch.arange(self.read, self.read + len(labels), device="cpu")
        similarity = torch.cat([self._similarity, self.vectors @ features.T], 1)
        all_positions = torch.cat([self._positions, positions.expand(len(self.vectors), -1)], 1)
        # stable, so that of equal ones, the first one stays first
        values, order = similarity.sort(dim=1, descending=True, stable=True)
        self._similarity = values[:, : self.k]
        self._positions = all_positions.gather(1, order[:, : self.k])
        needed = set(self._positions.flatten().tolist())
        self._kept = {key: value for key, value in self._kept.items() if key in needed}
        for row in range(len(labels)):
            if self.read + row in needed:
                image = inputs[row].detach().cpu().clone()
                self._kept[self.read + row] = int(indices[row]), image, int(labels[row])
        self.read += len(labels)

    def neighbors(self, row: int, names: tuple[str, ...] | None) -> tuple[NearestImage, ...]:
        """Return the nearest images of a query."""
        return tuple(
            self._neighbor(position, 1 - similarity, names)
            for position, similarity in zip(
                self._positions[row].tolist(), self._similarity[row].tolist(), strict=True
            )
        )

    def _neighbor(
        self, position: int, distance: float, names: tuple[str, ...] | None
    ) -> NearestImage:
        index, inputs, label = self._kept[position]
        if names is not None and not 0 <= label < len(names):
            raise ValueError(
                f"Image {index} of the data has label {label}, but there are {len(names)} class "
                f"names: {', '.join(names[:12])}. Pass class_names with one name for each class."
            )
        name = f"Image {index} of the data"
        image = in_unit_range(inputs, self.statistics, name=name, clip=self.clip)
        named = str(label) if names is None else names[label]
        return NearestImage(
            index if index >= 0 else None, image, label, named, min(max(distance, 0.0), 2.0)
        )
