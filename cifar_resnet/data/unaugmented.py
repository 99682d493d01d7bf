"""Read the images of a data module without augmentation."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from cifar_resnet.data.augment import Augmentation

if TYPE_CHECKING:
    from cifar_resnet.data.module import ImageDataModule


def unaugmented(module: ImageDataModule) -> ImageDataModule:
    """Return a copy of a module that returns its images in order, on the CPU, only normalized.

    The copy shares the images of the module.
    """
    module.prepare_data()
    module.setup()
    plain = copy.copy(module)
    plain.trainer, plain.device = None, torch.device("cpu")
    plain.augmentation = Augmentation(crop_padding=0, flip="none")
    plain.train_transforms = plain.val_transforms = plain.test_transforms = None
    return plain
