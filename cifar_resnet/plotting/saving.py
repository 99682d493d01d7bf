"""Write figures to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_resnet.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """Save each figure as NAME.png in a folder; it and folders in a name are created if needed."""
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path, dpi: float = 150) -> None:
    """Save a figure atomically: after a failure, a file that was at `path` is unchanged.

    Args:
        figure: Figure to save.
        path: File to write; its suffix determines the format.
        dpi: Dots per inch.

    Raises:
        ValueError: If Matplotlib cannot write this format.
        OSError: If the file cannot be written.
    """
    path = Path(path).expanduser()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=dpi)
