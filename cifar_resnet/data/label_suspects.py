"""List the CIFAR-10 test images whose given label is doubtful."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["LabelSuspect", "label_suspects"]


@dataclass(frozen=True)
class LabelSuspect:
    """A test image for which fewer than 3 of 5 people chose the given label.

    Attributes:
        index: Index in the CIFAR-10 test set.
        given: Name of the class in the dataset.
        guessed: Name of the class that a model proposed to the five people.
        votes_given: Number of people who chose only the given class.
        votes_guessed: Number of people who chose only the proposed class.
        votes_both: Number of people who chose both.
        votes_neither: Number of people who chose neither.
    """

    index: int
    given: str
    guessed: str
    votes_given: int
    votes_guessed: int
    votes_both: int
    votes_neither: int


@cache
def label_suspects() -> dict[int, LabelSuspect]:
    """Return the 54 CIFAR-10 test images with a doubtful label, by index.

    Five people looked at each of 275 candidates. Listed are the images for which fewer than three
    people chose the given label. Such a label is doubtful, not necessarily wrong, so these images
    are never excluded.

    Source: Northcutt, Athalye and Mueller, "Pervasive Label Errors in Test Sets Destabilize
    Machine Learning Benchmarks" (NeurIPS Datasets and Benchmarks 2021),
    https://github.com/cleanlab/label-errors, Apache License 2.0.

    Returns:
        A dictionary from index in the test set to `LabelSuspect`, in ascending order.

    Examples:
        >>> from cifar_resnet import label_suspects
        >>> len(label_suspects())
        54
        >>> label_suspects()[1227].given, label_suspects()[1227].guessed
        ('cat', 'dog')
    """
    file = resources.files("cifar_resnet.data") / "label_suspects.csv"
    with file.open(encoding="utf-8") as lines:
        rows = csv.DictReader(line for line in lines if not line.startswith("#"))
        found = [
            LabelSuspect(
                int(row["test_index"]),
                row["given"],
                row["guessed"],
                *(int(row[f"votes_{vote}"]) for vote in ("given", "guessed", "both", "neither")),
            )
            for row in rows
        ]
    return {suspect.index: suspect for suspect in sorted(found, key=lambda suspect: suspect.index)}
