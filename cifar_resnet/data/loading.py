"""Create the loaders of a data module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from cifar_resnet import arguments
from cifar_resnet.data.augment import Augmentation, ImageBank
from cifar_resnet.data.datasets import PerSampleImages, ResidentImages
from cifar_resnet.data.image_indices import digest
from cifar_resnet.data.loaders import PerSampleLoader, ResidentLoader, augmentation_keys
from cifar_resnet.data.metadata import Metadata, normalization
from cifar_resnet.data.mixing import Mixing, check_mix
from cifar_resnet.data.order import BatchOrder
from cifar_resnet.data.origin import Origin, described
from cifar_resnet.data.sampling import BalancedOrder, WeightedOrder
from cifar_resnet.data.splits import SplitDataModule
from cifar_resnet.data.transforms import TransformChecks

__all__ = ["LoadingDataModule", "Transform"]

Transform = Callable[[Any], Any]


class LoadingDataModule(SplitDataModule):
    """Load the splits in batches; `ImageDataModule` sets the options below.

    They may be changed at any time and are used by the next loader.
    """

    batch_size: int
    num_workers: int
    seed: int
    shuffle: bool
    pin_memory: bool
    persistent_workers: bool
    drop_last: bool
    augmentation: Augmentation
    train_transforms: Transform | None
    val_transforms: Transform | None
    test_transforms: Transform | None
    device: torch.device
    sampling: str
    sample_weights: NDArray[np.float64] | None
    mix: str | None
    mix_alpha: float
    mix_probability: float
    _checks: TransformChecks

    # --- Lightning's hooks ----------------------------------------------------------------------

    def train_dataloader(self) -> ResidentLoader | PerSampleLoader | DataLoader[Any]:
        """Return the training loader.

        In your own loop each iteration is the next epoch, with a new order and new augmentation.
        This also holds across loaders: a new loader continues with the next epoch. A Trainer sets
        the epoch itself.
        """
        loader = self._loader("train", self.train_transforms)
        self._resume(loader)
        return loader

    def val_dataloader(self) -> Any:
        """Return the validation loader, or an empty list if no images are held out."""
        return self._loader("val", self.val_transforms) if self._selection.sizes[1] else []

    def test_dataloader(self) -> Any:
        """Return the loader of the test images, in their order, or an empty list without any."""
        return self._loader("test", self.test_transforms) if self._selection.test_size else []

    def predict_dataloader(self) -> Any:
        """Return the loader of the test images, in their order, or an empty list without any."""
        return self.test_dataloader()

    # --- single images --------------------------------------------------------------------------

    def augmented(self, index: int, epoch: int) -> Any:
        """Return a training image exactly as the training loader returns it in an epoch.

        Args:
            index: Index of the image in the dataset, one of `indices()`.
            epoch: Number of the epoch, at least 0. If it contains the image several times, because
                of `sampling` or `sample_weights`, the image is that of the last time.

        Returns:
            The augmented and normalized image, float32 (C, H, W); or what `train_transforms`
            return.

        Raises:
            TypeError: If an argument is not an integer.
            IndexError: If the training does not use this image.
            ValueError: If `epoch` is less than 0.
            RuntimeError: If `setup` was not called.

        Examples:
            >>> from cifar_resnet import CIFAR10DataModule
            >>> data = CIFAR10DataModule()
            >>> data.prepare_data()
            >>> data.setup()
            >>> data.augmented(28426, epoch=3).shape
            torch.Size([3, 32, 32])
        """
        epoch = arguments.integer("epoch", epoch, minimum=0)
        if not arguments.is_integer(index):
            raise TypeError(f"index must be an integer, but got {index!r}.")
        samples = self.indices("train")
        rows = np.flatnonzero(samples == index)
        if not len(rows):
            raise IndexError(
                f"index must be that of one of the {len(samples)} training images, which "
                f"indices() returns, but got {index}."
            )
        row, labels = int(rows[0]), self.labels("train")
        order = self._order(labels, samples, batch_size=1, shuffle=False, drop_last=False)
        repeats = 0
        if type(order) is not BatchOrder:
            repeats = max(int((order.permutation(epoch) % len(samples) == row).sum()) - 1, 0)
        images = self._images("train")
        if self.train_transforms is not None:
            dataset = PerSampleImages(
                images, labels, samples, self.train_transforms, seed=self.seed
            )
            return dataset.items([(epoch, row + repeats * len(samples))])[0][0]
        bank = ImageBank(images[[row]], self.mean, self.std, augmentation=self.augmentation)
        total = len(self._given_labels("train"))
        drawn = self.augmentation.draw(total, bank.size, seed=self.seed, epoch=epoch)
        parameters = drawn.take(augmentation_keys(samples[rows], repeats, total))
        return bank.batch(np.zeros(1, dtype=np.intp), parameters)[0].contiguous()

    # --- parts ----------------------------------------------------------------------------------

    def _order(
        self, labels: NDArray[np.int64], samples: NDArray[np.intp], **options: Any
    ) -> BatchOrder:
        """Return the batches of training images."""
        if self.sampling == "balanced":
            return BalancedOrder(labels, **options, seed=self.seed)
        if self.sample_weights is not None:
            return WeightedOrder(self._weights_of(samples), **options, seed=self.seed)
        return BatchOrder(len(samples), **options, seed=self.seed)

    def _loader(
        self, subset: str, transform: Transform | None
    ) -> ResidentLoader | PerSampleLoader | DataLoader[Any]:
        labels, samples = self.labels(subset), self.indices(subset)
        trainer = self.trainer
        overfit = trainer is not None and bool(getattr(trainer, "overfit_batches", 0))
        training = subset == "train"
        varies = training and not overfit  # `overfit_batches` repeats the same few batches
        batches: dict[str, Any] = {
            "batch_size": arguments.integer("batch_size", self.batch_size, minimum=1),
            "shuffle": self.shuffle and varies,
            "drop_last": self.drop_last and training,
            "rank": trainer.global_rank if trainer is not None else None,
            "world_size": trainer.world_size if trainer is not None else None,
        }
        order = (
            self._order(labels, samples, **batches)
            if varies
            else BatchOrder(len(samples), **batches, seed=self.seed)
        )
        mixing = self._mixing() if varies else None
        counter = self._epochs if training else None
        metadata = Metadata(
            tuple(self.classes),
            (self.mean, self.std) if transform is None else normalization(transform),
            self._set.suspects if subset == "test" else frozenset(),
        )
        if transform is None:
            resident = self._resident_images(subset, labels, samples, metadata)
            self._checks.check(subset, None, lambda: [resident[0][0]])
            resident.origin = self._origin_of_images() if training else None
            return ResidentLoader(
                resident,
                len(self._given_labels(subset)),
                order,
                seed=self.seed,
                counter=counter,
                mixing=mixing,
            )
        dataset = PerSampleImages(
            self._images(subset), labels, samples, transform, seed=self.seed, metadata=metadata
        )
        self._checks.check(subset, transform, dataset.first)
        dataset.origin = self._origin_of_images() if training else None
        on_gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        options: dict[str, Any] = {
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory and on_gpu,
            "persistent_workers": self.persistent_workers and self.num_workers > 0,
        }
        if overfit:
            # Lightning replaces any sampler except a sequential one here
            return DataLoader(dataset, batch_size=self.batch_size, **options)
        return PerSampleLoader(dataset, order, counter, mixing, **options)

    def _origin_of_images(self) -> Origin:
        """Describe the training images, for a record of the training."""
        images = self._set  # not self, which would be a reference cycle
        transform = described(self.train_transforms)
        augmentation = asdict(self.augmentation) if transform is None else {}
        options = self._selection.state() | self._noise.state() | augmentation
        options |= {"train_transforms": transform, "sampling": self.sampling, "seed": self.seed}
        options |= {"sample_weights": digest(self.sample_weights)}
        return Origin(lambda: images.fingerprint, options, self.labels("train", clean=True))

    def _weights_of(self, samples: NDArray[np.intp]) -> NDArray[np.float64]:
        assert self.sample_weights is not None
        weights = self.sample_weights[samples]
        if not weights.any():
            raise ValueError(
                f"sample_weights are 0 for all {len(samples)} training images. Pass a weight "
                "greater than 0 for at least one of them."
            )
        return weights

    def _data_state(self) -> dict[str, Any]:
        return super()._data_state() | {"sample_weights": digest(self.sample_weights)}

    def _mixing(self) -> Mixing | None:
        if self.mix is None:
            return None
        options = self.mix, self.mix_alpha, self.mix_probability
        check_mix(*options)  # they may have been changed
        return Mixing(*options, self.num_classes, self.seed)

    def _resident_images(
        self, subset: str, labels: NDArray[np.int64], samples: NDArray[np.intp], metadata: Metadata
    ) -> ResidentImages:
        """Return the subset's images on the trainer's device, cached because loaders are
        re-created often.
        """
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer is not None else self.device
        augmentation = self.augmentation if subset == "train" else None
        key = (subset, device, augmentation)
        if key not in self._resident:
            for other in [other for other in self._resident if other[0] == subset]:
                self._resident.pop(other).release()
            self._resident[key] = ResidentImages(
                self._images(subset), labels, samples, (self.mean, self.std),
                augmentation=augmentation, device=device, metadata=metadata,
            )  # fmt: skip
        self._resident[key].stored()  # rather than when the first batch is taken
        return self._resident[key]
