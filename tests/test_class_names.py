"""Test class names in every form, and values of images that could be misread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cifar_resnet import find_misclassified, show_confusion_matrix
from cifar_resnet.data.class_names import as_class_names
from cifar_resnet.normalization import in_unit_range


class Constant(nn.Module):
    """Predict class 1 for every image."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.eye(classes)[1])

    def forward(self, images: Tensor) -> Tensor:
        return self.scores.expand(len(images), -1)


def data(classes: int = 3) -> TensorDataset:
    return TensorDataset(torch.rand(classes, 3, 4, 4), torch.arange(classes))


class ClassLabel:
    """Like `datasets.ClassLabel`."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def int2str(self, number: int) -> str:
        return self.names[number]


NAMES = ("cat", "dog", "2")


@pytest.mark.parametrize(
    "given",
    [
        np.array(NAMES),
        np.array(NAMES, dtype=object),
        {2: "2", 0: "cat", 1: "dog"},
        {"0": "cat", "1": "dog", "2": "2"},
        {"cat": 0, "dog": 1, "2": 2},
        {np.int64(0): "cat", np.int64(1): "dog", np.int64(2): "2"},
        ClassLabel(*NAMES),
        {"image": "Image()", "label": ClassLabel(*NAMES)},
        [b"cat", b"dog", 2],
    ],
)
def test_names_may_have_any_form(given: Any) -> None:
    found = find_misclassified(Constant(), data(), class_names=given, true_class="cat")
    assert found.class_names == NAMES
    assert found[0].true_name == "cat"


def test_synonyms_are_joined() -> None:
    assert as_class_names([("tench", "Tinca tinca"), ("carp",)]) == ("tench, Tinca tinca", "carp")


@pytest.mark.parametrize("given", [{"cat": "dog"}, {0: "a", 2: "b"}, {"a": 0, "b": 0}, {1: "a"}])
def test_a_dictionary_without_all_numbers_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="class_names must be a dictionary between the numbers"):
        find_misclassified(Constant(), data(), class_names=given)


def test_classes_of_the_same_name_are_kept_apart() -> None:
    names = ["crane", "dog", "crane"]
    found = find_misclassified(Constant(), data(), class_names=names, sort_by="index")
    assert found.class_names == ("crane (0)", "dog", "crane (2)")
    assert found.class_accuracy == {"crane (0)": 0, "dog": 1, "crane (2)": 0}
    assert [sample.true_name for sample in found] == ["crane (0)", "crane (2)"]
    assert len(found.to_records()[0]["probabilities"]) == 3
    with pytest.raises(ValueError, match=r"'crane', but the classes 0, 2 have this name. Pass the"):
        find_misclassified(Constant(), data(), class_names=names, true_class="crane")
    (one,) = find_misclassified(Constant(), data(), class_names=names, true_class=2)
    assert one.true_name == "crane (2)"


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64]
)
def test_integers_are_from_0_to_255_in_every_type(dtype: torch.dtype) -> None:
    image = torch.tensor([0, 51, 255]).view(3, 1, 1).to(dtype)
    assert torch.allclose(in_unit_range(image, None, name="x").flatten(), torch.tensor([0, 0.2, 1]))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.int16, -1), (torch.int16, 4095), (torch.uint16, 65535), (torch.int64, 256),
     (torch.int8, -128)],
)  # fmt: skip
def test_other_integers_are_refused(dtype: torch.dtype, value: int) -> None:
    image = torch.full((3, 1, 1), value).to(dtype)
    with pytest.raises(ValueError, match=rf"Image 0 has {dtype} values from {value} to {value}"):
        in_unit_range(image, None, name="Image 0")

    class Casting(Constant):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.float())

    samples = TensorDataset(image[None], torch.tensor([0]))
    with pytest.raises(ValueError, match="integers must be from 0 to 255. Convert the images"):
        find_misclassified(Casting(), samples)


def test_booleans_are_black_and_white() -> None:
    image = torch.tensor([False, True, True]).view(3, 1, 1)
    assert in_unit_range(image, None, name="x").flatten().tolist() == [0, 1, 1]


class OnDevice(Tensor):
    """A tensor on a device without float64, like MPS."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.cpu:
            return result.as_subclass(Tensor)
        assert not (isinstance(result, OnDevice) and result.dtype == torch.float64), func
        return result


@pytest.mark.parametrize("output", [lambda x: x, lambda x: x.softmax(1) * 1])
def test_scores_do_not_become_float64_on_their_device(output: Callable[[Tensor], Tensor]) -> None:
    class Moved(Constant):
        def forward(self, images: Tensor) -> Tensor:
            return output(super().forward(images)).detach().as_subclass(OnDevice)

    found = find_misclassified(Moved(), data())
    assert (found.total, found.errors) == (3, 2)
    assert int(found.calibration.counts.sum()) == 3


@pytest.mark.parametrize("classes", [3, 26, 100, 450])
def test_the_confusion_matrix_has_the_names(classes: int, tmp_path: Path) -> None:
    names = [f"$x_${number}" for number in range(classes)]
    found = find_misclassified(Constant(classes), data(classes), class_names=names)
    fig = show_confusion_matrix(found)
    axes = fig.axes[0]
    step = 3 if classes == 450 else 1  # names would overlap
    assert [label.get_text() for label in axes.get_xticklabels()] == names[::step]
    assert axes.get_xticks().tolist() == list(range(0, classes, step))
    assert axes.get_yticklabels()[0].get_text() == "$x_$0  (0.0 %)"
    if classes == 3:
        fig.savefig(tmp_path / "matrix.png")  # not as a formula, which would fail
    renderer = FigureCanvasAgg(fig).get_renderer()  # without it, each label makes one of its own
    heights = sorted(label.get_window_extent(renderer).height for label in axes.get_yticklabels())
    rows = axes.transData.transform([(0, 0), (0, step)])[:, 1]
    assert heights[-1] < abs(rows[1] - rows[0])
