"""What `import cifar_resnet` costs, and what it offers."""

import json
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import cifar_resnet

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "torchvision",
    "pytorch_lightning",
    "torchmetrics",
    "matplotlib",
    "pytorch_grad_cam",
}

# The heavy packages each public name may import.
ALLOWED = {
    "AtomicCheckpointIO": {"torch", "pytorch_lightning", "torchmetrics"},
    "AxisField": {"torch"},
    "CIFAR10DataModule": {"torch", "torchvision", "pytorch_lightning", "torchmetrics"},
    "Calibration": {"torch"},
    "CustomResNet": {"torch"},
    "DatasetError": set(),
    "EffectiveReceptiveField": {"torch"},
    "ImageClassifier": {"torch", "pytorch_lightning", "torchmetrics"},
    "LabelSuspect": set(),
    "LastCheckpoint": {"torch", "pytorch_lightning", "torchmetrics"},
    "LayerField": {"torch"},
    "LogMisclassified": {"torch", "pytorch_lightning", "torchmetrics"},
    "MisclassifiedSample": {"torch"},
    "MisclassifiedSamples": {"torch"},
    "PretrainedWeights": {"torch"},
    "ProbeReport": {"torch"},
    "ReceptiveFieldMismatchError": {"torch"},
    "ReceptiveFields": {"torch"},
    "Recipe": set(),
    "check_receptive_field": {"torch"},
    "compute_cams": {"torch"},
    "effective_receptive_field": {"torch"},
    "find_misclassified": {"torch"},
    "label_suspects": set(),
    "make_optimizer": {"torch"},
    "make_scheduler": {"torch"},
    "pretrained_weights": {"torch"},
    "receptive_field": {"torch"},
    "show_augmentations": {"torch"},
    "show_calibration": {"torch"},
    "show_class_samples": {"torch"},
    "show_confusion_matrix": {"torch"},
    "show_misclassified": {"torch"},
    "show_rgb_channels": {"torch"},
    "show_samples": {"torch"},
    "show_training_curves": set(),
}


def imported_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after running the code."""
    script = f"import sys, json\n{code}\nprint(json.dumps([m.split('.')[0] for m in sys.modules]))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not imported_by("import cifar_resnet") & (HEAVY | {"numpy"})


@pytest.mark.parametrize("name", cifar_resnet.__all__)
def test_a_name_imports_only_its_own_piece(name: str) -> None:
    # Lightning itself imports torchmetrics, and torchmetrics tries torchvision and matplotlib.
    extra = (
        imported_by("import pytorch_lightning") if "pytorch_lightning" in ALLOWED[name] else set()
    )
    found = imported_by(f"from cifar_resnet import {name}") & HEAVY
    assert found <= ALLOWED[name] | extra


def test_every_public_name_exists_and_is_listed() -> None:
    assert sorted(cifar_resnet.__all__) == cifar_resnet.__all__
    assert set(ALLOWED) == set(cifar_resnet.__all__)
    for name in cifar_resnet.__all__:
        assert getattr(cifar_resnet, name).__name__ == name
        assert name in dir(cifar_resnet)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No cifar_resnet attribute Nonsense"):
        _ = cifar_resnet.Nonsense


def test_version_and_changelog_agree() -> None:
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == cifar_resnet.__version__ == version("cifar-resnet")


def test_sdist_and_wheel_hold_the_package(tmp_path: Path) -> None:
    # `build` makes the wheel out of the sdist, so both are tried
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "cifar_resnet").rglob("*.py")} | {
        "cifar_resnet/__init__.pyi",
        "cifar_resnet/data/label_suspects.csv",
        "cifar_resnet/py.typed",
        "cifar_resnet/weights/full.safetensors",
        "cifar_resnet/weights/quarter.safetensors",
        "cifar_resnet/weights/quarter-best.safetensors",
    }
    assert {name for name in names if ".dist-info" not in name} == source
    assert wheel.stat().st_size < 18e6
    assert "License-Expression: MIT" in metadata
    for excluded in ("!=2.6.2", "!=2.6.3", "torch>=2.11"):
        assert excluded in metadata
