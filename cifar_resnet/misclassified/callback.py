"""Log the figures of errors at the end of a Lightning test."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only

from cifar_resnet import arguments
from cifar_resnet.misclassified.cams import CamOptions
from cifar_resnet.misclassified.collector import ScanOptions
from cifar_resnet.misclassified.figures import FigureOptions, check_drawable, draw_all
from cifar_resnet.misclassified.records import MisclassifiedSamples
from cifar_resnet.misclassified.scan import scan
from cifar_resnet.misclassified.tested import TestedSamples, flattened
from cifar_resnet.plotting.loggers import log_figures
from cifar_resnet.plotting.saving import save_figures

__all__ = ["LogMisclassified"]

_SCAN = tuple(field.name for field in fields(ScanOptions) if field.name != "device")
_CAMS = ("method", "target_layers", "reshape_transform")
_FIGURE = ("cam", "alpha", "cmap", "top_k", "columns", "figsize")


class LogMisclassified(Callback):
    """Log the misclassified images, the confusion matrix and the calibration after a test.

    At the end of `trainer.test`, the tested images pass through the model once more, in the
    trainer's precision: those that `limit_test_batches` or `fast_dev_run` leaves. A loader in
    the order of its dataset, or one that shuffles all of it, is read a second time. With any other
    order, and if the model or the data module changes batches on the way to the device, the tested
    batches are kept in main memory until the end of the test. The indices of such samples are
    known only if the order is that of the dataset. With several processes, only the first one does
    this, for the complete test set if it is read a second time, and for its own batches otherwise.

    Each logger receives "misclassified", "confusion_matrix" and "calibration": TensorBoard, W&B,
    MLflow, Comet and Neptune as images; others, such as the CSV logger, as PNG files in the folder
    of their log, unless `save_dir` names another folder. With several test loaders, there are
    figures for each of them, and their names end in "/dataloader_idx_0" and so on.

    Options, loader, first batch and class activation maps are checked before the test begins, or
    at its first batch if the loader is not read twice. A later failure is reported as a warning, so
    that `trainer.test` returns its results in any case.

    Args:
        n: Maximum number of errors to draw.
        save_dir: Folder to save misclassified.png, confusion_matrix.png and calibration.png in.
            If None, they are not saved.
        options: Other arguments of `show_misclassified`, such as `method="layercam"`.

    Attributes:
        found: Result of `find_misclassified` for the last test, and its first loader. None before
            the first test.
        all_found: Results for all loaders of the last test.

    Raises:
        TypeError: If an option is not an argument of `show_misclassified`, is determined by the
            trainer (`data`, `device`, `fig`), or has the wrong type.
        ValueError: If an option is out of its range. At the start of a test: if the samples cannot
            be analyzed or displayed, or the loaders are combined in another mode than "sequential".
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
        self.all_found: tuple[MisclassifiedSamples, ...] = ()
        self._tested: list[TestedSamples] = []

    @property
    def found(self) -> MisclassifiedSamples | None:
        return self.all_found[0] if self.all_found else None

    @rank_zero_only
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mode = trainer.test_loop._combined_loader._mode  # type: ignore[union-attr]
        if mode != "sequential":
            raise ValueError(
                "LogMisclassified analyzes test loaders one after the other, but they are combined "
                f"with the mode {mode!r}. Pass them to trainer.test as a list."
            )
        self.all_found = ()
        loaders = flattened(trainer.test_dataloaders)
        self._tested = [
            TestedSamples(loader, batches, trainer)
            for loader, batches in zip(loaders, trainer.num_test_batches, strict=True)
        ]
        for samples in self._tested:
            if samples.recorded is None:
                self._check(samples, trainer, pl_module)

    @rank_zero_only
    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        samples = self._tested[dataloader_idx]
        samples.record(batch)
        if batch_idx == 0 and samples.recorded is not None:
            self._check(samples, trainer, pl_module)

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tested, self._tested = self._tested, []
        try:
            with trainer.precision_plugin.forward_context():
                self.all_found = tuple(
                    scan(pl_module, samples.source, self.options.n, self.options.scan)
                    for samples in tested
                )
            for number, found in enumerate(self.all_found):
                suffix = f"/dataloader_idx_{number}" if len(tested) > 1 else ""
                self._log(trainer, pl_module, found, suffix)
        except Exception as error:  # loggers raise errors of their own packages
            warnings.warn(
                "LogMisclassified could not analyze the errors of this test: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )

    def _check(self, samples: TestedSamples, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise if the first batch cannot be analyzed or displayed."""
        with warnings.catch_warnings(), trainer.precision_plugin.forward_context():
            warnings.simplefilter("ignore")  # they are issued once, after the test
            scan(pl_module, samples.first_batch(), 1, self.options.scan)
            check_drawable(pl_module, samples.first_batch(), self.options)

    def _log(
        self, trainer: Trainer, pl_module: LightningModule, found: MisclassifiedSamples, suffix: str
    ) -> None:
        drawn = draw_all(pl_module, found, self.options)
        figures = {f"{name}{suffix}": figure for name, figure in drawn.items()}
        if self.save_dir is not None:
            save_figures(figures, self.save_dir)
        for logger in trainer.loggers:
            log_figures(logger, figures, trainer.global_step, files=self.save_dir is None)
