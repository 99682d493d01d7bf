"""Test `predict`: images of any kind and size, for any classifier."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cifar_resnet import CIFAR10DataModule, CustomResNet, ImageClassifier, predict
from cifar_resnet.data import cifar10

EXAMPLES = sorted((Path(__file__).parents[1] / "cifar_resnet/cli/demo/images").glob("*.png"))
PLAIN: Any = {"size": 8, "mean": 0, "std": 1}


class Brightest(nn.Module):
    """Score each channel by its mean, and remember the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        self.batches.append(images)
        return self.weight * images.mean((2, 3))


@pytest.fixture(scope="module")
def network() -> CustomResNet:
    return CustomResNet.from_pretrained("quarter")


def photo(width: int = 60, height: int = 40) -> Any:
    """Return a smooth image whose left, middle and right thirds are red, green and blue."""
    pixels = np.full((height, width, 3), 20, np.uint8)
    for channel in range(3):
        pixels[:, channel * width // 3 : (channel + 1) * width // 3, channel] = 230
    return pixels


def test_test_images_have_the_probabilities_of_the_loader(
    network: CustomResNet, data_dir: Path
) -> None:
    result = predict(network, EXAMPLES)
    data = CIFAR10DataModule(data_dir, batch_size=10_000)
    data.prepare_data()
    data.setup("test")
    images, _ = next(iter(data.test_dataloader()))
    indices = [int(path.stem.split("-")[0]) for path in EXAMPLES]
    with torch.no_grad():
        expected = network.eval()(images[indices]).exp()
    assert torch.allclose(result.probabilities, expected, atol=1e-5)
    assert result.probabilities.dtype == torch.float32
    assert torch.equal(result.classes, expected.argmax(1))
    assert result.names == [cifar10.CLASSES[number] for number in expected.argmax(1)]
    assert result.class_names == cifar10.CLASSES
    assert len(result) == 10
    for pairs, row in zip(result.top(2), expected, strict=True):
        assert [name for name, _ in pairs] == [
            cifar10.CLASSES[number] for number in row.argsort(descending=True)[:2]
        ]
        assert pairs[0][1] == pytest.approx(float(row.max()), abs=1e-5)
    assert "10 images: " in repr(result)
    assert repr(result).endswith(", ...>")


def test_every_kind_of_image_gives_the_same(network: CustomResNet, tmp_path: Path) -> None:
    pixels = np.array(Image.open(EXAMPLES[3]).resize((48, 40)))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds: list[Any] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(pixels),
        pixels,
        pixels.transpose(2, 0, 1),
        pixels.astype(np.int64),
        pixels.astype(np.uint16),
        np.ascontiguousarray(pixels[::-1])[::-1],
        tensor,
        tensor.int(),
        np.dstack([pixels, np.full((40, 48), 255, np.uint8)]),
    ]
    together = predict(network, kinds, batch_size=4).probabilities
    for kind, row in zip(kinds, together, strict=True):
        alone = predict(network, kind).probabilities
        assert torch.allclose(alone[0], row, atol=1e-5)
        assert torch.allclose(row, together[0], atol=1e-5)
    # not rounded to 8 bits after scaling
    for kind in (tensor / 255, pixels / 255, (tensor / 255).double().requires_grad_()):
        assert torch.allclose(predict(network, kind).probabilities, together[:1], atol=0.03)
    assert len(predict(network, np.stack([pixels, pixels]))) == 2
    assert len(predict(network, torch.stack([tensor, tensor]))) == 2
    assert len(predict(network, np.array([str(tmp_path / "a.png")] * 3))) == 3


@pytest.mark.parametrize("scale", [1, 255])
def test_the_central_part_is_scaled(scale: int) -> None:
    image: Any = photo() if scale == 1 else photo() / 255
    model = Brightest()
    result = predict(model, image, size=(10, 5), mean=0, std=1, class_names=["r", "g", "b"])
    assert model.batches[0].shape == (1, 3, 10, 5)
    assert result.names == ["g"]  # 20 x 40 pixels of the middle are all green
    assert torch.allclose(model.batches[0][0, 1], torch.tensor(230 / 255), atol=1e-6)
    predict(model, image, size=(20, 30), mean=0, std=1)
    columns = model.batches[1][0].mean(1)  # of the whole image
    assert columns[:, 3].argmax() == 0
    assert columns[:, 15].argmax() == 1
    assert columns[:, 26].argmax() == 2


def test_the_two_ways_of_scaling_agree() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(64, 192, (90, 70, 3), dtype=np.uint8)  # no clipping
    model = Brightest()
    for size in (32, (20, 41), 130):
        for each in (image, image / 255):
            predict(model, each, size=size, mean=0, std=1)
        bits, floats = model.batches[-2:]
        assert (bits - floats).abs().max() < 3 / 255


def test_the_normalization() -> None:
    model = Brightest()
    image = torch.rand(3, 8, 8)
    mean, std = (0.1, 0.2, 0.3), (2.0, 4.0, 5.0)
    predict(model, image, size=8, mean=mean, std=std)
    expected = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(model.batches[0][0], expected, atol=1e-6)
    predict(model, image, size=8, mean=0.5, std=0.25)
    assert torch.allclose(model.batches[1][0], (image - 0.5) / 0.25, atol=1e-6)


def test_gray_transparent_and_boolean_images() -> None:
    model = Brightest()
    gray = torch.rand(8, 8)
    alpha = torch.cat([torch.zeros(3, 8, 8), torch.full((1, 8, 8), 0.25)])
    boolean = torch.rand(1, 8, 8) > 0.5
    predict(model, [gray, gray[None], alpha, boolean, gray.numpy()[..., None]], **PLAIN)
    batch = model.batches[0]
    for row in (0, 1, 4):
        assert torch.allclose(batch[row], gray.expand(3, 8, 8), atol=1e-6)
    assert torch.allclose(batch[2], torch.tensor(0.75))  # black, of which a quarter is visible
    assert torch.equal(batch[3], boolean.float().expand(3, 8, 8))


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(photo(48, 48))
    exif = image.getexif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise": red is at the top
    image.save(tmp_path / "a.png", exif=exif)
    model = Brightest()
    predict(model, tmp_path / "a.png", **PLAIN)
    assert model.batches[0][0].mean(2).argmax(0).tolist()[::3] == [0, 1, 2]


def test_any_classifier_and_its_wrappers(network: CustomResNet) -> None:
    expected = predict(network, EXAMPLES[:3])
    for model in (ImageClassifier(network), torch.compile(network), network.train()):
        result = predict(model, EXAMPLES[:3])
        assert torch.allclose(result.probabilities, expected.probabilities, atol=1e-6)
        assert result.names == expected.names

    class Softmax(Brightest):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).softmax(1)

    image = torch.rand(3, 8, 8)
    same = [predict(model, image, **PLAIN).probabilities for model in (Brightest(), Softmax())]
    assert torch.allclose(*same)
    result = predict(Brightest(), image, **PLAIN, class_names={0: "a", 1: "b", 2: "c"})
    assert result.class_names == ("a", "b", "c")
    assert predict(Brightest(), image, **PLAIN).class_names == ("0", "1", "2")


def test_the_model_is_left_unchanged() -> None:
    network = CustomResNet(width=2).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    predict(network, torch.rand(3, 32, 32, generator=torch.Generator()))
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in network.parameters())


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("none.png", ValueError, r"'none.png' cannot be classified: it is not a file that exists"),
        (["a.png", "text.png"], ValueError, r"'text.png' cannot be classified: .* not an image"),
        ([".", "a.png"], ValueError, r"'\.' cannot be classified: it is a folder"),
        ("", ValueError, "images must be a path"),
        ([], ValueError, "images is empty"),
        (3, TypeError, "images must be an image or a sequence .* but got 3"),
        (["a.png", 3], TypeError, "image 1 is of the type int"),
        ([["a.png"]], TypeError, "image 0 is of the type list"),
        (b"a.png", TypeError, "images must be an image or a sequence"),
        (torch.randn(3, 8, 8) * 9, ValueError, r"Image 0 .* from 0 to 1, .* call the model"),
        (torch.full((3, 8, 8), torch.nan), ValueError, "Image 0 .* from 0 to 1"),
        (torch.full((3, 8, 8), 300), ValueError, "from 0 to 255, but are from 300 to 300"),
        (-np.ones((8, 8), np.int16), ValueError, "from 0 to 255, but are from -1 to -1"),
        (torch.rand(8, 8, 3), ValueError, r"\(C, H, W\) with 1, 3 or 4 .* but has \(8, 8, 3"),
        (np.ones((8, 8, 2)), ValueError, r"\(H, W\), \(H, W, C\) or .* but has \(8, 8, 2"),
        (np.ones((0, 8, 3)), ValueError, r"but has \(0, 8, 3\)"),
        (torch.ones(8), ValueError, r"Image 0 .* but has \(\)"),
        (Image.new("F", (8, 8), 0.5), ValueError, "Image 0 .* floating-point values have no known"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_classified(
    images: Any, error: type[Exception], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo()).save("a.png")
    Path("text.png").write_text("text")
    model = Brightest()
    with pytest.raises(error, match=message):
        predict(model, images, **PLAIN)
    assert model.batches == []
    assert model.training


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "input of a Brightest is not known. Pass size and mean and std, such as"),
        ({"size": 8}, ValueError, "Pass mean and std, such as size=224"),
        ({"mean": 0, "std": 1}, ValueError, "Pass size, such as size=224"),
        ({"size": 8, "mean": 0}, ValueError, "Give both mean and std"),
        ({"size": 8, "mean": (0, 0), "std": (1, 1)}, ValueError, "one value, or three for RGB"),
        (PLAIN | {"size": 0}, ValueError, "size must be a height and a width, or one number"),
        (PLAIN | {"size": (8, 8, 8)}, ValueError, "size must be a height and a width"),
        (PLAIN | {"size": "8"}, TypeError, "size must be a height and a width"),
        (PLAIN | {"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1"),
        (PLAIN | {"class_names": "ab"}, ValueError, "has 3 classes, but there are 2 class names"),
        (PLAIN | {"device": "moon"}, ValueError, "device must be a device"),
    ],
)
def test_options_that_are_out_of_range(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        predict(Brightest(), torch.rand(3, 8, 8), **options)


def test_a_network_for_images_of_another_size() -> None:
    network = CustomResNet(2, image_size=(8, 16))
    with pytest.raises(ValueError, match="is not known. Pass mean and std, such as"):
        predict(network, torch.rand(3, 9, 9))
    image = torch.rand(3, 8, 16)
    result = predict(network, image, mean=0, std=1)
    torch.testing.assert_close(result.probabilities, network.eval()(image[None]).detach().exp())


def test_networks_that_need_something_else() -> None:
    with pytest.raises(ValueError, match="the network has 1 input channels. Call it with a"):
        predict(CustomResNet(width=2, in_channels=1), torch.rand(3, 8, 8))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        predict("full", torch.rand(3, 8, 8))  # type: ignore[arg-type]
    result = predict(CustomResNet(width=2, num_classes=4), torch.rand(3, 8, 8))
    assert result.class_names == ("0", "1", "2", "3")
    for k, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="k must be an integer of at least 1"):
            result.top(k)  # type: ignore[arg-type]


@pytest.mark.parametrize("image", ["a.png", Path("a.png"), Image.new("RGB", (8, 8)), photo()])
def test_the_network_names_predict(image: Any) -> None:
    with pytest.raises(TypeError, match=r"cifar_resnet\.predict\(model, images\)"):
        CustomResNet(width=2)(image)


def test_other_data_have_no_names_of_cifar10() -> None:
    """A network of ten classes on other images or statistics was not trained on CIFAR-10."""
    pictures = torch.rand(2, 3, 16, 16)
    numbers = tuple("0123456789")
    small = CustomResNet(width=1, image_size=16)
    assert predict(small, pictures, mean=cifar10.MEAN, std=cifar10.STD).class_names == numbers
    network = CustomResNet(width=1)
    assert predict(network, pictures, mean=0.5, std=0.25).class_names == numbers
    assert predict(network, pictures).class_names == cifar10.CLASSES
