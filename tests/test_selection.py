"""Test which images and labels the data module uses: selections, label noise and long tails."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Recorder, small, trainer
from matplotlib.text import Text
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedKFold
from torch import nn

from cifar_resnet import (
    CIFAR10DataModule,
    find_misclassified,
    show_augmentations,
    show_class_samples,
)
from cifar_resnet.data.cifar10 import ASYMMETRIC_PAIRS
from cifar_resnet.data.formats import Arrays
from cifar_resnet.data.order import stratified_split
from cifar_resnet.data.sampling import BalancedOrder

pytestmark = pytest.mark.usefixtures("read_once")
CLASSES = CIFAR10DataModule.classes


def ready(**options: Any) -> CIFAR10DataModule:
    data = CIFAR10DataModule(**options)
    data.setup()
    return data


def per_sample(**options: Any) -> CIFAR10DataModule:
    plain = CIFAR10DataModule.default_transforms()
    transforms = {f"{split}_transforms": plain for split in ("train", "val", "test")}
    return ready(**transforms, **options)


def class_counts(labels: Any, classes: int = 10) -> list[int]:
    return np.bincount(labels, minlength=classes).tolist()


# --- indices, subsets, classes, folds -------------------------------------------------------------


def test_training_uses_exactly_the_given_indices_in_their_order(arrays: Arrays) -> None:
    chosen = [49_999, 7, 23, 0, 31_000]
    options = {"shuffle": False, "crop_padding": 0, "flip": "none", "val_split": 20}
    for given in (chosen, tuple(chosen), np.array(chosen), torch.tensor(chosen)):
        data = ready(train_indices=given, **options)
        assert data.indices().tolist() == chosen
        assert data.num_samples == 5
    for module in (data, per_sample(train_indices=chosen, **options)):
        images, labels = next(iter(module.train_dataloader()))
        pixels = (module.denormalize(images) * 255).round().byte().permute(0, 2, 3, 1)
        assert np.array_equal(pixels.numpy(), arrays.train_images[chosen])
        assert labels.tolist() == arrays.train_labels[chosen].tolist()
    assert not {*data.indices("val")} & {*chosen}


def test_indices_replace_only_the_validation_images_that_are_among_them(arrays: Arrays) -> None:
    default = stratified_split(arrays.train_labels, 5000)[1]
    others = np.setdiff1d(np.arange(50_000), default)
    assert np.array_equal(ready(train_indices=others[:100]).indices("val"), default)
    held_out = ready(train_indices=default[:100]).indices("val")
    assert np.array_equal(np.intersect1d(held_out, default), default[100:])
    assert class_counts(arrays.train_labels[held_out]) == [500] * 10


def test_a_subset_is_stratified_nested_and_the_same_for_every_seed(arrays: Arrays) -> None:
    default = ready()
    small_one, large = ready(subset=0.02, seed=3), ready(subset=2000, seed=7)
    assert class_counts(arrays.train_labels[small_one.indices()]) == [90] * 10
    assert {*small_one.indices()} < {*large.indices()} < {*default.indices()}
    assert np.array_equal(large.indices("val"), default.indices("val"))
    assert np.array_equal(ready(subset=1.0).indices(), default.indices())
    assert large.indices().mean() == pytest.approx(25_000, rel=0.1)  # chosen at random
    few = ready(subset=13)
    assert sorted(class_counts(arrays.train_labels[few.indices()])) == [1] * 7 + [2] * 3


@pytest.mark.parametrize("make", [ready, per_sample])
def test_a_class_subset_renumbers_labels_and_names(make: Any, arrays: Arrays) -> None:
    data = make(class_subset=("dog", 3), subset=100)
    assert (data.classes, data.num_classes) == (("dog", "cat"), 2)
    assert CIFAR10DataModule.classes == CLASSES
    assert (data.num_samples, len(data.indices("val")), len(data.indices("test"))) == (
        100, 1000, 2000,
    )  # fmt: skip
    for split in ("train", "val", "test"):
        given = arrays.test_labels if split == "test" else arrays.train_labels
        names = [data.classes[label] for label in data.labels(split)]
        assert names == [CLASSES[label] for label in given[data.indices(split)]]
    kept = ready(val_split=5000).indices("val")
    assert {*data.indices("val")} == {i for i in kept if arrays.train_labels[i] in (3, 5)}
    for loader in (data.train_dataloader(), data.test_dataloader()):
        labels = torch.cat([labels for _, labels in loader])
        assert labels.unique().tolist() == [0, 1]


@pytest.mark.parametrize("make", [ready, per_sample])
def test_the_analysis_of_errors_knows_the_classes_and_indices(make: Any, arrays: Arrays) -> None:
    class First(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.new_tensor([1.0, 0.0]).repeat(len(images), 1)

    data = make(class_subset=("truck", "bird"), batch_size=500)
    errors = find_misclassified(First(), data, n=5)
    assert errors.class_names == ("truck", "bird")
    assert len(errors) == 5
    for error in errors:
        assert CLASSES[arrays.test_labels[error.index]] == "bird"


def test_folds_have_the_properties_of_scikit_learns(arrays: Arrays) -> None:
    labels = arrays.train_labels
    theirs = [held for _, held in StratifiedKFold(3).split(labels, labels)]
    folds = [ready(folds=(k, 3), seed=k) for k in range(3)]
    ours = [data.indices("val") for data in folds]
    assert np.array_equal(np.sort(np.concatenate(ours)), np.arange(50_000))
    for data, held_out in zip(folds, ours, strict=True):
        union = np.concatenate([data.indices(), held_out])
        assert np.array_equal(np.sort(union), np.arange(50_000))
        assert data.num_samples == len(data.indices())
    assert sorted(map(len, ours)) == sorted(map(len, theirs)) == [16_666, 16_667, 16_667]
    for held_out in (*ours, *theirs):
        assert {*class_counts(labels[held_out])} <= {1666, 1667}


def test_folds_and_subsets_together() -> None:
    whole = ready(folds=(1, 5))
    part = ready(folds=(1, 5), subset=0.1)
    assert np.array_equal(part.indices("val"), whole.indices("val"))
    assert {*part.indices()} < {*whole.indices()}
    assert part.num_samples == 4000
    cats = ready(folds=(1, 5), class_subset=["cat", "dog"])
    assert {*cats.indices("val")} < {*whole.indices("val")}


def test_sizes_are_known_before_the_images_are_read() -> None:
    for options in (
        {"val_split": 4999}, {"folds": (2, 7)}, {"subset": 123, "class_subset": (1, 2, 3)},
        {"imbalance": 100, "val_split": 33}, {"imbalance": 7, "subset": 0.3},
        {"train_indices": range(77), "val_split": 13}, {"class_subset": (0, 9), "val_split": 3},
    ):  # fmt: skip
        data = CIFAR10DataModule(**options)
        before = str(data)
        assert data.num_samples == data._selection.sizes[0]
        data.setup()
        counts = [len(data.indices(split)) for split in ("train", "val", "test")]
        assert "train={}, val={}, test={},".format(*counts) in before == str(data)


def test_wrong_indices_are_refused_before_training(arrays: Arrays) -> None:
    frog, truck, deer = (
        int(np.flatnonzero(arrays.train_labels == label)[0]) for label in (6, 9, 4)
    )
    data = CIFAR10DataModule(train_indices=[frog, truck, deer], class_subset=("frog", "truck"))
    with pytest.raises(ValueError, match=rf"1 of the train_indices .* image {deer}, .* 'deer'"):
        data.setup()
    cats = np.flatnonzero(ready().labels() == 3)
    indices = ready().indices()[cats]
    assert len(indices) == 4500
    data = CIFAR10DataModule(train_indices=indices, val_split=6000)
    with pytest.raises(ValueError, match=r"leaves 500 images of class 'cat', .* holds out 600"):
        data.setup()
    with pytest.raises(RuntimeError, match=r"call prepare_data\(\) and setup\(\) first"):
        data.labels()


# --- representation and checkpoints ---------------------------------------------------------------


def test_options_are_shown() -> None:
    data = CIFAR10DataModule(
        train_indices=range(100), class_subset=(0, 1), label_noise=0.1, sampling="balanced",
        mix="cutmix",
    )  # fmt: skip
    text = repr(data)
    assert text == str(data)
    assert "train_indices='100 images (SHA-256 " in text
    for part in (
        "class_subset=('airplane', 'automobile')", "label_noise=0.1", "sampling='balanced'",
        "label_noise_kind='symmetric'", "mix='cutmix'",
    ):  # fmt: skip
        assert part in text
    assert "imbalance=10, subset" not in str(CIFAR10DataModule(imbalance=10))
    assert "folds=(1, 4)" in str(CIFAR10DataModule(folds=(1, 4)))
    assert str(CIFAR10DataModule()).endswith("seed=0, resident)")


@pytest.mark.parametrize(
    ("saved", "other", "message"),
    [
        ({"subset": 300}, {"subset": 301}, "subset is 300 instead of 301"),
        ({"subset": 300, "folds": (0, 5)}, {"subset": 300, "folds": (1, 5)}, r"folds is \(0, 5\)"),
        ({"train_indices": range(300)}, {"train_indices": range(1, 301)}, "train_indices is '300"),
        ({"val_split": 49_700}, {"val_split": 49_701}, "val_split is 49700 instead of 49701"),
        ({"subset": 300}, {"subset": 300, "label_noise": 0.5}, "label_noise is 0.0 instead of 0.5"),
        ({"subset": 300, "exclude": [1, 2]}, {"subset": 300, "exclude": [1, 3]},
         "exclude is '2 images"),
        ({"subset": 300, "sample_weights": range(50_000)}, {"subset": 300},
         r"sample_weights is '50000 images \(SHA-256 .* instead of None"),
        ({"subset": 300, "class_subset": (1, 2)}, {"subset": 300, "class_subset": (2, 1)},
         r"class_subset is \('automobile', 'bird'\)"),
    ],
)  # fmt: skip
def test_resuming_with_other_data_is_refused(
    tmp_path: Path, saved: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    path = tmp_path / "last.ckpt"
    fit = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    fit.fit(Recorder(), CIFAR10DataModule(**saved))
    fit.save_checkpoint(path)

    def resume(data: CIFAR10DataModule) -> None:
        again = trainer(tmp_path, max_steps=2, limit_val_batches=0)
        again.fit(Recorder(), data, ckpt_path=path, weights_only=True)

    resume(CIFAR10DataModule(**saved))
    with pytest.raises(ValueError, match=f"other data: .*{message}"):
        resume(CIFAR10DataModule(**other))


def test_a_trained_network_may_be_tested_on_other_data(tmp_path: Path) -> None:
    fit = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    model = Recorder()
    fit.fit(model, CIFAR10DataModule(subset=300))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    test = trainer(tmp_path, limit_test_batches=1)
    test.test(
        model, CIFAR10DataModule(), ckpt_path=tmp_path / "last.ckpt", verbose=False,
        weights_only=True,
    )  # fmt: skip
    assert len(model.seen["test"]) == 1


# --- long tails -----------------------------------------------------------------------------------


def test_long_tailed_counts_are_the_published_ones(arrays: Arrays) -> None:
    data = ready(imbalance=100, val_split=0)
    # Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss" (2019)
    assert class_counts(data.labels()) == [int(5000 * 0.01 ** (i / 9.0)) for i in range(10)]
    held = ready(imbalance=10)
    assert class_counts(held.labels())[::9] == [4500, 450]
    assert class_counts(held.labels("val")) == [500] * 10
    assert class_counts(held.labels("test")) == [1000] * 10
    pair = ready(imbalance=9, class_subset=("truck", "cat"))
    assert class_counts(pair.labels(), 2) == [4500, 500]
    assert {*ready(imbalance=20).indices()} < {*held.indices()}


def test_balanced_sampling_draws_each_class_equally_often() -> None:
    data = ready(imbalance=100, sampling="balanced", val_split=0)
    loader = data.train_dataloader()
    order = loader._order
    rows = order.permutation(0) % order.samples
    counts = np.array(class_counts(data.labels()[rows]))
    assert counts.sum() == data.num_samples == 12_406
    assert abs(counts / counts.sum() - 0.1).max() < 0.015  # 5 standard deviations
    assert len(loader) == -(-12_406 // 512)
    assert not np.array_equal(order.permutation(0), order.permutation(1))
    other = ready(imbalance=100, sampling="balanced", val_split=0, seed=1).train_dataloader()
    assert not np.array_equal(order.permutation(0), other._order.permutation(0))


def test_repetitions_are_augmented_differently() -> None:
    options = {"train_indices": range(40), "sampling": "balanced", "batch_size": 40, "seed": 1}
    plain = ready(**options).train_dataloader()
    rows = plain._order.permutation(0) % 40
    repeated = Counter(rows.tolist()).most_common(1)[0][0]
    images, _ = next(iter(plain))
    assert len(images[torch.from_numpy(rows == repeated)].unique(dim=0)) > 1
    labels = ready(**options).labels()
    assert next(iter(plain))[1].tolist() == labels[plain._order.permutation(1) % 40].tolist()

    def crop(image: Any) -> torch.Tensor:
        return torch.rand(3, 2, 2)

    drawn = ready(**options, train_transforms=crop, num_workers=0).train_dataloader()
    images, labels_drawn = next(iter(drawn))
    assert len(images.unique(dim=0)) == 40
    assert labels_drawn.tolist() == labels[rows].tolist()


@pytest.mark.parametrize("make", [ready, per_sample])
def test_a_balanced_epoch_resumes_exactly(make: Any) -> None:
    options = {"imbalance": 50, "subset": 200, "sampling": "balanced", "batch_size": 32}
    options["mix"] = "both"
    whole = [*make(**options).train_dataloader()]
    first = make(**options).train_dataloader()
    batches = iter(first)
    for _ in range(3):
        next(batches)
    second = make(**options).train_dataloader()
    second.load_state_dict(first.state_dict())
    rest = [*second]
    assert len(rest) == len(whole) - 3
    for one, other in zip(rest, whole[3:], strict=True):
        assert all(map(torch.equal, one, other))


# --- label noise ----------------------------------------------------------------------------------


def test_symmetric_noise_changes_labels_to_all_others() -> None:
    data = ready(label_noise=0.4, val_split=0)
    rates = confusion_matrix(data.labels(clean=True), data.labels(), normalize="true")
    expected = np.full((10, 10), 0.4 / 9)
    np.fill_diagonal(expected, 0.6)
    assert abs(rates - expected).max() < 0.03  # more than 4 standard deviations
    assert class_counts(data.labels(clean=True)) == [5000] * 10


def test_asymmetric_noise_changes_labels_to_similar_classes() -> None:
    data = ready(label_noise=0.4, label_noise_kind="asymmetric", val_split=0)
    rates = confusion_matrix(data.labels(clean=True), data.labels(), normalize="true")
    expected = np.eye(10)
    for source, target in ASYMMETRIC_PAIRS.items():
        row, column = CLASSES.index(source), CLASSES.index(target)
        expected[row, row], expected[row, column] = 0.6, 0.4
    assert (abs(rates - expected) < 0.03).all()
    assert ((rates > 0) == (expected > 0)).all()
    assert len(ASYMMETRIC_PAIRS) == 5
    everything = ready(label_noise=1, label_noise_kind="asymmetric", class_subset=("cat", "dog"))
    assert (everything.labels() == 1 - everything.labels(clean=True)).all()


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_noise_depends_only_on_its_seed_and_the_image(kind: str) -> None:
    noise = {"label_noise": 0.3, "label_noise_kind": kind}
    whole = ready(**noise, val_split=0)
    changed = whole.labels() != whole.labels(clean=True)
    part = ready(**noise, folds=(2, 5), subset=0.5, seed=9, batch_size=3)
    assert np.array_equal(part.labels(), whole.labels()[part.indices()])
    for split in ("val", "test"):
        assert np.array_equal(part.labels(split), part.labels(split, clean=True))
    more = ready(label_noise=0.5, label_noise_kind=kind, val_split=0).labels()
    assert np.array_equal(more[changed], whole.labels()[changed])
    other = ready(**noise, val_split=0, label_noise_seed=1)
    assert not np.array_equal(other.labels(), whole.labels())
    assert np.array_equal(other.labels(clean=True), whole.labels(clean=True))


@pytest.mark.parametrize("make", [ready, per_sample])
def test_training_batches_have_the_noisy_labels_and_the_others_do_not(make: Any) -> None:
    data = make(label_noise=0.5, shuffle=False, subset=500, val_split=500, batch_size=500)
    noisy = data.labels()
    assert next(iter(data.train_dataloader()))[1].tolist() == noisy.tolist()
    assert next(iter(data.val_dataloader()))[1].tolist() == data.labels("val", clean=True).tolist()
    assert (noisy != data.labels(clean=True)).mean() == pytest.approx(0.5, abs=0.1)


# --- processes and options of the Trainer ---------------------------------------------------------


def test_every_option_under_a_trainer(tmp_path: Path, data_dir: Path) -> None:
    data = small(
        data_dir, imbalance=5, sampling="balanced", label_noise=0.2, class_subset=(1, 2, 3),
        mix="both",
    )  # fmt: skip
    model = Recorder()
    trainer(tmp_path, max_epochs=2).fit(model, data)
    assert len(model.epoch("train", 0)) == data.num_samples
    assert sorted(model.epoch("train", 0)) != sorted(model.epoch("train", 1))
    fixed = Recorder()
    trainer(tmp_path, max_epochs=2, overfit_batches=1).fit(fixed, data)
    assert len(fixed.epoch("train", 0)) == len(fixed.epoch("train", 1)) == 100


def test_figures_of_the_training_images_have_names_and_no_mixing(arrays: Arrays) -> None:
    data = ready(class_subset=("ship", "frog"), subset=60, mix="mixup", sampling="balanced")
    index = int(data.indices()[5])
    name = CLASSES[arrays.train_labels[index]]
    augmented = show_augmentations(data, indices=[index], epochs=1)
    assert name in "".join(text.get_text() for text in augmented.findobj(Text))
    assert np.array_equal(augmented.axes[0].images[0].get_array(), arrays.train_images[index])
    shown = show_class_samples(data, split="train", per_class=2)
    texts = {text.get_text() for text in shown.findobj(Text)}
    assert {"ship", "frog"} <= texts
    assert "cat" not in texts


def test_two_processes_share_the_drawn_images() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    options = {"shuffle": True, "drop_last": False, "seed": 0}
    one = BalancedOrder(labels, 20, **options).batches(3)
    ranks = [BalancedOrder(labels, 10, **options, rank=r, world_size=2).batches(3) for r in (0, 1)]
    for whole, left, right in zip(one, *ranks, strict=True):
        assert np.array_equal(whole, np.concatenate([left, right]))
    numbers = np.concatenate(one)
    assert len(np.unique(numbers)) == 100  # repetitions have numbers of their own
    assert 30 < (labels[numbers % 100] == 1).sum() < 70


# --- excluded images and weights ------------------------------------------------------------------


def test_excluded_images_leave_all_others_as_they_are() -> None:
    options: dict[str, Any] = {"val_split": 1000, "subset": 400, "imbalance": 4, "folds": None}
    plain = ready(**options)
    held, train = plain.indices("val"), plain.indices()
    excluded = [*train[3:30].tolist(), *held[:5].tolist()]
    data = ready(**options, exclude=excluded)
    assert np.array_equal(data.indices("val"), held)
    assert data.indices().tolist() == [i for i in train.tolist() if i not in excluded]
    assert data.num_samples == 400 - 27
    assert f"train={400 - 27}, " in str(data)
    assert "exclude='32 images (SHA-256 " in str(data)
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 400 - 27
    assert ready(exclude=[]).num_samples == 45_000
    with pytest.raises(RuntimeError, match="The data are not loaded yet"):
        _ = CIFAR10DataModule(exclude=[1]).num_samples


def test_excluding_every_image_is_refused() -> None:
    data = CIFAR10DataModule(subset=100, exclude=range(50_000))
    with pytest.raises(ValueError, match="50000 images, which leaves none to train on. Exclude"):
        data.setup()


def drawn(epochs: int, **options: Any) -> Any:
    """Return how often each of 100 images is drawn in each epoch."""
    data = ready(val_split=0, subset=100, batch_size=30, **options)
    loader: Any = data.train_dataloader()
    rows = [np.concatenate(loader.rows(epoch)) for epoch in range(epochs)]
    return np.array([np.bincount(each, minlength=100) for each in rows])


def test_weights_determine_how_often_an_image_is_drawn() -> None:
    indices = ready(val_split=0, subset=100).indices()
    weights = np.zeros(50_000)
    weights[indices] = np.linspace(0, 3, 100) ** 2
    counts = drawn(400, sample_weights=weights)
    expected = 100 * weights[indices] / weights[indices].sum()
    assert (counts.sum(1) == 100).all()
    assert (counts >= np.floor(expected - 1e-9)).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()
    # the standard deviation of a count is at most 1/2
    np.testing.assert_allclose(counts.mean(0), expected, atol=4.5 * 0.5 / 400**0.5)
    assert len({tuple(each) for each in counts.tolist()}) == 400


def test_equal_weights_draw_each_image_once() -> None:
    assert (drawn(20, sample_weights=np.full(50_000, 0.3)) == 1).all()


def test_weights_of_zero_for_all_images_are_refused() -> None:
    data = ready(subset=50, sample_weights=np.zeros(50_000))
    with pytest.raises(ValueError, match="0 for all 50 training images. Pass a weight greater"):
        data.train_dataloader()


def test_repeated_images_are_augmented_differently() -> None:
    index = int(ready(val_split=0, subset=20).indices()[4])
    weights = np.zeros(50_000)
    weights[index] = 1.0
    data = ready(val_split=0, subset=20, sample_weights=weights)
    images = torch.cat([images for images, _ in data.train_dataloader()])
    assert len(images) == 20
    assert len({image.numpy().tobytes() for image in images}) > 10
