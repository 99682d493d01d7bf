# The table of public names: each is loaded from its module on first use, see `__init__.py`.

from .data.cifar_modules import CIFAR10DataModule as CIFAR10DataModule
from .data.cifar_modules import CIFAR100DataModule as CIFAR100DataModule
from .data.formats import DatasetError as DatasetError
from .data.label_suspects import LabelSuspect as LabelSuspect
from .data.label_suspects import label_suspects as label_suspects
from .data.module import ImageDataModule as ImageDataModule
from .data.sources import load_cifar10 as load_cifar10
from .fields.analysis import receptive_field as receptive_field
from .fields.effective import EffectiveReceptiveField as EffectiveReceptiveField
from .fields.effective import effective_receptive_field as effective_receptive_field
from .fields.mismatch import ReceptiveFieldMismatchError as ReceptiveFieldMismatchError
from .fields.probe import ProbeReport as ProbeReport
from .fields.probe import check_receptive_field as check_receptive_field
from .fields.records import AxisField as AxisField
from .fields.records import LayerField as LayerField
from .fields.result import ReceptiveFields as ReceptiveFields
from .misclassified.callback import LogMisclassified as LogMisclassified
from .misclassified.cams import compute_cams as compute_cams
from .misclassified.diagrams import show_calibration as show_calibration
from .misclassified.diagrams import show_confusion_matrix as show_confusion_matrix
from .misclassified.figures import show_misclassified as show_misclassified
from .misclassified.records import Calibration as Calibration
from .misclassified.records import MisclassifiedSample as MisclassifiedSample
from .misclassified.records import MisclassifiedSamples as MisclassifiedSamples
from .misclassified.scan import find_misclassified as find_misclassified
from .network import CustomResNet as CustomResNet
from .prediction import Predictions as Predictions
from .prediction import predict as predict
from .pretrained import PretrainedWeights as PretrainedWeights
from .pretrained import pretrained_weights as pretrained_weights
from .robustness import Robustness as Robustness
from .robustness import RobustnessRow as RobustnessRow
from .robustness import evaluate_robustness as evaluate_robustness
from .samples.augmentations import show_augmentations as show_augmentations
from .samples.figures import show_class_samples as show_class_samples
from .samples.figures import show_rgb_channels as show_rgb_channels
from .samples.figures import show_samples as show_samples
from .training.checkpoints import AtomicCheckpointIO as AtomicCheckpointIO
from .training.checkpoints import LastCheckpoint as LastCheckpoint
from .training.classifier import ImageClassifier as ImageClassifier
from .training.curves import show_training_curves as show_training_curves
from .training.optimizers import make_optimizer as make_optimizer
from .training.optimizers import make_scheduler as make_scheduler
from .training.recipe import Recipe as Recipe

__version__: str
