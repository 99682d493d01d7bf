"""The lab in a real browser: its numbers against PyTorch's and Pillow's, and the page."""

import base64
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import watched_page
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cifar_resnet import CustomResNet, compute_cams, predict, receptive_field
from cifar_resnet.cli.images import normalized, read_image
from cifar_resnet.data import cifar10
from cifar_resnet.data.formats import Arrays
from cifar_resnet.training.tta import six_view_scores

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from check_site import served  # noqa: E402

Pixels = NDArray[np.uint8]
MINUS = "\N{MINUS SIGN}"
TOLERANCE = {"rtol": 0, "atol": 1e-3}

# Functions for the page: the modules of the lab, numbers as base64, and the outputs of an image.
SETUP = """async () => {
  const load = (name) => import(new URL(`javascripts/lab/${name}.js`, location.href));
  const names = ["network", "explanation", "fields", "image", "operations", "scenes", "address"];
  window.lab = Object.assign({}, ...(await Promise.all(names.map(load))));
  const url = new URL("javascripts/lab/quarter.safetensors", location.href);
  window.network = await lab.loadNetwork(url);
  window.bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  window.packed = (values) => {
    let text = "";
    for (const each of new Uint8Array(Float32Array.from(values).buffer)) {
      text += String.fromCharCode(each);
    }
    return btoa(text);
  };
  window.run = (text) => {
    const input = lab.normalize(bytes(text));
    return { input, outputs: network.forward(input) };
  };
}"""


# Only this page of the site: the rest takes seconds.
BUILD = """
import sys
from mkdocs.commands.build import build
from mkdocs.config import load_config

only = "*.md\\n!lab.md\\n*.py\\n*.png"
build(load_config(
    sys.argv[1], site_dir=sys.argv[2], plugins=["search"], nav=["lab.md"], exclude_docs=only
))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("material", reason="the site needs mkdocs: pip install cifar-resnet[docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-c", BUILD, str(ROOT / "mkdocs.yml"), str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    with served(folder) as address:
        yield f"{address}lab.html"


@pytest.fixture(scope="module")
def core(site: str, chromium: Any) -> Iterator[Any]:
    """The lab in a browser, with its modules as `lab`, and the network as `network`.

    It is opened once: in every new page, the browser compiles the code again. It must fetch nothing
    from elsewhere and report no error.
    """
    with watched_page(chromium, site.removesuffix("lab.html"), seconds=60) as page:
        page.goto(site)
        settle(page)
        page.evaluate(SETUP)
        yield page


@pytest.fixture
def page(core: Any) -> Any:
    """The same page with an example."""
    core.evaluate("location.hash = ''")
    core.evaluate("location.hash = 'image=ship&layer=residual1&unit=0,8,8'")
    core.wait_for_function("document.querySelector('[value=ship]').ariaPressed === 'true'")
    core.evaluate("document.activeElement.blur()")
    settle(core)
    return core


@pytest.fixture(scope="module")
def model() -> CustomResNet:
    return CustomResNet.from_pretrained("quarter")


def encoded(image: Pixels) -> str:
    return base64.b64encode(image.tobytes()).decode()


def unpacked(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)


def noise(side: int = 32, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


# --- numbers -------------------------------------------------------------------------------------


def test_logits_and_class_activation_maps_are_those_of_pytorch(
    core: Any, model: CustomResNet, arrays: Arrays
) -> None:
    images = arrays.test_images[:100]
    batch = torch.cat([normalized(image) for image in images])
    classes = [number % 10 for number in range(len(images))]
    results = core.evaluate(
        """([images, classes]) => images.map((image, number) => {
          const { outputs } = run(image);
          const map = lab.hiResCam(network, outputs, classes[number]);
          return [outputs.at(-1), map, lab.enlargeMap(map, 4)].map(packed);
        })""",
        [[encoded(image) for image in images], classes],
    )
    logits, maps, enlarged = (
        torch.stack([*map(unpacked, each)]) for each in zip(*results, strict=True)
    )
    torch.testing.assert_close(logits, model.logits(batch).detach(), **TOLERANCE)
    for found, raw in ((maps.view(-1, 4, 4), True), (enlarged.view(-1, 32, 32), False)):
        expected = compute_cams(model, batch, classes, method="hirescam", raw=raw)
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_the_mean_of_six_views_is_that_of_the_library(
    core: Any, model: CustomResNet, arrays: Arrays
) -> None:
    images = arrays.test_images[:5]
    batch = torch.cat([normalized(image) for image in images])
    found = core.evaluate(
        """(images) => images.map((image) => lab.meanOfViews(lab.VIEWS.map((view) => {
          const input = lab.normalize(lab.viewOf(bytes(image), view));
          return network.forward(input).at(-1);
        })))""",
        [encoded(image) for image in images],
    )
    expected = six_view_scores(model.logits, batch).detach()
    torch.testing.assert_close(torch.tensor(found), expected, **TOLERANCE)


def outputs_by_name(model: CustomResNet, batch: Tensor) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, name=name: outputs.update({name: output})
        )
        for name, module in model.named_modules()
    ]
    model.logits(batch)
    for hook in hooks:
        hook.remove()
    return outputs


def test_every_layer_and_its_gradient_are_those_of_pytorch(core: Any, model: CustomResNet) -> None:
    image = noise()
    batch = normalized(image).requires_grad_()
    expected = outputs_by_name(model, batch)
    fields = receptive_field(model, (1, 3, 32, 32))
    found = core.evaluate(
        """(image) => {
          const { input, outputs } = run(image);
          return network.layers.map((layer, number) => {
            const unit = outputs[number].indexOf(Math.max(...outputs[number]));
            const gradient = network.gradient(input, outputs, number, unit);
            return [layer.name, packed(outputs[number]), unit, packed(gradient)];
          });
        }""",
        encoded(image),
    )
    leaves = {n for n, each in model.named_modules() if not any(True for _ in each.children())}
    assert {name for name, *_ in found} == leaves | {"residual1", "residual3"}
    for name, values, unit, gradient in found:
        output = expected[name].flatten()
        torch.testing.assert_close(unpacked(values), output.detach(), **TOLERANCE)
        (slope,) = torch.autograd.grad(output[unit], batch, retain_graph=True)
        grid = unpacked(gradient).view(3, 32, 32)
        torch.testing.assert_close(grid, slope[0], **TOLERANCE)
        field = fields[name]
        place = np.unravel_index(unit, expected[name].shape[1:])[1:] if field.unit_shape else ()
        (top, bottom), (left, right) = field.region([int(index) for index in place])
        grid[:, top : bottom + 1, left : right + 1] = 0
        assert grid.abs().max() == 0, name
        assert slope.abs().max() > 0


def test_receptive_fields_are_those_of_the_library(core: Any, model: CustomResNet) -> None:
    found = core.evaluate(
        """() => lab.receptiveFields(network.layers).map((field, number) => {
          const { name, side } = network.layers[number];
          const units = [...Array(side).keys()];
          const regions = [true, false].map((clip) => units.map((u) => lab.region(field, u, clip)));
          return [name, field.size, field.jump, regions];
        })"""
    )
    expected = receptive_field(model, (1, 3, 32, 32))
    assert len(found) == 31
    for name, size, jump, regions in found:
        field = expected[name]
        assert field.size == (size, size)
        assert field.jump == (jump, jump) or name == "head"
        for clip, by_unit in zip((True, False), regions, strict=True):
            for place, (first, last) in enumerate(by_unit):
                unit = (place, place) if field.unit_shape else ()
                assert field.region(unit, clip=clip) == ((first, last), (first, last))


FILES = {
    "tall": (70, 100, "RGB", "png"), "wide": (640, 480, "RGB", "png"),
    "small": (20, 9, "RGB", "png"), "same": (32, 32, "RGB", "png"),
    "a little larger": (33, 35, "RGB", "png"),
    "gray": (50, 50, "L", "png"), "transparent": (50, 50, "RGBA", "png"),
    "JPEG, to be turned upright": (90, 60, "RGB", "jpeg"), "WebP": (60, 60, "RGB", "webp"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_an_image_file_is_read_as_the_library_does(core: Any, tmp_path: Path, kind: str) -> None:
    width, height, mode, suffix = FILES[kind]
    path = tmp_path / f"a.{suffix}"
    values = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(values if mode == "RGBA" else values[..., :3]).convert(mode)
    exif = image.getexif()
    exif[0x0112] = 6 if suffix == "jpeg" else 1  # turn by 90 degrees clockwise
    image.save(path, exif=exif)
    text = base64.b64encode(path.read_bytes()).decode()
    found = core.evaluate(
        "async (text) => Array.from((await lab.readImage(new Blob([bytes(text)]))).pixels)", text
    )
    difference = np.abs(np.reshape(found, (32, 32, 3)) - read_image(path).astype(int))
    # other versions of the decoders may round differently
    assert difference.max() <= (0 if suffix == "png" else 3)


def test_sliders_change_the_image_as_they_say(core: Any) -> None:
    image = noise()
    changed = {
        name: np.reshape(values, (32, 32, 3))
        for name, values in core.evaluate(
            """(image) => Object.fromEntries(Object.entries({
              nothing: {}, shift: { right: 3, down: -2 }, brightness: { brightness: 50 },
              blur: { blur: 1.5 }, noise: { noise: 20, brightness: 50 },
            }).map(([name, sliders]) => [
              name, Array.from(lab.adjust(bytes(image), { ...lab.UNCHANGED, ...sliders })),
            ]))""",
            encoded(image),
        ).items()
    }
    assert np.array_equal(changed["nothing"], image)
    # a reflected border, as NumPy pads
    padded = np.pad(image, ((0, 2), (3, 0), (0, 0)), mode="reflect")
    assert np.array_equal(changed["shift"], padded[2:, :32])
    assert np.abs(changed["brightness"] - image / 2).max() <= 0.5
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    blurred = np.pad(image.astype(float), ((5, 5), (5, 5), (0, 0)), mode="reflect")
    for axis in (0, 1):
        blurred = np.apply_along_axis(np.convolve, axis, blurred, taps / taps.sum(), "valid")
    assert np.abs(changed["blur"] - blurred).max() <= 0.5 + 1e-9
    difference = changed["noise"].astype(int) - changed["brightness"]
    inside = (changed["noise"] > 0) & (changed["noise"] < 255)
    assert 15 < difference[inside].std() < 21
    assert abs(difference[inside].mean()) < 5


def test_damaged_addresses_are_refused(core: Any) -> None:
    for address, message in {
        "image=boat": "image must be one of ship,",
        "pixels=AAAA": "its image has 3 values, not 3072",
        "pixels=%%": "its image is damaged",
        "image=ship&blur=9": "blur must be a number from 0 to 4",
        "image=ship&class=unicorn": "class must be one of",
        "image=ship&layer=layer9": 'there is no layer "layer9"',
        "image=ship&layer=pool&unit=0,1,0": "unit must be a number from 0 to 0",
        "image=ship&layer=pool&unit=0": "unit must be channel,row,column",
        "image=ship&sharpness=1": 'unknown field "sharpness"',
    }.items():
        refusal = core.evaluate(
            """(address) => {
              try { lab.readAddress(address, network.layers); }
              catch (error) { return error.message; }
            }""",
            address,
        )
        assert message in str(refusal), address


# --- the page ------------------------------------------------------------------------------------


def settle(page: Any) -> None:
    """Wait until everything on the page belongs to the same image."""
    page.wait_for_function("document.querySelector('#lab-page').dataset.settled === 'true'")


def answer(page: Any) -> str:
    settle(page)
    return str(page.inner_text("#lab-answer"))


def pixels(page: Any) -> Pixels:
    """Read the image that the page shows."""
    values = page.evaluate(
        """() => Array.from(document.querySelector("#lab-image").getContext("2d")
          .getImageData(0, 0, 32, 32).data)"""
    )
    return np.reshape(values, (32, 32, 4))[..., :3].astype(np.uint8)


def expected_answer(model: CustomResNet, image: Pixels) -> str:
    (((name, probability),),) = predict(model, image).top(1)
    return f"{name}, {100 * probability:.1f} %"


def upload(page: Any, folder: Path, image: Pixels) -> None:
    Image.fromarray(image).save(folder / "mine.png")
    page.set_input_files("#lab-file", folder / "mine.png")


def test_upload_paint_click_a_unit_and_restore_the_address(
    page: Any, model: CustomResNet, arrays: Arrays, tmp_path: Path, chromium: Any
) -> None:
    image = arrays.test_images[1]
    upload(page, tmp_path, image)
    page.wait_for_function("document.querySelector('#lab-message').textContent.includes('Your')")
    assert answer(page) == expected_answer(model, image)
    assert np.array_equal(pixels(page), image)

    before = page.inner_text("#lab-map-text")
    frame = page.locator("#lab-editor")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"], steps=3)
    page.mouse.up()
    assert answer(page) == expected_answer(model, pixels(page))
    changed = (pixels(page) != image).any(axis=2)
    assert changed.sum() > 30
    assert not changed[:12].any()
    assert not changed[20:].any()
    assert page.inner_text("#lab-map-text") != before

    page.get_by_role("button", name="dog").click()
    page.select_option("#lab-layer", "layer1.3")
    unit = page.locator("#lab-unit-frame")
    box = unit.bounding_box()
    unit.click(position={"x": box["width"] * 0.99, "y": box["height"] * 0.01})
    text = page.inner_text("#lab-unit-text").replace(MINUS, "-")
    assert text.startswith("Unit (0, 15) of layer1.3, channel 0: activation ")
    assert "Receptive field: 6 x 6 pixels. It reads rows 0 to 3, columns 28 to 31." in text
    assert "Unclipped: rows -2 to 3, columns 28 to 33." in text
    outputs = outputs_by_name(model, normalized(pixels(page)))
    activation = re.search(r"activation ([\d.e-]+\d)", text)
    assert activation is not None
    assert float(activation[1]) == pytest.approx(outputs["layer1.3"][0, 0, 0, 15].item(), abs=1e-3)

    page.wait_for_function("location.hash.includes('unit=0,0,15')")
    settle(page)
    other = chromium.new_page()
    other.goto(page.url)
    settle(other)
    for selector in ("#lab-answer", "#lab-map-text", "#lab-grid", "#lab-unit-text", "#lab-mean"):
        assert other.inner_text(selector) == page.inner_text(selector)
    assert np.array_equal(pixels(other), pixels(page))
    other.close()


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_an_image_is_pasted_or_dropped(page: Any, model: CustomResNet, way: str) -> None:
    buffer = io.BytesIO()
    image = noise()
    Image.fromarray(image).save(buffer, "png")
    page.evaluate(
        """([way, text]) => {
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "a.png", { type: "image/png" }));
          document.dispatchEvent(way === "drop"
            ? new DragEvent("drop", { dataTransfer: data, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: data }));
        }""",
        [way, base64.b64encode(buffer.getvalue()).decode()],
    )
    page.get_by_text("Your image: 32 x 32 pixels, scaled to 32 x 32.").wait_for()
    assert answer(page) == expected_answer(model, image)
    assert np.array_equal(pixels(page), image)


def test_everything_works_with_the_keyboard(page: Any, model: CustomResNet) -> None:
    first = pixels(page)

    def focus(selector: str) -> None:
        """Press Tab until the element has the focus."""
        for _ in range(80):
            if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    focus("[aria-label='Example: horse']")
    page.keyboard.press("Enter")
    assert answer(page) == expected_answer(model, pixels(page))
    assert not np.array_equal(pixels(page), first)
    horse = pixels(page)

    focus("#lab-editor")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    settle(page)
    changed = (pixels(page) != horse).any(axis=2)
    assert np.argwhere(changed).min(0).tolist() == [16, 15]  # 4 x 4 pixels around (17, 16)
    assert np.argwhere(changed).max(0).tolist() == [19, 18]

    focus("input[name=lab-tool]")
    for _ in range(2):
        page.keyboard.press("ArrowRight")  # the eraser
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    settle(page)
    assert np.array_equal(pixels(page), horse)

    focus("#lab-brightness")
    page.keyboard.press("ArrowLeft")
    assert answer(page) == expected_answer(model, pixels(page))
    assert pixels(page).sum() < horse.sum()

    focus("#lab-classes button:nth-child(9)")
    page.keyboard.press("Enter")
    settle(page)
    assert "for ship" in page.inner_text("#lab-map-text")

    focus("#lab-unit-frame")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#lab-unit-text").startswith("Unit (8, 9) of residual1, channel 0")
    focus("#lab-maps-frame")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#lab-unit-text").startswith("Unit (8, 9) of residual1, channel 1")
    focus("#lab-filters button:nth-child(4)")
    page.keyboard.press("Enter")
    assert " of prep.0, channel 3:" in page.inner_text("#lab-unit-text")


def test_the_page_is_small_and_fits_a_phone(page: Any) -> None:
    sizes = page.evaluate(
        """() => Object.fromEntries([...performance.getEntriesByType("resource"),
          ...performance.getEntriesByType("navigation")].map((e) => [e.name, e.decodedBodySize]))"""
    )
    assert (
        0.9e6 < sum(sizes.values()) < 1.5e6
    )  # uncompressed; without the search index of other pages
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_file_that_is_no_image_is_refused(page: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    before = answer(page)
    page.set_input_files("#lab-file", tmp_path / "a.png")
    page.get_by_text("This file is not an image that the browser can read.").wait_for()
    assert answer(page) == before


def test_a_damaged_link_says_so(page: Any, model: CustomResNet) -> None:
    page.evaluate("location.hash = 'pixels=AAAA'")
    page.get_by_text("its image has 3 values, not 3072; it may have been cut off.").wait_for()
    assert answer(page) == expected_answer(model, pixels(page))


def test_from_disk_the_page_says_what_to_do(site: str, chromium: Any, tmp_path: Path) -> None:
    import urllib.request

    copy = tmp_path / "lab.html"
    copy.write_bytes(urllib.request.urlopen(site, timeout=60).read())
    page = chromium.new_page()
    page.goto(copy.as_uri())
    page.get_by_text("python -m http.server 8000").wait_for()
    assert not page.locator("#lab-page").is_visible()
    page.close()


def test_every_example_is_recognized(core: Any) -> None:
    """With six views."""
    found = core.evaluate(
        """() => lab.SCENE_NAMES.map((name) => [name, lab.meanOfViews(lab.VIEWS.map((view) =>
          network.forward(lab.normalize(lab.viewOf(lab.drawScene(name), view))).at(-1)))])"""
    )
    assert len(found) == 6
    for name, logits in found:
        assert cifar10.CLASSES[int(np.argmax(logits))] == name
