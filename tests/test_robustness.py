"""Test the further evaluation sets of CIFAR-10 with files that are generated in their layouts.

The original files are not downloaded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_resnet import evaluate_robustness
from cifar_resnet.data import cifar10, evaluation_sets
from cifar_resnet.data.formats import Arrays
from cifar_resnet.misclassified.proportions import wilson_interval

SIZE = 40  # images of the small test set
RNG = np.random.default_rng(0)


class ByBrightness(nn.Module):
    """Predict the class from the first pixel's red value, 10 gray levels a class."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        red = images[:, 0, 0, 0] * cifar10.STD[0] + cifar10.MEAN[0]
        number = (red * 255 / 10).round().long().clamp(0, 9)
        return self.scale * 4 * nn.functional.one_hot(number, 10).float()


def pictures(classes: NDArray[Any]) -> NDArray[np.uint8]:
    """Return images that the network takes for these classes."""
    images = RNG.integers(0, 256, (len(classes), 32, 32, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = 10 * np.asarray(classes)
    return images


def half_right(labels: NDArray[Any], right: int) -> NDArray[np.uint8]:
    """Return images of which the first `right` are classified correctly."""
    return pictures(np.where(np.arange(len(labels)) < right, labels, (labels + 1) % 10))


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "TEST_SIZE", SIZE)


def write_new_test(folder: Path, version: str = "v6", count: int = 20, right: int = 13) -> None:
    labels = np.arange(count) % 10
    np.save(folder / f"cifar10.1_{version}_data.npy", half_right(labels, right))
    np.save(folder / f"cifar10.1_{version}_labels.npy", labels.astype(np.int32))


def write_corrupted(folder: Path, right: dict[str, int]) -> None:
    """Write corruptions; the first `right` images of each severity are classified correctly."""
    folder.mkdir(exist_ok=True)
    labels = np.arange(SIZE) % 10
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    for name, count in right.items():
        parts = [half_right(labels, count - severity) for severity in range(5)]
        np.save(folder / f"{name}.npy", np.concatenate(parts))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # from the formula, worked out in the R package binom (method "wilson")
    [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_new_test_images(tmp_path: Path) -> None:
    write_new_test(tmp_path)
    (tmp_path / "older").mkdir()
    write_new_test(tmp_path / "older", "v4", 30, 30)
    model = ByBrightness()
    for batch_size in (7, 500):
        result = evaluate_robustness(model, tmp_path, batch_size=batch_size)
        rows = {row.name: (row.images, row.accuracy) for row in result.rows}
        assert rows == {"CIFAR-10.1 v4": (30, 1.0), "CIFAR-10.1 v6": (20, 0.65)}
    assert model.training
    assert result.mean_corruption_error is result.human_cross_entropy is None
    assert "CIFAR-10.1 v6      20    65.00%  43.29% to 81.88%" in str(result)
    assert "| CIFAR-10.1 v6 | 20 | 65.00% | 43.29% to 81.88% |" in result.to_markdown()
    assert result.to_records()[1]["accuracy"] == 0.65


@pytest.mark.usefixtures("_small")
def test_corruptions_and_their_mean_error(tmp_path: Path) -> None:
    right = {"fog": 40, "snow": 20, "spatter": 12}
    write_corrupted(tmp_path / "CIFAR-10-C", right)
    result = evaluate_robustness(ByBrightness(), tmp_path)
    errors = {name: 1 - (count - 2) / 40 for name, count in right.items()}
    assert result.corruption_errors == pytest.approx(errors)
    accuracies = {row.name: row.accuracy for row in result.rows}
    assert len(accuracies) == 15
    assert accuracies["CIFAR-10-C snow, severity 3"] == pytest.approx(18 / 40)
    # The additional corruption `spatter` is not part of the mean.
    assert result.mean_corruption_error == pytest.approx((errors["fog"] + errors["snow"]) / 2)
    assert "mean corruption error of 2 corruptions, unnormalized" in str(result)
    assert str(result).count("\n") == 4
    baseline = {"fog": 0.5, "snow": 0.25}
    relative = evaluate_robustness(ByBrightness(), tmp_path, baseline=baseline)
    expected = (errors["fog"] / 0.5 + errors["snow"] / 0.25) / 2
    assert relative.mean_corruption_error == pytest.approx(expected)
    assert "relative to the baseline" in str(relative)
    with pytest.raises(ValueError, match="baseline has no error for snow. Add it."):
        evaluate_robustness(ByBrightness(), tmp_path, baseline={"fog": 0.5})


def test_the_choices_of_people(tmp_path: Path, arrays: Arrays, data_dir: Path) -> None:
    labels = arrays.test_labels
    people = np.full((10_000, 10), 0.02)
    people[np.arange(10_000), labels] = 0.82
    np.save(tmp_path / "cifar10h-probs.npy", people)
    result = evaluate_robustness(First(), tmp_path, data_dir=data_dir)
    (row,) = result.rows
    assert (row.name, row.images) == ("CIFAR-10H", 10_000)
    assert row.accuracy == 0.1  # a thousand images are airplanes
    logits = np.zeros(10)
    logits[0] = 2.0
    log_p = logits - np.log(np.exp(logits).sum())
    assert result.human_cross_entropy == pytest.approx(-(people @ log_p).mean(), rel=1e-5)
    np.save(tmp_path / "cifar10h-probs.npy", people * 2)
    with pytest.raises(ValueError, match="whose rows sum to 1, but holds float64 of the shape"):
        evaluate_robustness(First(), tmp_path, data_dir=data_dir)


class First(nn.Module):
    """Predict the first class for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(2 * torch.eye(10)[0])

    def forward(self, images: Tensor) -> Tensor:
        return self.bias.expand(len(images), -1)


def human(labels: NDArray[Any], make: Callable[[Any], Any]) -> dict[str, Any]:
    names = ("worse_label", "random_label1", "random_label2", "random_label3")
    noisy = {name: make((labels + shift) % 10) for shift, name in enumerate(names, start=1)}
    return {"clean_label": make(labels), "aggre_label": make(labels)} | noisy


def test_labels_by_people_for_the_training_images(
    tmp_path: Path, arrays: Arrays, data_dir: Path
) -> None:
    labels = arrays.train_labels
    for make in (np.asarray, torch.as_tensor, lambda values: values.astype(np.uint8)):
        torch.save(human(labels, make), tmp_path / "CIFAR-10_human.pt")
        sets = evaluation_sets.find_sets(tmp_path)
        assert (sets.human_labels["worse_label"] == (labels + 1) % 10).all()
    result = evaluate_robustness(First(), tmp_path, data_dir=data_dir, batch_size=5000)
    assert [row.name for row in result.rows] == [
        f"CIFAR-10N {name}_label{number}" for name, number in (
            ("clean", ""), ("aggre", ""), ("worse", ""), ("random", 1), ("random", 2),
            ("random", 3),
        )
    ]  # fmt: skip
    torch.save(human(labels[::-1].copy(), np.asarray), tmp_path / "CIFAR-10_human.pt")
    with pytest.raises(ValueError, match="clean_label .* differs from the labels of CIFAR-10 for"):
        evaluate_robustness(First(), tmp_path, data_dir=data_dir)
    torch.save(First(), tmp_path / "CIFAR-10_human.pt")  # could run code
    with pytest.raises(ValueError, match="CIFAR-10_human.pt cannot be read: Weights only"):
        evaluate_robustness(First(), tmp_path)


@pytest.mark.usefixtures("_small")
def test_files_of_another_layout(tmp_path: Path) -> None:
    def refused(message: str, model: nn.Module | None = None) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate_robustness(model or ByBrightness(), tmp_path)

    refused("has none of the evaluation sets. Expected cifar10.1_v6_data.npy and")
    write_new_test(tmp_path)
    refused("The model has 3 classes, but these sets have the 10", nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 3)
    ))  # fmt: skip
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.arange(20))
    refused("cifar10.1_v6_labels.npy must be from 0 to 9, but are from 0 to 19")
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.arange(19))
    refused("must hold 20 integers, one for each image, but holds int64 of the shape .19,.")
    np.save(tmp_path / "cifar10.1_v6_data.npy", np.zeros((20, 3, 32, 32), np.uint8))
    refused("must hold uint8 images of the shape .'N', 32, 32, 3., but holds uint8 of the shape")
    (tmp_path / "cifar10.1_v6_data.npy").write_bytes(b"no")
    refused("cannot be read as a NumPy array")
    (tmp_path / "cifar10.1_v6_data.npy").unlink()
    write_corrupted(tmp_path, {"fog": 9})
    np.save(tmp_path / "fog.npy", pictures(np.zeros(SIZE)))
    refused(r"uint8 images of the shape .200, 32, 32, 3., but holds uint8 of the shape .40, 32")
    torch.save({"clean_label": [0]}, tmp_path / "CIFAR-10_human.pt")
    (tmp_path / "fog.npy").unlink()
    refused("must hold a dictionary with clean_label, aggre_label, .* but has .'clean_label'")
