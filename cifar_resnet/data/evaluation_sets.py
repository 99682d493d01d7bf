"""Read further evaluation sets of CIFAR-10 from a folder.

- CIFAR-10.1: 2,000 (v6) or 2,021 (v4) new test images (Recht et al., "Do CIFAR-10 Classifiers
  Generalize to CIFAR-10?", 2018).
- CIFAR-10-C: the test images with 19 corruptions in five severities (Hendrycks and Dietterich,
  "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019).
- CIFAR-10H: the choices of about 50 people for each test image (Peterson et al., "Human uncertainty
  makes classification more robust", ICCV 2019).
- CIFAR-10N: labels of the training images by people (Wei et al., "Learning with Noisy Labels
  Revisited: A Study Using Real-World Human Annotations", ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cifar_resnet.data import cifar10

__all__ = ["ADDITIONAL", "CORRUPTIONS", "SEVERITIES", "EvaluationSets", "find_sets"]

# The 15 corruptions of the benchmark, and four that its authors provide for validation.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip
ADDITIONAL = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = 5

_VERSIONS = ("v4", "v6")
_HUMAN = "CIFAR-10_human.pt"
_PEOPLE = "cifar10h-probs.npy"
_LABELS = ("aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")
_SUM_TOLERANCE = 1e-3

Images = NDArray[np.uint8]  # (N, 32, 32, 3)
Labels = NDArray[np.int64]  # (N,)


class EvaluationSets(NamedTuple):
    """The sets in a folder; those that are not there are empty or None."""

    new_test: dict[str, tuple[Images, Labels]]  # CIFAR-10.1 by version
    corrupted: dict[str, Images]  # CIFAR-10-C by corruption, (5 x 10000, 32, 32, 3) on disk
    corrupted_labels: Labels | None  # (5 x 10000,)
    people: NDArray[np.float64] | None  # CIFAR-10H, (10000, 10)
    human_labels: dict[str, Labels]  # CIFAR-10N by kind, (50000,)


def find_sets(directory: Path) -> EvaluationSets:
    """Read and check the sets in a folder or in the folders in it.

    Raises:
        ValueError: If there is none of them, or a file does not have the layout of the originals.
    """
    if not directory.is_dir():
        raise ValueError(f"directory must be a folder, but {str(directory)!r} is not one.")
    folders = [directory, *sorted(path for path in directory.iterdir() if path.is_dir())]

    def find(name: str) -> Path | None:
        return next((folder / name for folder in folders if (folder / name).is_file()), None)

    new_test = {}
    for version in _VERSIONS:
        if images := find(f"cifar10.1_{version}_data.npy"):
            labels = images.with_name(f"cifar10.1_{version}_labels.npy")
            new_test[version] = _images(images), _labels(labels, len(_array(images)))
    corrupted, corrupted_labels = {}, None
    for name in (*CORRUPTIONS, *ADDITIONAL):
        if path := find(f"{name}.npy"):
            size = SEVERITIES * cifar10.TEST_SIZE
            corrupted[name] = _images(path, size)
            corrupted_labels = _labels(path.with_name("labels.npy"), size)
    people = find(_PEOPLE)
    human = find(_HUMAN)
    if not (new_test or corrupted or people or human):
        raise ValueError(
            f"{directory} has none of the evaluation sets. Expected cifar10.1_v6_data.npy and "
            "cifar10.1_v6_labels.npy (or v4), the files of CIFAR-10-C such as gaussian_noise.npy "
            f"with labels.npy, {_PEOPLE} or {_HUMAN}, there or in a folder in it."
        )
    return EvaluationSets(
        new_test,
        corrupted,
        corrupted_labels,
        None if people is None else _probabilities(people),
        {} if human is None else _human_labels(human),
    )


def check_clean_labels(labels: Mapping[str, Labels], train_labels: Labels) -> None:
    """Raise a ValueError if the clean labels of CIFAR-10N are not those of CIFAR-10."""
    different = int((labels["clean_label"] != train_labels).sum())
    if different:
        raise ValueError(
            f"clean_label in {_HUMAN} differs from the labels of CIFAR-10 for {different:,} of "
            f"{len(train_labels):,} training images, so its labels are of other images or in "
            "another order. Use the original file."
        )


def _array(path: Path) -> NDArray[Any]:
    """Open an array on disk without reading it."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a NumPy array: {error}") from error
    return array


def _images(path: Path, count: int | None = None) -> Images:
    images = _array(path)
    expected = ("N" if count is None else count, 32, 32, 3)
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1:] != (32, 32, 3)
        or (count is not None and len(images) != count)
    ):
        raise ValueError(
            f"{path} must hold uint8 images of the shape {expected}, but holds {images.dtype} of "
            f"the shape {images.shape}."
        )
    return images


def _labels(path: Path, count: int) -> Labels:
    labels = _array(path)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path} must hold {count:,} integers, one for each image, but holds {labels.dtype} of "
            f"the shape {labels.shape}."
        )
    return _classes(path, labels)


def _classes(path: Path, labels: NDArray[Any]) -> Labels:
    if labels.min() < 0 or labels.max() >= len(cifar10.CLASSES):
        raise ValueError(
            f"The labels in {path} must be from 0 to 9, but are from {labels.min()} to "
            f"{labels.max()}."
        )
    return labels.astype(np.int64)


def _probabilities(path: Path) -> NDArray[np.float64]:
    people = _array(path)
    shape = (cifar10.TEST_SIZE, len(cifar10.CLASSES))
    is_valid = people.shape == shape and people.dtype.kind == "f"
    if not is_valid or people.min() < 0 or abs(people.sum(1) - 1).max() > _SUM_TOLERANCE:
        raise ValueError(
            f"{path} must hold probabilities of the shape {shape} whose rows sum to 1, but holds "
            f"{people.dtype} of the shape {people.shape}."
        )
    return people.astype(np.float64)


def _human_labels(path: Path) -> dict[str, Labels]:
    # NumPy arrays as NumPy 1 and 2 pickle them, and nothing that could run code
    reconstruct = np.zeros(0).__reduce__()[0]
    kinds = [type(np.dtype(name)) for name in ("int64", "int32", "uint8")]
    allowed: list[Any] = [np.ndarray, np.dtype, *kinds, reconstruct]
    allowed += [
        (reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file may fail anywhere
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from error
    expected = ("clean_label", *_LABELS)
    if not isinstance(content, dict) or any(name not in content for name in expected):
        found = [*content] if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} must hold a dictionary with {', '.join(expected)}, but has {found}."
        )
    labels = {}
    for name in expected:
        values = np.asarray(content[name])
        if values.shape != (cifar10.TRAIN_SIZE,) or values.dtype.kind not in "iu":
            raise ValueError(
                f"{name} in {path} must be {cifar10.TRAIN_SIZE:,} integers, but is {values.dtype} "
                f"of the shape {values.shape}."
            )
        labels[name] = _classes(path, values)
    return labels
