"""Release the memory of a data module after a run, and resume its training loader."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningDataModule

from cifar_resnet.data.datasets import ResidentImages
from cifar_resnet.data.loaders import EpochCounter, PerSampleLoader, ResidentLoader

__all__ = ["ResumableDataModule"]


class ResumableDataModule(LightningDataModule):
    """Data module with device-resident images and a training loader that can be resumed."""

    def __init__(self) -> None:
        super().__init__()
        self._resident: dict[Any, ResidentImages] = {}
        self._epochs = EpochCounter()  # shared by all training loaders
        self._resume_at: dict[str, int] | None = None  # position of the next training loader

    def teardown(self, stage: str | None = None) -> None:
        """Free the images on the device; loaders store them again when they are used."""
        for images in self._resident.values():
            images.release()
        self._resident = {}
        self._resume_at = None

    def on_exception(self, exception: BaseException) -> None:
        """Free the images on the device as `teardown` does, which a failed run does not call."""
        self.teardown()

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the trainer's training loader."""
        # Lightning saves it with the loader as well, but does not restore it there if
        # `configure_optimizers` asks for the number of steps.
        loader = self.trainer.train_dataloader if self.trainer is not None else None
        if isinstance(loader, ResidentLoader | PerSampleLoader):
            return {"train": loader.state_dict()}
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start the next training loader at the saved position, unless `teardown` comes first."""
        self._resume_at = state_dict.get("train")

    def __getstate__(self) -> dict[str, Any]:
        # Copies exclude the trainer and the images on the device.
        return self.__dict__ | {"trainer": None, "_resident": {}, "_resume_at": None}

    def _resume(self, loader: Any) -> None:
        """Set a new training loader to the position of the checkpoint, if there is one."""
        if self._resume_at is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(self._resume_at)
        self._resume_at = None
