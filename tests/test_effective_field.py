"""Effective receptive fields against networks whose gradient is known by hand, and the figures."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cifar_resnet import CustomResNet, effective_receptive_field, receptive_field


def box(rank: int = 2, kernel: int = 3) -> nn.Module:
    """A convolution that sums its window."""
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
    assert field.side(7 / 9) == 3  # 2 + 3 + 2 of 9; by logarithms it would hold another share
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


def test_the_model_stays_and_inference_mode_frozen_and_half_models_work() -> None:
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
    nn.init.constant_(network[0].weight, -1.0)  # the activation blocks all
    field = effective_receptive_field(network, torch.ones(1, 1, 5), layer="0")
    assert field.map.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}, TypeError, "got torch.uint8"),
        ({"images": [1.0]}, TypeError, "but got list"),
        ({"images": torch.zeros(0, 3, 32, 32)}, ValueError, "at least one image"),
        ({"images": torch.zeros(3, 32)}, ValueError, r"but got \(3, 32\)"),
        ({"layer": "residual2"}, KeyError, "no submodule 'residual2'. Close ones: residual"),
        ({"layer": "unused"}, KeyError, "does not call 'unused'"),
        ({"layer": "layer1", "unit": (16, 0)}, IndexError, r"units of shape \(16, 16\).*\(16, 0\)"),
        ({"layer": "layer1", "unit": (1,)}, IndexError, "got the unit"),
        ({"channel": 10}, IndexError, "10 channels, but got channel 10"),
        ({"batch_size": 0}, ValueError, "at least 1, but got 0"),
        ({"images": torch.full((1, 3, 32, 32), math.nan)}, ValueError, "zero or not finite"),
    ],
)
def test_bad_arguments(arguments, error, message: str) -> None:
    model = CustomResNet(width=4)
    model.unused = nn.Identity()
    with pytest.raises(error, match=message):
        effective_receptive_field(model, **{"images": torch.randn(1, 3, 32, 32)} | arguments)


@pytest.mark.parametrize("mass", [0, -1, 1.5])
def test_a_mass_is_a_share(mass: float) -> None:
    field = effective_receptive_field(box(), torch.randn(1, 1, 5, 5))
    with pytest.raises(ValueError, match="share in"):
        field.side(mass)


# -- figures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fields():
    return receptive_field(CustomResNet(width=4), (1, 3, 32, 32))


def boxes(figure: Figure) -> list[tuple[float, float, float, float]]:
    """Left, top, width, height of each rectangle drawn."""
    return [(*p.get_xy(), p.get_width(), p.get_height()) for p in figure.axes[0].patches]


def test_fields_are_drawn_where_they_are(fields) -> None:
    image = np.zeros((3, 32, 32), dtype=np.uint8)
    figure = fields.plot(image, "residual1", [(3, 0)])
    assert isinstance(figure, Figure)
    whole, clipped, frame = boxes(figure)
    # rows 0 to 13, columns -6 to 7; the edge of a pixel lies half a pixel from its centre
    assert whole == (-6.5, -0.5, 14, 14)
    assert clipped == (-0.5, -0.5, 8, 14)
    assert frame == (-0.5, -0.5, 32, 32)
    left, right = figure.axes[0].get_xlim()
    assert left < -6.5
    assert right > 31.5
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]  # rows go down


def test_images_of_all_kinds_look_alike(fields) -> None:
    pixels = torch.arange(32 * 32).view(1, 32, 32) % 256
    colour = pixels.repeat(3, 1, 1)
    given = [
        colour.to(torch.uint8),
        colour.numpy().astype(np.uint8),
        colour / 255,
        np.moveaxis(colour.numpy(), 0, -1) / 255,
    ]
    shown = [np.asarray(fields.plot(g).axes[0].images[0].get_array()) for g in given]
    for picture in shown:
        assert picture.shape == (32, 32, 3)
        np.testing.assert_allclose(picture, shown[0], atol=1e-6)
    grey = fields.plot(pixels[0] / 255).axes[0].images[0].get_array()
    assert grey.shape == (32, 32)


def test_the_default_plot_shows_the_last_layer_with_several_units(fields) -> None:
    figure = fields.plot()
    assert "residual3" in figure.axes[0].get_title()
    assert not figure.axes[0].images
    assert len(boxes(figure)) == 2 * 3 + 1


def test_plots_refuse_what_they_cannot_draw(fields) -> None:
    with pytest.raises(ValueError, match=r"image must be \(C, 32, 32\).*got \(3, 28, 28\)"):
        fields.plot(torch.zeros(3, 28, 28))
    with pytest.raises(ValueError, match="Undo the normalisation first"):
        fields.plot(torch.randn(3, 32, 32))
    with pytest.raises(KeyError, match="No layer"):
        fields.plot(layer="residual2")
    with pytest.raises(IndexError, match="units of shape"):
        fields.plot(layer="pool", units=[(1, 0)])
    line = receptive_field(nn.Conv1d(1, 1, 3), (1, 1, 9))
    with pytest.raises(ValueError, match="images with two axes, but this input has 1"):
        line.plot()
    with pytest.raises(ValueError, match="heat map needs an input with two axes"):
        effective_receptive_field(box(1), torch.randn(1, 1, 9)).plot()


def test_growth_names_the_first_layer_that_sees_it_all(fields) -> None:
    figure = fields.plot_growth()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "residual3.block1.0 is the first to see it all" in texts
    assert "input: 32" in texts
    (line,) = [line for line in figure.axes[0].lines if "field" in str(line.get_label())]
    assert line.get_ydata().tolist() == [record.size[0] for record in fields.values()]
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
    assert "sigma 0.8, 0.8" in figure.axes[1].get_title()


def test_figures_can_be_drawn_into_and_need_no_pyplot(fields) -> None:
    import subprocess
    import sys

    mine = Figure()
    assert fields.plot(fig=mine) is mine
    assert fields.plot_growth(fig=Figure()).axes
    code = (
        "from cifar_resnet import *\nimport sys\n"
        "f = receptive_field(CustomResNet(width=4), (1, 3, 32, 32))\n"
        "assert not any(m.startswith(('matplotlib', 'torchvision')) for m in sys.modules)\n"
        "f.plot(); f.plot_growth()\nassert 'matplotlib.pyplot' not in sys.modules"
    )
    code = code.replace("import *", "import CustomResNet, receptive_field")
    subprocess.run([sys.executable, "-c", code], check=True)
