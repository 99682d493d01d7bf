"""The error figures at the end of a Lightning test. It knows trainers and loggers; finding and
drawing are done elsewhere.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only

from cifar_resnet import arguments
from cifar_resnet.data.reading import Source, as_source, with_metadata_of
from cifar_resnet.misclassified.diagrams import show_calibration, show_confusion_matrix
from cifar_resnet.misclassified.figures import check_options, show_misclassified
from cifar_resnet.misclassified.records import MisclassifiedSamples
from cifar_resnet.misclassified.scan import find_misclassified
from cifar_resnet.plotting.saving import save_figure

__all__ = ["LogMisclassified"]

_SCANNED = (
    "sort_by", "true_class", "pred_class", "batch_size", "class_names", "mean", "std", "seed",
)  # fmt: skip


class LogMisclassified(Callback):
    """Logs the misclassified images, the confusion matrix and the calibration after a test.

    At the end of `trainer.test` the test images go through the model once more, in the trainer's
    precision; each logger that takes figures (TensorBoard's does) gets "misclassified",
    "confusion_matrix" and "calibration". With several processes the first one does it alone.

    Args:
        n: Most errors to draw.
        save_dir: Folder to save misclassified.png, confusion_matrix.png and calibration.png in
            as well; None for none.
        options: Further arguments of `show_misclassified`, such as `method="layercam"`.

    Attributes:
        found: What `find_misclassified` gave at the last test; None before.

    Raises:
        TypeError: If an option is no argument of `show_misclassified`, one that the trainer gives
            (`data`, `device`, `fig`, `save_path`), or of the wrong type.
        ValueError: If an option is out of its range.
        NotADirectoryError: If `save_dir` is a file.

    Examples:
        >>> from pytorch_lightning import Trainer
        >>> from cifar_resnet import LogMisclassified
        >>> errors = LogMisclassified(n=10, method="hirescam")
        >>> trainer = Trainer(callbacks=[errors], logger=False)
    """

    def __init__(self, n: int = 25, *, save_dir: str | Path | None = None, **options: Any) -> None:
        check_options({"n": n, **options})
        self.n = n
        self.save_dir = arguments.path("save_dir", save_dir) if save_dir is not None else None
        if self.save_dir is not None and self.save_dir.exists() and not self.save_dir.is_dir():
            raise NotADirectoryError(f"save_dir {str(save_dir)!r} is a file; give a folder.")
        self.options = options
        self.found: MisclassifiedSamples | None = None

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        source = _test_source(trainer)
        scanned = {name: value for name, value in self.options.items() if name in _SCANNED}
        with trainer.precision_plugin.forward_context():
            self.found = find_misclassified(pl_module, source, n=self.n, **scanned)
        drawn = {name: value for name, value in self.options.items() if name not in _SCANNED}
        figures = {
            "misclassified": show_misclassified(pl_module, self.found, n=self.n, **drawn),
            "confusion_matrix": show_confusion_matrix(self.found),
            "calibration": show_calibration(self.found),
        }
        if self.save_dir is not None:
            self.save_dir.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            if self.save_dir is not None:
                save_figure(figure, self.save_dir / f"{name}.png", dpi=150)
            for logger in trainer.loggers:
                add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)
                if add_figure is not None:
                    add_figure(name, figure, global_step=trainer.global_step)


def _test_source(trainer: Trainer) -> Source:
    """The samples that the test has just seen: all of them, unless batches were limited."""
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
