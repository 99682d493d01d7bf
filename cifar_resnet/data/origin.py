"""Describe the training images of a loader, for a record of the training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Origin", "described"]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of a function, different in each process


@dataclass(frozen=True, eq=False)
class Origin:
    """The data module that a loader of training images comes from.

    Attributes:
        fingerprint: Function that returns a string which differs for other images or labels.
        options: Plain values that determine which images there are and how they are augmented.
        clean_labels: Labels without label noise (N,).
    """

    fingerprint: Callable[[], str]
    options: Mapping[str, Any]
    clean_labels: NDArray[np.int64]

    def state(self) -> dict[str, Any]:
        """Return the fingerprint and the options as plain values of JSON."""
        state: dict[str, Any] = json.loads(
            json.dumps({"dataset": self.fingerprint()} | dict(self.options))
        )
        return state


def described(transform: Any) -> str | None:
    """Return a string that is equal for equal transforms, or None without a transform."""
    return None if transform is None else _ADDRESS.sub("", repr(transform))
