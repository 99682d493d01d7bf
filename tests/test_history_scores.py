"""Scores and ranks of images are those of independent implementations, and figures show what the
network saw.
"""

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Flat, per_sample, ready, trainer
from sklearn.metrics import roc_auc_score
from test_history import images, linear, module, record
from torch.utils.data import DataLoader

from cifar_resnet import (
    CIFAR10DataModule,
    ImageClassifier,
    ImageDataModule,
    ImageHistory,
    TrainingHistory,
    find_label_issues,
    score_images,
    show_dataset_map,
    show_history,
    show_label_issues,
)
from cifar_resnet.history.issues import average_ranks
from cifar_resnet.history.store import measure


def history(
    n: int = 40, epochs: int = 12, classes: int = 4, missing: float = 0.3, seed: int = 0
) -> ImageHistory:
    """Random values, of which some are missing; the first image is missing in all epochs."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, epochs, classes)) + 1.5 * np.eye(classes)[labels][:, None]
    own = np.take_along_axis(scores, labels[:, None, None], 2)[..., 0]
    others = np.where(np.eye(classes, dtype=bool)[labels][:, None], -np.inf, scores).max(2)
    loss = np.log(np.exp(scores).sum(2)) - own
    unseen = rng.random((n, epochs)) < missing
    unseen[0] = True
    return ImageHistory(
        np.where(unseen, np.nan, loss), np.where(unseen, np.nan, own - others),
        np.where(unseen, -1, scores.argmax(2)), rng.permutation(1000)[:n], labels,
        class_names=tuple("abcd")[:classes],
    )  # fmt: skip


# --- formulas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.9])
def test_scores_are_those_of_loops(missing: float) -> None:
    values = history(missing=missing)
    scores = score_images(values)
    for row, label in enumerate(values.labels.tolist()):
        entries = [
            (float(loss), float(margin), int(predicted) == label, epoch)
            for epoch, (loss, margin, predicted) in enumerate(
                zip(values.loss[row], values.margin[row], values.prediction[row], strict=True)
            )
            if predicted >= 0
        ]
        record = scores.to_records()[row]
        assert record["observations"] == len(entries)
        if not entries:
            means = ("confidence", "variability", "correctness", "loss", "area_under_margin")
            assert all(math.isnan(record[name]) for name in means)
            assert (record["forgetting"], record["learned"], record["never_learned"]) == (
                0,
                0,
                False,
            )
            continue
        probabilities = [math.exp(-loss) for loss, *_ in entries]
        count = len(entries)
        mean = sum(probabilities) / count
        assert record["confidence"] == pytest.approx(mean, rel=1e-5)
        variance = sum((p - mean) ** 2 for p in probabilities) / count
        assert record["variability"] == pytest.approx(math.sqrt(variance), rel=1e-4, abs=1e-7)
        assert record["correctness"] == sum(correct for _, _, correct, _ in entries) / count
        assert record["loss"] == pytest.approx(sum(e[0] for e in entries) / count)
        assert record["area_under_margin"] == pytest.approx(sum(e[1] for e in entries) / count)
        events = 0
        for (_, _, before, _), (_, _, now, _) in itertools.pairwise(entries):
            events += before and not now
        assert record["forgetting"] == events
        assert record["never_learned"] == (not any(correct for _, _, correct, _ in entries))
        learned = values.epochs
        for _, _, correct, epoch in reversed(entries):
            if not correct:
                break
            learned = epoch
        assert record["learned"] == learned
    json.dumps(scores.to_records()[1])


def test_variability_is_at_most_a_half() -> None:
    values = ImageHistory([[0, 1e9]], [[1, -1]], [[0, 1]], [3], [0])  # type: ignore[arg-type]
    scores = score_images(values)
    assert scores.variability.tolist() == [0.5]
    assert (scores.forgetting.tolist(), scores.learned.tolist()) == ([1], [2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_values_of_a_batch(dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(50, 7)).to(dtype)
    labels = torch.randint(7, (50,))
    for scores in (logits, logits.double().log_softmax(1)):  # margins are the same
        given, loss, margin, prediction = measure(scores, labels)
        assert (loss.dtype, margin.dtype, prediction.dtype) == (
            torch.float32, torch.float32, torch.int16,
        )  # fmt: skip
        assert torch.equal(given, labels)
        for row in range(50):
            z = scores[row].double().tolist()
            own = z.pop(int(labels[row]))
            assert float(margin[row]) == pytest.approx(own - max(z), abs=1e-4)
            total = math.log(sum(map(math.exp, [own, *z])))
            assert float(loss[row]) == pytest.approx(total - own, rel=1e-4, abs=1e-5)
        assert torch.equal(prediction.long(), scores.argmax(1))


def test_average_ranks_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).integers(0, 9, 100).astype(float)
    np.testing.assert_array_equal(average_ranks(values), stats.rankdata(values))


# --- label issues ---------------------------------------------------------------------------------


def test_ranks_and_suggestions_are_those_of_loops() -> None:
    values = history()
    issues = find_label_issues(values)
    assert len(issues) == 39  # the first image is in no epoch
    assert 0 not in [values.row(index) for index in issues.indices.tolist()]
    mean_ranks = issues.ranks["mean_rank"]
    assert (np.diff(mean_ranks) >= 0).all()
    assert issues.scores.keys() == issues.ranks.keys() - {"mean_rank"}
    doubts = {"area_under_margin": 1, "confidence": 1, "last_confidence": 1, "loss": -1,
              "forgetting": -1, "learned": -1}  # fmt: skip
    assert doubts.keys() == issues.scores.keys()
    for name, sign in doubts.items():
        column = [sign * value for value in issues.scores[name].tolist()]
        for value, rank in zip(column, issues.ranks[name].tolist(), strict=True):
            smaller = sum(other < value for other in column)
            assert rank == smaller + (column.count(value) + 1) / 2
    means = np.mean([issues.ranks[name] for name in doubts], axis=0)
    np.testing.assert_allclose(mean_ranks, means)
    for row, index in enumerate(issues.indices.tolist()):
        source = values.row(index)
        assert issues.given[row] == values.labels[source]
        last = [int(p) for p in values.prediction[source] if p >= 0][-3:]  # of 12 epochs
        latest = max(last, key=lambda p: (last.count(p), max(np.flatnonzero(np.equal(last, p)))))
        assert issues.suggested[row] == latest
        seen = [e for e in range(12) if values.prediction[source, e] >= 0][-3:]
        probability = values.probability[source, seen].mean()
        assert issues.scores["last_confidence"][row] == pytest.approx(probability, rel=1e-5)


def test_issues_can_be_sorted_cut_and_written(tmp_path: Path) -> None:
    issues = find_label_issues(history(), by="forgetting")
    assert (np.diff(issues.ranks["forgetting"]) >= 0).all()
    assert repr(issues).startswith("<LabelIssues: 39 images by forgetting, ")
    again = issues.sorted_by("mean_rank")
    assert again.indices.tolist() == find_label_issues(history()).indices.tolist()
    top = again.top(5)
    assert top.indices.tolist() == again.indices[:5].tolist()
    assert len(again.top(1000)) == 39
    top.to_csv(tmp_path / "issues.csv")
    with (tmp_path / "issues.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(each["index"]) for each in rows] == top.indices.tolist()
    assert [each["given"] for each in rows] == ["abcd"[k] for k in top.given]
    assert json.loads(json.dumps(top.to_records()))[0]["index"] == top.indices[0]
    assert float(rows[3]["loss"]) == top.scores["loss"][3]


def test_changed_labels_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    pixels = rng.integers(0, 60, (400, 8, 8, 3), dtype=np.uint8)
    pixels[np.arange(400), labels] += 150  # a bright row for each class
    data = ImageDataModule(
        (pixels, labels), val_split=0, batch_size=32, flip="none", crop_padding=0, label_noise=0.2
    )
    values, _ = record(tmp_path, data, model=ImageClassifier(linear(4)), epochs=6)
    issues = find_label_issues(values)
    rows = [values.row(index) for index in issues.indices.tolist()]
    assert values.changed is not None
    assert values.clean_labels is not None
    wrong = values.changed[rows]
    for name, ranks in issues.ranks.items():
        assert roc_auc_score(wrong, -ranks) > (0.9 if name != "forgetting" else 0.6), name
    first = issues.top(int(wrong.sum()))
    assert wrong[: len(first)].mean() > 0.9
    clean = values.clean_labels[rows]
    assert (issues.suggested == clean)[wrong].mean() > 0.9


def test_confident_learning_of_cleanlab_agrees_in_kind() -> None:
    rank = pytest.importorskip("cleanlab.rank", reason="cleanlab is not installed")
    # With one epoch, the confidence is cleanlab's self-confidence of the probabilities.
    values = history(epochs=1, missing=0.0)
    probabilities = np.full((40, 4), np.nan)
    own = values.probability[:, 0]
    probabilities[:] = ((1 - own) / 3)[:, None]
    probabilities[np.arange(40), values.labels] = own
    expected = rank.get_label_quality_scores(values.labels, probabilities.astype(float))
    seen = values.seen[:, 0]
    np.testing.assert_allclose(score_images(values).confidence[seen], expected[seen], rtol=1e-5)


# --- files and access -----------------------------------------------------------------------------


def test_a_file_holds_everything(tmp_path: Path) -> None:
    values, _ = record(tmp_path, module(label_noise=0.3))
    values.save(tmp_path / "a.npz")
    loaded = ImageHistory.load(str(tmp_path / "a.npz"))
    for name in ("loss", "margin", "prediction", "indices", "labels", "clean_labels"):
        one, other = getattr(values, name), getattr(loaded, name)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    assert (loaded.class_names, loaded.data) == (values.class_names, values.data)
    assert loaded.data["label_noise"] == 0.3
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert len(file.files) == 7


def test_a_history_of_50000_images_and_24_epochs_is_small(tmp_path: Path) -> None:
    zeros = np.zeros((50_000, 24), dtype=np.float32)
    each = np.zeros(50_000, dtype=np.int64)
    ImageHistory(zeros, zeros, zeros.astype(np.int16), each, each, each).save(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").stat().st_size < 14e6


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    history().save(path)
    content = path.read_bytes()
    wrong = {
        "half": content[: len(content) // 2],
        "empty": b"",
        "text": b"hello",
        "changed": content[:300] + bytes(200) + content[500:],
    }
    for name, damaged in wrong.items():
        (tmp_path / f"{name}.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.npz is not a history of training images, or"):
            ImageHistory.load(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "other.npz", loss=np.zeros(3))
    with pytest.raises(ValueError, match="other.npz is not a history of training images"):
        ImageHistory.load(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", loss=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickled.npz is not a history"):
        ImageHistory.load(tmp_path / "pickled.npz")
    text = np.array(json.dumps({"format": 2, "class_names": [], "data": {}}))
    np.savez(tmp_path / "newer.npz", description=text)
    with pytest.raises(ValueError, match="its format is 2 instead of 1; use the version"):
        ImageHistory.load(tmp_path / "newer.npz")
    with pytest.raises(FileNotFoundError):
        ImageHistory.load(tmp_path / "none.npz")


def test_arrays_that_do_not_fit_are_refused() -> None:
    zeros, each = np.zeros((3, 2)), np.zeros(3)
    for wrong in (
        (zeros, np.zeros((3, 1)), zeros, each, each),
        (zeros, zeros, zeros, np.zeros(2), each),
        (each, each, each, each, each),
        (zeros, zeros, zeros, each, np.zeros(4)),
        (zeros, zeros, zeros, each, each, np.zeros(4)),
    ):
        with pytest.raises(ValueError, match="must have the shape .N, epochs., and indices"):
            ImageHistory(*wrong)


def test_an_image_that_was_not_trained_on_is_named() -> None:
    values = history()
    free = min(set(range(1000)) - set(values.indices.tolist()))
    for wrong in (free, -1, 50_000):
        with pytest.raises(IndexError, match=rf"one of the 40 training images.*but got {wrong}\."):
            values.row(wrong)
        with pytest.raises(IndexError, match=f"but got {wrong}"):
            show_history(values, wrong)


def test_a_history_without_values_is_refused() -> None:
    none = np.zeros((3, 0))
    empty = ImageHistory(none, none, none, range(3), [0] * 3)  # type: ignore[arg-type]
    for function in (score_images, find_label_issues, show_dataset_map):
        with pytest.raises(ValueError, match="history contains 0 epochs of 3 images. Train with"):
            function(empty)


def test_the_callback_in_place_of_its_history_is_named() -> None:
    recorder: Any = TrainingHistory()
    with pytest.raises(TypeError, match="but got TrainingHistory. Pass its attribute `history`."):
        score_images(recorder)
    with pytest.raises(TypeError, match="must be an ImageHistory, but got dict. ImageHistory.load"):
        score_images({})  # type: ignore[arg-type]


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"val_split": 49_900},
        {"subset": 60, "flip": "alternating", "cutout": 6, "crop_padding": 2},
        {"subset": 60, "sampling": "balanced"},
        {"subset": 60, "sample_weights": np.arange(50_000)},
        {"train_indices": [7, 3, 90], "flip": "none", "padding_mode": "constant"},
    ],
    ids=str,
)
@pytest.mark.parametrize("sampled", [False, True])
def test_augmented_images_are_those_of_the_loader(
    options: dict[str, Any], sampled: bool, data_dir: Path
) -> None:
    settings = {"val_split": 0, "batch_size": 16} | options
    make = per_sample if sampled else CIFAR10DataModule
    data = make(data_dir, **settings)
    data.setup()
    loader: Any = data.train_dataloader()
    for epoch in range(3):
        rows = np.concatenate(loader.rows(epoch))
        seen = torch.cat([batch for batch, _ in loader])
        last = dict(zip(rows.tolist(), seen, strict=True))
        for row in sorted(last)[:20]:
            image = data.augmented(int(data.indices()[row]), epoch)
            assert image.shape == (3, 32, 32)
            assert torch.equal(image, last[row])


def test_augmented_refuses_images_and_epochs_that_do_not_exist(data_dir: Path) -> None:
    data = ready(data_dir, train_indices=[7, 3])
    with pytest.raises(IndexError, match="one of the 2 training images, which indices.. returns"):
        data.augmented(4, 0)
    with pytest.raises(TypeError, match="index must be an integer, but got '7'"):
        data.augmented("7", 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epoch must be an integer of at least 0, but got -1"):
        data.augmented(7, -1)


def run(folder: Path, data: Any) -> ImageHistory:
    recorder = TrainingHistory()
    model = ImageClassifier(Flat(), num_classes=10)
    trainer(folder, max_epochs=2, callbacks=[recorder], limit_val_batches=0).fit(model, data)
    return recorder.history


def test_figures_show_the_images_that_the_network_saw(data_dir: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"subset": 30, "val_split": 0, "cutout": 4, "label_noise": 0.5}
    data = CIFAR10DataModule(data_dir, **options)
    values = run(tmp_path, data)
    index = int(values.indices[values.labels != values.clean_labels][0])
    figure: Any = show_history(values, index, CIFAR10DataModule(data_dir, **options))
    drawn = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(drawn) == 3
    original = data._loaded().train_images[index]
    assert np.array_equal(drawn[0], original)
    for epoch in range(2):
        expected = data.denormalize(data.augmented(index, epoch)).permute(1, 2, 0) * 255
        np.testing.assert_allclose(drawn[1 + epoch], expected, atol=0.51)
    texts = [text.get_text() for part in figure.subfigs for text in part.texts]
    assert (
        f"#{index}, label {data.classes[values.labels[values.row(index)]]}, changed from"
        in texts[0]
    )
    assert len(show_history(values, index).axes) == 2
    curve = figure.axes[-2].lines[0].get_ydata()
    np.testing.assert_allclose(curve, values.probability[values.row(index)])


def test_images_of_transforms_are_drawn(data_dir: Path, tmp_path: Path) -> None:
    data = per_sample(data_dir, subset=40)
    values = run(tmp_path, data)
    figure = show_history(values, int(values.indices[5]), data)
    assert len(figure.axes) == 5


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, "not the data module of this run: seed is 1 instead of 0"),
        ({"subset": 41}, "subset is 41 instead of 40"),
        ({"flip": "none", "cutout": 3}, "flip is 'none' instead of 'random'; cutout is 3 instead"),
        ({"label_noise": 0.1}, "label_noise is 0.1 instead of 0.0"),
        ({"exclude": [3]}, "exclude is '1 images"),
    ],
)
def test_a_data_module_of_another_run_is_refused(
    other: dict[str, Any], message: str, data_dir: Path, tmp_path: Path
) -> None:
    values = run(tmp_path, CIFAR10DataModule(data_dir, subset=40, val_split=0))
    with pytest.raises(ValueError, match=message):
        show_history(
            values, int(values.indices[0]),
            CIFAR10DataModule(data_dir, **{"subset": 40, "val_split": 0} | other),
        )  # fmt: skip


def test_images_that_cannot_be_computed_again_are_refused(data_dir: Path, tmp_path: Path) -> None:
    data = per_sample(data_dir)
    recorder = TrainingHistory()
    t = trainer(tmp_path, max_epochs=1, callbacks=[recorder], overfit_batches=1)
    t.fit(ImageClassifier(Flat(), num_classes=10), data)
    values = recorder.history
    with pytest.raises(ValueError, match="cannot be computed again.*Pass data=None"):
        show_history(values, int(values.indices[0]), data)
    with pytest.raises(TypeError, match="data must be an ImageDataModule, but got DataLoader"):
        show_history(values, int(values.indices[0]), DataLoader([]))  # type: ignore[arg-type]


def test_the_dataset_map_has_a_point_for_each_image() -> None:
    values = history(missing=0.0)
    figure: Any = show_dataset_map(values)
    points = figure.axes[0].collections[0].get_offsets()
    scores = score_images(values)
    expected = np.stack([scores.variability, scores.confidence], 1)[1:]
    np.testing.assert_allclose(np.asarray(points)[-39:], expected)
    assert figure.axes[1].get_ylabel() == "correctness"


def test_doubtful_images_are_drawn_with_both_labels(data_dir: Path, tmp_path: Path) -> None:
    data = CIFAR10DataModule(data_dir, subset=30, val_split=0)
    issues = find_label_issues(run(tmp_path, data))
    figure: Any = show_label_issues(issues, data, n=12)
    assert len(figure.axes) == 12
    first = figure.axes[0].images[0].get_array()
    assert np.array_equal(first, data._loaded().train_images[issues.indices[0]])
    texts = [text.get_text() for text in figure.texts]
    assert f"#{issues.indices[0]}" in texts
    assert "The 12 most doubtful labels of 30 training images" in texts
    all_of_them: Any = show_label_issues(issues.top(5), data)
    assert "The 5 most doubtful labels" in [text.get_text() for text in all_of_them.texts]
    assert data.classes[issues.suggested[0]] in texts
    other = ImageDataModule(images(50, 10))
    with pytest.raises(ValueError, match="dataset is '50 x 8 x 8 x 3 .*' instead of 'CIFAR-10'"):
        show_label_issues(issues, other)
    with pytest.raises(TypeError, match="issues must be a LabelIssues, but got ImageHistory"):
        show_label_issues(history(), data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="issues contains no images"):
        show_label_issues(issues._take(np.arange(0)), data)
