"""Refuse, before long work, data that need more memory than there is."""

from __future__ import annotations

from pathlib import Path

__all__ = ["check_memory"]

_LARGE = 1 << 28  # bytes; less than that is not worth a look
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")  # the limits of a container


def check_memory(needed: int, what: str) -> None:
    """Raise a MemoryError if `needed` bytes are not available. `what` names what needs them.

    Without Linux the available memory is not known, and nothing is checked.
    """
    if needed < _LARGE:
        return
    available = _available()
    if available is not None and needed > available:
        raise MemoryError(
            f"{what} need {needed:,} bytes of memory, but only {available:,} bytes are available. "
            "Use smaller or fewer images, or a DataLoader that reads each image when it is needed."
        )


def _available() -> int | None:
    """Return the number of bytes that can be allocated, None if it is not known."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        limits = [int(lines["MemAvailable"].split()[0]) * 1024]
    except (OSError, ValueError, KeyError):
        return None
    try:
        most, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        limits.append(most - used)
    except (OSError, ValueError):  # no such limit
        pass
    return max(min(limits), 0)
