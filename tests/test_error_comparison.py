"""Test the comparison of two classifiers: counts, McNemar's test, intervals, matching, figure."""

import json
import math
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import state
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from cifar_resnet import (
    CustomResNet,
    ErrorComparison,
    compare_errors,
    compute_cams,
    find_misclassified,
    show_error_comparison,
)
from cifar_resnet.cli.main import main
from cifar_resnet.misclassified.proportions import mcnemar_test, tango_interval

CLASSES = 3


class Says(nn.Module):
    """Predict the class that is written into the first or the second pixel of the red channel."""

    def __init__(self, pixel: int) -> None:
        super().__init__()
        self.pixel = pixel
        self.maps = nn.Conv2d(3, CLASSES, 1, bias=False)
        self.maps.weight.data = torch.eye(CLASSES, 3)[:, :, None, None]

    def forward(self, images: Tensor) -> Tensor:
        said = (images[:, 0, 0, self.pixel] * 10).round().long()
        return 4 * nn.functional.one_hot(said, CLASSES) + 1e-3 * self.maps(images).mean((2, 3))


def encoded(a: Any, b: Any, labels: Any) -> TensorDataset:
    """Return images of which `Says(0)` and `Says(1)` read the predictions `a` and `b`."""
    images = torch.rand(len(labels), 3, 4, 4, generator=torch.Generator().manual_seed(1))
    images[:, 0, 0, 0] = torch.as_tensor(a) / 10
    images[:, 0, 0, 1] = torch.as_tensor(b) / 10
    return TensorDataset(images, torch.as_tensor(labels))


#        both right   only a wrong  only b wrong  both wrong, differently, alike
A = [0, 1, 2, 0, 1,   1, 2, 0, 0,   2, 2,         1, 2, 0, 0, 1]  # fmt: skip
B = [0, 1, 2, 0, 1,   0, 1, 2, 2,   1, 0,         2, 1, 0, 0, 1]  # fmt: skip
LABELS = [0, 1, 2, 0, 1,   0, 1, 2, 2,   2, 2,   0, 0, 1, 2, 2]  # fmt: skip
DATA = encoded(A, B, LABELS)


def compared(**options: Any) -> ErrorComparison:
    return compare_errors(Says(0), Says(1), DATA, **options)


def test_the_counts() -> None:
    result = compared()
    counts = (result.total, result.both_right, result.only_a, result.only_b, result.both_wrong)
    assert counts == (16, 5, 4, 2, 5)
    assert result.same_wrong == 3
    assert result.accuracies == (7 / 16, 9 / 16)
    assert result.difference == 2 / 16
    for (low, high), right in zip(result.intervals, (7, 9), strict=True):
        assert (low, high) == pytest.approx(proportion_confint(right, 16, method="wilson"))
    assert result.p_value == pytest.approx(mcnemar([[5, 2], [4, 5]], exact=True).pvalue)
    assert result.difference_interval == tango_interval(4, 2, 16)


def test_the_counts_of_each_class() -> None:
    for number, row in enumerate(compared(class_names=["x", "y", "z"]).classes):
        chosen = [(a, b) for a, b, y in zip(A, B, LABELS, strict=True) if y == number]
        assert row.name == "xyz"[number]
        assert row.images == len(chosen)
        assert row.only_a == sum(a != number == b for a, b in chosen)
        assert row.only_b == sum(b != number == a for a, b in chosen)
        assert row.both_wrong == sum(a != number != b for a, b in chosen)
        assert row.difference == (row.only_a - row.only_b) / row.images
        assert (row.low, row.high) == tango_interval(row.only_a, row.only_b, row.images)


def test_a_class_without_images() -> None:
    (_, _, none) = compare_errors(Says(0), Says(1), encoded([0, 1], [1, 1], [0, 1])).classes
    assert (none.images, none.only_a) == (0, 0)
    assert math.isnan(none.difference)
    assert math.isnan(none.low)
    content = compare_errors(Says(0), Says(1), encoded([0, 1], [1, 1], [0, 1])).to_dict()
    assert json.loads(json.dumps(content))["classes"][2]["difference"] is None


def test_the_samples_and_records() -> None:
    result = compared(names=("one", "two"), class_names=["x", "y", "z"])
    by_index = {sample.index: sample for sample in result}
    assert sorted(by_index) == list(range(5, 16))
    expected = ["a"] * 4 + ["b"] * 2 + ["both"] * 5
    assert [by_index[index].wrong for index in range(5, 16)] == expected
    for wrong in ("a", "b", "both"):
        assert [s.index for s in result if s.wrong == wrong] == [
            s.index for s in result.group(wrong)
        ]
    confidence = math.exp(4) / (math.exp(4) + 2)
    for row in result.to_records():
        index = row["index"]
        assert row["true"] == "xyz"[LABELS[index]]
        assert (row["predicted_a"], row["predicted_b"]) == ("xyz"[A[index]], "xyz"[B[index]])
        assert row["confidence_a"] == pytest.approx(confidence, abs=1e-2)
        assert row["wrong"] == by_index[index].wrong
        assert torch.equal(by_index[index].image, DATA[index][0])
    assert [row["index"] for row in result.to_records()] == list(range(5, 16))
    assert len(result[:3]) == 3
    assert result[:3].only_a == 4
    with pytest.raises(ValueError, match="wrong must be one of 'a', 'b', 'both', but got 'c'"):
        result.group("c")


def test_the_text_is_a_table() -> None:
    result = compared(names=("one", "two"))
    low, high = result.difference_interval
    lines = str(result).splitlines()
    assert lines[0].split()[:4] == ["accuracy", "of", "one", "43.75%"]
    assert f"+12.50 points  95 % interval {100 * low:+.2f} to {100 * high:+.2f}" in lines[2]
    assert [" ".join(line.split()) for line in lines[4:]] == [
        "both right 5 of 16 images",
        "only one wrong 4",
        "only two wrong 2",
        "both wrong 5 3 of them predicted as the same class",
    ]
    assert repr(result) == (
        "<ErrorComparison of one and two: 16 images, 4 and 2 errors of one alone, 5 shared>"
    )


# --- statistics against other libraries and simulations ------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 2, 5, 9, 30, 400])
@pytest.mark.parametrize("second", [0, 1, 4, 12, 33, 500])
def test_mcnemar_is_that_of_statsmodels(first: int, second: int) -> None:
    expected = mcnemar([[7, first], [second, 9]], exact=True).pvalue if first + second else 1.0
    assert mcnemar_test(first, second) == pytest.approx(min(expected, 1.0), rel=1e-9)


def test_tango_intervals_that_were_published() -> None:
    # Fagerland, Lydersen and Laake, "Statistical Analysis of Contingency Tables" (2017), chapter 8,
    # and the tests of its R package: data of Cavo et al. (2012) and of Bentur et al. (2009)
    assert tango_interval(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)
    assert tango_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def score_statistic(first: int, second: int, trials: int, difference: float) -> float:
    """Compute the score statistic with the likelihood maximized numerically."""

    def minus_log_likelihood(q: float) -> float:
        chances = (q + difference, q, 1 - 2 * q - difference)
        counts = (first, second, trials - first - second)
        terms = (n * math.log(max(p, 1e-300)) for n, p in zip(counts, chances, strict=True) if n)
        return -sum(terms)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    q = minimize_scalar(
        minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
    ).x
    variance = trials * (2 * q + difference - difference**2)
    return (first - second - trials * difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("first", "second", "trials"),
    [(3, 1, 44), (12, 2, 44), (40, 20, 160), (1, 7, 9), (82, 50, 2000)],
)
def test_tango_intervals_invert_the_score_test(first: int, second: int, trials: int) -> None:
    z = norm.ppf(0.975)
    estimate = (first - second) / trials

    def statistic(difference: float, expected: float) -> float:
        return score_statistic(first, second, trials, difference) - expected

    ends = [
        brentq(statistic, estimate, limit, args=(sign * z,))
        for sign, limit in ((1, -0.99), (-1, 0.99))
    ]
    assert tango_interval(first, second, trials) == pytest.approx(ends, abs=1e-5)
    swapped = tango_interval(second, first, trials)
    assert swapped == pytest.approx((-ends[1], -ends[0]), abs=1e-5)


def test_tango_intervals_at_the_limits() -> None:
    z = norm.ppf(0.975)
    width = z**2 / (50 + z**2)  # without discordant pairs
    assert tango_interval(0, 0, 50) == pytest.approx((-width, width), abs=1e-12)
    low, high = tango_interval(10, 0, 10)
    assert high == 1
    assert 0.3 < low < 0.7
    assert tango_interval(0, 10, 10) == pytest.approx((-1, -low))


def simulate(
    rng: np.random.Generator, trials: int, chances: tuple[float, float], runs: int
) -> NDArray[np.int64]:
    first, second = chances
    return rng.multinomial(trials, [first, second, 1 - first - second], size=runs)


@pytest.mark.parametrize(
    ("trials", "chances"),
    [(30, (0.1, 0.05)), (100, (0.03, 0.03)), (100, (0.2, 0.1)), (1000, (0.04, 0.02)),
     (10_000, (0.045, 0.018))],
)  # fmt: skip
def test_the_interval_covers_the_difference_in_95_of_100_simulations(
    trials: int, chances: tuple[float, float]
) -> None:
    runs = 1000
    covered = 0
    for first, second, _ in simulate(np.random.default_rng(0), trials, chances, runs).tolist():
        low, high = tango_interval(first, second, trials)
        covered += low <= chances[0] - chances[1] <= high
    # 5 standard errors, 0.0069 each, and not far below for any of these cases
    assert 0.93 < covered / runs < 0.985


def test_the_test_rejects_equal_classifiers_in_at_most_5_of_100_simulations() -> None:
    rng = np.random.default_rng(0)
    for trials, chance in ((100, 0.1), (1000, 0.03), (10_000, 0.02)):
        counts = simulate(rng, trials, (chance, chance), 1000)
        rejected = sum(mcnemar_test(first, second) <= 0.05 for first, second, _ in counts.tolist())
        assert rejected / 1000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    counts = simulate(rng, 10_000, (0.03, 0.02), 200)
    detected = sum(mcnemar_test(first, second) <= 0.05 for first, second, _ in counts.tolist())
    assert detected / 200 > 0.95


# --- data and models -----------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(DATA)


def sources() -> dict[str, Any]:
    images, labels = DATA.tensors
    return {
        "dataset": DATA,
        "pair": (images.numpy(), labels.numpy()),
        "loader": DataLoader(DATA, batch_size=3),
        "shuffled": DataLoader(DATA, batch_size=3, shuffle=True),
        "stream": Stream(),
        "iterator": iter([(images[:9], labels[:9]), (images[9:], labels[9:])]),
        "other loader": type("Loader", (), {"dataset": DATA, "__iter__": lambda _: iter(
            [(images[:9], labels[:9]), (images[9:], labels[9:])])})(),
    }  # fmt: skip


@pytest.mark.parametrize("kind", sources())
def test_any_data_are_read_once(kind: str) -> None:
    result = compare_errors(Says(0), Says(1), sources()[kind])
    expected = compared()
    assert str(result) == str(expected)
    known = kind != "other loader"
    assert {sample.index for sample in result} == (set(range(5, 16)) if known else {None})
    if known:
        assert result.to_records() == expected.to_records()
    assert {s.position for s in result} == {s.position for s in expected}


def test_models_are_left_unchanged_and_options_are_used() -> None:
    models = Says(0).train(), Says(1)
    models[1].maps.eval()
    before = [state(model) for model in models]
    result = compare_errors(*models, DATA, max_samples=9, batch_size=2, device="cpu", n=2)
    assert [state(model) for model in models] == before
    assert (result.total, result.only_a, len(result)) == (9, 4, 2)
    half = compare_errors(Says(0).bfloat16(), torch.compile(Says(1)), DATA)  # type: ignore[arg-type]
    assert half.only_a == 4


def test_normalized_images_are_displayed_without_normalization() -> None:
    images, labels = DATA.tensors
    shifted = TensorDataset((images - 0.5) / 0.25, labels)
    model = nn.Sequential(Undo(), Says(0)), nn.Sequential(Undo(), Says(1))
    result = compare_errors(*model, shifted, mean=0.5, std=0.25)
    for sample in result:
        assert sample.index is not None
        assert torch.allclose(sample.image, images[sample.index], atol=1e-6)
    # results with and without normalization belong to the same images
    found = find_misclassified(model[0], shifted, mean=0.5, std=0.25)
    assert compare_errors(found, find_misclassified(Says(1), DATA)).only_a == 4


class Undo(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * 0.25 + 0.5


def test_threads_that_compare_in_opposite_orders() -> None:
    models = Says(0), Says(1)
    expected = {True: str(compared()), False: str(compare_errors(*models[::-1], DATA))}

    def work(forward: bool) -> bool:
        pair = models if forward else models[::-1]
        return all(str(compare_errors(*pair, DATA)) == expected[forward] for _ in range(5))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, (True, False)))


# --- results -------------------------------------------------------------------------------------


def test_results_are_matched_by_index() -> None:
    shuffled = DataLoader(DATA, batch_size=5, shuffle=True)
    a = find_misclassified(Says(0), DATA, n=3)
    b = find_misclassified(Says(1), shuffled, sort_by="index")
    result, expected = compare_errors(a, b), compared()
    assert str(result) == str(expected)
    assert result.to_records() == expected.to_records()
    assert {s.index for s in result} == {s.index for s in (*a, *b)}
    reordered = DataLoader(DATA, batch_size=4, sampler=list(range(15, -1, -1)))
    c = find_misclassified(Says(1), reordered)
    assert compare_errors(a[:1], c).to_records() == expected.to_records()


def test_results_whose_images_were_read_in_different_orders() -> None:
    # images of different sizes come in separate batches, so that the order depends on the size
    samples = [
        (image[:, : 2 + 2 * (number % 2)], label) for number, (image, label) in enumerate(DATA)
    ]
    a = find_misclassified(Says(0), samples, batch_size=16)
    b = find_misclassified(Says(1), samples, batch_size=4)
    assert a.outcomes.indices.tolist() != b.outcomes.indices.tolist()
    result = compare_errors(a, b)
    assert str(result) == str(compared())
    rows = result.to_records()
    assert [row["predicted_a"] for row in rows] == [str(A[row["index"]]) for row in rows]
    assert [row["predicted_b"] for row in rows] == [str(B[row["index"]]) for row in rows]
    assert all(A[s.index] == s.predicted[0] and B[s.index] == s.predicted[1] for s in result)  # type: ignore[index]


def found(data: Any = DATA, pixel: int = 1, **options: Any) -> Any:
    return find_misclassified(Says(pixel), data, **options)


def test_results_of_other_data_are_refused() -> None:
    images, labels = DATA.tensors
    a = found(pixel=0)
    for other, message in (
        (TensorDataset(images[:9], labels[:9]), "a is a result for 16 images, and b for 9. Call"),
        (
            TensorDataset(images, labels.roll(1)),
            "Image 0 has different labels in a and b, as 11 images",
        ),
        (TensorDataset(images.roll(1, 0), labels), "has a mean brightness of 0."),
    ):
        with pytest.raises(ValueError, match=message):
            compare_errors(a, found(other))
    changed = images.clone()
    changed[14, 1] = changed[14, 1].flip(-1)  # the same brightness
    with pytest.raises(ValueError, match="Image 14 is not the same in a and b: a pixel differs by"):
        compare_errors(a, found(TensorDataset(changed, labels)))
    with pytest.raises(ValueError, match="a has the 3 classes 0, 1, 2, but b has the 3 classes x"):
        compare_errors(a, found(class_names=["x", "y", "z"]))
    part = DataLoader(DATA, batch_size=4, sampler=list(range(1, 16)))
    other_part = DataLoader(DATA, batch_size=4, sampler=list(range(15)))
    with pytest.raises(ValueError, match="images with different indices, such as 1 and 0"):
        compare_errors(found(part, 0), found(other_part))
    with pytest.raises(ValueError, match="The indices of 16 images of b are not known"):
        compare_errors(a, found(sources()["other loader"]))


def test_models_of_other_classes_are_refused() -> None:
    class Four(Says):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.pad(super().forward(images), (0, 1))

    with pytest.raises(ValueError, match="a has the 3 classes 0, 1, 2, but b has the 4 classes"):
        compare_errors(Says(0), Four(1), DATA)
    with pytest.raises(ValueError, match="Sample 0 has label 7, but the model has the classes 0"):
        compare_errors(Says(0), Says(1), encoded([0], [0], [7]))
    with pytest.raises(ValueError, match="Errors cannot be found in data without labels"):
        compare_errors(Says(0), Says(1), TensorDataset(DATA.tensors[0]))
    with pytest.raises(ValueError, match="The data contain no samples"):
        compare_errors(Says(0), Says(1), DataLoader(TensorDataset(*(t[:0] for t in DATA.tensors))))


# --- the figure ----------------------------------------------------------------------------------


def texts(fig: Figure) -> list[str]:
    FigureCanvasAgg(fig).draw()
    return [text.get_text() for text in fig.texts]


def test_the_figure_shows_each_group() -> None:
    result = compared(names=("one", "two"), class_names=["x", "y", "z"])
    fig = show_error_comparison(result, n=2)
    assert len(fig.axes) == 3 * (2 + 2 + 2) + 1
    said = texts(fig)
    assert {"only one is wrong: 4", "only two is wrong: 2", "both are wrong: 5"} <= set(said)
    assert any("McNemar's exact test p = 0.69" in " ".join(text.split()) for text in said)
    for sample in (s for wrong in ("a", "b", "both") for s in result.group(wrong)[:2]):
        assert f"#{sample.index}" in said
        assert f"true: {sample.true_name}" in said
        for name in sample.predicted_names:
            assert any(text.startswith(f"{name} 9") for text in said)
    renderer = FigureCanvasAgg(fig).get_renderer()
    for text in fig.texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.x1 <= fig.bbox.x1
    plain = show_error_comparison(result, n=5, cam=None)
    assert len(plain.axes) == 4 + 2 + 5
    assert "one: y 96 %" in texts(plain)


def test_the_maps_are_those_of_each_model() -> None:
    torch.manual_seed(0)
    models = CustomResNet(width=2), CustomResNet(width=3)
    data = torch.rand(6, 3, 32, 32), torch.arange(6)
    result = compare_errors(*models, data)
    fig = show_error_comparison(
        result, n=1, alpha=1, cmap="gray", target_layers=("layer2", ["layer3", "residual3"])
    )
    sample = next(group[0] for wrong in ("a", "b", "both") if (group := result.group(wrong)))
    shown = [np.asarray(axes.images[0].get_array()) for axes in fig.axes[:3]]
    for which, layers in enumerate(("layer2", ["layer3", "residual3"])):
        maps = compute_cams(
            models[which], sample.inputs[which][None], sample.predicted[which], target_layers=layers
        )
        if float(maps.max()) == 0:
            expected = sample.image.permute(1, 2, 0).numpy()
        else:
            expected = maps[0, :, :, None].expand(-1, -1, 3).numpy()
        pixels = shown[1 + which].reshape(32, 4, 32, 4, 3).mean((1, 3))
        assert np.abs(pixels - expected).mean() < 0.02
    assert any("of layer2 (8 x 8) and layer3" in " ".join(text.split()) for text in texts(fig))


def test_groups_without_errors() -> None:
    same = compare_errors(Says(0), Says(0), DATA)
    assert (same.p_value, same.difference) == (1, 0)
    said = texts(show_error_comparison(same))
    assert said.count("none") == 2
    right = compare_errors(Says(0), Says(0), encoded([0, 1], [0, 1], [0, 1]))
    fig = show_error_comparison(right)
    assert texts(fig).count("none") == 3
    assert len(fig.axes) == 0
    few = compare_errors(found(pixel=0)[:0], found()[:1])
    assert "none was kept: compare with a larger n" in texts(show_error_comparison(few, cam=None))


def test_models_for_results_are_verified() -> None:
    result = compare_errors(found(pixel=0), found())
    with pytest.raises(ValueError, match="made from results, which do not hold the models. Pass"):
        show_error_comparison(result)
    assert len(show_error_comparison(result, n=1, models=(Says(0), Says(1))).axes) == 10
    with pytest.raises(ValueError, match="was predicted by 'a' as '.' with a probability of 0.96"):
        show_error_comparison(result, models=(Says(1), Says(0)))
    with pytest.raises(ValueError, match="models must be the two models that were compared"):
        show_error_comparison(result, models=[Says(0)])
    scripted: Any = nn.Sequential(Undo())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.trace(scripted, torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match="The model is a program made by torch.jit"):
        show_error_comparison(result, models=(program, Says(1)))


def test_an_image_that_is_taller_than_wide() -> None:
    images = DATA.tensors[0].repeat(1, 1, 2, 1)
    result = compare_errors(Says(0), Says(1), TensorDataset(images, DATA.tensors[1]))
    fig = show_error_comparison(result, n=1)
    box = fig.axes[0].get_position()
    width, height = fig.get_size_inches()
    assert box.height * height == pytest.approx(2 * box.width * width)


# --- the command ---------------------------------------------------------------------------------


def test_the_command_compares_two_networks(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], read_once: None,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, width in (("one", 1), ("two", 2)):
        torch.manual_seed(width)
        CustomResNet(width=width).save_pretrained(tmp_path / f"{name}.safetensors")
    command = ["misclassified", "one.safetensors", "--data-dir", str(data_dir), "--cam", "none"]
    status = main([*command, "--compare", "two.safetensors", "--true", "cat", "--n", "1"])
    assert status == 0
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["names"] == ["one.safetensors", "two.safetensors"]
    assert content["total"] == 10_000 == sum(row["images"] for row in content["classes"])
    wrong = content["only_a"] + content["only_b"] + content["both_wrong"]
    assert len(content["errors"]) == wrong
    assert {row["true"] for row in json.loads((tmp_path / "errors.json").read_text())} == {"cat"}
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert "McNemar's exact test" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main([*command, "--compare", "one.safetensors"])
    assert end.value.code == 2
    assert "--compare must name another network" in capsys.readouterr().err
