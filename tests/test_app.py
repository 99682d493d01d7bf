"""The demo: what becomes of any upload, what the tabs show, and the page in a real browser."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import watched_page
from PIL import Image

from cifar_resnet import CustomResNet, DatasetError, ImageClassifier, Recipe, pretrained_weights
from cifar_resnet.cli import images
from cifar_resnet.cli.demo import drawing, views
from cifar_resnet.cli.networks import load_network
from cifar_resnet.cli.options import CommandError
from cifar_resnet.data import cifar10
from cifar_resnet.data.formats import Arrays
from cifar_resnet.pretrained import CHECKPOINT_KEY

ROOT = Path(__file__).parents[1]
COMMAND = ("-m", "cifar_resnet", "app")
RED, GREEN, BLUE, WHITE = (220, 30, 40), (30, 200, 60), (20, 40, 210), (255, 255, 255)
EXAMPLES = sorted((ROOT / "cifar_resnet/cli/demo/images").glob("*.png"))
MAPS = views.MapOptions(True, "gradcam", "residual3", 0.5)
NO_MAPS = replace(MAPS, draw=False)


# --- uploads -----------------------------------------------------------------------------------


def solid(mode: str, color: Any, size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new(mode, size, color)


def sixteen_bits(kind: str) -> Image.Image:
    return Image.fromarray(np.full((40, 40), 120 * 257, kind))


def stripes(*colors: tuple[int, int, int]) -> Image.Image:
    """Squares of 64 pixels side by side."""
    image = Image.new("RGB", (64 * len(colors), 64))
    for place, color in enumerate(colors):
        image.paste(color, (64 * place, 0, 64 * place + 64, 64))
    return image


def see_through_palette() -> Image.Image:
    image = solid("P", 1)
    image.putpalette([*RED, *GREEN])
    image.info["transparency"] = 1
    return image


# Each image, the file name it is saved under, and the one color that must become of it.
UPLOADS: dict[str, tuple[Callable[[], Image.Image], str, tuple[int, int, int]]] = {
    "color": (lambda: solid("RGB", RED), "a.png", RED),
    "JPEG": (lambda: solid("RGB", RED), "a.jpg", RED),
    "BMP": (lambda: solid("RGB", RED), "a.bmp", RED),
    "wrong ending": (lambda: solid("RGB", RED), "a.png.gif", RED),
    "gray": (lambda: solid("L", 120), "a.png", (120,) * 3),
    "gray JPEG": (lambda: solid("L", 120), "a.jpg", (120,) * 3),
    "black and white": (lambda: solid("1", 1), "a.png", WHITE),
    "16 bits": (lambda: sixteen_bits("<u2"), "a.png", (120,) * 3),
    "16 bits, big endian": (lambda: sixteen_bits(">u2"), "a.tiff", (120,) * 3),
    "16 bits in 32": (lambda: sixteen_bits("<i4"), "a.tiff", (120,) * 3),
    "transparent": (lambda: solid("RGBA", (*RED, 0)), "a.png", WHITE),
    "half transparent": (lambda: solid("RGBA", (*RED, 51)), "a.webp", (248, 210, 212)),
    "transparent gray": (lambda: solid("LA", (120, 0)), "a.png", WHITE),
    "palette": (lambda: solid("RGB", GREEN).quantize(4), "a.png", GREEN),
    "transparent palette": (see_through_palette, "a.png", WHITE),
    "transparent GIF": (see_through_palette, "a.gif", WHITE),
    "CMYK": (lambda: solid("CMYK", (0, 255, 255, 0)), "a.jpg", (254, 0, 0)),
    "one pixel": (lambda: solid("RGB", RED, (1, 1)), "a.png", RED),
    "one row": (lambda: solid("RGB", RED, (3000, 1)), "a.png", RED),
    "wide": (lambda: stripes(RED, GREEN, BLUE), "a.png", GREEN),
    "tall": (lambda: stripes(RED, GREEN, BLUE).rotate(90, expand=True), "a.png", GREEN),
}


@pytest.mark.parametrize("kind", UPLOADS)
def test_any_image_becomes_the_network_s_input(kind: str, tmp_path: Path) -> None:
    make, name, color = UPLOADS[kind]
    image = make()
    options: Any = {"quality": 95} if name.endswith(("jpg", "webp")) else {}
    image.save(tmp_path / name, format="PNG" if kind == "wrong ending" else None, **options)
    pixels = images.read_image(tmp_path / name)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - color).max() <= 6, pixels[0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_of_an_animation_the_first_frame_is_taken(name: str, tmp_path: Path) -> None:
    frames = [solid("RGB", color) for color in (GREEN, BLUE)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(images.read_image(tmp_path / name).astype(int) - GREEN).max() <= 6


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    image = stripes(RED, BLUE).resize((64, 64))
    exif = image.getexif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise"
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = images.read_image(tmp_path / "a.jpg").astype(int)
    assert np.abs(pixels[:12] - RED).max() < 30
    assert np.abs(pixels[20:] - BLUE).max() < 30


def test_fine_patterns_are_averaged(tmp_path: Path) -> None:
    board = np.indices((320, 320)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    assert np.abs(images.read_image(tmp_path / "a.png").astype(int) - 127).max() <= 3


def test_an_image_of_the_right_size_is_not_changed(arrays: Arrays) -> None:
    assert len(EXAMPLES) == 10
    for path in EXAMPLES:
        number, name = path.stem.split("-")
        assert np.array_equal(images.read_image(path), arrays.test_images[int(number)])
        assert cifar10.CLASSES[arrays.test_labels[int(number)]] == name
        # not chosen for their looks
        first = int((arrays.test_labels == cifar10.CLASSES.index(name)).argmax())
        assert int(number) == first


def png_of(width: int, height: int, pixels: bytes = b"", bits: int = 8) -> bytes:
    """An RGB PNG written by hand; it may claim more pixels than it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_colors_of_16_bits(tmp_path: Path) -> None:
    pixel = struct.pack(">HHH", *(257 * value for value in RED))
    (tmp_path / "a.png").write_bytes(png_of(4, 4, (b"\0" + 4 * pixel) * 4, bits=16))
    assert np.abs(images.read_image(tmp_path / "a.png").astype(int) - RED).max() <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image that can be read. Expected one of PNG, JPEG"),
        (b"some text", "not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (b"%PDF-1.4", "not an image that can be read"),
        (EXAMPLES[0].read_bytes()[:900], "damaged .* Save it as an ordinary PNG or JPEG"),
        (png_of(32, 32), "damaged"),
        (png_of(8000, 7000), r"8000 x 7000 pixels; expected at most 50 million. Scale it down"),
        (png_of(60000, 60000), r"too many pixels; expected at most 50 million. Scale it down"),
    ],
    ids=["empty", "text", "SVG", "EPS", "PDF", "cut off", "no pixels", "large", "bomb"],
)
def test_files_that_are_not_images_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        images.read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solid("F", 0.5), "mode F: floating-point values have no known range"),
        (lambda: solid("I", 10**6), "mode I.*: its values do not fit into 16 bits"),
        (lambda: solid("I", -1), "mode I.*: its values do not fit into 16 bits"),
    ],
    ids=["float", "large integers", "negative integers"],
)
def test_rare_kinds_are_refused_with_a_remedy(
    tmp_path: Path, make: Callable[[], Image.Image], message: str
) -> None:
    make().save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=message + ".* Save it as an ordinary PNG or JPEG"):
        images.read_image(tmp_path / "a.tiff")


# --- what the tabs show ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(data_dir: Path) -> views.Demo:
    return views.Demo(str(data_dir))


HORSE = next(path for path in EXAMPLES if path.stem.endswith("horse"))


def classify(shown: views.Demo, name: str = "quarter", **changes: Any) -> views.Answer:
    chosen: dict[str, Any] = {
        "pixels": images.read_image(HORSE), "top_k": 3, "target": views.PREDICTED,
    }  # fmt: skip
    options = {key: changes.pop(key) for key in [*changes] if key in vars(MAPS)}
    return shown.classify(name=name, options=replace(MAPS, **options), **chosen | changes)


def test_the_weights_of_the_package_are_offered_with_their_accuracy(shown: views.Demo) -> None:
    for (label, name), weights in zip(shown.choices, pretrained_weights(), strict=True):
        assert name == weights.name
        assert label == f"{name}, {100 * weights.training['accuracy']:.2f} % on the test set"


@pytest.mark.parametrize("name", [weights.name for weights in pretrained_weights()])
def test_the_probabilities_are_those_of_the_network(shown: views.Demo, name: str) -> None:
    shares = classify(shown, name, top_k=10).probabilities
    assert shares is not None
    pixels = torch.tensor(images.read_image(HORSE)).permute(2, 0, 1).div(255)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cifar10.MEAN, cifar10.STD))
    expected = CustomResNet.from_pretrained(name)((pixels - mean)[None] / std)[0].exp()
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    for number, each in enumerate(cifar10.CLASSES):
        assert shares[each] == pytest.approx(expected[number].item(), abs=1e-5)
    assert classify(shown, name, top_k=2).probabilities == dict(list(shares.items())[:2])
    assert shown.network(name).training is False


def test_the_map_lies_over_the_image(shown: views.Demo) -> None:
    plain = classify(shown, draw=False)
    assert plain.map is None
    pixels = images.read_image(HORSE)
    assert np.array_equal(np.asarray(plain.seen)[:: drawing.ZOOM, :: drawing.ZOOM], pixels)
    assert np.array_equal(classify(shown, opacity=0).map, plain.seen)
    half, full = (np.asarray(classify(shown, opacity=o).map, float) for o in (0.5, 1))
    assert np.abs(half - (np.asarray(plain.seen, float) + full) / 2).max() <= 1
    # the brightest color of viridis is where the map has its maximum
    assert np.abs(full - (253, 231, 37)).sum(2).min() <= 3


def test_the_map_follows_class_method_and_layer(shown: views.Demo) -> None:
    pictures = [
        np.asarray(classify(shown, opacity=1, **changes).map).tobytes()
        for changes in ({}, {"target": "ship"}, {"method": "hirescam"}, {"layer": "layer1"})
    ]
    assert len(set(pictures)) == 4
    winner = next(iter(classify(shown).probabilities or {}))
    assert np.array_equal(classify(shown, target=winner).map, classify(shown).map)
    text = classify(shown, target="ship", method="layercam", layer="layer1").text
    assert "LayerCAM of layer1 (16 x 16), for ship." in text
    assert "independent of the class" in classify(shown, method="eigencam").text


@pytest.mark.parametrize("method", [method for _, method in views.METHODS])
def test_every_method_and_layer_gives_a_picture(shown: views.Demo, method: str) -> None:
    for _, layer in shown.layers("quarter"):
        picture = classify(shown, method=method, layer=layer).map
        assert picture is not None
        assert picture.size == (32 * drawing.ZOOM,) * 2


def test_without_an_image_it_asks_for_one(shown: views.Demo) -> None:
    assert classify(shown, pixels=None) == views.Answer("Choose an image.")


def test_without_evidence_it_says_so(tmp_path: Path) -> None:
    network = CustomResNet(2)
    torch.nn.init.zeros_(network.head.weight)
    network.save_pretrained(tmp_path / "blind.safetensors")
    blind = views.Demo(weights=str(tmp_path / "blind.safetensors"))
    answer = classify(blind, "blind.safetensors", target="dog")
    assert answer.text.endswith("Grad-CAM finds no evidence for dog.")
    assert np.array_equal(answer.map, answer.seen)


def test_what_is_known_about_an_image_is_said(shown: views.Demo) -> None:
    assert classify(shown).text.startswith("**Right:** this is a horse.")
    unknown = images.read_image(HORSE).copy()
    unknown[0, 0, 0] ^= 1
    assert classify(shown, pixels=unknown).text.startswith("Grad-CAM of residual3")
    error = shown.errors("quarter")[0]
    answer = classify(shown, pixels=views.pixels_of(error))
    assert answer.text.startswith(f"**Wrong:** this is a {error.true_name}.")
    assert f"for {error.predicted_name} and for {error.true_name}" in answer.text
    expected = classify(shown, pixels=views.pixels_of(error), target=error.true_name)
    assert np.array_equal(answer.true_map, expected.map)
    assert expected.true_map is None


def test_sessions_at_the_same_time_do_not_disturb_each_other(shown: views.Demo) -> None:
    expected = np.asarray(classify(shown).map)
    failures: list[object] = []

    def look() -> None:
        for _ in range(12):
            try:
                if not np.array_equal(classify(shown).map, expected):
                    failures.append("another picture")
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_gallery_shows_the_worst_errors(shown: views.Demo) -> None:
    gallery = shown.gallery("quarter", 5, views.ANY, views.ANY, NO_MAPS)
    found = shown.errors("quarter")
    assert len(gallery.pictures) == 5
    correct = found.total - found.errors
    assert f"{correct:,} of 10,000 test images are classified correctly" in gallery.text
    assert f"Shown are 5 of {found.errors:,} errors, highest loss first." in gallery.text
    stated = {weights.name: weights.training["accuracy"] for weights in pretrained_weights()}
    assert found.accuracy == pytest.approx(stated["quarter"], abs=5e-4)
    assert [sample.index for sample in gallery.samples] == [sample.index for sample in found][:5]
    for (picture, caption), sample in zip(gallery.pictures, found, strict=False):
        assert caption.startswith(f"{sample.true_name} predicted as {sample.predicted_name}, ")
        assert f"(#{sample.index}" in caption
        assert ("label suspect" in caption) is sample.suspect
        small = np.asarray(picture)[:: drawing.ZOOM, :: drawing.ZOOM]
        assert np.abs(small / 255 - sample.image.permute(1, 2, 0).numpy()).max() < 0.01


def test_the_gallery_is_filtered(shown: views.Demo) -> None:
    gallery = shown.gallery("quarter", 48, "cat", "dog", NO_MAPS)
    number = int(shown.errors("quarter").confusion[3, 5])
    assert f"Shown are {min(number, 48)} of {number} errors of cat predicted as dog" in gallery.text
    assert all(caption.startswith("cat predicted as dog, ") for _, caption in gallery.pictures)
    gallery = shown.gallery("quarter", 48, views.ANY, "ship", NO_MAPS)
    assert all(" predicted as ship, " in caption for _, caption in gallery.pictures)
    gallery = shown.gallery("quarter", 48, "cat", "cat", NO_MAPS)
    assert not gallery.pictures
    assert gallery.confusion is not None
    assert gallery.text.endswith("True and predicted class must differ: change one of them.")


def test_the_gallery_with_maps(shown: views.Demo) -> None:
    chosen = replace(MAPS, method="layercam", layer="layer1")
    plain = shown.gallery("quarter", 3, views.ANY, views.ANY, NO_MAPS).pictures
    mapped = shown.gallery("quarter", 3, views.ANY, views.ANY, chosen)
    assert "LayerCAM of layer1 (16 x 16), for the predicted class" in mapped.text
    assert [caption for _, caption in mapped.pictures] == [caption for _, caption in plain]
    for (picture, _), (map_, _), sample in zip(plain, mapped.pictures, mapped.samples, strict=True):
        assert picture.tobytes() != map_.tobytes()
        answer = classify(shown, pixels=views.pixels_of(sample), method="layercam", layer="layer1")
        assert np.abs(np.asarray(answer.map, float) - np.asarray(map_, float)).max() <= 1


def test_the_matrix_counts_every_error_and_can_be_clicked(shown: views.Demo) -> None:
    picture = shown.gallery("quarter", 1, views.ANY, views.ANY, NO_MAPS).confusion
    assert picture is not None
    counts = shown.errors("quarter").confusion
    for row, true in enumerate(cifar10.CLASSES):
        for column, predicted in enumerate(cifar10.CLASSES):
            corner = [drawing.MARGIN + drawing.CELL * position for position in (column, row)]
            for offset in (0, drawing.CELL - 1):  # every pixel of a cell belongs to it
                pair = drawing.confused_pair([c + offset for c in corner], cifar10.CLASSES)
                assert pair == ((true, predicted) if row != column else None)
            if row != column:  # the more errors, the less green
                green = picture.getpixel((corner[0] + 3, corner[1] + 3))[1]
                assert (green < 255) == (counts[row, column] > 0)
    assert drawing.confused_pair((5, 200), cifar10.CLASSES) is None


def test_without_the_data_the_gallery_says_what_to_do(tmp_path: Path) -> None:
    bare = views.Demo(str(tmp_path / "empty"))
    gallery = bare.gallery("quarter", 5, views.ANY, views.ANY, MAPS)
    assert gallery == views.Gallery(gallery.text)
    assert "The test set is not on disk" in gallery.text
    assert "put one of cifar-10-python.tar.gz" in gallery.text
    with pytest.raises(DatasetError):
        bare.errors("quarter")
    assert classify(bare).probabilities  # the rest works


def test_a_unit_is_found_by_its_center(shown: views.Demo) -> None:
    field = shown.fields("quarter")["residual1"]
    # centers at 0.5 + 2 * unit
    assert views.nearest_unit(field, 0.5, 0.5) == (0, 0)
    assert views.nearest_unit(field, 0.5 + 2 * 9, 0.5 + 2 * 4) == (4, 9)
    assert views.nearest_unit(field, 31.4, -0.4) == (0, 15)
    assert views.nearest_unit(shown.fields("quarter")["pool"], 3, 30) == (0, 0)


def test_the_region_of_a_unit_is_drawn(shown: views.Demo) -> None:
    pixels = images.read_image(HORSE)
    region, grid, figure, sentence = shown.field(pixels, "quarter", "residual1", 12, 15)
    # -6 + 2 * 12 to 7 + 2 * 12, and -6 + 2 * 15 to 7 + 2 * 15, as far as there is an image
    rows, columns = range(18, 32), range(24, 32)
    assert "14 x 14 pixels" in sentence
    assert "rows 18 to 31 and columns 24 to 31: 112 of 1,024 pixels" in sentence
    assert "2 pixels apart" in sentence
    middle = slice(drawing.ZOOM // 2, None, drawing.ZOOM)
    same = (np.asarray(region)[middle, middle] == pixels).all(2)
    inside = np.zeros((32, 32), bool)
    inside[np.ix_(rows, columns)] = True
    assert same[inside].all()
    assert not same[~inside & (pixels < 250).all(2)].any()
    marked = (np.asarray(grid) == drawing.MARK).all(2).nonzero()
    side = 32 * drawing.ZOOM // 16
    assert {(int(y) // side, int(x) // side) for y, x in zip(*marked, strict=True)} == {(12, 15)}
    assert figure.axes[0].get_title() == "residual1: field of 14 x 14 pixels, input 32 x 32"


def test_a_layer_that_the_network_lacks_becomes_the_last(shown: views.Demo) -> None:
    assert "Grad-CAM of residual3 (4 x 4)" in classify(shown, layer="residual2").text
    assert "Unit (0, 0) of pool" in shown.field(None, "quarter", "residual2", 5, 5)[3]
    assert shown.layer("quarter-best", "residual2") == "residual2"


def test_every_layer_can_be_looked_at(shown: views.Demo) -> None:
    names = [layer for _, layer in shown.layers("quarter", min_units=1)]
    assert names == ["prep", "layer1", "residual1", "layer2", "layer3", "residual3", "pool"]
    assert names[:-1] == [layer for _, layer in shown.layers("quarter")]
    for layer in names:
        # no image, and a unit of a layer that has more of them
        sentence = shown.field(None, "quarter", layer, 31, 31)[3]
        rows, columns = shown.fields("quarter")[layer].unit_shape
        assert f"Unit ({rows - 1}, {columns - 1}) of {layer}" in sentence
    assert "88 x 88" in sentence
    assert "1,024 of 1,024 pixels" in sentence


# --- networks of one's own ---------------------------------------------------------------------


def test_a_checkpoint_of_a_training(tmp_path: Path) -> None:
    options = Recipe.preset("best").network_options()
    classifier = ImageClassifier(CustomResNet(2, **options), "best")
    saved = {"state_dict": classifier.state_dict(), "hyper_parameters": dict(classifier.hparams)}
    saved[CHECKPOINT_KEY] = classifier.network.config()
    torch.save(saved, tmp_path / "last.ckpt")
    own = views.Demo(weights=str(tmp_path / "last.ckpt"))
    assert own.choices[0] == ("last.ckpt", "last.ckpt")
    assert [name for _, name in own.choices[1:]] == [w.name for w in pretrained_weights()]
    network = own.network("last.ckpt")
    assert repr(network) == repr(classifier.network)
    for key, value in classifier.network.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)
    assert "residual2" in [layer for _, layer in own.layers("last.ckpt")]


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_foreign_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.ckpt").write_text("text")
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "other.ckpt")
    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    for name in ("text", "other", "evil"):
        with pytest.raises(CommandError, match=f"{name}.ckpt"):
            load_network(f"{name}.ckpt")
    assert not (tmp_path / "evil").exists()
    for classes, channels in ((5, 3), (10, 1)):
        CustomResNet(2, classes, channels).save_pretrained(tmp_path / "a.safetensors")
        with pytest.raises(CommandError, match=f"{classes} classes, {channels} channels and 32"):
            load_network("a.safetensors")
    with pytest.raises(CommandError, match="There is no file or folder 'none.ckpt'"):
        load_network("none.ckpt")


# --- the page ----------------------------------------------------------------------------------


def start(*arguments: str, cwd: Path, script: tuple[str, ...] = COMMAND) -> Any:
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "TMPDIR": str(cwd)}
    return subprocess.Popen(
        [sys.executable, *script, *arguments],
        cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def served(process: Any, port: int) -> Iterator[str]:
    """The address of a server that has started; it is stopped afterwards."""
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(720):  # three minutes, for a machine that is busy
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=60):
                break
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.25)
        yield url
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=30)
    assert "Traceback" not in output, output


@pytest.fixture(scope="module")
def url(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install cifar-resnet[app]")
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    process = start("--port", str(port), "--data-dir", str(data_dir), cwd=folder)
    with served(process, port) as address:
        yield address
    # uploads and pictures are gone
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_a_mistake_ends_with_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install cifar-resnet[app]")
    process = start("--weights", "none.ckpt", cwd=tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output.startswith("There is no file or folder 'none.ckpt'. Expected ")


def test_without_gradio_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError(name='gradio')")
    result = subprocess.run(
        [sys.executable, *COMMAND],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == (
        "The demo needs Gradio, which is not installed. Install it with: "
        "pip install 'cifar-resnet[app]'\n"
    )


def test_the_server_answers_programs(url: str, shown: views.Demo, tmp_path: Path) -> None:
    client_module = pytest.importorskip("gradio_client")
    client = client_module.Client(url, verbose=False, download_files=tmp_path)
    request = {"image": client_module.handle_file(HORSE), "weights": "quarter", "top_k": 2,
               "layer": "layer3", "target": "ship"}  # fmt: skip
    (probabilities, picture, caption), (_, again, _) = (
        client.predict(**request, api_name="/classify") for _ in range(2)
    )
    expected = classify(shown, top_k=2).probabilities
    assert expected is not None
    assert probabilities["label"] == next(iter(expected))
    assert [each["label"] for each in probabilities["confidences"]] == list(expected)
    assert "Grad-CAM of layer3 (4 x 4), for ship." in caption
    with Image.open(picture) as first, Image.open(again) as second:
        assert first.size == (32 * drawing.ZOOM,) * 2
        assert np.array_equal(first, second)
    # else one session would overwrite a file that another one reads
    assert Path(picture).read_bytes() != Path(again).read_bytes()
    client.close()


def test_the_space_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install cifar-resnet[app]")
    readme = (ROOT / "examples/space/README.md").read_text()
    block = readme.split("```sh\n")[1].split("```")[0]  # as the page says it
    for folder in ("cifar_resnet", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    subprocess.run(["bash", "-ec", block], cwd=tmp_path, check=True)
    space, port = tmp_path / "space", free_port()
    assert (space / "README.md").read_text() == readme
    head = dict(line.split(": ", 1) for line in readme.split("---\n")[1].splitlines())
    assert (head["sdk"], head["app_file"]) == ("gradio", "app.py")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (space / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line[0] not in "#-"] == project["dependencies"]
    with served(
        start("--port", str(port), cwd=space, script=(str(space / "app.py"),)), port
    ) as address:
        config = urllib.request.urlopen(f"{address}config", timeout=60).read().decode()
    assert "What the network gets" in config
    assert "0013-horse.png" in config


@pytest.fixture
def page(url: str, chromium: Any) -> Iterator[Any]:
    """The page in a browser, which must fetch nothing from elsewhere and report no error."""
    with watched_page(chromium, url, seconds=120) as page:
        page.goto(url)
        page.get_by_text("Grad-CAM of residual3").first.wait_for()
        yield page


def choose(page: Any, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).click()
    option = page.get_by_role("option", name=value, exact=True)
    option.click()
    option.wait_for(state="hidden")  # its list must be closed before the next one opens


def winner(page: Any, name: str) -> Any:
    return page.locator("[data-testid=label-output-value]", has_text=name)


def prediction(shown: views.Demo, path: Path) -> str:
    """The class that the weights chosen at the start predict."""
    answer = classify(shown, shown.choices[0][1], pixels=images.read_image(path))
    return next(iter(answer.probabilities or {}))


def test_an_upload_is_classified_and_explained(
    page: Any, shown: views.Demo, tmp_path: Path
) -> None:
    Image.open(HORSE).convert("CMYK").resize((300, 300)).save(tmp_path / "my horse.jpg")
    page.locator("#upload [aria-label='Remove Image']").click()
    page.get_by_text("Choose an image.").wait_for()
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "my horse.jpg")
    winner(page, prediction(shown, tmp_path / "my horse.jpg")).wait_for()
    choose(page, "Layer", "layer1 (16 x 16)")
    page.get_by_text("Grad-CAM of layer1 (16 x 16)").wait_for()
    choose(page, "Method", "HiResCAM")
    choose(page, "Evidence for", "ship")
    page.get_by_text("HiResCAM of layer1 (16 x 16), for ship").wait_for()
    page.get_by_label("Class activation maps", exact=True).uncheck()
    page.get_by_text("HiResCAM of layer1").wait_for(state="hidden")
    page.locator("#map img").wait_for(state="hidden")


def test_other_weights_have_other_layers(page: Any, shown: views.Demo) -> None:
    labels = {name: label for label, name in shown.choices}
    name = "quarter-best"
    cat = next(path for path in EXAMPLES if path.stem.endswith("cat"))
    shares = classify(shown, name, pixels=images.read_image(cat)).probabilities or {}
    choose(page, "Weights", labels[name])
    choose(page, "Layer", "residual2 (8 x 8)")
    page.get_by_text("Grad-CAM of residual2 (8 x 8)").wait_for()
    winner(page, next(iter(shares))).wait_for()
    choose(page, "Weights", labels["quarter"])  # without such a layer
    page.get_by_text("Grad-CAM of residual3 (4 x 4)").wait_for()


def test_an_example_is_chosen_by_its_name(page: Any, shown: views.Demo) -> None:
    truck = next(path for path in EXAMPLES if path.stem.endswith("truck"))
    page.get_by_role("button", name="truck", exact=True).click()
    winner(page, prediction(shown, truck)).wait_for()


def test_a_refused_upload_says_why_and_leaves_nothing(page: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    page.locator("#upload [aria-label='Remove Image']").click()
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "a.png")
    page.get_by_text("This file is not an image that can be read").wait_for()
    page.get_by_text("Choose an image.").wait_for()
    page.locator("#upload input[type=file]").wait_for(state="attached")


def test_the_gallery_is_filtered_in_the_page(page: Any, shown: views.Demo) -> None:
    page.get_by_role("tab", name="Errors").click()
    page.get_by_text("Shown are 12 of").wait_for()
    assert page.locator("#errors .thumbnail-item").count() == 12
    choose(page, "True class", "cat")
    choose(page, "Predicted class", "dog")
    page.get_by_text("errors of cat predicted as dog").wait_for()
    choose(page, "Method", "LayerCAM")
    page.get_by_text("LayerCAM of residual3 (4 x 4), for the predicted class").wait_for()
    captions = page.locator("#errors .caption-label").all_inner_texts()
    assert captions
    assert all(caption.startswith("cat predicted as dog, ") for caption in captions)


def test_an_error_is_opened(page: Any, shown: views.Demo) -> None:
    page.get_by_role("tab", name="Errors").click()
    page.get_by_text("Shown are 12 of").wait_for()
    error = shown.gallery(shown.choices[0][1], 12, views.ANY, views.ANY, NO_MAPS).samples[3]
    page.locator("#errors .thumbnail-item").nth(3).click()
    page.get_by_text(f"this is a {error.true_name}.").wait_for()
    page.locator("#true-map img").wait_for()
    winner(page, error.predicted_name).wait_for()


def test_two_networks_side_by_side(page: Any, shown: views.Demo) -> None:
    cat = next(path for path in EXAMPLES if path.stem.endswith("cat"))
    answer = classify(shown, "quarter-best", pixels=images.read_image(cat))
    choose(page, "Compare with", next(k for k, v in shown.choices if v == "quarter-best"))
    page.get_by_text("Probabilities of the other network").wait_for()
    winner(page, next(iter(answer.probabilities or {}))).last.wait_for()
    choose(page, "Compare with", views.NO_NETWORK)
    page.get_by_text("Probabilities of the other network").wait_for(state="hidden")


def test_a_click_chooses_a_unit(page: Any) -> None:
    page.get_by_role("tab", name="Receptive fields").click()
    page.get_by_text("Unit (8, 8) of residual1").wait_for()
    for part, (x, y), unit in (
        ("grid", (0.97, 0.03), "(0, 15)"),
        ("region", (0.03, 0.97), "(15, 0)"),
    ):
        image, sentence = (
            page.locator(f"#{part} img"),
            page.get_by_text(f"Unit {unit} of residual1"),
        )
        for _ in range(20):  # a click on a picture that is being exchanged is lost
            image.wait_for()
            box = image.bounding_box()
            image.click(position={"x": x * box["width"], "y": y * box["height"]})
            page.wait_for_timeout(2000)
            if sentence.is_visible():
                break
        sentence.wait_for()
    choose(page, "Layer of the unit", "pool (1 x 1)")
    page.get_by_text("Unit (0, 0) of pool").wait_for()
    page.get_by_text("88 x 88 pixels").wait_for()


def test_a_phone_scrolls_in_one_direction_only(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for tab, text in (
        ("Receptive fields", "Unit (8, 8)"), ("Errors", "Shown are"), ("Classify", "Grad-CAM of"),
    ):  # fmt: skip
        page.get_by_role("tab", name=tab).click()
        page.get_by_text(text).first.wait_for()
        width, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= window == 390


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_control_has_a_name(page: Any, theme: str) -> None:
    page.emulate_media(color_scheme=theme)
    for tab in ("Classify", "Errors", "Receptive fields"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input:not([type=file]), select")]
            .filter(e => e.checkVisibility() && !(e.innerText || e.ariaLabel || e.title
              || e.ariaLabelledByElements?.length || e.labels?.length
              || e.querySelector("img[alt]:not([alt=''])")))
            .map(e => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == []
