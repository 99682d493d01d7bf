"""Hold the recorded values of a training run, image by image and epoch by epoch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet import arguments
from cifar_resnet.files import atomic_write

__all__ = ["UNSEEN", "ImageHistory"]

UNSEEN = -1  # prediction in an epoch without the image
_FORMAT = 1
_ARRAYS = ("loss", "margin", "prediction", "indices", "labels", "clean_labels")


@dataclass(frozen=True, eq=False)
class ImageHistory:
    """The loss, margin and prediction of every training image in every epoch.

    The values are those of the batches that the network was trained on: of the augmented image,
    before the optimizer step of its batch, in training mode. If an epoch draws an image several
    times, they are those of the last time. An image that an epoch does not contain has a loss and
    a margin of NaN and a prediction of -1 there.

    Attributes:
        loss: Cross-entropy of the label in nats, without label smoothing and class weights,
            float32 (N, epochs).
        margin: Score of the label's class minus the largest score of the other classes, float32
            (N, epochs). It is the same for logits and log-probabilities, and at least 0 if the
            prediction is correct.
        prediction: Class with the largest score, int16 (N, epochs).
        indices: Indices of the images in the dataset, int64 (N,).
        labels: Labels that the network was trained on, int64 (N,); -1 if unknown.
        clean_labels: Labels without the label noise of the data module, int64 (N,). If None, they
            are unknown.
        class_names: Names of the classes.
        data: What the images and labels depend on, such as dataset, seed and augmentation.

    Raises:
        ValueError: If the shapes of the arrays do not fit each other.

    Examples:
        >>> import numpy as np
        >>> from cifar_resnet import ImageHistory
        >>> history = ImageHistory(
        ...     loss=np.array([[1.2, 0.1], [0.4, np.nan]]),
        ...     margin=np.array([[-0.8, 2.3], [0.7, np.nan]]),
        ...     prediction=np.array([[1, 0], [1, -1]]),
        ...     indices=np.array([7, 9]), labels=np.array([0, 1]), class_names=("cat", "dog"),
        ... )
        >>> history
        <ImageHistory: 2 images, 2 epochs, 2 classes>
        >>> print(history.probability.round(2))
        [[0.3  0.9 ]
         [0.67  nan]]
        >>> history.row(9)
        1
    """

    loss: NDArray[np.float32] = field(repr=False)
    margin: NDArray[np.float32] = field(repr=False)
    prediction: NDArray[np.int16] = field(repr=False)
    indices: NDArray[np.int64] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    clean_labels: NDArray[np.int64] | None = field(default=None, repr=False)
    class_names: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        kinds = (np.float32, np.float32, np.int16, np.int64, np.int64, np.int64)
        for name, kind in zip(_ARRAYS, kinds, strict=True):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, np.asarray(value, dtype=kind))
        shape, images = self.loss.shape, self.indices.shape
        expected = dict.fromkeys(_ARRAYS[:3], shape) | dict.fromkeys(_ARRAYS[3:], images)
        for name, value in expected.items():
            array = getattr(self, name)
            fits = array is None or array.shape == value
            if not fits or len(shape) != 2 or shape[:1] != images:
                raise ValueError(
                    "loss, margin and prediction must have the shape (N, epochs), and indices, "
                    f"labels and clean_labels (N,), but loss has {shape}, indices {images}, and "
                    f"{name} {array.shape}."
                )

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return int(self.loss.shape[1])

    @property
    def probability(self) -> NDArray[np.float32]:
        """Probability of the label, float32 (N, epochs) in [0, 1]; NaN where unseen."""
        probability: NDArray[np.float32] = np.exp(-self.loss)
        return probability

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Whether the epoch contains the image, (N, epochs)."""
        seen: NDArray[np.bool_] = self.prediction != UNSEEN
        return seen

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the prediction is the label, (N, epochs); False where unseen."""
        correct: NDArray[np.bool_] = self.seen & (self.prediction == self.labels[:, None])
        return correct

    @property
    def changed(self) -> NDArray[np.bool_] | None:
        """Whether label noise changed the label, (N,). None if this is unknown."""
        return None if self.clean_labels is None else self.labels != self.clean_labels

    def row(self, index: int) -> int:
        """Return the row of the image with this index in the dataset.

        Raises:
            TypeError: If `index` is not an integer.
            IndexError: If the training did not use this image.
        """
        if not arguments.is_integer(index):
            raise TypeError(f"index must be an integer, but got {index!r}.")
        rows = np.flatnonzero(self.indices == index)
        if not len(rows):
            some = ", ".join(map(str, self.indices[:3].tolist()))
            raise IndexError(
                f"index must be that of one of the {len(self)} training images, such as {some}, "
                f"but got {index}. Images that were held out or excluded have no history; "
                "history.indices lists the others."
            )
        return int(rows[0])

    def save(self, path: str | Path) -> None:
        """Write the history to a file, `.npz` of NumPy, atomically.

        Raises:
            TypeError: If `path` is not path-like.
            ValueError: If `path` does not end in `.npz`.
            OSError: If the file cannot be written.
        """
        target = as_file(path)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        text = json.dumps(
            {"format": _FORMAT, "class_names": self.class_names, "data": dict(self.data)}
        )
        present = {name: array for name, array in arrays.items() if array is not None}
        with atomic_write(target) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, description=np.array(text), **present)

    @classmethod
    def load(cls, path: str | Path) -> ImageHistory:
        """Read a file that `save` wrote. Nothing in it is executed.

        Raises:
            TypeError: If `path` is not path-like.
            ValueError: If the file is damaged, or is not a history.
            FileNotFoundError: If there is no such file.

        Examples:
            >>> import tempfile
            >>> import numpy as np
            >>> from pathlib import Path
            >>> from cifar_resnet import ImageHistory
            >>> one = np.zeros((5, 2)), np.zeros((5, 2)), np.zeros((5, 2)), range(5), [0] * 5
            >>> file = Path(tempfile.mkdtemp()) / "history.npz"
            >>> ImageHistory(*one, class_names=("cat", "dog")).save(file)
            >>> ImageHistory.load(file)
            <ImageHistory: 5 images, 2 epochs, 2 classes>
        """
        source = as_file(path)
        try:
            # NumPy would leave a damaged file open.
            with source.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                content = {name: file[name] for name in file.files}
            description = json.loads(str(content.pop("description")))
            known = {each.name for each in fields(cls)}
            if description["format"] != _FORMAT or not content.keys() <= known:
                raise ValueError(
                    f"its format is {description['format']} instead of {_FORMAT}; use the version "
                    "of cifar_resnet that wrote it"
                )
            names = tuple(description["class_names"])
            return cls(**content, class_names=names, data=description["data"])
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{source} is not a history of training images, or is damaged: {error}. Expected "
                "a file that ImageHistory.save or TrainingHistory wrote."
            ) from error

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return (
            f"<ImageHistory: {len(self):,} images, {self.epochs} epochs, "
            f"{len(self.class_names)} classes>"
        )


def names_of_classes(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Return the names if there is one for each class, and the numbers otherwise."""
    if names is not None and len(names) == classes:
        return tuple(names)
    return tuple(map(str, range(classes)))


def as_file(path: str | Path) -> Path:
    file = arguments.path("path", path)
    if file.suffix != ".npz":
        raise ValueError(f"path must end in .npz, but got {str(path)!r}.")
    return file
