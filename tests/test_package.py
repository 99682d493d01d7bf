"""Check what `import cifar_resnet` loads, what it offers, and what the wheel contains."""

import importlib
import json
import pkgutil
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

TORCH = {"torch"}
# Lightning imports torchmetrics, which tries torchvision and Matplotlib.
LIGHTNING = {"torch", "pytorch_lightning", "torchmetrics"}
# What the names may load: groups of names, each loaded one after another in a fresh interpreter.
ALLOWED: list[tuple[set[str], list[str]]] = [
    (
        set(),
        [
            "Arm", "Comparison", "DatasetError", "Difference", "LabelSuspect", "Recipe", "compare",
            "label_suspects", "load_cifar10", "show_comparison", "show_training_curves",
            "ImageHistory", "ImageScores", "LabelIssues", "find_label_issues", "score_images",
        ],
    ),
    (
        TORCH,
        [
            "AxisField", "Calibration", "ClassComparison", "ComparedSample", "CustomResNet",
            "EffectiveReceptiveField", "ErrorComparison", "LayerField", "NearestImage",
            "NearestImages", "compare_errors", "compute_features", "find_nearest",
            "show_error_comparison", "show_features", "show_filters", "show_nearest",
            "MisclassifiedSample", "MisclassifiedSamples", "Predictions", "PretrainedWeights",
            "ProbeReport", "ReceptiveFieldMismatchError", "ReceptiveFields",
            "check_receptive_field", "compute_cams", "effective_receptive_field",
            "find_misclassified", "make_optimizer", "make_scheduler", "predict",
            "Robustness", "RobustnessRow",
            "evaluate_robustness", "pretrained_weights", "receptive_field",
            "show_augmentations", "show_calibration",
            "show_class_samples", "show_confusion_matrix", "show_misclassified",
            "show_rgb_channels", "show_samples", "show_dataset_map", "show_history",
            "show_label_issues",
        ],
    ),
    (LIGHTNING, ["AtomicCheckpointIO", "ImageClassifier", "LastCheckpoint", "LogMisclassified",
                 "TrainingHistory"]),
    (LIGHTNING | {"torchvision"}, ["CIFAR100DataModule", "CIFAR10DataModule", "ImageDataModule"]),
]  # fmt: skip
TABLE = {
    name: f"cifar_resnet.{module}"
    for module, name in re.findall(
        r"^from \.([\w.]+) import (\w+) as \2$",
        (ROOT / "cifar_resnet/__init__.pyi").read_text(),
        re.MULTILINE,
    )
}


def loaded_by(*statements: str) -> list[set[str]]:
    """Run statements in a fresh interpreter; return the heavy packages loaded after each."""
    script = "import sys, json\n" + "\n".join(
        f"{each}\nprint(json.dumps([m for m in sys.modules if '.' not in m]))"
        for each in statements
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return [set(json.loads(line)) & HEAVY for line in result.stdout.splitlines()]


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert loaded_by("import cifar_resnet") == [set()]


@pytest.mark.parametrize(("allowed", "names"), ALLOWED, ids=["nothing", "torch", "fit", "data"])
def test_a_name_imports_only_its_own_piece(allowed: set[str], names: list[str]) -> None:
    if "pytorch_lightning" in allowed:
        allowed = allowed | loaded_by("import pytorch_lightning")[0]
    loaded = loaded_by(*(f"from cifar_resnet import {name}" for name in names))
    assert {
        name: extra for name, found in zip(names, loaded, strict=True) if (extra := found - allowed)
    } == {}


def test_all_lists_of_public_names_agree() -> None:
    assert sorted(cifar_resnet.__all__) == cifar_resnet.__all__
    assert sorted(TABLE) == cifar_resnet.__all__
    assert sorted(name for _, names in ALLOWED for name in names) == cifar_resnet.__all__
    assert set(cifar_resnet.__all__) <= set(dir(cifar_resnet))


def test_each_public_name_has_one_import_path() -> None:
    for name, module in TABLE.items():
        assert getattr(cifar_resnet, name).__name__ == name
        assert getattr(cifar_resnet, name).__module__ == module
    for found in pkgutil.walk_packages(cifar_resnet.__path__, "cifar_resnet."):
        if found.name.endswith("__main__"):
            continue
        for name in getattr(importlib.import_module(found.name), "__all__", []):
            assert TABLE.get(name, found.name) == found.name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No cifar_resnet attribute Nonsense"):
        _ = cifar_resnet.Nonsense


def test_version_and_changelog_agree() -> None:
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == cifar_resnet.__version__ == version("cifar-resnet")


def test_sdist_and_wheel_hold_the_package(tmp_path: Path) -> None:
    # `build` makes the wheel from the sdist, so this covers both
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    source = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "cifar_resnet").rglob("*.*")
        if "__pycache__" not in path.parts
    }
    assert "cifar_resnet/weights/full.safetensors" in source
    assert {name for name in names if ".dist-info" not in name} == source
    assert wheel.stat().st_size < 18e6
    assert "License-Expression: MIT" in metadata
    for excluded in ("!=2.6.2", "!=2.6.3", "torch>=2.11"):
        assert excluded in metadata
