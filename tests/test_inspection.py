"""Test what is looked at inside networks: features, nearest images, channel maps and filters."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers import Net, small_vit, state
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pytorch_lightning import LightningDataModule
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    compute_features,
    find_misclassified,
    find_nearest,
    show_features,
    show_filters,
    show_nearest,
)

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(40, 3, 32, 32, generator=GENERATOR)
DATA = TensorDataset(IMAGES, torch.arange(40) % 10)


def resnet(**options: Any) -> CustomResNet:
    torch.manual_seed(0)
    network = CustomResNet(width=2, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # other statistics than in training mode
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
    return network.eval()


def texts(fig: Figure) -> list[str]:
    FigureCanvasAgg(fig).draw()
    return [text.get_text() for text in fig.texts]


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"head_scale": 0.125}, {"residual2": True}])
def test_logits_are_the_head_of_the_features(options: dict[str, Any]) -> None:
    network = resnet(**options)
    seen: list[Tensor] = []
    with network.head.register_forward_pre_hook(lambda module, args: seen.append(args[0])):
        logits = network.logits(IMAGES)
    features = network.features(IMAGES)
    assert features.shape == (40, 16)
    assert torch.equal(features, seen[0])
    scale = options.get("head_scale", 1)
    assert torch.equal(logits, network.head(features) * scale)
    maps = features.new_zeros(40, 16, 4, 4)
    with network.pool.register_forward_pre_hook(lambda module, args: maps.copy_(args[0])):
        network(IMAGES)
    assert torch.equal(features, maps.amax((2, 3)))
    assert network.features(IMAGES.requires_grad_(False)).requires_grad
    with pytest.raises(
        ValueError, match=r"expects images of shape \(N, 3, 32, 32\), but got \(40,"
    ):
        network.features(IMAGES[:, :1])
    with pytest.raises(TypeError, match="images.to\\(torch.float32\\)"):
        network.features(IMAGES.double())


def tv(name: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(torchvision.models, name)(num_classes=10, **options)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "CustomResNet": (resnet, "head"),
    "ImageClassifier": (lambda: ImageClassifier(resnet(), num_classes=10), "network.head"),
    "scaled": (lambda: resnet(head_scale=0.125), "head"),
    "resnet18": (lambda: tv("resnet18"), "fc"),
    "mobilenet_v3_small": (lambda: tv("mobilenet_v3_small"), "classifier.3"),
    "vit": (small_vit, "heads.head"),
    "timm": (lambda: timm.create_model("resnet18", num_classes=10), "fc"),
    "softmax": (lambda: nn.Sequential(resnet(), Exp()), "0.head"),
    "transformers": (
        lambda: Net(
            lambda net, x: SimpleNamespace(logits=net.head(input=x.mean((2, 3)))),
            head=nn.Linear(3, 10),
        ),
        "head",
    ),
    "half": (lambda: tv("resnet18").bfloat16(), "fc"),
}  # fmt: skip


class Exp(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores.exp()


@pytest.mark.parametrize("kind", NETWORKS)
def test_features_are_the_input_of_the_last_linear_layer(kind: str) -> None:
    make, head = NETWORKS[kind]
    torch.manual_seed(0)
    network = make().eval()
    images = IMAGES[:3]
    seen: list[Tensor] = []
    dtype = next(network.parameters()).dtype
    layer = network.get_submodule(head)

    def see(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((*args, *kwargs.values())[0])

    with (
        layer.register_forward_pre_hook(see, with_kwargs=True),
        torch.no_grad(),
    ):
        network(images.to(dtype))
    expected = seen[0].float()
    network.train()
    assert expected.dim() == 2
    before = [module.training for module in network.modules()]
    features = compute_features(network, images)
    assert features.dtype == torch.float32
    assert torch.allclose(features, expected, atol=1e-5, rtol=1e-5)
    assert [module.training for module in network.modules()] == before
    assert torch.equal(features, compute_features(network, images, layer=head))
    assert torch.equal(features, compute_features(network, images, layer=layer))


def test_features_leave_the_model_unchanged() -> None:
    network = resnet().train()
    network.prep.eval()
    compiled = torch.compile(network)
    before = state(network)
    compute_features(network, IMAGES)
    compute_features(compiled, IMAGES)  # type: ignore[arg-type]
    assert state(network) == before


def test_features_of_any_data() -> None:
    network = resnet()
    expected = network.features(IMAGES).detach()
    shuffled = DataLoader(DATA, batch_size=7, shuffle=True)
    for data in (DATA, shuffled, (IMAGES.numpy(), np.arange(40) % 10), iter(DATA), IMAGES):
        assert torch.allclose(compute_features(network, data), expected, atol=1e-6)
    assert torch.allclose(
        compute_features(network, DATA, batch_size=3, max_samples=10, device="cpu"),
        expected[:10], atol=1e-6,
    )  # fmt: skip


def test_several_threads() -> None:
    network = resnet().train()
    expected = compute_features(network, IMAGES)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: compute_features(network, IMAGES), range(8)))
    assert all(torch.equal(result, expected) for result in results)
    assert network.training


class Wide(nn.Module):
    """A part with a linear layer that has as many outputs as there are classes, but not scores."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 10)
        self.weight = nn.Parameter(torch.randn(10, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.gate(images.mean((2, 3))).relu() @ self.weight


def twice(net: Any, images: Tensor) -> Any:
    return net.head(images.mean((2, 3))) + net.head(images.amax((2, 3)))


def same_twice(net: Any, images: Tensor) -> Any:
    net.head(images.amax((2, 3)))
    return net.head(images.mean((2, 3)))


def convolution(net: Any, images: Tensor) -> Any:
    return net.conv(images).mean((2, 3))


@pytest.mark.parametrize(
    ("make", "layer", "message"),
    [
        (Wide, None, r"has no linear layer whose output are the scores. Pass layer=.*gate \(\(3,"),
        (lambda: Net(twice, head=nn.Linear(3, 10)), None, "no linear layer whose output are the"),
        (lambda: Net(same_twice, head=nn.Linear(3, 10)), None, "calls the layer 'head' 2 times"),
        (lambda: Net(twice, head=nn.Linear(3, 10)), "head", "Layer 'head' is called 2 times for a"),
        (lambda: Net(convolution, conv=nn.Conv2d(3, 10, 1)), None, "but it calls no linear layer"),
        (lambda: Net(convolution, conv=nn.Conv2d(3, 10, 1)), "conv",
         r"input of layer 'conv' has the shape \(40, 3, 32, 32\) for 40 images, but a vector"),
        (lambda: nn.Sequential(resnet(), nn.Linear(10, 10), nn.Identity()), "2.x",
         "No layer is called '2.x'"),
        (resnet, "hed", "No layer is called 'hed'. Close matches: head"),
        (resnet, nn.Linear(1, 1), "The layer Linear is not a submodule of the model"),
        (lambda: Net(lambda net, x: resnet()(x), unused=nn.Linear(2, 2)), "unused",
         "Layer 'unused' is not called for a batch"),
    ],
)  # fmt: skip
def test_features_that_are_not_known_are_refused(make: Any, layer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_features(make(), IMAGES, layer=layer)


def test_two_heads_are_refused_with_their_names() -> None:
    first, second = nn.Linear(3, 10), nn.Linear(3, 10)
    second.load_state_dict(first.state_dict())

    def both(net: Any, images: Tensor) -> Any:
        pooled = images.mean((2, 3))
        return (net.one(pooled) + net.two(pooled)) / 2

    with pytest.raises(ValueError, match=r"several linear layers whose outputs are the .*one, two"):
        compute_features(Net(both, one=first, two=second), IMAGES)


def test_other_features_that_are_refused() -> None:
    network = resnet()
    nn.init.constant_(network.prep[2].weight, float("nan"))
    scores = Net(
        lambda net, x: net.part.features(x).nan_to_num() @ torch.ones(16, 10), part=network
    )
    with pytest.raises(ValueError, match="has no linear layer|calls no linear layer"):
        compute_features(scores, IMAGES)
    infinite = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    with pytest.raises(ValueError, match=r"The features of image 1 are not finite: \[inf, "):
        compute_features(infinite, torch.stack([IMAGES[0], IMAGES[0] * torch.inf]), layer="1")
    with pytest.raises(ValueError, match="The data contain no images"):
        compute_features(resnet(), IMAGES[:0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.trace(resnet(), IMAGES[:1])
    with pytest.raises(ValueError, match="The model is a program made by torch.jit"):
        compute_features(program, IMAGES)


# --- nearest images ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 500])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_nearest_images_are_those_of_scikit_learn(batch_size: int, k: int) -> None:
    network = resnet()
    errors = find_misclassified(network, (IMAGES[:9] * 0.9, torch.arange(9)))
    found = find_nearest(network, errors, DATA, k=k, batch_size=batch_size)
    features = network.features(IMAGES).detach().double().numpy()
    queries = network.features(torch.stack([e.inputs for e in errors])).detach().double().numpy()
    search = NearestNeighbors(n_neighbors=k, metric="cosine").fit(features)
    distances, indices = search.kneighbors(queries)
    assert len(found) == len(errors)
    for row, error, distance, index in zip(found, errors, distances, indices, strict=True):
        assert [each.distance for each in row.neighbors] == pytest.approx(distance, abs=1e-5)
        assert [each.index for each in row.neighbors] == index.tolist()
        assert [each.label for each in row.neighbors] == (index % 10).tolist()
        assert all(torch.equal(each.image, IMAGES[each.index]) for each in row.neighbors)  # type: ignore[index]
        assert (row.index, row.true, row.predicted) == (error.index, error.true, error.predicted)
        assert row.image is error.image
        assert row.same_label == sum(index % 10 == error.true)
        assert row.same_prediction == sum(index % 10 == error.predicted)


def test_an_image_is_nearest_to_itself_and_equal_ones_come_in_order() -> None:
    data = torch.cat([IMAGES[:3], IMAGES[:3]]), torch.tensor([0, 1, 2, 3, 4, 5])
    (row,) = find_nearest(resnet(), IMAGES[1:2], data, k=2, batch_size=2)
    assert [each.index for each in row.neighbors] == [1, 4]
    assert [each.distance for each in row.neighbors] == pytest.approx([0, 0], abs=1e-6)
    assert (row.index, row.true, row.same_label, row.same_prediction) == (0, None, None, None)


def test_vectors_of_zeros_are_at_distance_one() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    (row,) = find_nearest(network, images[:1], (images, torch.tensor([0, 1])), k=2)
    assert [each.distance for each in row.neighbors] == [1, 1]


def test_images_of_different_sizes_are_errors_in_their_order() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    samples = [(IMAGES[n, :, : 8 + 8 * (n % 2)], n % 10) for n in range(8)]
    errors = find_misclassified(network, samples, sort_by="index")
    found = find_nearest(network, errors, samples, k=1)
    assert [row.neighbors[0].index for row in found] == [error.index for error in errors]


def test_training_images_of_cifar10_are_searched(read_once: None) -> None:
    network = CustomResNet.from_pretrained("quarter")
    module = CIFAR10DataModule(batch_size=100, device="cpu")
    module.setup("fit")
    (row,) = find_nearest(network, torch.zeros(1, 3, 32, 32), max_samples=700, k=3)
    assert all(0 <= each.index < 700 for each in row.neighbors)  # type: ignore[operator]
    plain = np.stack([np.asarray(each.image) for each in row.neighbors])
    assert plain.min() >= 0
    labels = module.labels("train")
    order = {index: n for n, index in enumerate(module.indices("train").tolist())}
    for each in row.neighbors:
        assert each.index in order
        assert each.label == labels[order[each.index]]
        assert each.name == module.classes[each.label]


def test_other_data_modules_give_their_training_samples() -> None:
    class Module(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(DATA, batch_size=9, shuffle=True)

    (row,) = find_nearest(resnet(), IMAGES[5:6], Module(), k=1)
    assert row.neighbors[0].index == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 41}, "k is 41, but only 40 images are searched. Pass a smaller k"),
        ({"k": 6, "max_samples": 5}, "k is 6, but only 5 images are searched"),
        ({"data": iter(DATA), "k": 41}, "k is 41, but the data have only 40 images"),
        ({"data": IMAGES}, "data must be images with labels, such as .images, labels., but got"),
        ({"class_names": ["x", "y"]}, r"Class \d is called '\d' for the errors, but the data have"),
        ({"data": TensorDataset(IMAGES)}, "without labels"),
        ({"data": (IMAGES * 9, torch.arange(40))}, "to be displayed they must be in"),
    ],
)
def test_searches_that_are_refused(options: dict[str, Any], message: str) -> None:
    network = resnet()
    errors = find_misclassified(network, DATA, class_names=[f"{n}" for n in range(10)])
    if "class_names" in options:
        errors = find_misclassified(network, DATA, class_names=[*"abcdefghij"])
        message = "Class . is called '.' for the errors, but the data have the classes x, y"
    with pytest.raises(ValueError, match=message):
        find_nearest(network, errors[:2], **{"data": DATA} | options)


def test_more_searches_that_are_refused() -> None:
    network = resnet()
    with pytest.raises(ValueError, match="has label 11, but there are 10 class names: 0, 1"):
        find_nearest(
            network, IMAGES[:1], (IMAGES, torch.full((40,), 11)), class_names=[*map(str, range(10))]
        )
    pooled = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(ValueError, match="a lazy module"):
        find_nearest(pooled, IMAGES[:1], DATA)
    with pytest.raises(ValueError, match="Image 0 of errors has values from"):
        find_nearest(network, IMAGES[:1] - 9, DATA)

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Linear(3 * 8, 10), nn.Linear(3 * 16, 10)

        def forward(self, images: Tensor) -> Tensor:
            rows = images.mean(3).flatten(1)
            return (self.small if rows.shape[1] == 24 else self.large)(rows)

    images = torch.rand(4, 3, 16, 16)
    with pytest.raises(ValueError, match="features of the errors have 24 values, but those of the"):
        find_nearest(Flat(), images[:, :, :8], (images, torch.arange(4)), k=1)


def test_the_figure_of_nearest_images() -> None:
    network = resnet()
    errors = find_misclassified(network, DATA, class_names=[f"class {n}" for n in range(10)])
    found = find_nearest(
        network, errors[:3], DATA, k=4, class_names=[f"class {n}" for n in range(10)]
    )
    fig = show_nearest(found, n=2)
    assert len(fig.axes) == 2 * (1 + 4)
    said = texts(fig)
    assert "The 4 nearest images by the cosine distance of the features" in said
    for row in found[:2]:
        assert f"true: {row.true_name}" in said
        assert f"pred: {row.predicted_name}" in said
        for each in row.neighbors:
            assert each.name in said
            assert f"{each.distance:.3f}  #{each.index}" in said
    shown = np.asarray(fig.axes[1].images[0].get_array())
    expected = np.rint(255 * found[0].neighbors[0].image.permute(1, 2, 0).numpy())
    assert np.array_equal(shown, expected)
    alone = show_nearest(find_nearest(network, IMAGES[:1], DATA, k=1))
    assert "The nearest image by the cosine distance of the features" in texts(alone)
    assert "#0" in texts(alone)


# --- channel maps --------------------------------------------------------------------------------


def test_channels_have_a_common_scale() -> None:
    network = resnet()
    outputs: dict[str, Tensor] = {}
    for name in ("prep", "layer3"):
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: outputs.update({name: output[0].detach()})
        )
    network(IMAGES[:1])
    before = state(network.train())
    fig = show_features(network, IMAGES[0], ["prep", network.layer3], channels=2, cmap="gray")
    assert state(network) == before
    said = texts(fig)
    for row, (name, maps) in enumerate(outputs.items()):
        shown = maps[:2]
        limit = float(shown.abs().max())
        for column in range(2):
            pixels = np.asarray(fig.axes[2 * row + column].images[0].get_array())
            expected = colormaps["gray"](0.5 + 0.5 * shown[column].numpy() / limit)[..., :3]
            assert np.abs(pixels / 255.0 - expected).max() < 1e-2
        height, width = maps.shape[1:]
        low, high = float(shown.min()), float(shown.max())
        count = f"2 of {len(maps)} channels"
        assert f"{name}\n{count}\n{height} x {width}\n{low:.3g} to {high:.3g}" in said
    assert "each row has one color scale, symmetric about 0" in " ".join(said)


def test_layers_are_chosen_automatically() -> None:
    def names(network: nn.Module, image: Tensor, **options: Any) -> list[str]:
        found = texts(show_features(network, image, channels=1, **options))
        return [text.split("\n")[0] for text in found if "channels" in text and "\n" in text]

    blocks = ["prep", "layer1", "residual1", "layer2", "layer3", "residual3"]
    assert names(resnet(), IMAGES[0]) == blocks
    wrapped = nn.Sequential(nn.Identity(), resnet())
    assert names(wrapped, IMAGES[:1]) == ["0", *(f"1.{name}" for name in blocks)]
    found = names(tv("resnet18"), torch.rand(3, 64, 64))
    assert found == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    assert names(small_vit(), IMAGES[0]) == ["conv_proj", "encoder"]


def test_values_are_not_those_that_a_later_layer_writes() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    convolved = network[0](IMAGES[:1])[0].detach()
    fig = show_features(network, IMAGES[0], "0")
    assert any(f"{float(convolved.min()):.3g} to" in text for text in texts(fig))
    assert float(convolved.min()) < 0


def test_an_error_is_drawn_with_its_picture() -> None:
    network = resnet()
    error = find_misclassified(network, DATA)[0]
    fig = show_features(network, error, "layer1", channels=[3, 0])
    assert len(fig.axes) == 3
    picture = np.asarray(fig.axes[0].images[0].get_array())
    assert np.array_equal(picture, np.rint(255 * error.image.permute(1, 2, 0).numpy()))
    assert {"image", "3", "0"} <= set(texts(fig))
    half = show_features(network.half(), error, "layer1", channels=[3, 0])
    assert len(half.axes) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "head"}, "Layer 'head' is not called, or does not return a float tensor"),
        ({"layers": "stem"}, "No layer is called 'stem'"),
        (
            {"layers": "prep", "channels": [16]},
            "channels has 16, but layer 'prep' has the channels",
        ),
    ],
)
def test_channels_that_do_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show_features(resnet(), IMAGES[0], **options)


def test_networks_without_maps_are_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    with pytest.raises(ValueError, match="No layer of Sequential has an output with rows and"):
        show_features(flat, IMAGES[0])
    network = resnet()
    nn.init.constant_(network.prep[2].weight, float("inf"))
    with pytest.raises(ValueError, match="The output of layer 'prep' is not finite"):
        show_features(network, IMAGES[0], "prep")


# --- filters -------------------------------------------------------------------------------------


def test_filters_are_drawn_in_color_with_one_scale() -> None:
    network = resnet()
    fig = show_filters(network, columns=2)
    weights = network.prep[0].weight.detach().numpy()
    limit = np.abs(weights).max()
    assert len(fig.axes) == 2
    for axes, each in zip(fig.axes, weights, strict=True):
        pixels = np.asarray(axes.images[0].get_array())
        for color in range(3):  # red is the first input channel
            expected = 127.5 + 127.5 * each[color] / limit
            assert np.abs(pixels[..., color] - expected).max() <= 0.5
    said = texts(fig)
    assert "prep.0: 2 filters of 3 x 3" in said
    assert f"red, green, blue from {-limit:.3g} (0 %) to {limit:.3g} (100 %); gray is 0" in said


def test_filters_of_one_input_channel() -> None:
    network = resnet()
    fig = show_filters(network, network.layer1[0], channel=1, n=3, cmap="gray")
    weights = network.layer1[0].weight.detach().numpy()[:3, 1]
    limit = np.abs(weights).max()
    for axes, each in zip(fig.axes, weights, strict=True):
        pixels = np.asarray(axes.images[0].get_array())
        assert np.abs(pixels[..., 0] - (127.5 + 127.5 * each / limit)).max() <= 1
    assert "layer1.0: 3 of 4 filters of 3 x 3, input channel 1" in texts(fig)
    gray = nn.Sequential(nn.Conv2d(1, 4, 7))
    assert "0: 4 filters of 7 x 7" in texts(show_filters(gray))
    grouped = nn.Sequential(nn.Conv2d(3, 6, (1, 5), groups=3))
    assert "0: 6 filters of 1 x 5, 3 groups" in texts(show_filters(grouped))
    alone = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(alone.weight)
    fig = show_filters(alone)
    assert "Conv2d: 2 filters of 1 x 1" in texts(fig)
    assert np.asarray(fig.axes[0].images[0].get_array()).tolist() == [[[128] * 3]]


@pytest.mark.filterwarnings("ignore")
def test_filters_of_quantized_compiled_and_half_networks() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    for network in (nn.Sequential(layer).half(), torch.compile(nn.Sequential(layer))):
        assert len(show_filters(network).axes) == 4  # type: ignore[arg-type]
    quantized: Any = torch.ao.nn.quantized.Conv2d(3, 4, 3)
    assert len(show_filters(nn.Sequential(quantized)).axes) == 4
    assert "conv_proj: 16 filters of 8 x 8" in texts(show_filters(small_vit()))


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (nn.Linear(2, 2), {}, "Linear has no two-dimensional convolution"),
        (
            resnet(),
            {"layer": "head"},
            "Layer 'head' is a Linear, not a two-dimensional .*: prep.0,",
        ),
        (resnet(), {"layer": "prep"}, "Layer 'prep' is a Sequential, not"),
        (resnet(), {"layer": "stem"}, "No layer is called 'stem'"),
        (resnet(), {"layer": nn.Conv2d(1, 1, 1)}, "The layer Conv2d is not a submodule"),
        (resnet(), {"layer": "layer1.0"}, "have 2 input channels, which are not colors. Pass chan"),
        (resnet(), {"channel": 3}, "channel is 3, but the filters of 'prep.0' have the input .* 2"),
        (nn.Conv2d(3, 2, 1, device="meta"), {}, "are on the meta device"),
    ],
)
def test_filters_that_are_refused(network: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show_filters(network, **options)
    broken = nn.Conv2d(3, 2, 1)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(ValueError, match="The weights of 'Conv2d' are not finite"):
        show_filters(broken)
