"""Show the progress of a long scan."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

_DELAY = 2.0  # seconds before the bar appears


@contextlib.contextmanager
def progress_bar(
    size: int | None, limit: int | None, *, show: bool
) -> Iterator[Callable[[int], object]]:
    """Yield a function to call with the number of samples that were processed.

    Args:
        size: Number of samples in the data, if known.
        limit: Maximum number of samples to process, if limited.
        show: If True, show a bar where a person sees it, in a terminal or a notebook.
    """
    if not (show and _is_watched()):
        yield lambda count: None
        return
    from tqdm import tqdm

    numbers = [number for number in (size, limit) if number is not None]
    with tqdm(
        total=min(numbers, default=None), unit=" images", delay=_DELAY, leave=False, miniters=1
    ) as bar:
        yield bar.update


def _is_watched() -> bool:
    """Return whether stderr is a terminal or belongs to a notebook."""
    stream = sys.stderr
    return stream is not None and (
        stream.isatty() or type(stream).__module__.startswith("ipykernel.")
    )
