"""Mix the images and labels of a batch in pairs: MixUp and CutMix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cifar_resnet import arguments

__all__ = ["MIXES", "Mixing", "check_mix"]

MIXES = ("mixup", "cutmix", "both")
_MIXING_STREAM = 5


@dataclass(frozen=True)
class Mixing:
    """Mix each image of a batch with another one, and their labels with the same weights.

    MixUp is a weighted mean of two images (Zhang et al., "mixup: Beyond Empirical Risk
    Minimization", ICLR 2018). CutMix replaces a rectangle by that of the other image (Yun et al.,
    "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV
    2019). All images of a batch have the same weight and rectangle. The random numbers of a batch
    depend only on seed, epoch, batch and rank.

    Args:
        kind: `"mixup"`, `"cutmix"`, or `"both"`, which chooses one of the two for each batch.
        alpha: Parameter of the beta distribution of the weight.
        probability: Probability that a batch is mixed.
        num_classes: Number of classes.
        seed: Random seed.
    """

    kind: str
    alpha: float
    probability: float
    num_classes: int
    seed: int

    def __call__(
        self, images: Tensor, labels: Tensor, epoch: int, batch: int, rank: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the mixed images and their class probabilities.

        Args:
            images: Floating-point images (B, C, H, W); may be overwritten.
            labels: Class indices (B,).
            epoch: Number of the epoch.
            batch: Number of the batch in the epoch.
            rank: Number of this process.

        Returns:
            Images (B, C, H, W) and float32 probabilities (B, num_classes).
        """
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
            got = (
                f"{images.dtype} of shape {tuple(images.shape)}"
                if isinstance(images, Tensor)
                else type(images).__name__
            )
            raise TypeError(
                f"mix={self.kind!r} needs batches of floating-point images (B, C, H, W), but the "
                f"train_transforms return {got}. Let them end with "
                "CIFAR10DataModule.default_transforms(), or use mix=None."
            )
        classes = torch.arange(self.num_classes, device=labels.device)
        targets = (labels[:, None] == classes).float()  # (B, num_classes)
        rng = np.random.default_rng([self.seed, _MIXING_STREAM, epoch, batch, rank])
        # All numbers are drawn for each batch, so that one option does not change the others.
        chance, choice, y, x = rng.random(4)
        shift = int(rng.integers(1, max(len(images), 2))) % len(images)
        weight = float(rng.beta(self.alpha, self.alpha))
        if not shift or chance >= self.probability:
            return images, targets
        if self.kind == "mixup" or (self.kind == "both" and choice < 0.5):
            return mix_up(images, targets, weight, shift)
        height, width = images.shape[-2:]
        return cut_mix(images, targets, weight, shift, (int(y * height), int(x * width)))


def mix_up(images: Tensor, targets: Tensor, weight: float, shift: int) -> tuple[Tensor, Tensor]:
    """Return `weight` times each image, plus 1 - `weight` times the one `shift` rows before it."""
    return _blended(images, weight, shift), _blended(targets, weight, shift)


def cut_mix(
    images: Tensor, targets: Tensor, weight: float, shift: int, center: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Replace a rectangle of each image by that of the image `shift` rows before it, in place.

    The rectangle has 1 - `weight` of the area, less what is outside the image. The weights of the
    labels are the areas.
    """
    height, width = images.shape[-2:]
    half = 0.5 * math.sqrt(1 - weight)
    top, bottom = _interval(center[0], int(half * height), height)
    left, right = _interval(center[1], int(half * width), width)
    box = images[..., top:bottom, left:right]
    box.copy_(_shifted(box, shift))
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return images, _blended(targets, kept, shift)


def _interval(center: int, half: int, size: int) -> tuple[int, int]:
    return max(center - half, 0), min(center + half, size)


def _blended(values: Tensor, weight: float, shift: int) -> Tensor:
    return _shifted(values, shift).mul_(1 - weight).add_(values, alpha=weight)


def _shifted(values: Tensor, shift: int) -> Tensor:
    # not `roll`, which loses the channels_last memory format
    return torch.cat([values[-shift:], values[:-shift]])


def check_mix(mix: str | None, alpha: float, probability: float) -> None:
    """Validate the arguments of a data module."""
    arguments.choice("mix", mix, (None, *MIXES))
    arguments.number("mix_alpha", alpha, arguments.POSITIVE)
    arguments.number("mix_probability", probability, arguments.FRACTION)
    if mix is None and (alpha, probability) != (1, 1):
        raise ValueError(
            f"mix_alpha={alpha} and mix_probability={probability} have no effect, because mix is "
            "None. Pass mix='mixup', mix='cutmix' or mix='both'."
        )
