"""CIFAR-10 with a custom ResNet: independent pieces, and the 24-epoch training made of them.

Importing this package is cheap: each name loads its own piece, and torch with it, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "AtomicCheckpointIO",
    "AxisField",
    "CIFAR10DataModule",
    "Calibration",
    "CustomResNet",
    "DatasetError",
    "EffectiveReceptiveField",
    "ImageClassifier",
    "LabelSuspect",
    "LastCheckpoint",
    "LayerField",
    "LogMisclassified",
    "MisclassifiedSample",
    "MisclassifiedSamples",
    "PretrainedWeights",
    "ProbeReport",
    "ReceptiveFieldMismatchError",
    "ReceptiveFields",
    "Recipe",
    "check_receptive_field",
    "compute_cams",
    "effective_receptive_field",
    "find_misclassified",
    "label_suspects",
    "pretrained_weights",
    "receptive_field",
    "show_augmentations",
    "show_calibration",
    "show_class_samples",
    "show_confusion_matrix",
    "show_misclassified",
    "show_rgb_channels",
    "show_samples",
    "show_training_curves",
]

_HOMES = {
    "AtomicCheckpointIO": "cifar_resnet.checkpoints",
    "AxisField": "cifar_resnet.fields.records",
    "CIFAR10DataModule": "cifar_resnet.data.module",
    "Calibration": "cifar_resnet.errors.records",
    "CustomResNet": "cifar_resnet.network",
    "DatasetError": "cifar_resnet.data.formats",
    "EffectiveReceptiveField": "cifar_resnet.fields.effective",
    "ImageClassifier": "cifar_resnet.classifier",
    "LabelSuspect": "cifar_resnet.errors.suspects",
    "LastCheckpoint": "cifar_resnet.checkpoints",
    "LayerField": "cifar_resnet.fields.records",
    "LogMisclassified": "cifar_resnet.errors.callback",
    "MisclassifiedSample": "cifar_resnet.errors.records",
    "MisclassifiedSamples": "cifar_resnet.errors.records",
    "PretrainedWeights": "cifar_resnet.pretrained",
    "ProbeReport": "cifar_resnet.fields.probe",
    "ReceptiveFieldMismatchError": "cifar_resnet.fields.probe",
    "ReceptiveFields": "cifar_resnet.fields.result",
    "Recipe": "cifar_resnet.recipe",
    "check_receptive_field": "cifar_resnet.fields.probe",
    "compute_cams": "cifar_resnet.errors.cams",
    "effective_receptive_field": "cifar_resnet.fields.effective",
    "find_misclassified": "cifar_resnet.errors.scan",
    "label_suspects": "cifar_resnet.errors.suspects",
    "pretrained_weights": "cifar_resnet.pretrained",
    "receptive_field": "cifar_resnet.fields.analysis",
    "show_augmentations": "cifar_resnet.samples.augmentations",
    "show_calibration": "cifar_resnet.errors.diagrams",
    "show_class_samples": "cifar_resnet.samples.figures",
    "show_confusion_matrix": "cifar_resnet.errors.diagrams",
    "show_misclassified": "cifar_resnet.errors.figures",
    "show_rgb_channels": "cifar_resnet.samples.figures",
    "show_samples": "cifar_resnet.samples.figures",
    "show_training_curves": "cifar_resnet.curves",
}

if TYPE_CHECKING:
    from cifar_resnet.checkpoints import AtomicCheckpointIO, LastCheckpoint
    from cifar_resnet.classifier import ImageClassifier
    from cifar_resnet.curves import show_training_curves
    from cifar_resnet.data.formats import DatasetError
    from cifar_resnet.data.module import CIFAR10DataModule
    from cifar_resnet.errors.callback import LogMisclassified
    from cifar_resnet.errors.cams import compute_cams
    from cifar_resnet.errors.diagrams import show_calibration, show_confusion_matrix
    from cifar_resnet.errors.figures import show_misclassified
    from cifar_resnet.errors.records import Calibration, MisclassifiedSample, MisclassifiedSamples
    from cifar_resnet.errors.scan import find_misclassified
    from cifar_resnet.errors.suspects import LabelSuspect, label_suspects
    from cifar_resnet.fields.analysis import receptive_field
    from cifar_resnet.fields.effective import EffectiveReceptiveField, effective_receptive_field
    from cifar_resnet.fields.probe import (
        ProbeReport,
        ReceptiveFieldMismatchError,
        check_receptive_field,
    )
    from cifar_resnet.fields.records import AxisField, LayerField
    from cifar_resnet.fields.result import ReceptiveFields
    from cifar_resnet.network import CustomResNet
    from cifar_resnet.pretrained import PretrainedWeights, pretrained_weights
    from cifar_resnet.recipe import Recipe
    from cifar_resnet.samples.augmentations import show_augmentations
    from cifar_resnet.samples.figures import show_class_samples, show_rgb_channels, show_samples


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
