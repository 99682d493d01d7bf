"""Effective receptive fields of networks whose gradient is known, and the figures."""

import math

import numpy as np
import pytest
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from cifar_resnet import CustomResNet, effective_receptive_field, receptive_field


def box(rank: int = 2, kernel: int = 3) -> nn.Module:
    """Return a convolution that sums its window."""
    layer = {1: nn.Conv1d, 2: nn.Conv2d}[rank](1, 1, kernel, padding=kernel // 2, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def test_a_box_filter_has_a_uniform_square() -> None:
    field = effective_receptive_field(box(), torch.randn(3, 1, 9, 11))
    expected = torch.zeros(9, 11, dtype=torch.float64)
    expected[3:6, 4:7] = 1 / 9  # around the middle unit (4, 5)
    torch.testing.assert_close(field.map, expected)
    assert field.unit == (4, 5)
    assert field.images == 3
    assert field.centroid == pytest.approx((4, 5))
    assert field.sigma == pytest.approx((math.sqrt(2 / 3),) * 2)
    assert field.side(1 / 9) == 1
    assert field.side(0.12) == field.side(1.0) == 3


def test_two_box_filters_make_a_triangle_and_mass_is_linear() -> None:
    network = nn.Sequential(box(1), box(1))
    field = effective_receptive_field(network, torch.randn(1, 1, 15), unit=(7,))
    torch.testing.assert_close(field.map[5:10] * 9, torch.tensor([1, 2, 3, 2, 1]).double())
    assert field.sigma == pytest.approx((math.sqrt(2 * 2 / 3),))  # variances add
    assert field.side(3 / 9) == 1
    assert field.side(7 / 9) == 3  # 2 + 3 + 2 of 9; of the logarithms it would be another fraction
    assert field.side(0.8) == 5
    distance, profile = field.radial_profile()
    assert distance[:3].tolist() == [0, 1, 2]
    torch.testing.assert_close(profile[:3] * 9, torch.tensor([3.0, 2.0, 1.0]).double())


def test_the_gradient_is_averaged_over_images_in_absolute_value() -> None:
    class Signed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sign = x.mean((1, 2), keepdim=True).sign().detach()
            return x * sign  # gradients of both signs, which would cancel

    images = torch.ones(2, 1, 5) * torch.tensor([1.0, -1.0]).view(2, 1, 1)
    field = effective_receptive_field(Signed(), images)
    assert field.map.tolist() == [0, 0, 1, 0, 0]
    weak = box(1)
    nn.init.constant_(weak.weight, 1e-6)
    field = effective_receptive_field(weak, images)
    assert field.map.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])


def test_batches_channels_units_and_layers() -> None:
    model = CustomResNet(width=4)
    images = torch.randn(5, 3, 32, 32)
    whole = effective_receptive_field(model, images, layer="residual1", unit=(2, 9))
    parts = effective_receptive_field(model, images, layer="residual1", unit=(2, 9), batch_size=2)
    torch.testing.assert_close(whole.map, parts.map)
    (top, bottom), (left, right) = receptive_field(model, (1, 3, 32, 32))["residual1"].region(
        (2, 9)
    )
    inside = whole.map[top : bottom + 1, left : right + 1]
    assert float(inside.sum()) == pytest.approx(1)  # nothing outside the theoretical field
    one = effective_receptive_field(model, images, layer="residual1", channel=0)
    other = effective_receptive_field(model, images, layer="residual1", channel=1)
    assert not torch.equal(one.map, other.map)
    assert effective_receptive_field(model, images, channel=3).unit == ()


def test_the_model_is_left_unchanged_and_may_be_frozen_or_half_precision() -> None:
    model = CustomResNet(width=4).train().requires_grad_(False)
    with torch.inference_mode():
        effective_receptive_field(model, torch.randn(2, 3, 32, 32), layer="layer1")
    assert model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    half = CustomResNet(width=4).bfloat16()
    field = effective_receptive_field(half, torch.randn(2, 3, 32, 32).bfloat16(), layer="layer1")
    assert float(field.map.sum()) == pytest.approx(1)


def test_an_in_place_activation_after_the_layer_changes_nothing() -> None:
    network = nn.Sequential(box(1), nn.ReLU(inplace=True))
    nn.init.constant_(network[0].weight, -1.0)  # the activation blocks everything
    field = effective_receptive_field(network, torch.ones(1, 1, 5), layer="0")
    assert field.map.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])


def test_a_gradient_that_is_not_finite_has_no_field() -> None:
    with pytest.raises(ValueError, match="zero or not finite"):
        effective_receptive_field(CustomResNet(width=4), torch.full((1, 3, 32, 32), math.nan))


# -- figures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fields():
    return receptive_field(CustomResNet(width=4), (1, 3, 32, 32))


def boxes(figure: Figure) -> list[tuple[float, float, float, float]]:
    """Return left, top, width, height of each rectangle drawn."""
    return [(*p.get_xy(), p.get_width(), p.get_height()) for p in figure.axes[0].patches]


def test_fields_are_drawn_at_their_positions(fields) -> None:
    image = np.zeros((3, 32, 32), dtype=np.uint8)
    figure = fields.plot(image, "residual1", [(3, 0)])
    assert isinstance(figure, Figure)
    whole, clipped, frame = boxes(figure)
    # rows 0 to 13, columns -6 to 7; the edge of a pixel lies half a pixel from its center
    assert whole == (-6.5, -0.5, 14, 14)
    assert clipped == (-0.5, -0.5, 8, 14)
    assert frame == (-0.5, -0.5, 32, 32)
    left, right = figure.axes[0].get_xlim()
    assert left < -6.5
    assert right > 31.5
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]  # rows go down


def test_a_plot_of_fields_is_labeled(fields) -> None:
    axes = fields.plot(np.zeros((32, 32)), "residual1", [(3, 0), (8, 8)]).axes[0]
    assert axes.get_title() == "residual1: field of 14 x 14 pixels, input 32 x 32"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("column (pixels)", "row (pixels)")
    assert axes.get_aspect() == 1
    centers = [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines]
    assert centers == [(0.5, 6.5), (16.5, 16.5)]  # column and row of the centers
    assert [text.get_text() for text in axes.get_legend().texts] == ["unit (3, 0)", "unit (8, 8)"]
    assert [line.get_color() for line in axes.lines] == ["#D55E00", "#0072B2"]
    whole, clipped, other_whole, other, frame = axes.patches
    assert [p.get_linestyle() for p in (whole, clipped)] == ["--", "solid"]
    assert whole.get_edgecolor() == clipped.get_edgecolor() != other.get_edgecolor()
    assert other.get_edgecolor() == other_whole.get_edgecolor()
    for filled in (clipped, other):
        assert filled.get_facecolor() == (*filled.get_edgecolor()[:3], 0.15)
    assert [p.get_facecolor()[3] for p in (whole, other_whole, frame)] == [0, 0, 0]
    assert axes.images[0].get_clim() == (0, 1)  # not scaled to the range of the image
    margin = 0.04 * (6 + 32)  # of the columns -6 to 31
    assert axes.get_xlim() == pytest.approx((-6.5 - margin, 31.5 + margin))
    assert axes.get_ylim() == pytest.approx((31.5 + 0.04 * 32, -0.5 - 0.04 * 32))


def test_images_of_all_kinds_look_the_same(fields) -> None:
    pixels = torch.arange(32 * 32).view(1, 32, 32) % 256
    color = pixels.repeat(3, 1, 1)
    given = [
        color.to(torch.uint8),
        color.numpy().astype(np.uint8),
        color / 255,
        np.moveaxis(color.numpy(), 0, -1) / 255,
    ]
    shown = [np.asarray(fields.plot(g).axes[0].images[0].get_array()) for g in given]
    for picture in shown:
        assert picture.shape == (32, 32, 3)
        np.testing.assert_allclose(picture, shown[0], atol=1e-6)
    gray = fields.plot(pixels[0] / 255).axes[0].images[0].get_array()
    assert gray.shape == (32, 32)


def test_the_default_plot_shows_the_last_layer_with_several_units(fields) -> None:
    figure = fields.plot()
    assert "residual3" in figure.axes[0].get_title()
    assert not figure.axes[0].images
    assert len(boxes(figure)) == 2 * 3 + 1
    last = receptive_field(nn.Conv2d(1, 1, 3), (1, 1, 9, 9)).plot()
    assert last.axes[0].get_title().startswith("output: ")
    # no layer has a map of several units
    single = receptive_field(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), (1, 1, 3, 3)).plot()
    assert single.axes[0].get_title().startswith("output: ")


def test_plots_explain_what_they_cannot_draw(fields) -> None:
    for value in (-0.5, 1.5):
        with pytest.raises(ValueError, match=f"range from {value}0.*Undo the normalization first"):
            fields.plot(torch.full((3, 32, 32), value))
    line = receptive_field(nn.Conv1d(1, 1, 3), (1, 1, 9))
    with pytest.raises(ValueError, match="images with two axes, but this input has 1"):
        line.plot()
    with pytest.raises(ValueError, match="heat map needs an input with two axes"):
        effective_receptive_field(box(1), torch.randn(1, 1, 9)).plot()


def test_growth_names_the_first_layer_that_sees_the_whole_input(fields) -> None:
    figure = fields.plot_growth()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "residual3.block1.0 is the first to see it all" in texts
    assert "input: 32" in texts
    (line,) = [line for line in figure.axes[0].lines if "field" in str(line.get_label())]
    assert line.get_ydata().tolist() == [record.size[0] for record in fields.values()]
    assert line.get_xdata().tolist() == list(range(1, len(fields) + 1))
    assert line.get_drawstyle() == "steps-post"
    axes = figure.axes[0]
    first = list(fields).index("residual3.block1.0")
    marked = [(*other.get_xdata(), *other.get_ydata()) for other in axes.lines[1:]]
    assert marked == [(0, 1, 32, 32), (first + 1, 48)]  # the input from side to side, the layer
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer calls, in order", "size (pixels)")
    assert axes.get_xlim() == (1, len(fields))
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.get_legend().texts] == ["receptive field"]
    early = nn.Sequential(nn.Conv2d(1, 1, 9), nn.ReLU(), nn.ReLU(), nn.ReLU())
    for found, side in (
        (figure, "right"),
        (receptive_field(early, (1, 1, 9, 9)).plot_growth(), "left"),
    ):
        (named,) = [text for text in found.axes[0].texts if "to see it all" in text.get_text()]
        assert named.get_horizontalalignment() == side  # towards the middle of the figure
        assert named.xy == ((first + 1, 48) if found is figure else (1, 9))
    uneven = receptive_field(nn.Sequential(nn.Conv2d(1, 1, (1, 3)), nn.ReLU()), (1, 1, 8, 9))
    labels = [str(line.get_label()) for line in uneven.plot_growth().axes[0].lines]
    assert {"receptive field, height", "receptive field, width"} <= set(labels)
    assert "no unit" in uneven.plot_growth().axes[0].get_title()


@pytest.mark.parametrize("log", [False, True])
def test_the_heat_map_shows_the_map_itself_and_the_square_of_the_mass(log: bool) -> None:
    field = effective_receptive_field(box(), torch.randn(1, 1, 9, 9))
    figure = field.plot(log=log)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shown, field.map.numpy())
    assert boxes(figure) == [(2.5, 2.5, 3, 3)]
    left, right, bar = figure.axes
    assert left.get_title() == "unit (4, 4): 95 % of the mass in 3 x 3"
    assert (left.get_xlabel(), left.get_ylabel()) == ("column (pixels)", "row (pixels)")
    assert bar.get_ylabel() == "fraction of the gradient"
    assert right.get_title() == "sigma 0.8, 0.8 pixels (1 images)"
    assert right.get_xlabel() == "distance from the centroid (pixels)"
    assert right.get_ylabel() == "gradient per pixel, relative"
    assert right.get_ylim()[0] == 0
    assert right.lines[0].get_xdata()[:3].tolist() == [0, 1, 2]
    assert right.lines[0].get_ydata()[:3] == pytest.approx([1, 1, 0])  # 2 is outside the square
    triangle = effective_receptive_field(nn.Sequential(box(), box()), torch.randn(1, 1, 9, 9))
    figure = triangle.plot(log=log)
    assert boxes(figure) == [(1.5, 1.5, 5, 5)]
    norm = figure.axes[0].images[0].norm
    assert isinstance(norm, LogNorm) == log
    # the profile is 1, 2, 3, 2, 1 in each direction; zeros have no logarithm
    assert (norm.vmin, norm.vmax) == pytest.approx(((1 if log else 0) / 81, 9 / 81))


def test_the_square_of_the_mass_is_clipped_at_the_border() -> None:
    field = effective_receptive_field(box(), torch.randn(1, 1, 9, 9), unit=(0, 8))
    # rows 0 and 1, columns 7 and 8: the centroid (0.5, 7.5) lies in pixel (0, 8)
    assert field.centroid == pytest.approx((0.5, 7.5))
    assert boxes(field.plot()) == [(6.5, -0.5, 2, 2)]
    assert (
        effective_receptive_field(nn.Sequential(box()), torch.randn(1, 1, 9, 9), layer="0")
        .plot()
        .axes[0]
        .get_title()
        .startswith("0, unit (4, 4): ")
    )


def test_figures_can_be_passed_and_need_no_pyplot(fields) -> None:
    import subprocess
    import sys

    mine = Figure()
    assert fields.plot(fig=mine) is mine
    assert fields.plot_growth(fig=Figure()).axes
    field = effective_receptive_field(box(), torch.randn(1, 1, 9, 9))
    assert field.plot(fig=(given := Figure())) is given
    code = (
        "from cifar_resnet import *\nimport sys\n"
        "f = receptive_field(CustomResNet(width=4), (1, 3, 32, 32))\n"
        "assert not any(m.startswith(('matplotlib', 'torchvision')) for m in sys.modules)\n"
        "f.plot(); f.plot_growth()\nassert 'matplotlib.pyplot' not in sys.modules"
    )
    code = code.replace("import *", "import CustomResNet, receptive_field")
    subprocess.run([sys.executable, "-c", code], check=True)
