"""Corrupt training data on purpose: label noise and long-tailed classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet import arguments
from cifar_resnet.data import cifar10

__all__ = ["ASYMMETRIC_PAIRS", "LabelNoise", "long_tail_counts"]

_NOISE_STREAM = 7
_KINDS = ("symmetric", "asymmetric")

# Similar classes: from the true class to the wrong label (Patrini et al., 2017)
ASYMMETRIC_PAIRS = {
    "truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat",
}  # fmt: skip


@dataclass(frozen=True)
class LabelNoise:
    """Replace training labels by wrong ones at random.

    Whether the label of an image changes, and to which, depends only on the seed and the image. So
    the noise is the same for every split, and the labels that change at a fraction also change at
    any larger one.

    Args:
        fraction: Probability that a label changes, in [0, 1].
        kind: `"symmetric"` changes it to each other class with the same probability;
            `"asymmetric"` only to a similar class (`ASYMMETRIC_PAIRS`), and leaves the labels of
            the other five classes.
        seed: Random seed of the noise, at least 0.
    """

    fraction: float = 0.0
    kind: str = "symmetric"
    seed: int = 0

    def __post_init__(self) -> None:
        fraction = arguments.number("label_noise", self.fraction, arguments.FRACTION)
        object.__setattr__(self, "fraction", fraction)
        arguments.choice("label_noise_kind", self.kind, _KINDS)
        seed = arguments.integer("label_noise_seed", self.seed, minimum=0)
        object.__setattr__(self, "seed", seed)
        if not fraction and (self.kind != "symmetric" or seed):
            raise ValueError(
                f"label_noise_kind={self.kind!r} and label_noise_seed={seed} have no effect, "
                "because label_noise is 0. Pass the fraction of labels to change, such as "
                "label_noise=0.2."
            )

    def check_classes(self, names: Sequence[str]) -> None:
        """Raise a ValueError if a label would change to a class that is left out."""
        for source, target in ASYMMETRIC_PAIRS.items():
            if self.kind == "asymmetric" and source in names and target not in names:
                raise ValueError(
                    f"Asymmetric label noise changes {source!r} to {target!r}, but class_subset is "
                    f"{tuple(names)}. Add {target!r}, or use label_noise_kind='symmetric'."
                )

    def apply(
        self, labels: NDArray[np.int64], samples: NDArray[np.intp], names: Sequence[str]
    ) -> NDArray[np.int64]:
        """Return the noisy labels (N,).

        Args:
            labels: True labels (N,), in [0, len(names)).
            samples: Indices (N,) of these images in the training set.
            names: Names of the classes.
        """
        if not self.fraction:
            return labels
        rng = np.random.default_rng([self.seed, _NOISE_STREAM])
        change, which = rng.random((2, cifar10.TRAIN_SIZE))[:, samples]
        if self.kind == "symmetric":
            others = len(names) - 1
            wrong = (labels + 1 + (which * others).astype(np.int64)) % len(names)
        else:
            targets = [names.index(ASYMMETRIC_PAIRS.get(name, name)) for name in names]
            wrong = np.array(targets, dtype=np.int64)[labels]
        return np.where(change < self.fraction, wrong, labels)

    def options(self) -> dict[str, Any]:
        """Return the arguments if there is noise, for the representation of the data module."""
        return self.state() if self.fraction else {}

    def state(self) -> dict[str, Any]:
        """Return the arguments, to compare with those of another run."""
        return {
            "label_noise": self.fraction,
            "label_noise_kind": self.kind,
            "label_noise_seed": self.seed,
        }


def long_tail_counts(largest: int, classes: int, ratio: float) -> NDArray[np.intp]:
    """Return the number of images of each class in a long-tailed dataset.

    They fall exponentially, n_i = n mu^i, from `largest` to `largest / ratio`, rounded down (Cui et
    al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019).

    Examples:
        >>> long_tail_counts(5000, 10, 100).tolist()
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    exact = largest * ratio ** (-np.arange(classes) / (classes - 1))
    return np.floor(exact + 1e-6).astype(np.intp)  # 5000 / 100 may be computed as 49.99...
