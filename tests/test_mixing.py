"""Test MixUp and CutMix: torchvision's values, exact resume, and training with mixed batches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Flat, per_sample, small, trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cifar_resnet import CIFAR10DataModule, ImageClassifier
from cifar_resnet.data.mixing import Mixing, cut_mix, mix_up

pytestmark = pytest.mark.usefixtures("read_once")
KINDS = ["mixup", "cutmix", "both"]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    images = torch.randn(6, 3, 32, 32).to(memory_format=torch.channels_last)
    return images, torch.tensor([0, 3, 1, 1, 9, 4])


def mixing(kind: str, **options: Any) -> Mixing:
    settings = {"alpha": 1.0, "probability": 1.0, "num_classes": 10, "seed": 0} | options
    return Mixing(kind, **settings)


def make(feeding: str, data_dir: Path, **options: Any) -> CIFAR10DataModule:
    build = {"resident": small, "per-sample": per_sample}[feeding]
    data = build(data_dir, **{"val_split": 49_750, "batch_size": 100} | options)
    data.setup()
    return data


feedings = pytest.mark.parametrize("feeding", ["resident", "per-sample"])

# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.7, 1.0])
def test_mixup_is_torchvisions(batch: tuple[Tensor, Tensor], weight: float) -> None:
    images, labels = batch
    theirs = v2.MixUp(num_classes=10)
    params = {"labels": labels, "batch_size": 6, "lam": weight}
    expected = [theirs.transform(value, params) for value in batch]
    ours = mix_up(images, torch.eye(10)[labels], weight, shift=1)  # torchvision shifts by one
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("weight", "center"),
    [(0.5, (16, 16)), (0.3, (0, 31)), (0.3, (31, 0)), (0.9, (3, 29)), (0.0, (5, 5)), (1.0, (8, 8))],
)
def test_cutmix_is_torchvisions(
    batch: tuple[Tensor, Tensor], weight: float, center: tuple[int, int], monkeypatch: Any
) -> None:
    images, labels = batch
    theirs = v2.CutMix(num_classes=10)
    drawn = iter([weight, center[1], center[0]])  # torchvision draws the column first
    beta = SimpleNamespace(sample=lambda *_: torch.tensor([next(drawn)]))
    monkeypatch.setattr(theirs, "_dist", beta)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([next(drawn)]))
    params = theirs.make_params([images]) | {"labels": labels, "batch_size": 6}
    expected = [theirs.transform(value, params) for value in batch]
    ours = cut_mix(images.clone(), torch.eye(10)[labels], weight, 1, center)
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1])


def test_the_weight_has_the_beta_distribution(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])
    for alpha in (0.2, 1.0, 4.0):
        mix = mixing("mixup", alpha=alpha)
        weights = np.array(
            [mix(images, labels, 0, number)[1][0, 0].item() for number in range(2000)]
        )
        assert weights.mean() == pytest.approx(0.5, abs=0.05)
        assert weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.12)


def test_every_other_image_may_be_the_partner() -> None:
    labels = torch.arange(5)
    partners = set()
    for number in range(200):
        targets = mixing("mixup", num_classes=5)(torch.zeros(5, 1, 1, 1), labels, 0, number)[1]
        weight, partner = targets[0].sort(descending=True).indices[:2].tolist()
        partners.add(partner if weight == 0 else weight)
    assert partners == {1, 2, 3, 4}


@pytest.mark.parametrize("kind", KINDS)
def test_random_numbers_depend_on_seed_epoch_batch_and_rank(
    batch: tuple[Tensor, Tensor], kind: str
) -> None:
    def mixed(epoch: int = 0, number: int = 0, rank: int = 0, seed: int = 0) -> Tensor:
        images, labels = batch
        torch.rand(1)
        return mixing(kind, seed=seed)(images.clone(), labels, epoch, number, rank)[0]

    first = mixed()
    assert torch.equal(first, mixed())
    for other in (mixed(1), mixed(0, 1), mixed(seed=1), mixed(rank=1)):
        assert not torch.equal(first, other)


def test_both_chooses_one_of_the_two_for_each_batch(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    found = []
    for number in range(100):
        result = mixing("both")(images.clone(), labels, 0, number)[0]
        either = [mixing(k)(images.clone(), labels, 0, number)[0] for k in ("mixup", "cutmix")]
        found.append([torch.equal(result, one) for one in either].index(True))
    assert 35 < sum(found) < 65


def test_the_probability_is_that_of_a_batch(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    changed = 0
    for number in range(200):
        some = mixing("mixup", probability=0.25)(images, labels, 0, number)
        if torch.equal(some[0], images):
            assert torch.equal(some[1], torch.eye(10)[labels])
        else:
            changed += 1
            always = mixing("mixup")(images, labels, 0, number)
            assert all(map(torch.equal, some, always))
    assert changed == pytest.approx(50, abs=25)
    never = mixing("cutmix", probability=0.0)(images, labels, 0, 0)
    assert torch.equal(never[0], images)


def test_a_single_image_has_no_partner() -> None:
    images, labels = torch.randn(1, 3, 4, 4), torch.tensor([2])
    mixed = mixing("cutmix", num_classes=3)(images, labels, 0, 0)
    assert torch.equal(mixed[0], images)
    assert mixed[1].tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "torch.uint8 of shape (2, 3, 4, 4)"),
        (torch.zeros(2, 48), "torch.float32 of shape (2, 48)"),
        ([1, 2], "list"),
    ],
)
def test_images_that_cannot_be_mixed(images: Any, got: str) -> None:
    with pytest.raises(TypeError) as caught:
        mixing("mixup")(images, torch.tensor([0, 1]), 0, 0)
    assert f"but the train_transforms return {got}. Let them end with" in str(caught.value)


# --- loaders --------------------------------------------------------------------------------------


@feedings
@pytest.mark.parametrize("kind", KINDS)
def test_training_batches_have_probabilities(feeding: str, kind: str, data_dir: Path) -> None:
    data = make(feeding, data_dir, mix=kind)
    plain = make(feeding, data_dir)
    for epoch in range(2):
        batches = zip(data.train_dataloader(), plain.train_dataloader(), strict=True)
        for number, ((images, targets), (unmixed, labels)) in enumerate(batches):
            assert targets.dtype == torch.float32
            assert targets.shape == (len(images), 10)
            torch.testing.assert_close(targets.sum(1), torch.ones(len(images)))
            expected = mixing(kind)(unmixed, labels, epoch, number)
            assert all(map(torch.equal, (images, targets), expected))
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert next(iter(loader))[1].dtype == torch.int64


@feedings
def test_an_epoch_resumes_exactly(feeding: str, data_dir: Path) -> None:
    options = {"mix": "both", "batch_size": 50}
    whole = [*make(feeding, data_dir, **options).train_dataloader()]
    first = make(feeding, data_dir, **options).train_dataloader()
    batches = iter(first)
    next(batches), next(batches)
    second = make(feeding, data_dir, **options).train_dataloader()
    second.load_state_dict(first.state_dict())
    rest = [*second]
    assert len(rest) == len(whole) - 2 == 3
    for one, other in zip(rest, whole[2:], strict=True):
        assert all(map(torch.equal, one, other))


def test_workers_do_not_matter(data_dir: Path) -> None:
    alone, with_workers = (
        make("per-sample", data_dir, mix="both", num_workers=workers).train_dataloader()
        for workers in (0, 2)
    )
    for one, other in zip(alone, with_workers, strict=True):
        assert all(map(torch.equal, one, other))


@feedings
def test_mixing_can_be_turned_off_between_epochs(feeding: str, data_dir: Path) -> None:
    data = make(feeding, data_dir, mix="mixup", mix_alpha=0.2)
    assert next(iter(data.train_dataloader()))[1].dim() == 2
    data.mix = None
    assert next(iter(data.train_dataloader()))[1].dim() == 1
    data.mix = "Mixup"
    with pytest.raises(ValueError, match="mix must be one of .* but got 'Mixup'"):
        data.train_dataloader()


# --- training -------------------------------------------------------------------------------------


@feedings
def test_a_classifier_trains_with_mixed_batches(
    feeding: str, data_dir: Path, tmp_path: Path
) -> None:
    data = make(feeding, data_dir, mix="both")
    model = ImageClassifier(Flat(), num_classes=10)
    t = trainer(tmp_path, log_every_n_steps=1, limit_val_batches=1)
    t.fit(model, data)
    logged = t.callback_metrics
    assert 0 <= logged["train_acc_epoch"] <= 1
    assert logged["train_loss_epoch"].isfinite()


def test_the_loss_is_the_weighted_sum_of_two_cross_entropies(
    data_dir: Path, tmp_path: Path
) -> None:
    data = make("resident", data_dir, mix="mixup", shuffle=False, batch_size=250)
    images, targets = next(iter(data.train_dataloader()))
    model = ImageClassifier(Flat(), num_classes=10)
    logs = model(images).log_softmax(1)
    expected = -(targets * logs).sum(1).mean().item()
    correct = (logs.argmax(1) == targets.argmax(1)).double().mean().item()
    t = trainer(tmp_path, limit_val_batches=0)
    again = make("resident", data_dir, mix="mixup", shuffle=False, batch_size=250)
    t.fit(model, again)
    assert t.callback_metrics["train_loss_epoch"].item() == pytest.approx(expected, rel=1e-5)
    assert t.callback_metrics["train_acc_epoch"].item() == pytest.approx(correct)


def test_overfit_batches_are_not_mixed(data_dir: Path, tmp_path: Path) -> None:
    for feeding in ("resident", "per-sample"):
        data = make(feeding, data_dir, mix="cutmix")
        t = trainer(tmp_path, overfit_batches=1)
        t.fit(ImageClassifier(Flat(), num_classes=10), data)
        loader = t.train_dataloader
        assert isinstance(loader, DataLoader) == (feeding == "per-sample")
        assert next(iter(loader))[1].dtype == torch.int64
