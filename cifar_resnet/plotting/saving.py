"""Figures written to files, whole or not at all. It must not know what is drawn."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_resnet import arguments
from cifar_resnet.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


def check_save_path(path: str | Path) -> None:
    """Raise if a figure cannot be written there: before the work, not after it."""
    from matplotlib.backend_bases import FigureCanvasBase

    path = arguments.path("save_path", path)
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ValueError(
            f"save_path must end with a picture format, one of {', '.join(sorted(known))}, but is "
            f"{str(path)!r}."
        )
    if path.is_dir():
        raise IsADirectoryError(f"save_path {str(path)!r} is a folder; give a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder of save_path {str(path)!r} does not exist; make it first."
        )
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise PermissionError(f"save_path {str(path)!r} cannot be written: {error}") from error


def save_figure(fig: Figure | SubFigure, path: str | Path, dpi: float) -> None:
    """Save the figure that `fig` is or belongs to."""
    path = Path(path).expanduser()
    with atomic_write(path) as temporary:
        fig.figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=dpi)
