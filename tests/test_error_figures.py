"""Test the figures of errors, for every number of errors."""

import inspect
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    find_misclassified,
    label_suspects,
    show_calibration,
    show_confusion_matrix,
    show_misclassified,
)
from cifar_resnet.misclassified.cams import CamOptions
from cifar_resnet.misclassified.figures import FigureOptions
from cifar_resnet.misclassified.scan import ScanOptions
from cifar_resnet.plotting.saving import save_figure

ROOT = Path(__file__).parents[1]


class Brightest(nn.Module):
    """Predict the channel (of a learned mixture) with the highest mean."""

    def __init__(self, classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, classes, 1, bias=False)
        self.mix.weight.data = torch.eye(classes, channels)[:, :, None, None] * 10
        self.maps = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(self.mix(images)).mean((2, 3))


def data(errors: int, right: int = 3, channels: int = 3) -> TensorDataset:
    """Return images that are bright in one channel; the label of an error is the next class."""
    number = errors + right
    seen = torch.arange(number) % 3
    images = torch.zeros(number, channels, 8, 8)
    for image, channel in zip(images, seen, strict=True):
        image[channel % channels, 2:5, 2:5] = 1
    labels = torch.where(torch.arange(number) < errors, (seen + 1) % 3, seen)
    return TensorDataset(images, labels)


def texts(fig: Figure) -> list[str]:
    FigureCanvasAgg(fig).draw()
    found = [text.get_text() for text in fig.texts]
    return found + [text.get_text() for axes in fig.axes for text in axes.texts]


def cells(fig: Figure) -> list[Any]:
    return [axes for axes in fig.axes if axes.texts]


@pytest.mark.parametrize("errors", [1, 2, 10, 25, 100])
def test_there_is_a_cell_for_each_error(errors: int) -> None:
    fig = show_misclassified(Brightest(), data(errors), n=errors, sort_by="index")
    assert isinstance(fig, Figure)
    assert len(cells(fig)) == errors
    assert all(len(axes.images) == 3 for axes in cells(fig))  # image and two maps
    said = texts(fig)
    assert f"{errors} of {errors} errors in {errors + 3} images" in " ".join(said[0].split())
    assert {f"#{i}" for i in range(errors)} <= set(said)
    assert any("Grad-CAM of maps (8 x 8)" in " ".join(text.split()) for text in said)
    renderer = FigureCanvasAgg(fig).get_renderer()  # without it, each text makes one of its own
    for axes in cells(fig):  # everything is inside the figure
        for text in axes.texts:
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1
            assert box.x1 <= fig.bbox.x1 + 1
    boxes = [axes.get_position() for axes in cells(fig)]
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            assert not one.overlaps(other)


def test_without_errors_the_figure_says_so() -> None:
    fig = show_misclassified(Brightest(), data(0, right=6))
    assert texts(fig) == ["No errors in 6 images (accuracy 100.00 %)."]
    none = show_misclassified(Brightest(), data(3), true_class=2, pred_class=0)
    assert texts(none) == ["No errors (2 predicted as 0) in 6 images (accuracy 50.00 %)."]


def test_a_cell_shows_label_prediction_and_probabilities() -> None:
    names = ["red", "green", "blue"]
    fig = show_misclassified(Brightest(), data(1), class_names=names, top_k=1, pred_class="red")
    said = texts(fig)
    # the red channel's mean is 9 / 64, times 10; the other scores are 0
    share = np.exp(90 / 64) / (np.exp(90 / 64) + 2)
    for text in ("true: green", "pred: red", "#0", "for red", "no evidence for green",
                 f"{100 * share:.0f} %", f"{50 * (1 - share):.0f} %"):  # fmt: skip
        assert text in said
    assert "blue" not in said
    assert "(any class predicted as red)" in " ".join(said[0].split())


def test_images_are_nearest_and_keep_their_brightness() -> None:
    fig = show_misclassified(Brightest(), data(1), alpha=0.25, cmap="gray", cam="predicted")
    image, overlay = (np.asarray(panel.get_array()) for panel in cells(fig)[0].images)
    pixels = data(1)[0][0].permute(1, 2, 0).numpy()
    assert np.array_equal(image[::16, ::16], pixels)
    assert np.array_equal(image[15::16, 15::16], pixels)
    # 3 / 4 of the image and 1 / 4 of the map's color, which is 1 in the middle of the square
    # and 0 far away from it
    assert overlay[56, 56].tolist() == pytest.approx([1, 0.25, 0.25], abs=1e-6)
    assert overlay[120, 120].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert all(panel.get_interpolation() == "nearest" for panel in cells(fig)[0].images)


@pytest.mark.parametrize(
    ("cam", "captions"),
    [
        ("both", {"image", "for 0", "no evidence for 1"}),
        ("predicted", {"image", "for 0"}),
        ("true", {"image", "no evidence for 1"}),
        ("contrast", {"image", "0 not 1"}),
        (None, set()),
    ],
)
def test_the_maps_to_draw(cam: str | None, captions: set[str]) -> None:
    fig = show_misclassified(Brightest(), data(1), cam=cam)
    (cell,) = cells(fig)
    assert len(cell.images) == max(len(captions), 1)
    assert captions <= set(texts(fig))
    assert ("Grad-CAM" in " ".join(texts(fig))) == (cam is not None)


def test_suspects_are_marked(data_dir: Path) -> None:
    first = min(label_suspects())
    module = CIFAR10DataModule(data_dir)
    model = CustomResNet(width=2)
    found = find_misclassified(model, module, sort_by="index")
    place = [sample.suspect for sample in found].index(True)
    fig = show_misclassified(model, found[place : place + 1], cam=None)
    assert "label suspect" in texts(fig)
    assert any("1 label suspect: fewer than 3 of 5 people" in text for text in texts(fig))
    assert found[place].index >= first
    plain = next(place for place, sample in enumerate(found) if not sample.suspect)
    assert "suspect" not in " ".join(texts(show_misclassified(model, found[plain : plain + 1])))


def test_a_result_saves_the_second_scan() -> None:
    found = find_misclassified(Brightest(), data(10), sort_by="index")
    calls = []
    model = Brightest()
    model.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    fig = show_misclassified(model, found, n=4, cam=None)
    assert calls == []
    assert len(cells(fig)) == 4
    assert "4 of 10 errors in 13 images" in " ".join(texts(fig)[0].split())


@pytest.mark.parametrize("channels", [1, 4])
def test_gray_images_and_images_with_transparency(channels: int) -> None:
    fig = show_misclassified(Brightest(channels=channels), data(3, channels=channels))
    assert cells(fig)[0].images[0].get_array().shape[-1] == 3


def test_channels_that_cannot_be_drawn() -> None:
    message = (
        r"Image \d must have the shape \(C, H, W\) with 1 \(gray\), 3 or 4 channels, but has \(2,"
    )
    with pytest.raises(ValueError, match=message):
        show_misclassified(Brightest(channels=2), data(3, channels=2))


def test_long_names_are_shortened() -> None:
    names = [f"{word} with a rather long and winding name" for word in ("red", "green", "blue")]
    fig = show_misclassified(Brightest(), data(2), class_names=names, cam="predicted")
    assert any(text.startswith("true: green") and text.endswith("...") for text in texts(fig))
    renderer = FigureCanvasAgg(fig).get_renderer()
    for axes in cells(fig):
        width = axes.get_window_extent(renderer).width
        assert all(text.get_window_extent(renderer).width < 1.1 * width for text in axes.texts)


def test_it_draws_into_a_given_figure() -> None:
    mine = Figure(figsize=(8, 4))
    left, right = mine.subfigures(1, 2)
    assert show_misclassified(Brightest(), data(4), n=2, fig=left) is mine
    assert show_confusion_matrix(find_misclassified(Brightest(), data(4)), fig=right) is mine
    assert left.axes
    assert right.axes
    FigureCanvasAgg(mine).draw()
    fig = show_misclassified(Brightest(), data(4), figsize=(5, 7), columns=1)
    assert (tuple(fig.get_size_inches()), fig.dpi) == ((5, 7), 150)
    lefts = {round(axes.get_position().x0, 3) for axes in cells(fig)}
    assert len(lefts) == 1


def test_pyplot_and_rcparams_are_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    show_misclassified(Brightest(), data(3))
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()


def test_a_figure_is_saved_completely_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fig = show_misclassified(Brightest(), data(2))
    for name, start in (
        ("errors.png", b"\x89PNG"),
        ("errors.PDF", b"%PDF"),
        ("errors.svg", b"<?xm"),
    ):
        save_figure(fig, tmp_path / name)
        assert (tmp_path / name).read_bytes()[:4] == start
    (tmp_path / "errors.png").write_text("mine")

    def fail(*args: Any, **kwargs: Any) -> None:
        Path(args[1]).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(fig, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


def test_the_resolution_of_a_saved_figure(tmp_path: Path) -> None:
    for options, size in (({}, (900, 450)), ({"dpi": 50}, (300, 150))):
        save_figure(Figure(figsize=(6, 3)), tmp_path / "given.png", **options)
        with Image.open(tmp_path / "given.png") as image:
            assert image.size == size


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("errors.docx", ValueError, "Format 'docx' is not supported"),
        ("errors", ValueError, "Format '' is not supported"),
        ("missing/errors.png", FileNotFoundError, "missing"),
        ("folder.png", OSError, "folder.png"),
    ],
)
def test_a_figure_that_cannot_be_saved(
    name: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(error, match=message):
        save_figure(Figure(), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_the_options_have_the_defaults_of_the_function() -> None:
    parameters = inspect.signature(show_misclassified).parameters
    for options in (ScanOptions, CamOptions, FigureOptions):
        defaults = {each.name: each.default for each in fields(options) if each.name in parameters}
        if options is CamOptions:
            del defaults["batch_size"]  # of the maps; the argument is that of the scan
        assert defaults == {name: parameters[name].default for name in defaults}
        assert len(defaults) > 2


# -- matrix and calibration -------------------------------------------------------------------


def test_the_confusion_matrix_shows_the_counts() -> None:
    found = find_misclassified(Brightest(), data(4), class_names=["red", "green", "blue"])
    fig = show_confusion_matrix(found)
    numbers = [int(text.get_text()) for text in fig.axes[0].texts]
    assert numbers == found.confusion.flatten().tolist()
    errors = fig.axes[0].images[0].get_array()
    assert np.ma.getmaskarray(errors).diagonal().all()  # gray
    labels = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert labels[0] == "red  (50.0 %)"
    shares = show_confusion_matrix(found, normalize=True).axes[0].texts
    rows = np.array([float(text.get_text()) for text in shares]).reshape(3, 3).sum(1)
    assert rows == pytest.approx([100] * 3, abs=0.2)


def test_many_classes_and_classes_without_images() -> None:
    many = find_misclassified(
        Brightest(classes=40), TensorDataset(torch.rand(9, 3, 8, 8), torch.arange(9) + 30)
    )
    assert len(show_confusion_matrix(many).axes[0].texts) == 0
    few = find_misclassified(Brightest(classes=5), data(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = show_confusion_matrix(few).axes[0].get_yticklabels()
    assert labels[4].get_text() == "4  (no images)"


def test_the_reliability_diagram() -> None:
    found = find_misclassified(Brightest(), data(4))
    upper, lower = show_calibration(found).axes
    heights = [bar.get_height() for bar in upper.patches]
    assert heights == pytest.approx(found.calibration.accuracy.nan_to_num(0).tolist())
    assert sum(bar.get_height() for bar in lower.patches) == found.total
    assert f"{100 * found.calibration.expected_error:.2f} %" in upper.get_title()


def test_the_example(data_dir: Path, tmp_path: Path) -> None:
    script = ROOT / "examples" / "misclassified.py"
    command = [sys.executable, str(script), "--n", "2", "--true", "cat"]
    result = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert result.stdout.startswith("886 errors in 10,000 images, accuracy 91.14%")
    assert "images of cat predicted as dog" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "calibration.png", "confusion_matrix.png", "misclassified.png",
    ]  # fmt: skip
    assert len(script.read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"true_class": 3},
            "true_class cannot be given for errors that are already found. Pass it",
        ),
        ({"sort_by": "index", "seed": 1}, "sort_by and seed cannot .* Pass them to find_miscl"),
        ({"mean": torch.zeros(3), "std": torch.ones(3)}, "mean and std cannot be given"),
        ({"class_names": list("abcdefghij")}, "class_names cannot be given"),
        ({"pred_class": "cat"}, "pred_class cannot be given"),
    ],
)
def test_a_result_is_not_filtered_or_sorted_again(options: Any, message: str) -> None:
    model = Brightest()
    found = find_misclassified(model, data(10))
    with pytest.raises(ValueError, match=message):
        show_misclassified(model, found, cam=None, **options)
    assert show_misclassified(model, found, cam=None, sort_by="loss", batch_size=7).texts


def test_the_repr_of_a_sample_is_short() -> None:
    found = find_misclassified(Brightest(), data(10))
    assert len(repr(found[0])) < 200
