"""Test finding errors on every kind of data and on the real test set.

The images of most tests encode the prediction; counts are compared with scikit-learn and
torchmetrics.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchmetrics.functional.classification import multiclass_calibration_error
from torchvision.transforms import v2

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    find_misclassified,
    label_suspects,
)
from cifar_resnet.data.formats import Arrays


class Reader(nn.Module):
    """Predict the class that is encoded in the image: a gray value of class / 10."""

    def __init__(self, sharpness: float = 20.0) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))
        self.steps = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        value = self.steps(images).mean((1, 2, 3))
        return -self.sharpness * (10 * value[:, None] - torch.arange(10)) ** 2


def written(classes: list[int]) -> Tensor:
    return (torch.tensor(classes) / 10).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()


# Samples 1, 3, 4 and 6 are errors.
LABELS = [0, 1, 2, 3, 4, 5, 6, 7]
SEEN = [0, 2, 2, 5, 5, 5, 3, 7]


def samples() -> TensorDataset:
    return TensorDataset(written(SEEN), torch.tensor(LABELS))


def indices(found) -> list[int]:
    return [sample.index for sample in found]


def test_errors_are_found_with_their_values() -> None:
    found = find_misclassified(Reader(), samples(), sort_by="index", batch_size=3)
    assert [(s.index, s.true, s.predicted) for s in found] == [
        (1, 1, 2),
        (3, 3, 5),
        (4, 4, 5),
        (6, 6, 3),
    ]
    first = found[0]
    # scores -20 d^2 for distances d = 2, 1, 0, 1, ... from class 2
    weights = torch.exp(-20.0 * (torch.arange(10) - 2.0) ** 2)
    assert torch.allclose(first.probabilities, weights / weights.sum(), atol=1e-6)
    assert first.loss == pytest.approx(20.0, abs=1e-4)
    assert first.confidence == pytest.approx(1.0, abs=1e-6)
    assert first.margin == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(first.image, written([2])[0])
    assert (first.true_name, first.predicted_name) == ("1", "2")
    assert (found.total, found.errors, found.matching, found.accuracy) == (8, 4, 4, 0.5)


def test_counts_are_those_of_all_samples() -> None:
    found = find_misclassified(Reader(), samples(), n=1, batch_size=3)
    assert len(found) == 1
    oracle = confusion_matrix(LABELS, SEEN, labels=range(10))
    assert found.confusion.tolist() == oracle.tolist()
    assert found.class_accuracy["1"] == 0
    assert found.class_accuracy["2"] == 1
    assert np.isnan(found.class_accuracy["9"])


def test_errors_are_sorted_as_requested() -> None:
    model = Reader(0.3)  # soft: the greater the distance, the higher the loss
    # classes 1 and 2 have fewer neighbors to share with than 4 and 5, so 4 costs more than 1
    assert indices(find_misclassified(model, samples())) == [6, 3, 4, 1]
    distances = {1: 1, 3: 2, 4: 1, 6: 3}
    by_margin = find_misclassified(model, samples(), sort_by="margin")
    assert [distances[i] for i in indices(by_margin)] == [3, 2, 1, 1]
    for sort_by in ("confidence", "margin", "loss"):
        found = find_misclassified(model, samples(), sort_by=sort_by)
        values = [getattr(sample, sort_by) for sample in found]
        assert values == sorted(values, reverse=True)
    assert indices(find_misclassified(model, samples(), sort_by="index", n=3)) == [1, 3, 4]


def test_the_random_choice_depends_on_the_seed_alone() -> None:
    many = TensorDataset(written([1] * 200), torch.zeros(200, dtype=torch.int64))
    chosen = indices(find_misclassified(Reader(), many, n=10, sort_by="random"))
    assert chosen == indices(
        find_misclassified(Reader(), many, n=10, sort_by="random", batch_size=7)
    )
    other = indices(find_misclassified(Reader(), many, n=10, sort_by="random", seed=1))
    assert chosen != other
    assert len(set(chosen)) == 10
    assert max(chosen) > 100 or max(other) > 100


def test_classes_can_be_chosen_by_name_or_number() -> None:
    names = [f"class {letter}" for letter in "abcdefghij"]
    found = find_misclassified(Reader(), samples(), pred_class="class f", class_names=names)
    assert sorted(indices(found)) == [3, 4]
    assert (found.matching, found.errors, found.pred_class) == (2, 4, "class f")
    assert indices(find_misclassified(Reader(), samples(), true_class=6, pred_class=3)) == [6]
    assert len(find_misclassified(Reader(), samples(), true_class=9)) == 0


def test_the_most_confused_pairs_and_the_records() -> None:
    data = TensorDataset(written([1, 1, 2, 0]), torch.tensor([0, 0, 0, 0]))
    found = find_misclassified(Reader(), data, sort_by="index")
    pairs = found.most_confused()
    assert [(pair.true, pair.predicted, pair.errors) for pair in pairs] == [
        ("0", "1", 2),
        ("0", "2", 1),
    ]
    assert pairs[0].fraction == 0.5
    records = json.loads(json.dumps(found.to_records()))
    assert [record["index"] for record in records] == [0, 1, 2]
    assert records[0]["predicted"] == "1"
    assert sum(records[0]["probabilities"].values()) == pytest.approx(1)


def test_the_result_is_an_immutable_sequence() -> None:
    found = find_misclassified(Reader(), samples(), sort_by="index")
    assert indices(found[1:3]) == [3, 4]
    assert found[1:3].total == 8
    assert found[-1].index == 6
    assert "4 of 4 errors in 8 samples" in repr(found)
    with pytest.raises(TypeError):
        found[0] = found[1]
    with pytest.raises(AttributeError):
        found[0].true = 3


def test_calibration_agrees_with_torchmetrics() -> None:
    scores = torch.randn(500, 10) * 2
    labels = torch.randint(10, (500,))

    class Table(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return scores[(images[:, 0, 0, 0] * 500).round().long()]

    images = (torch.arange(500) / 500).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    found = find_misclassified(Table(), TensorDataset(images, labels), n=1, batch_size=64)
    oracle = multiclass_calibration_error(scores.softmax(1), labels, 10, n_bins=15, norm="l1")
    assert found.calibration.expected_error == pytest.approx(float(oracle), abs=1e-6)
    assert int(found.calibration.counts.sum()) == 500


# -- all kinds of data ------------------------------------------------------------------------


class AsDictionaries(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": written(SEEN)[index], "labels": LABELS[index], "name": "x"}


class AsStream(IterableDataset[Any]):
    def __iter__(self):
        yield from zip(written(SEEN), LABELS, strict=True)


class Module(LightningDataModule):
    classes = tuple("abcdefghij")

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(samples(), batch_size=3)


@pytest.mark.parametrize(
    "data",
    [
        samples(),
        DataLoader(samples(), batch_size=3, shuffle=True),
        DataLoader(samples(), batch_size=3, shuffle=True, drop_last=True),
        DataLoader(samples(), batch_size=5, sampler=SubsetRandomSampler([6, 4, 3, 1])),
        DataLoader(samples(), sampler=WeightedRandomSampler([1, 2] * 4, 64)),
        DataLoader(samples(), batch_sampler=[[6, 0, 1], [4, 3]]),
        DataLoader(AsDictionaries(), batch_size=4, num_workers=1),
        AsDictionaries(),
        AsStream(),
        DataLoader(AsStream(), batch_size=3),
        [(image, label) for image, label in zip(written(SEEN), LABELS, strict=True)],
        Module(),
        list(zip(written(SEEN).split(5), torch.tensor(LABELS).split(5), strict=True)),
    ],
    ids=[
        "dataset", "shuffled", "drop_last", "subset sampler", "replacement", "batch sampler",
        "dictionaries, a worker", "dictionaries", "stream", "stream in a loader", "list",
        "data module", "batches",
    ],
)  # fmt: skip
def test_indices_are_those_of_the_dataset(data) -> None:
    data = iter(data) if isinstance(data, list) and isinstance(data[0][1], Tensor) else data
    found = find_misclassified(Reader(), data)
    assert sorted(indices(found)) == [1, 3, 4, 6]
    assert all(LABELS[sample.index] == sample.true for sample in found)


def test_names_come_with_the_data() -> None:
    assert find_misclassified(Reader(), Module())[0].true_name in "abcdefghij"
    assert find_misclassified(Reader(), Subset(samples(), [6, 0]))[0].index == 0  # of the subset


def test_the_random_state_of_a_loader_is_left_unchanged() -> None:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(samples(), batch_size=2, shuffle=True, generator=generator)
    before = generator.get_state()
    find_misclassified(Reader(), loader)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_images_are_shown_as_they_are_on_the_disk(
    data_dir: Path, arrays: Arrays, per_sample: bool
) -> None:
    transform = CIFAR10DataModule.default_transforms() if per_sample else None
    data = CIFAR10DataModule(data_dir, test_transforms=transform, batch_size=1000)
    found = find_misclassified(CustomResNet(width=2), data, n=20)
    assert found.total == 10_000
    assert found.class_names == data.classes
    for sample in found:
        pixels = torch.from_numpy(arrays.test_images[sample.index]).permute(2, 0, 1)
        assert torch.allclose(sample.image * 255, pixels.float(), atol=1e-2)
        assert sample.true == arrays.test_labels[sample.index]


def test_a_training_loader_returns_unaugmented_images_and_keeps_its_state(data_dir: Path) -> None:
    data = CIFAR10DataModule(data_dir, batch_size=500, val_split=49_000)
    data.setup("fit")
    loader = data.train_dataloader()
    found = find_misclassified(CustomResNet(width=2), loader, n=5, mean=data.mean, std=data.std)
    assert found.total == 1000
    assert loader.state_dict() == {"epoch": 0, "batch": 0}
    assert data.train_dataloader().state_dict() == loader.state_dict()


class Pictures(Dataset[Any]):
    """A dataset like those of torchvision."""

    classes = ("dark", "bright")

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = Image.new("RGB", (4, 4), (200 * index,) * 3)
        return (self.transform(picture) if self.transform else picture), 1 - index


class Bright(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))[:, None] * torch.tensor([-1.0, 1.0])


def test_the_normalization_is_read_from_the_transform() -> None:
    parts = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*parts, v2.Compose([v2.Normalize((0.5,) * 3, (0.25,) * 3)])])
    found = find_misclassified(Bright(), Pictures(transform), sort_by="index")
    assert found.class_names == ("dark", "bright")
    assert [round(float(sample.image.mean()) * 255) for sample in found] == [0, 200]
    assert float(found[1].inputs.mean()) == pytest.approx((200 / 255 - 0.5) / 0.25)


def test_images_of_unknown_normalization_are_explained() -> None:
    data = TensorDataset(torch.tensor([-2.0, 2.0]).view(2, 1, 1, 1), torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"values from -2\.00 to -2\.00.*Pass the mean and std"):
        find_misclassified(Bright(), data, n=1, sort_by="random", seed=3)
    found = find_misclassified(Bright(), data, mean=0.5, std=1.0, sort_by="index")
    assert [float(sample.image) for sample in found] == [0, 1]


def test_suspects_are_marked_not_dropped(arrays: Arrays, data_dir: Path) -> None:
    assert len(label_suspects()) == 54
    names = CIFAR10DataModule.classes
    for index, suspect in label_suspects().items():
        assert names[arrays.test_labels[index]] == suspect.given
        assert suspect.guessed in names
        votes = (suspect.votes_given, suspect.votes_guessed, suspect.votes_both)
        assert sum(votes) + suspect.votes_neither == 5
        assert suspect.votes_given < 3
    found = find_misclassified(CustomResNet(width=2), CIFAR10DataModule(data_dir))
    marked = {sample.index for sample in found if sample.suspect}
    assert marked == set(label_suspects()) & set(indices(found))
    assert len(marked) > 30


def test_suspects_of_torchvisions_dataset_and_its_subsets(tmp_path: Path, arrays: Arrays) -> None:
    import torchvision

    dataset = torchvision.datasets.CIFAR10.__new__(torchvision.datasets.CIFAR10)
    dataset.train, dataset.data, dataset.targets = False, arrays.test_images, arrays.test_labels
    dataset.transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    dataset.target_transform = None
    dataset.classes = list(CIFAR10DataModule.classes)
    first = min(label_suspects())
    part = Subset(dataset, [0, first, 1])
    wrong = int(arrays.test_labels[first] + 1) % 10

    class Always(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(images),), wrong), 10).float()

    found = {sample.index: sample for sample in find_misclassified(Always(), part)}
    assert found[1].suspect
    assert not any(sample.suspect for index, sample in found.items() if index != 1)


# -- all kinds of models ----------------------------------------------------------------------


def test_softmax_at_the_end_changes_nothing() -> None:
    plain = find_misclassified(Reader(0.1), samples())
    for last in (nn.Softmax(1), nn.LogSoftmax(1)):
        found = find_misclassified(nn.Sequential(Reader(0.1), last), samples())
        assert indices(found) == indices(plain)
        for ours, other in zip(plain, found, strict=True):
            assert torch.allclose(ours.probabilities, other.probabilities, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = CustomResNet(width=4).to(dtype)
    data = TensorDataset(torch.rand(6, 3, 32, 32), torch.arange(6))
    found = find_misclassified(model, data)
    assert found.total == 6
    assert found.confusion.sum() == 6
    assert next(model.parameters()).dtype == dtype


def test_inference_mode_compiled_lightning_and_channels_last() -> None:
    model = CustomResNet(width=4)
    data = TensorDataset(torch.rand(12, 3, 32, 32), torch.arange(12) % 10)
    plain = find_misclassified(model, data)
    with torch.inference_mode():
        inside = find_misclassified(model, data)
    assert not inside[0].inputs.is_inference()
    for other in (
        inside,
        find_misclassified(torch.compile(model), data),
        find_misclassified(ImageClassifier(model), data),
        find_misclassified(model.to(memory_format=torch.channels_last), data),
    ):
        assert indices(other) == indices(plain)


class Restless(nn.Module):
    """Change everything that a model can change when it is called."""

    def __init__(self, fail: bool) -> None:
        super().__init__()
        self.fail = fail
        self.layer = nn.Conv2d(3, 10, 1)
        self.still = nn.BatchNorm2d(10)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.last = images
        torch.rand(1), random.random(), np.random.rand()
        self.train()
        if self.fail:
            raise RuntimeError("broken")
        return self.still(self.layer(images)).mean((2, 3))


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_and_the_random_state_are_left_unchanged(fail: bool) -> None:
    model = Restless(fail)
    model.train()
    model.still.eval()
    model.layer.weight.requires_grad_(False)
    model.layer.bias.grad = torch.ones(10)
    model.register_forward_hook(lambda *args: None)
    data = TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].copy()
    if fail:
        with pytest.raises(ValueError, match="RuntimeError: broken"):
            find_misclassified(model, data)
    else:
        find_misclassified(model, DataLoader(data, shuffle=True))
    assert (model.training, model.layer.training, model.still.training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.layer.weight.requires_grad
    assert torch.equal(model.layer.bias.grad, torch.ones(10))
    assert len(model._forward_hooks) == 1
    assert not hasattr(model, "last")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state).all()


# -- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (TensorDataset(written(SEEN), torch.rand(8)), ValueError, "class numbers .*float32"),
        (TensorDataset(written(SEEN), torch.tensor([99] * 8)), ValueError, "has label 99, but"),
        (TensorDataset(torch.rand(0, 3, 4, 4), torch.arange(0)), ValueError, "no sample"),
        (Pictures(None), TypeError, "gives PIL images.*give it a transform"),
        ([{"picture": 1, "labels": 2}] * 2, ValueError, r"has the keys \['picture', 'labels'\]"),
    ],
)  # fmt: skip
def test_bad_data(data, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_misclassified(Reader(), data)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x, r"must return scores \(N, classes\) .* but returns a tensor of shape"),
        (lambda x: [x.mean((2, 3))], "but returns list"),
        (lambda x: x.mean((1, 2, 3))[:, None], "one score for each image"),
        (lambda x: x.mean((2, 3)) / 0, "scores of sample 0 are not finite"),
        (lambda x: x @ torch.ones(7, 7), r"fails on a batch of shape \(8, 3, 4, 4\)"),
    ],
)
def test_bad_models(forward, message: str) -> None:
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> Any:
            return forward(images)

    with pytest.raises(ValueError, match=message):
        find_misclassified(Odd(), samples())
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        find_misclassified(forward, samples())


def test_only_samples_of_the_loader_count() -> None:
    data = samples()
    some = DataLoader(data, batch_sampler=[[6, 0, 1], [4, 3]])
    assert find_misclassified(Reader(), some).total == 5

    def drawn() -> RandomSampler:
        generator = torch.Generator().manual_seed(0)
        return RandomSampler(data, replacement=True, num_samples=len(data), generator=generator)

    different = len(set(drawn()))
    assert different < len(data)
    assert find_misclassified(Reader(), DataLoader(data, sampler=drawn())).total == different
