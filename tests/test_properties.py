"""Test properties for random inputs against independent implementations: NumPy on one image or one
score at a time, and scikit-learn. The examples are the same in every run.
"""

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pytorch_lightning import Trainer
from scipy.stats import chisquare
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, recall_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cifar_resnet import CIFAR10DataModule, ImageClassifier, Recipe, find_misclassified
from cifar_resnet.data import cifar10, sources
from cifar_resnet.data.augment import Augmentation, ImageBank
from cifar_resnet.data.formats import Arrays
from cifar_resnet.data.order import stratified_split
from cifar_resnet.training.epoch_sums import EpochSums
from cifar_resnet.training.muon import orthogonalize

Bytes = NDArray[np.uint8]


def examples(number: int) -> Callable[[Any], Any]:
    return settings(max_examples=number, derandomize=True, deadline=None, database=None)


SEEDS = st.integers(0, 2**63 - 1)

# --- augmentation -------------------------------------------------------------------------------


def augmented(
    image: Bytes, at: int, drawn: Any, padding: int, mode: str, cutout: int, mean: Any, std: Any
) -> NDArray[np.float64]:
    """Pad, crop, mirror, normalize and cut out one image (S, S, C); return it as (C, S, S)."""
    side = len(image)
    y, x = int(drawn.offset_y[at]), int(drawn.offset_x[at])
    around = ((padding, padding), (padding, padding), (0, 0))
    cut = np.pad(image, around, mode=mode)[y : y + side, x : x + side]  # type: ignore[call-overload]
    seen = cut[:, ::-1] if drawn.flip[at] else cut
    values = (seen.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    top, left = int(drawn.cutout_y[at]), int(drawn.cutout_x[at])
    values[top : top + cutout, left : left + cutout] = 0
    return values.transpose(2, 0, 1)


@st.composite
def augmentations(draw: Any) -> dict[str, Any]:
    side = draw(st.integers(2, 10))
    channels = draw(st.integers(1, 4))
    number = draw(st.integers(1, 7))
    return {
        "images": np.random.default_rng(draw(st.integers(0, 2**32))).integers(
            0, 256, (number, side, side, channels), dtype=np.uint8
        ),
        "padding": draw(st.integers(0, side - 1)),
        "mode": draw(st.sampled_from(["reflect", "constant"])),
        "flip": draw(st.sampled_from(["random", "alternating", "none"])),
        "cutout": draw(st.integers(0, side)),
        "mean": draw(st.lists(st.floats(0.1, 0.9), min_size=channels, max_size=channels)),
        "std": draw(st.lists(st.floats(0.1, 1.0), min_size=channels, max_size=channels)),
        "seed": draw(SEEDS),
        "epoch": draw(st.integers(0, 1000)),
        "rows": draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=9)),
    }


@examples(150)
@given(case=augmentations())
def test_every_image_of_a_batch_is_augmented_by_itself(case: dict[str, Any]) -> None:
    images, padding, cutout = case["images"], case["padding"], case["cutout"]
    augmentation = Augmentation(padding, case["flip"], cutout, case["mode"])
    bank = ImageBank(images, case["mean"], case["std"], augmentation=augmentation)
    side = images.shape[1]
    drawn = augmentation.draw(len(images), (side, side), seed=case["seed"], epoch=case["epoch"])
    rows = np.array(case["rows"])
    batch = bank.batch(rows, drawn.take(rows))
    expected = [
        augmented(images[row], row, drawn, padding, case["mode"], cutout, case["mean"], case["std"])
        for row in rows
    ]
    assert batch.dtype == torch.float32
    np.testing.assert_allclose(batch.numpy(), np.stack(expected), atol=1e-5, rtol=1e-5)
    # without parameters the images are only normalized, and those in the bank are unchanged
    plain = (images[rows] / 255 - np.array(case["mean"])) / np.array(case["std"])
    np.testing.assert_allclose(
        bank.batch(rows).numpy(), plain.transpose(0, 3, 1, 2), atol=1e-5, rtol=1e-5
    )


@examples(60)
@given(
    side=st.integers(1, 40),
    fraction=st.floats(0, 1),
    flip=st.sampled_from(["random", "alternating", "none"]),
    seed=SEEDS,
    epoch=st.integers(0, 10**6),
)
def test_parameters_are_within_the_image(
    side: int, fraction: float, flip: str, seed: int, epoch: int
) -> None:
    padding, cutout = int(fraction * (side - 1)), round(fraction * side)
    augmentation = Augmentation(padding, flip, cutout)
    drawn = augmentation.draw(50, (side, side), seed=seed, epoch=epoch)
    for offsets in (drawn.offset_y, drawn.offset_x):
        assert offsets.min() >= 0
        assert offsets.max() <= 2 * padding
    for corners in (drawn.cutout_y, drawn.cutout_x):
        assert corners.min() >= 0
        assert corners.max() + cutout <= side
    again = augmentation.draw(50, (side, side), seed=seed, epoch=epoch)
    assert all((one == two).all() for one, two in zip(drawn.arrays(), again.arrays(), strict=True))
    following, later = (
        augmentation.draw(50, (side, side), seed=seed, epoch=epoch + step).flip for step in (1, 2)
    )
    if flip == "none":
        assert not drawn.flip.any()
    elif flip == "alternating":
        assert (following != drawn.flip).all()
        assert (later == drawn.flip).all()
    else:
        assert (following != drawn.flip).any()


@pytest.mark.parametrize("epoch", [0, 1, 7])
@pytest.mark.parametrize("flip", ["random", "alternating"])
def test_offsets_and_flips_are_uniform_and_independent(epoch: int, flip: str) -> None:
    number, padding, side, cutout = 40_000, 3, 12, 5
    drawn = Augmentation(padding, flip, cutout).draw(number, (side, side), seed=11, epoch=epoch)
    offsets, corners = 2 * padding + 1, side - cutout + 1
    for joint, cells in (
        (drawn.offset_y * offsets + drawn.offset_x, offsets**2),
        (drawn.cutout_y * corners + drawn.cutout_x, corners**2),
        (drawn.offset_y * 2 + drawn.flip, offsets * 2),
        (drawn.offset_x * corners + drawn.cutout_x, offsets * corners),
    ):
        counts = np.bincount(joint, minlength=cells)
        assert len(counts) == cells
        assert chisquare(counts).pvalue > 1e-3


# --- normalization ------------------------------------------------------------------------------


def test_denormalize_gives_every_byte_back() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    normalized = ImageBank(values, cifar10.MEAN, cifar10.STD).batch(np.arange(1))
    back = (CIFAR10DataModule.denormalize(normalized) * 255).round().byte()
    assert torch.equal(back.permute(0, 2, 3, 1), torch.from_numpy(values))


@examples(40)
@given(
    leading=st.lists(st.integers(1, 3), max_size=3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_denormalize_undoes_normalization_for_any_shape(
    leading: list[int], height: int, width: int, seed: int
) -> None:
    shape = (*leading, 3, height, width)
    pixels = np.random.default_rng(seed).random(shape)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (cifar10.MEAN, cifar10.STD))
    normalized = torch.tensor((pixels - mean) / std, dtype=torch.float32)
    np.testing.assert_allclose(CIFAR10DataModule.denormalize(normalized), pixels, atol=1e-6)


# --- splits and epochs --------------------------------------------------------------------------


@examples(150)
@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=150),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_is_disjoint_complete_stratified_and_always_the_same(
    labels: list[int], fraction: float, seed: int
) -> None:
    array, held_out = np.array(labels), int(fraction * len(labels))
    np.random.seed(seed)
    torch.manual_seed(seed)
    train, held = stratified_split(array, held_out)
    assert len(held) == held_out
    assert (np.sort(np.concatenate([train, held])) == np.arange(len(labels))).all()
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()
    for label, count in Counter(labels).items():
        assert abs((array[held] == label).sum() - count * held_out / len(labels)) < 1
    np.random.seed(0)
    again = stratified_split(array, held_out)
    assert (again[0] == train).all()
    assert (again[1] == held).all()


@pytest.fixture(scope="module")
def read_once(data_dir: Path, arrays: Arrays) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "load", lambda folder: arrays)
        yield data_dir


def served(data: CIFAR10DataModule) -> list[bytes]:
    """Return the images of an epoch with their labels as bytes, in order."""
    found = []
    for images, labels in data.train_dataloader():
        pixels = (data.denormalize(images) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        found += [
            image.tobytes() + bytes([label])
            for image, label in zip(pixels, labels.tolist(), strict=True)
        ]
    return found


@examples(15)
@given(
    trained=st.integers(1, 60),
    as_fraction=st.booleans(),
    batch_size=st.integers(1, 70),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_an_epoch_has_every_training_image_once(
    read_once: Path,
    arrays: Arrays,
    trained: int,
    as_fraction: bool,
    batch_size: int,
    shuffle: bool,
    drop_last: bool,
    seed: int,
) -> None:
    assume(not drop_last or batch_size <= trained)
    held_out = 50_000 - trained
    data = CIFAR10DataModule(
        read_once,
        batch_size,
        held_out / 50_000 if as_fraction else held_out,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        crop_padding=0,
        flip="none",
    )
    data.setup()
    assert data.num_samples == trained
    rows = stratified_split(arrays.train_labels, held_out)[0]  # for every seed
    expected = [
        arrays.train_images[row].tobytes() + bytes([arrays.train_labels[row]]) for row in rows
    ]
    epoch = served(data)
    if drop_last:
        assert len(epoch) == trained // batch_size * batch_size
        assert not Counter(epoch) - Counter(expected)
    elif shuffle:
        assert Counter(epoch) == Counter(expected)
    else:
        assert epoch == expected


# --- metrics ------------------------------------------------------------------------------------


class ScoresInImages(nn.Module):
    """A network whose scores are the images (N, classes, 1, 1) themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * self.scale


@st.composite
def scored(draw: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw scores with many ties, and labels; some classes may have no samples."""
    number, classes = draw(st.integers(1, 40)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = draw(st.integers(1, 30))  # few values, many ties
    scores = rng.integers(-steps, steps + 1, (number, classes)) / 4
    return scores, rng.integers(0, draw(st.integers(1, classes)), number)


def probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def as_data(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> TensorDataset:
    images = torch.tensor(scores, dtype=torch.float32)[:, :, None, None]
    return TensorDataset(images, torch.from_numpy(labels))


@examples(100)
@given(case=scored(), batch_size=st.integers(1, 50), n=st.integers(1, 50))
def test_errors_and_counts_are_those_of_scikit_learn(case: Any, batch_size: int, n: int) -> None:
    scores, labels = case
    classes = scores.shape[1]
    shown = {"mean": [0.0] * classes, "std": [1.0] * classes}
    found = find_misclassified(
        ScoresInImages(), as_data(scores, labels), batch_size=batch_size, n=n, **shown
    )
    predicted = scores.argmax(1)  # the first class if several are tied
    numbers = list(range(classes))
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert found.confusion.tolist() == confusion_matrix(labels, predicted, labels=numbers).tolist()
    recall = recall_score(labels, predicted, labels=numbers, average=None, zero_division=np.nan)
    np.testing.assert_allclose(list(found.class_accuracy.values()), recall)

    expected = probabilities(scores)
    losses = -np.log(expected[np.arange(len(labels)), labels])
    wrong = np.flatnonzero(predicted != labels)
    assert (found.total, found.errors, found.matching) == (len(labels), len(wrong), len(wrong))
    assert len(found) == min(n, len(wrong))
    # the highest losses, in descending order
    kept = [sample.index for sample in found]
    np.testing.assert_allclose(losses[kept], np.sort(losses[wrong])[::-1][: len(kept)], atol=1e-5)
    assert len(set(kept)) == len(kept)
    for sample in found:
        assert (sample.true, sample.predicted) == (labels[sample.index], predicted[sample.index])
        assert sample.loss == pytest.approx(losses[sample.index], abs=1e-5)
        np.testing.assert_allclose(sample.probabilities, expected[sample.index], atol=1e-6)

    pairs = Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    most = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    assert [(int(p.true), int(p.predicted), p.errors) for p in found.most_confused(n)] == [
        (*pair, count) for pair, count in most[:n]
    ]


@examples(100)
@given(case=scored(), batch_size=st.integers(1, 50))
def test_calibration_against_the_definition(case: Any, batch_size: int) -> None:
    scores, labels = case
    shown = {"mean": 0.0, "std": 1.0}
    found = find_misclassified(
        ScoresInImages(), as_data(scores, labels), batch_size=batch_size, **shown
    )
    confidence = torch.tensor(scores, dtype=torch.float32).softmax(1).amax(1).double().numpy()
    right = scores.argmax(1) == labels
    error = 0.0
    for place in range(15):
        inside = (confidence > place / 15) & (confidence <= (place + 1) / 15)
        assert found.calibration.counts[place] == inside.sum()
        if inside.any():
            mean = confidence[inside].mean()
            assert float(found.calibration.confidence[place]) == pytest.approx(mean)
            assert float(found.calibration.accuracy[place]) == pytest.approx(right[inside].mean())
            error += inside.mean() * abs(right[inside].mean() - mean)
    assert found.calibration.expected_error == pytest.approx(error)


@examples(60)
@given(case=scored(), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_the_sums_of_an_epoch_are_the_sums_over_its_images(case: Any, sizes: list[int]) -> None:
    scores, labels = case
    epoch_sums, start = EpochSums(), 0
    for step, size in enumerate([*sizes, len(labels)]):
        part = slice(start, start + size)
        start += size
        if len(labels[part]) == 0:
            break
        batch = torch.tensor(scores[part], dtype=torch.float32)
        answers = torch.from_numpy(labels[part])
        epoch_sums.add(
            F.cross_entropy(batch, answers), batch, answers, step=step, learning_rate=0.1
        )
        if step % 2:
            epoch_sums.synchronize()
    epoch_sums.synchronize()
    loss, correct, number = epoch_sums.sums().tolist()
    classes = list(range(scores.shape[1]))
    assert loss == pytest.approx(
        log_loss(labels, probabilities(scores), labels=classes, normalize=False), abs=1e-4
    )
    assert (correct, number) == ((scores.argmax(1) == labels).sum(), len(labels))


@pytest.mark.parametrize(
    ("classes", "number", "batch_size"), [(2, 50, 7), (10, 301, 64), (37, 90, 1)]
)
def test_trainer_results_equal_scikit_learn(classes: int, number: int, batch_size: int) -> None:
    rng = np.random.default_rng(classes)
    scores, labels = rng.integers(-8, 9, (number, classes)) / 4, rng.integers(0, classes, number)
    loader = DataLoader(as_data(scores, labels), batch_size=batch_size)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*treespec")
        (message,) = trainer.test(
            ImageClassifier(ScoresInImages(), num_classes=classes), loader, verbose=False
        )
    expected = log_loss(labels, probabilities(scores), labels=list(range(classes)))
    assert message["test_loss"] == pytest.approx(expected, rel=1e-5)
    assert message["test_acc"] == pytest.approx(accuracy_score(labels, scores.argmax(1)), rel=1e-6)


# --- recipes and optimizer steps -----------------------------------------------------------------

POSITIVE = st.floats(1e-9, 1e6)
FRACTIONS = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(1e-6, 1 - 1e-6))
BELOW_ONE = st.floats(0, 1, exclude_max=True)
RECIPES = st.builds(
    Recipe,
    name=st.text(max_size=9),
    optimizer=st.sampled_from(["adam", "sgd", "muon"]),
    learning_rate=st.one_of(POSITIVE, st.integers(1, 9), POSITIVE.map(np.float64)),
    conv_learning_rate=POSITIVE,
    momentum=BELOW_ONE,
    weight_decay=st.floats(0, 1e6),
    schedule=st.sampled_from(["constant", "linear"]),
    warmup=st.one_of(FRACTIONS, FRACTIONS.map(np.float64)),
    norm_bias_lr_scale=POSITIVE,
    label_smoothing=BELOW_ONE,
    tta=st.sampled_from(["none", "mirror", "six"]),
    batch_size=st.one_of(st.integers(1, 10**6), st.integers(1, 10**6).map(np.int64)),
    crop_padding=st.integers(0, 31),
    flip=st.sampled_from(["random", "alternating", "none"]).map(np.str_),
    cutout=st.integers(0, 32).map(np.int32),
    image_scale=st.floats(0, 1, exclude_min=True),
    image_scale_until=FRACTIONS,
    norm_first=st.booleans(),
    activation=st.sampled_from(["relu", "gelu"]),
    residual2=st.booleans(),
    head_scale=st.one_of(POSITIVE, POSITIVE.map(np.float64)),
)


@examples(100)
@given(recipe=RECIPES)
def test_a_recipe_survives_conversion_to_a_dictionary_and_json(recipe: Recipe) -> None:
    values = recipe.to_dict()
    assert Recipe(**values) == recipe
    assert Recipe(**json.loads(json.dumps(values))) == recipe
    # types that a checkpoint loaded with weights_only=True may contain
    assert {type(value) for value in values.values()} <= {str, int, float, bool}
    CIFAR10DataModule(**recipe.data_options())


@examples(150)
@given(warmup=FRACTIONS, one=st.floats(0, 1.5), two=st.floats(0, 1.5))
def test_the_schedule_is_a_continuous_factor_up_to_one(
    warmup: float, one: float, two: float
) -> None:
    for schedule in ("constant", "linear"):
        recipe = Recipe(schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
        first, second = recipe.learning_rate_factor(one), recipe.learning_rate_factor(two)
        assert 0 <= first <= 1
        steepest = 1 / min((part for part in (warmup, 1 - warmup) if part > 0), default=1)
        if schedule == "constant":
            assert first == second == 1
        else:
            assert abs(first - second) <= abs(one - two) * steepest * (1 + 1e-9) + 1e-12
            assert recipe.learning_rate_factor(0) == (0 if warmup else 1)
            assert recipe.learning_rate_factor(1) == (0 if warmup < 1 else 1)


@examples(40)
@given(warmup=FRACTIONS, steps=st.integers(200, 999))
def test_the_linear_schedule_spends_half_of_the_constant_one(warmup: float, steps: int) -> None:
    """The area of the triangle is the same for every warm-up."""
    recipe = Recipe(schedule="linear", warmup=warmup)
    total = math.fsum(recipe.learning_rate_factor((step + 0.5) / steps) for step in range(steps))
    # one step may contain the peak
    assert total / steps == pytest.approx(0.5, abs=0.5 / steps)


@examples(80)
@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32),
)
def test_a_step_is_orthogonalized_along_its_own_singular_vectors(
    rows: int, columns: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rank = min(rows, columns)
    left = np.linalg.qr(rng.standard_normal((rows, rank)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, rank)))[0]
    sizes = scale * rng.uniform(0.2, 1, rank)
    matrix = torch.tensor((left * sizes) @ right.T, dtype=torch.float32)
    turned = orthogonalize(matrix).double().numpy()
    assert turned.shape == matrix.shape
    core = left.T @ turned @ right  # diagonal if the singular vectors are unchanged
    assert np.diag(core).min() > 0.6
    assert np.diag(core).max() < 1.3
    assert np.abs(core - np.diag(np.diag(core))).max() < 0.1
