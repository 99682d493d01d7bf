"""Corrupt training data on purpose: label noise and long-tailed classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet import arguments

__all__ = ["LabelNoise", "as_pairs", "long_tail_counts"]

_NOISE_STREAM = 7
_KINDS = ("symmetric", "asymmetric")


@dataclass(frozen=True)
class LabelNoise:
    """Replace training labels by wrong ones at random.

    Whether the label of an image changes, and to which, depends only on the seed and the image. So
    the noise is the same for every split, and the labels that change at a fraction also change at
    any larger one.

    Args:
        fraction: Probability that a label changes, in [0, 1].
        kind: `"symmetric"` changes it to each other class with the same probability;
            `"asymmetric"` only to a similar class, and leaves the labels of classes without one.
        seed: Random seed of the noise, at least 0.
        pairs: Similar classes for asymmetric noise, from the name of the true class to that of the
            wrong label.
    """

    fraction: float = 0.0
    kind: str = "symmetric"
    seed: int = 0
    pairs: Mapping[str, str] | None = None

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
        if self.kind == "asymmetric" and not self.pairs:
            raise ValueError(
                "label_noise_kind='asymmetric' changes labels to those of similar classes, which "
                "are not known for these data. Pass label_noise_pairs, a dictionary from the names "
                "of true classes to those of the wrong labels, or label_noise_kind='symmetric'."
            )

    def check_classes(self, names: Sequence[str]) -> None:
        """Raise a ValueError if a label would change to a class that is left out."""
        for source, target in self._pairs().items():
            if source in names and target not in names:
                raise ValueError(
                    f"Asymmetric label noise changes {source!r} to {target!r}, but class_subset is "
                    f"{tuple(names)}. Add {target!r}, or use label_noise_kind='symmetric'."
                )

    def apply(
        self,
        labels: NDArray[np.int64],
        samples: NDArray[np.intp],
        names: Sequence[str],
        total: int,
    ) -> NDArray[np.int64]:
        """Return the noisy labels (N,).

        Args:
            labels: True labels (N,), in [0, len(names)).
            samples: Indices (N,) of these images in the training set.
            names: Names of the classes.
            total: Number of images in the training set.
        """
        if not self.fraction:
            return labels
        rng = np.random.default_rng([self.seed, _NOISE_STREAM])
        change, which = rng.random((2, total))[:, samples]
        if self.kind == "symmetric":
            others = len(names) - 1
            wrong = (labels + 1 + (which * others).astype(np.int64)) % len(names)
        else:
            targets = [names.index(self._pairs().get(name, name)) for name in names]
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
        } | ({"label_noise_pairs": self._pairs()} if self.kind == "asymmetric" else {})

    def _pairs(self) -> dict[str, str]:
        """Return the pairs that the noise uses."""
        return dict(self.pairs or {}) if self.kind == "asymmetric" else {}


def as_pairs(pairs: Any, names: Sequence[str]) -> dict[str, str] | None:
    """Validate `label_noise_pairs` for classes with these names."""
    expected = "a dictionary from names of classes to names of other classes"
    message = f"label_noise_pairs must be {expected}, but got {pairs!r}."
    if pairs is None:
        return None
    if not isinstance(pairs, Mapping):
        raise TypeError(message)
    for name in (*pairs.keys(), *pairs.values()):
        if not isinstance(name, str):
            raise TypeError(message)
        if name not in names:
            raise ValueError(f"{message[:-1]}; there is no class {name!r}.")
    if not pairs or any(source == target for source, target in pairs.items()):
        raise ValueError(message)
    return dict(pairs)


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
