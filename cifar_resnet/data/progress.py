"""Show the progress of a download."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm

from cifar_resnet.data.transfer import Source, Transfer

__all__ = ["DownloadBar"]

_log = logging.getLogger(__name__)


class DownloadBar:
    """A progress bar with the source, its speed and the remaining time."""

    def __init__(self, progress: bool) -> None:
        self._progress = progress
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> DownloadBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, source: Source, transfer: Transfer) -> None:
        """Draw the state of a transfer."""
        speed, left = transfer.meter.speed(), transfer.left()
        if self._bar is None:
            self._bar = tqdm(
                unit_scale=True,
                disable=not self._progress,
                bar_format="{desc}{percentage:3.0f}% |{bar}| {n_fmt}B/{total_fmt}B{postfix}",
            )
        bar, remaining = self._bar, f"{left / speed:.0f} s left" if speed else "waiting"
        bar.total = source.archive.size
        bar.set_description(f"{source.archive.name} from {source.name}", refresh=False)
        bar.set_postfix_str(f"{speed / 1e6:.2f} MB/s, {remaining}", refresh=False)
        bar.update(source.archive.size - left - bar.n)

    def end(self, source: Source, seconds: float) -> None:
        """Say where the archive came from."""
        message = (
            f"Downloaded {source.archive.name} from {source.name} in {seconds:.0f} s; "
            "its SHA-256 is correct."
        )
        _log.info(message)
        if self._progress:
            tqdm.write(message, file=sys.stderr)
