"""Record what the network makes of every training image, from the batches it is trained on."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from cifar_resnet.history.batches import (
    Images,
    ScoreHook,
    check_labels,
    find_images,
    index_of,
    labels_of,
)
from cifar_resnet.history.history import ImageHistory, as_file, names_of_classes
from cifar_resnet.history.store import ValueStore, gathered
from cifar_resnet.training.classifier import ImageClassifier

__all__ = ["TrainingHistory"]

_log = logging.getLogger(__name__)


class TrainingHistory(Callback):
    """Record the loss, margin and prediction of every training image in every epoch.

    The values come from the scores that the training computes anyway, without additional forward
    passes: they are those of the augmented image, before the optimizer step of its batch.
    Weights, random numbers and logged values are the same with and without the callback. The
    scores stay on the device until the end of the epoch or a checkpoint.

    Checkpoints contain the history, so that a resumed run continues it, also within an epoch. It
    is refused if the run has other images or labels, or another seed. Several processes combine
    their values at the end of each epoch and for each checkpoint.

    The training loader must be one of `ImageDataModule`, without `mix`; or its batches must be
    mappings with the positions of the samples in the dataset, an integer tensor (B,) called
    "index". Labels must be class indices (B,). With several values of an image in an epoch, as with
    `sampling="balanced"`, the last one is kept.

    Args:
        path: File to write the history to at the end of the run, ending in `.npz`; its folder is
            created if it does not exist. If None, it is not written.
        scores_from: Name of the submodule whose output are the class scores (B, classes), or an
            object with the attribute `logits`. It must be called once in each training step. If
            None, the module must be an `ImageClassifier`.

    Attributes:
        history: The values recorded so far, as an `ImageHistory`.

    Raises:
        TypeError: If an argument has the wrong type; at the start of training, if there are several
            training loaders, or a loader without a dataset of known length.
        ValueError: If `path` does not end in `.npz`; at the start of training or with its first
            batch, if the images of a batch, their labels or their scores cannot be known, or a
            checkpoint belongs to a run with other data.

    Examples:
        >>> from pytorch_lightning import Trainer
        >>> from cifar_resnet import CIFAR10DataModule, CustomResNet, ImageClassifier
        >>> from cifar_resnet import TrainingHistory
        >>> recorder = TrainingHistory()
        >>> trainer = Trainer(
        ...     max_epochs=2, callbacks=[recorder], logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False,
        ... )
        >>> data = CIFAR10DataModule(subset=100, batch_size=50, val_split=0)
        >>> trainer.fit(ImageClassifier(CustomResNet(width=1)), data)
        >>> recorder.history
        <ImageHistory: 100 images, 2 epochs, 10 classes>
    """

    def __init__(self, path: str | Path | None = None, *, scores_from: str | None = None) -> None:
        self.path = None if path is None else as_file(path)
        if scores_from is not None and not isinstance(scores_from, str):
            raise TypeError(
                "scores_from must be the name of a submodule, such as 'model', but got "
                f"{scores_from!r}."
            )
        self.scores_from = scores_from
        self._images: Images | None = None
        self._loader: Any = None
        self._store: ValueStore | None = None
        self._classes = 0
        self._loader_epoch = 0
        self._hook: ScoreHook | None = None
        self._trainer: Trainer | None = None  # of the run that is recorded
        self._last_trainer: Trainer | None = None
        self._restored: dict[str, Any] | None = None  # for the start of training
        self._is_distributed = False

    @property
    def history(self) -> ImageHistory:
        if self._images is None or self._store is None:
            raise RuntimeError(
                "Nothing is recorded yet: pass the callback to Trainer(callbacks=[...]) and call "
                "trainer.fit first."
            )
        if not self._is_distributed:
            self._enter()
        loss, margin, prediction = self._store.values
        images = self._images
        return ImageHistory(
            loss.copy(), margin.copy(), prediction.copy(), images.indices, images.labels.copy(),
            images.clean_labels, names_of_classes(images.class_names, self._classes),
            dict(images.data),
        )  # fmt: skip

    # --- the run ----------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(
                "TrainingHistory is a callback of pytorch_lightning, but the trainer is a "
                f"{type(trainer).__module__.partition('.')[0]}.Trainer. Import everything from "
                "pytorch_lightning: `import pytorch_lightning as pl`, then pl.Trainer(...)."
            )
        if stage != "fit":
            return
        if self._trainer is not None and self._trainer is not trainer:
            raise RuntimeError(
                "This TrainingHistory already records a run of another trainer. Create one for "
                "each trainer."
            )
        if self.scores_from is None and not isinstance(pl_module, ImageClassifier):
            names = ", ".join(repr(name) for name, _ in pl_module.named_children())
            raise ValueError(
                f"TrainingHistory does not know where {type(pl_module).__name__} computes the "
                "class scores. Pass scores_from, the name of the submodule that returns them; it "
                f"has {names or 'no submodules'}."
            )
        self._hook = None if self.scores_from is None else ScoreHook(pl_module, self.scores_from)
        if self.path is not None and trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images, restored, self._restored = find_images(trainer), self._restored, None
        before = self._images
        if restored is not None:
            check_same(restored, images)
            self._store = ValueStore(len(images.indices))
            loss, margin, prediction = (values.numpy().copy() for values in restored["values"])
            self._store.values = loss, margin, prediction
            images.labels[:] = restored["labels"].numpy()
            self._classes = restored["classes"]
        elif before is not None and trainer is self._last_trainer and trainer.current_epoch:
            check_same(self._state(), images)
            images.labels[:] = before.labels
        else:
            self._store, self._classes = ValueStore(len(images.indices)), 0
            if trainer.global_step:
                _log.warning(
                    "The checkpoint contains no history of the images: their values before step "
                    "%d are unknown, and NaN.", trainer.global_step,
                )  # fmt: skip
        self._images, self._loader = images, trainer.train_dataloader
        self._trainer = self._last_trainer = trainer
        self._is_distributed = trainer.world_size > 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.train_dataloader is not self._loader:  # reload_dataloaders_every_n_epochs
            images = find_images(trainer)
            check_same(self._state(), images)
            assert self._images is not None
            images.labels[:] = self._images.labels
            self._images, self._loader = images, trainer.train_dataloader

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self._images is not None
        if self._images.rows is None:
            index_of(batch)
        if self._hook is not None:
            labels_of(batch)
            self._hook.start()
        elif isinstance(pl_module, ImageClassifier):
            pl_module.step_scores = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._images is not None
        assert self._store is not None
        if self._hook is not None:
            labels = labels_of(batch)
            scores = self._hook.finish(len(labels))
        else:
            assert isinstance(pl_module, ImageClassifier)
            if pl_module.step_scores is None:
                raise ValueError(
                    f"{type(pl_module).__name__}.training_step does not call that of "
                    "ImageClassifier, so TrainingHistory does not know the scores. Pass "
                    "scores_from='network'."
                )
            scores = pl_module.step_scores[0]
            labels = check_labels(pl_module.step_scores[1])
        self._classes = scores.shape[1]
        self._loader_epoch = self._images.epoch()
        self._store.epoch = trainer.current_epoch
        index = index_of(batch) if self._images.rows is None else None
        self._store.add(batch_idx, scores, labels, index)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hook()
        self._enter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hook()
        self._enter()
        self._trainer, self._is_distributed = None, False
        if self.path is not None and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.history.save(self.path)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._remove_hook()
        if self._trainer is trainer and not self._is_distributed:
            with contextlib.suppress(Exception):  # the device may have failed
                self._enter()
        self._trainer, self._is_distributed = None, False

    # --- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self._store is None or self._images is None:
            return self._restored or {}
        self._enter()
        return self._state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None

    # --- parts ------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Enter the values of the batches since the last call; all processes call this at once."""
        assert self._images is not None
        assert self._store is not None
        seen = self._store.take()
        if seen is not None:
            seen = seen._replace(row=self._images.locate(seen, self._loader_epoch))
        if self._is_distributed:
            seen = gathered(seen)
        if seen is not None and seen.row is not None:
            self._images.check(seen.row, seen.label)
            self._store.enter(seen.row, seen)

    def _state(self) -> dict[str, Any]:
        assert self._images is not None
        assert self._store is not None
        return {
            "values": [torch.from_numpy(values.copy()) for values in self._store.values],
            "labels": torch.from_numpy(self._images.labels.copy()),
            "classes": self._classes,
            "data": self._images.data,
        }

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()


def check_same(state: dict[str, Any], images: Images) -> None:
    """Raise a ValueError if a saved state belongs to other images."""
    saved, own = state["data"], images.data
    differences = [
        f"{name} is {saved.get(name)!r} instead of {own.get(name)!r}"
        for name in {**saved, **own}
        if saved.get(name) != own.get(name)
    ]
    sizes = len(state["labels"]), len(images.labels)
    if sizes[0] != sizes[1]:
        differences.append(f"the number of images is {sizes[0]} instead of {sizes[1]}")
    known = state["labels"].numpy(), images.labels
    if not differences and np.any((known[0] != known[1]) & (known[0] >= 0) & (known[1] >= 0)):
        differences.append("the labels differ")
    if differences:
        raise ValueError(
            f"The history in the checkpoint belongs to a run with other data: "
            f"{'; '.join(differences)}. Resume with the data of that run, or leave out "
            "TrainingHistory to continue without a history."
        )
