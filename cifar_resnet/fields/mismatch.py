"""The error for a disagreement between the analysis and an experiment."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ReceptiveFieldMismatchError"]


class ReceptiveFieldMismatchError(AssertionError):
    """Raised if the analysis and the experiment disagree about a layer."""


def listed(rows: Sequence[int]) -> str:
    """Return positions for a message: "3 to 7", "1, 2, 5" or "nothing"."""
    if not rows:
        return "nothing"
    if len(rows) == rows[-1] - rows[0] + 1:
        return f"{rows[0]} to {rows[-1]}"
    return ", ".join(map(str, rows[:20])) + (", ..." if len(rows) > 20 else "")
