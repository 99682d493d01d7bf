"""Find equal sets among many, so that each needs to be stored and computed only once."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_BYTES = 2**31  # for the sets of all tensors together
_PAIRS = 2**22  # up to so many possible pairs are counted rather than sorted


class SetsTooLargeError(MemoryError):
    """The position sets of a network need more memory than they may take."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def limit() -> int:
    """Return how many bytes the sets may take."""
    return MAX_BYTES


def check_bytes(number: int) -> None:
    """Raise an error if sets of so many bytes are too large."""
    if number > MAX_BYTES:
        raise SetsTooLargeError(number)


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of the distinct rows, and for each row which of these it equals.

    Args:
        rows: int64 (n, m).

    Returns:
        int64 (k,) and (n,).

    Examples:
        >>> first, same = distinct(torch.tensor([[5, 6], [7, 8], [5, 6]]))
        >>> rows = torch.tensor([[5, 6], [7, 8], [5, 6]])
        >>> rows[first][same].equal(rows), len(first)
        (True, 2)
    """
    if len(rows) == 1:
        return rows.new_zeros(1), rows.new_zeros(1)
    generator = torch.Generator().manual_seed(0)
    limit = 2**62
    factors = torch.randint(-limit, limit, (rows.shape[1],), generator=generator)
    hashes = (rows * factors).sum(1)  # overflow wraps around
    _, same = hashes.unique(return_inverse=True)
    first = _first_of_each(same)
    if not torch.equal(rows[first[same]], rows):  # two different rows have the same hash
        _, same = rows.unique(dim=0, return_inverse=True)
        first = _first_of_each(same)
    return first, same


def _first_of_each(same: Tensor) -> Tensor:
    """Return for each number the first place at which it is."""
    number = int(same.max()) + 1 if same.numel() else 0
    first = same.new_full((number,), len(same))
    return first.scatter_reduce_(0, same, torch.arange(len(same)), "amin")


def distinct_sets(seen: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sets without repetitions, and for each set the number that it has now.

    Args:
        seen: (L, n) or (2, n), as in `Term`.
        bounds: (2, n).
    """
    rows = bounds.T
    if seen.dtype == torch.uint8:  # 8 positions as one number
        words = seen.new_zeros((seen.shape[1], -(-len(seen) // 8) * 8))
        words[:, : len(seen)] = seen.T
        rows = torch.cat([rows, words.view(torch.int64)], 1)
    else:
        rows = torch.cat([rows, seen.T], 1)
    first, same = distinct(rows)
    if len(first) == len(same):
        return seen, bounds, torch.arange(len(same))
    return seen[:, first], bounds[:, first], same


def distinct_pairs(a: Tensor, b: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct pairs of the elements of two tensors, and which pair is at each place.

    Args:
        a: int64, any shape.
        b: int64, the same shape, from 0 to `number` - 1.
        number: Number of values of b.
    """
    codes = a * number + b
    total = (int(a.max()) + 1) * number if a.numel() else 0
    if total <= _PAIRS:
        present = torch.zeros(total, dtype=torch.bool)
        present[codes.flatten()] = True
        pairs = present.nonzero()[:, 0]
        numbers = present.cumsum(0) - 1
        same = numbers[codes]
    else:
        pairs, same = codes.unique(return_inverse=True)
    return pairs // number, pairs % number, same
