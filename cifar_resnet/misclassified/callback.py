"""Log the figures of errors at the end of a Lightning test."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only

from cifar_resnet import arguments
from cifar_resnet.data.reading import Source, as_source, with_metadata_of
from cifar_resnet.misclassified.cams import CamOptions
from cifar_resnet.misclassified.figures import FigureOptions, draw_all
from cifar_resnet.misclassified.records import MisclassifiedSamples
from cifar_resnet.misclassified.scan import ScanOptions, scan
from cifar_resnet.plotting.saving import save_figures

__all__ = ["LogMisclassified"]

_SCAN = tuple(field.name for field in fields(ScanOptions) if field.name != "device")
_CAMS = ("method", "target_layers", "reshape_transform")
_FIGURE = ("cam", "alpha", "cmap", "top_k", "columns", "figsize")


class LogMisclassified(Callback):
    """Log the misclassified images, the confusion matrix and the calibration after a test.

    At the end of `trainer.test`, the test images pass through the model once more, in the trainer's
    precision. Each logger that accepts figures, such as TensorBoard's, receives "misclassified",
    "confusion_matrix" and "calibration". With several processes, only the first one does this, for
    the complete test set.

    Args:
        n: Maximum number of errors to draw.
        save_dir: Folder to save misclassified.png, confusion_matrix.png and calibration.png in.
            If None, they are not saved.
        options: Other arguments of `show_misclassified`, such as `method="layercam"`.

    Attributes:
        found: Result of `find_misclassified` for the last test. None before the first test.

    Raises:
        TypeError: If an option is not an argument of `show_misclassified`, is determined by the
            trainer (`data`, `device`, `fig`), or has the wrong type.
        ValueError: If an option is out of its range.
        NotADirectoryError: If `save_dir` is a file.

    Examples:
        >>> from pytorch_lightning import Trainer
        >>> from cifar_resnet import LogMisclassified
        >>> errors = LogMisclassified(n=10, method="hirescam")
        >>> trainer = Trainer(callbacks=[errors], logger=False)
    """

    def __init__(self, n: int = 25, *, save_dir: str | Path | None = None, **options: Any) -> None:
        known = (*_SCAN, *_CAMS, *_FIGURE)
        for name in options:
            if name not in known:
                raise TypeError(f"There is no option {name!r}; there are n, {', '.join(known)}.")

        def select(names: tuple[str, ...]) -> dict[str, Any]:
            return {name: options[name] for name in names if name in options}

        self.options = FigureOptions(
            n=n,
            scan=ScanOptions(**select(_SCAN)),
            cams=CamOptions(**select(_CAMS)),
            **select(_FIGURE),
        )
        self.save_dir = arguments.path("save_dir", save_dir) if save_dir is not None else None
        if self.save_dir is not None and self.save_dir.exists() and not self.save_dir.is_dir():
            raise NotADirectoryError(f"save_dir {str(save_dir)!r} is a file; give a folder.")
        self.found: MisclassifiedSamples | None = None

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        source = _test_source(trainer)
        with trainer.precision_plugin.forward_context():
            self.found = scan(pl_module, source, self.options.n, self.options.scan)
        figures = draw_all(pl_module, self.found, self.options)
        if self.save_dir is not None:
            save_figures(figures, self.save_dir)
        for logger in trainer.loggers:
            add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)
            if add_figure is not None:
                for name, figure in figures.items():
                    add_figure(name, figure, global_step=trainer.global_step)


def _test_source(trainer: Trainer) -> Source:
    """Return the samples of the test: all of them, unless the trainer limits the batches."""
    loaders = trainer.test_dataloaders
    if isinstance(loaders, list | tuple):
        if len(loaders) != 1:
            raise ValueError(
                f"LogMisclassified draws the errors of one test loader, but there are "
                f"{len(loaders)}. Call show_misclassified for each of them instead."
            )
        loaders = loaders[0]
    source = as_source(loaders, batch_size=500)
    module = getattr(trainer, "datamodule", None)
    if module is not None:
        source = with_metadata_of(module, source)
    limit = trainer.num_test_batches[0] if trainer.limit_test_batches != 1.0 else None
    if limit is None:
        return source
    return replace(source, batches=lambda: itertools.islice(source.batches(), int(limit)))
