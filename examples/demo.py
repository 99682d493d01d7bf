"""What the demo of app.py shows, as plain functions. It knows networks, images and errors; it must
not know Gradio.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from cifar_resnet import (
    CustomResNet,
    DatasetError,
    LayerField,
    MisclassifiedSample,
    MisclassifiedSamples,
    ReceptiveFields,
    Recipe,
    compute_cams,
    find_misclassified,
    pretrained_weights,
    receptive_field,
)
from cifar_resnet.data import cifar10
from cifar_resnet.misclassified import cams

Pixels = NDArray[np.uint8]  # (32, 32, 3)
CLASSES, SIDE = cifar10.CLASSES, 32
# The rest of what Pillow opens is rare, or runs other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MOST_PIXELS = 50_000_000
METHODS = [(title, name) for name, (_, title) in cams.METHODS.items()]  # as (label, value)
PREDICTED, ANY = "the predicted class", "any class"
ZOOM = 12  # screen pixels of an image pixel
ORANGE = (213, 94, 0)  # of Okabe and Ito's palette


# --- images ------------------------------------------------------------------------------------


def read_image(path: str | Path) -> Pixels:
    """An uploaded file as the network's input: upright, its middle square, scaled to 32x32.

    Transparency becomes white, 16-bit values are scaled to 8 bits, and of an animation the first
    frame is taken.

    Raises:
        ValueError: If it is no image of a known format, damaged, or larger than `MOST_PIXELS`.
    """
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # Pillow may be built without some
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its size is checked here
            image = Image.open(path, formats=known)
    except Image.DecompressionBombError:
        raise ValueError(f"The image has too many pixels; {_most()}") from None
    except Exception:  # Pillow raises whatever the parsers of its formats do
        raise ValueError(
            f"This is no image that can be read; {', '.join(known)} are expected."
        ) from None
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"The image has {image.width} x {image.height} pixels; {_most()}")
        try:
            image.load()
            color = _on_white(ImageOps.exif_transpose(image))
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ValueError(
                f"The image is damaged or of a rare kind ({image.format}, mode {image.mode}: "
                f"{reason}). Save it as an ordinary PNG or JPEG and try again."
            ) from None
    side = min(color.size)
    left, top = ((length - side) // 2 for length in color.size)
    square = color.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))  # antialiased


def _most() -> str:
    return f"at most {MOST_PIXELS // 10**6} million are expected. Scale it down and try again."


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; to convert it would cut all values off at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its values do not fit into 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point values have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def normalized(pixels: Pixels) -> Tensor:
    """(32, 32, 3) as the network's input (1, 3, 32, 32)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cifar10.MEAN, cifar10.STD))
    image = torch.tensor(pixels).permute(2, 0, 1).div(255)
    return image.sub(mean).div(std)[None]


def enlarged(pixels: Pixels, cam: Tensor | None = None, opacity: float = 0.5) -> Image.Image:
    """The image pixel by pixel, with a map (32, 32) in [0, 1] over it."""
    from matplotlib import colormaps

    picture = pixels.repeat(ZOOM, 0).repeat(ZOOM, 1)
    if cam is not None and cam.max() > 0:
        smooth = F.interpolate(cam[None, None], picture.shape[:2], mode="bilinear")[0, 0]
        colors = np.asarray(colormaps["viridis"](smooth.clamp(0, 1).numpy()))[..., :3] * 255
        picture = (picture * (1 - opacity) + colors * opacity).round().astype(np.uint8)
    return Image.fromarray(picture)


# --- networks and their errors -----------------------------------------------------------------


def load_network(path: Path) -> CustomResNet:
    """The network of a checkpoint of train_24.py, or of a file of `save_pretrained`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no `CustomResNet` of ten classes and three channels.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if path.suffix == ".safetensors":
        network = CustomResNet.from_pretrained(path)
    else:
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            state = {k.removeprefix("network."): v for k, v in saved["state_dict"].items()}
            recipe = Recipe(**saved["hyper_parameters"]["recipe"])
            classes, width = len(state["head.weight"]), len(state["prep.0.weight"])
            network = CustomResNet(width, classes, **recipe.network_options())
            network.load_state_dict(state)
        except Exception as error:  # a foreign file may fail anywhere
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} is no checkpoint of train_24.py and no .safetensors file of "
                f"save_pretrained: {reason}"
            ) from None
    if (network.num_classes, network.in_channels) != (len(CLASSES), 3):
        raise ValueError(
            f"The demo needs a network of {len(CLASSES)} classes and 3 channels, but {path} has "
            f"{network.num_classes} and {network.in_channels}."
        )
    return network.eval()


class Demo:
    """The networks to choose from, loaded on first use, with their receptive fields and errors.

    Args:
        data_dir: Folder of CIFAR-10; None for `$CIFAR10_DIR` or the user's cache folder.
        checkpoint: A network beside those of the package; it comes first.
    """

    def __init__(self, data_dir: str | None = None, checkpoint: Path | None = None) -> None:
        self.data_dir = data_dir
        self.networks = {}
        self.choices = []  # (label, name)
        if checkpoint is not None:
            self.networks[checkpoint.name] = load_network(checkpoint)
            self.choices.append((checkpoint.name, checkpoint.name))
        for weights in pretrained_weights():
            label = f"{weights.name}, {100 * weights.training['accuracy']:.2f} % on the test set"
            self.choices.append((label, weights.name))
        if not self.choices:
            raise ValueError("The package holds no weights; give a network with --checkpoint.")
        self.fields = cache(self._fields)
        self._errors = {}
        self._lock = threading.RLock()  # sessions share the networks, which maps put hooks into

    networks: dict[str, CustomResNet]
    choices: list[tuple[str, str]]
    _errors: dict[str, MisclassifiedSamples]

    def network(self, name: str) -> CustomResNet:
        with self._lock:
            if name not in self.networks:
                self.networks[name] = CustomResNet.from_pretrained(name)
            return self.networks[name]

    def _fields(self, name: str) -> ReceptiveFields:
        with self._lock:
            return receptive_field(self.network(name), (1, 3, SIDE, SIDE))

    def layers(self, name: str, *, least_units: int = 2) -> list[tuple[str, str]]:
        """Blocks with places, as (label, name) in the network's order."""
        found = []
        for layer, _ in self.network(name).named_children():
            shape = self.fields(name)[layer].unit_shape
            if len(shape) == 2 and shape[0] * shape[1] >= least_units:
                found.append((f"{layer} ({shape[0]} x {shape[1]})", layer))
        return found

    def layer(self, name: str, wanted: str, *, least_units: int = 2) -> str:
        """The wanted layer, or the last one of a network that has no such layer."""
        names = [layer for _, layer in self.layers(name, least_units=least_units)]
        return wanted if wanted in names else names[-1]

    def errors(self, name: str, *, download: bool = False) -> MisclassifiedSamples:
        """All errors on the test set, highest loss first.

        Raises:
            DatasetError: If the data are not there, or cannot be had.
        """
        from cifar_resnet import CIFAR10DataModule  # takes Lightning, and seconds

        if name not in self._errors:
            data = CIFAR10DataModule(self.data_dir, batch_size=500, download=download)
            data.prepare_data()  # a download must not hold up the other sessions
            with self._lock:
                if name not in self._errors:
                    self._errors[name] = find_misclassified(self.network(name), data)
        return self._errors[name]

    def _maps(self, name: str, images: Tensor, classes: Sequence[int], **options: Any) -> Tensor:
        with self._lock:
            return compute_cams(self.network(name), images, classes, **options)

    # --- what the tabs show --------------------------------------------------------------------

    def classify(
        self,
        pixels: Pixels | None,
        name: str,
        top_k: int,
        cam: bool,
        method: str,
        layer: str,
        opacity: float,
        wanted: str,
    ) -> tuple[dict[str, float] | None, Image.Image | None, str]:
        """The highest probabilities, what the network sees with a map over it, and its caption."""
        if pixels is None:
            return None, None, "Choose an image."
        layer = self.layer(name, layer)  # it may still be that of the weights before
        image = normalized(pixels)
        with self._lock, torch.inference_mode():
            probabilities = self.network(name)(image)[0].exp()
        order = probabilities.argsort(descending=True, stable=True).tolist()
        shares = {CLASSES[number]: float(probabilities[number]) for number in order[:top_k]}
        number = order[0] if wanted == PREDICTED else CLASSES.index(wanted)
        if not cam:
            return shares, enlarged(pixels), f"The image at {SIDE} x {SIDE} pixels."
        found = self._maps(name, image, [number], method=method, target_layers=layer)[0]
        title = next(label for label, value in METHODS if value == method)
        if found.max() == 0:
            return shares, enlarged(pixels), f"{title} finds no evidence for {CLASSES[number]}."
        height, width = self.fields(name)[layer].unit_shape
        about = "which knows no class" if method == "eigencam" else f"for {CLASSES[number]}"
        caption = (
            f"{title} of {layer} ({height} x {width}), {about}; bright is the map's own maximum."
        )
        return shares, enlarged(pixels, found, opacity), caption

    def gallery(
        self,
        name: str,
        count: int,
        true: str,
        predicted: str,
        cam: bool,
        *,
        download: bool = False,
    ) -> tuple[list[tuple[Image.Image, str]], str, bool]:
        """Errors with captions, a sentence about them, and whether the data are there."""
        try:
            found = self.errors(name, download=download)
        except DatasetError as error:
            return [], f"**The test set is not here.** {error}", False
        chosen = [
            sample
            for sample in found
            if true in (ANY, sample.true_name) and predicted in (ANY, sample.predicted_name)
        ]
        right = found.total - found.errors
        summary = f"{right:,} of {found.total:,} test images are classified right. "
        if true == predicted != ANY:
            return [], summary + "An error has two different classes: change one of them.", True
        of = "" if true == predicted == ANY else f" of {true} taken for {predicted}"
        if not chosen:
            return [], summary + f"There is no error{of}.", True
        shown = chosen[:count]
        summary += f"Here are {len(shown)} of {len(chosen):,} errors{of}, highest loss first."
        maps: Sequence[Tensor | None] = [None] * len(shown)
        if cam:
            inputs = torch.stack([sample.inputs for sample in shown])
            classes = [sample.predicted for sample in shown]
            maps = list(self._maps(name, inputs, classes))
            summary += " The maps are Grad-CAM for the predicted class."
        pictures = [
            (enlarged(_pixels(sample), each), _caption(sample))
            for sample, each in zip(shown, maps, strict=True)
        ]
        return pictures, summary, True

    def field(
        self, pixels: Pixels | None, name: str, layer: str, row: int, column: int
    ) -> tuple[Image.Image, Image.Image, Any, str]:
        """A unit's region on the image, the unit among all, the field as a figure, a sentence."""
        # layer and sliders may still be those of the weights before, or of a layer with more units
        layer = self.layer(name, layer, least_units=1)
        field = self.fields(name)[layer]
        row, column = (min(u, n - 1) for u, n in zip((row, column), field.unit_shape, strict=True))
        if pixels is None:
            pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
        image = torch.tensor(pixels).permute(2, 0, 1)
        figure = self.fields(name).plot(image, layer, [(row, column)])
        return (
            draw_region(pixels, field, (row, column)),
            draw_units(field, (row, column)),
            figure,
            describe_field(field, (row, column)),
        )


def _pixels(sample: MisclassifiedSample) -> Pixels:
    pixels: Pixels = sample.image.permute(1, 2, 0).mul(255).round().byte().numpy()
    return pixels


def _caption(sample: MisclassifiedSample) -> str:
    suspect = ", label suspect" if sample.suspect else ""
    return (
        f"{sample.true_name} taken for {sample.predicted_name}, {100 * sample.confidence:.0f} % "
        f"(#{sample.index}{suspect})"
    )


# --- receptive fields --------------------------------------------------------------------------


def nearest_unit(field: LayerField, x: float, y: float) -> tuple[int, int]:
    """The unit (row, column) whose field is centerd nearest to a point of the image in pixels."""
    rows, columns = field.unit_shape
    row = min(range(rows), key=lambda unit: abs(field.center((unit, 0))[0] - y))
    column = min(range(columns), key=lambda unit: abs(field.center((0, unit))[1] - x))
    return row, column


def describe_field(field: LayerField, unit: tuple[int, int]) -> str:
    """Size, place and share of a unit's field, as a sentence or two."""
    (top, bottom), (left, right) = field.region(unit)
    seen = (bottom - top + 1) * (right - left + 1)
    height, width = field.size
    jump = field.jump[0]
    return (
        f"**Unit ({unit[0]}, {unit[1]}) of {field.name}** has a receptive field of {height} x "
        f"{width} pixels. In this image it reads rows {top} to {bottom} and columns {left} to "
        f"{right}: {seen:,} of {SIDE * SIDE:,} pixels. "
        + (f"The next unit's field lies {jump} pixels further." if jump and jump > 1 else "")
    )


def draw_region(pixels: Pixels, field: LayerField, unit: tuple[int, int]) -> Image.Image:
    """The image with what the unit reads framed, and the rest faded."""
    picture = enlarged(pixels)
    (top, bottom), (left, right) = field.region(unit)
    box = (left * ZOOM, top * ZOOM, (right + 1) * ZOOM, (bottom + 1) * ZOOM)
    faded = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.6)
    faded.paste(picture.crop(box), box)
    draw = ImageDraw.Draw(faded)
    draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=ORANGE, width=3)
    return faded


def draw_units(field: LayerField, unit: tuple[int, int]) -> Image.Image:
    """The layer's units as a grid, one of them marked."""
    rows, columns = field.unit_shape
    side = SIDE * ZOOM
    grid = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(grid)
    for row in range(rows):
        for column in range(columns):
            box = (
                column * side // columns,
                row * side // rows,
                (column + 1) * side // columns - 1,
                (row + 1) * side // rows - 1,
            )
            draw.rectangle(box, ORANGE if (row, column) == unit else "white", "#888888")
    return grid
