"""Compute what the tabs of the demo show, as plain functions without Gradio."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cifar_resnet import (
    CustomResNet,
    DatasetError,
    LayerField,
    MisclassifiedSample,
    MisclassifiedSamples,
    ReceptiveFields,
    compute_cams,
    find_misclassified,
    pretrained_weights,
    receptive_field,
)
from cifar_resnet.cli.demo.drawing import draw_confusion, draw_region, draw_units, enlarged
from cifar_resnet.cli.images import SIDE, Pixels, normalized, read_image
from cifar_resnet.cli.networks import load_network
from cifar_resnet.data import cifar10
from cifar_resnet.misclassified import cams

CLASSES = cifar10.CLASSES
METHODS = [(title, name) for name, (_, title) in cams.METHODS.items()]  # as (label, value)
PREDICTED, ANY, NO_NETWORK = "the predicted class", "any class", "no other network"
# The first test image of each class, named NUMBER-CLASS.png; sorted by class.
EXAMPLES = sorted(
    (Path(__file__).parent / "images").glob("*.png"),
    key=lambda path: CLASSES.index(path.stem.partition("-")[2]),
)


@dataclass(frozen=True)
class MapOptions:
    """How class activation maps are drawn, in all tabs."""

    draw: bool
    method: str
    layer: str
    opacity: float

    @property
    def title(self) -> str:
        return next(label for label, value in METHODS if value == self.method)


@dataclass(frozen=True)
class Answer:
    """What a network says about an image."""

    text: str
    probabilities: dict[str, float] | None = None  # of the most probable classes
    seen: Image.Image | None = None  # the input of the network
    map: Image.Image | None = None  # for the chosen class
    true_map: Image.Image | None = None  # for the true class, of an error


@dataclass(frozen=True)
class Gallery:
    """Errors of a network."""

    text: str
    pictures: Sequence[tuple[Image.Image, str]] = ()  # with captions
    samples: Sequence[MisclassifiedSample] = ()  # of the pictures
    confusion: Image.Image | None = None  # None: the test set is not on disk


class Demo:
    """Networks to choose from, loaded on first use, with their receptive fields and errors.

    Args:
        data_dir: Folder of CIFAR-10. If None, `$CIFAR10_DIR` or the user's cache folder.
        weights: A network to list before those of the package, as `load_network` takes it.
    """

    def __init__(self, data_dir: str | None = None, weights: str | None = None) -> None:
        self.data_dir = data_dir
        self.networks = {}
        self.choices = []  # (label, name)
        if weights is not None:
            name = Path(weights).name
            self.networks[name] = load_network(weights)
            self.choices.append((name, name))
        for shipped in pretrained_weights():
            label = f"{shipped.name}, {100 * shipped.training['accuracy']:.2f} % on the test set"
            self.choices.append((label, shipped.name))
        if not self.choices:
            raise ValueError("The package contains no weights. Give a network with --weights.")
        self.fields = cache(self._fields)
        self._errors = {}
        self._true_classes = {
            read_image(path).tobytes(): path.stem.partition("-")[2] for path in EXAMPLES
        }
        self._lock = threading.RLock()  # sessions share the networks, and maps add hooks to them

    networks: dict[str, CustomResNet]
    choices: list[tuple[str, str]]
    _errors: dict[str, MisclassifiedSamples]
    _true_classes: dict[bytes, str]  # of the examples and of all errors

    def network(self, name: str) -> CustomResNet:
        with self._lock:
            if name not in self.networks:
                self.networks[name] = CustomResNet.from_pretrained(name)
            return self.networks[name]

    def _fields(self, name: str) -> ReceptiveFields:
        with self._lock:
            return receptive_field(self.network(name), (1, 3, SIDE, SIDE))

    def layers(self, name: str, *, min_units: int = 2) -> list[tuple[str, str]]:
        """Return blocks with spatial output, as (label, name) in the network's order."""
        found = []
        for layer, _ in self.network(name).named_children():
            shape = self.fields(name)[layer].unit_shape
            if len(shape) == 2 and shape[0] * shape[1] >= min_units:
                found.append((f"{layer} ({shape[0]} x {shape[1]})", layer))
        return found

    def layer(self, name: str, requested: str, *, min_units: int = 2) -> str:
        """Return the requested layer, or the last one if the network does not have it."""
        names = [layer for _, layer in self.layers(name, min_units=min_units)]
        return requested if requested in names else names[-1]

    def errors(self, name: str, *, download: bool = False) -> MisclassifiedSamples:
        """Find all errors on the test set, highest loss first.

        Raises:
            DatasetError: If the data are not on disk and cannot be downloaded.
        """
        from cifar_resnet import CIFAR10DataModule  # imports Lightning, which takes seconds

        if name not in self._errors:
            data = CIFAR10DataModule(self.data_dir, batch_size=500, download=download)
            data.prepare_data()  # outside the lock: a download takes minutes
            with self._lock:
                if name not in self._errors:
                    self._errors[name] = found = find_misclassified(self.network(name), data)
                    self._true_classes |= {
                        pixels_of(sample).tobytes(): sample.true_name for sample in found
                    }
        return self._errors[name]

    def _maps(
        self, name: str, images: Tensor, classes: Sequence[int], options: MapOptions
    ) -> tuple[Tensor, str]:
        """Return maps, and method and layer in words."""
        layer = self.layer(name, options.layer)  # it may still be a layer of another network
        height, width = self.fields(name)[layer].unit_shape
        with self._lock:
            found = compute_cams(
                self.network(name), images, classes, method=options.method, target_layers=layer
            )
        return found, f"{options.title} of {layer} ({height} x {width})"

    # --- what the tabs show --------------------------------------------------------------------

    def classify(
        self, pixels: Pixels | None, name: str, top_k: int, options: MapOptions, target: str
    ) -> Answer:
        """Return what a network says about an image, with maps for a class."""
        if pixels is None:
            return Answer("Choose an image.")
        image = normalized(pixels)
        with self._lock, torch.inference_mode():
            probabilities = self.network(name)(image)[0].exp()
        order = probabilities.argsort(descending=True, stable=True).tolist()
        scores = {CLASSES[number]: float(probabilities[number]) for number in order[:top_k]}
        winner, truth = CLASSES[order[0]], self._true_classes.get(pixels.tobytes())
        wrong = truth is not None and truth != winner
        verdict = (
            "" if truth is None else f"**{'Wrong' if wrong else 'Right'}:** this is a {truth}.\n\n"
        )
        if not options.draw:
            return Answer(verdict, scores, enlarged(pixels))
        shown = [winner if target == PREDICTED else target]
        shown += [truth] if wrong and target == PREDICTED and truth is not None else []
        numbers = [CLASSES.index(name) for name in shown]
        found, about = self._maps(name, image.expand(len(shown), -1, -1, -1), numbers, options)
        pictures = [enlarged(pixels, cam, options.opacity) for cam in found]
        if options.method == "eigencam":
            about += ", independent of the class"
            pictures, found, shown = pictures[:1], found[:1], shown[:1]
        else:
            about += f", for {' and for '.join(shown)}"
        caption = f"{about}. The brightest color is the maximum of each map."
        for each, cam in zip(shown, found, strict=True):
            if cam.max() == 0:
                caption += f" {options.title} finds no evidence for {each}."
        return Answer(verdict + caption, scores, enlarged(pixels), *pictures)

    def gallery(
        self,
        name: str,
        count: int,
        true: str,
        predicted: str,
        options: MapOptions,
        *,
        download: bool = False,
    ) -> Gallery:
        """Return errors with captions, and how many there are of each kind."""
        try:
            found = self.errors(name, download=download)
        except DatasetError as error:
            return Gallery(f"**The test set is not on disk.** {error}")
        confusion = draw_confusion(found.confusion.tolist(), CLASSES)
        chosen = [
            sample
            for sample in found
            if true in (ANY, sample.true_name) and predicted in (ANY, sample.predicted_name)
        ]
        correct = found.total - found.errors
        text = f"{correct:,} of {found.total:,} test images are classified correctly. "
        if true == predicted != ANY:
            text += "True and predicted class must differ: change one of them."
            return Gallery(text, confusion=confusion)
        of = "" if true == predicted == ANY else f" of {true} predicted as {predicted}"
        if not chosen:
            return Gallery(f"{text}There are no errors{of}.", confusion=confusion)
        shown = chosen[:count]
        text += f"Shown are {len(shown)} of {len(chosen):,} errors{of}, highest loss first."
        maps: Sequence[Tensor | None] = [None] * len(shown)
        if options.draw:
            inputs = torch.stack([sample.inputs for sample in shown])
            found_maps, about = self._maps(
                name, inputs, [sample.predicted for sample in shown], options
            )
            maps = list(found_maps)
            text += f" The maps are {about}, for the predicted class."
        pictures = [
            (enlarged(pixels_of(sample), each, options.opacity), _caption(sample))
            for sample, each in zip(shown, maps, strict=True)
        ]
        return Gallery(text, pictures, shown, confusion)

    def field(
        self, pixels: Pixels | None, name: str, layer: str, row: int, column: int
    ) -> tuple[Image.Image, Image.Image, Any, str]:
        """Return the image with a unit's region, the grid of units, a figure and a description."""
        # layer and sliders may still belong to the previous network or to a larger layer
        layer = self.layer(name, layer, min_units=1)
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


def pixels_of(sample: MisclassifiedSample) -> Pixels:
    """Return the pixels of a test image."""
    pixels: Pixels = sample.image.permute(1, 2, 0).mul(255).round().byte().numpy()
    return pixels


def _caption(sample: MisclassifiedSample) -> str:
    suspect = ", label suspect" if sample.suspect else ""
    return (
        f"{sample.true_name} predicted as {sample.predicted_name}, {100 * sample.confidence:.0f} % "
        f"(#{sample.index}{suspect})"
    )


def nearest_unit(field: LayerField, x: float, y: float) -> tuple[int, int]:
    """Return the unit (row, column) whose field's center is nearest to a point in pixels."""
    rows, columns = field.unit_shape
    row = min(range(rows), key=lambda unit: abs(field.center((unit, 0))[0] - y))
    column = min(range(columns), key=lambda unit: abs(field.center((0, unit))[1] - x))
    return row, column


def describe_field(field: LayerField, unit: tuple[int, int]) -> str:
    """Describe size and position of a unit's field in a sentence or two."""
    (top, bottom), (left, right) = field.region(unit)
    seen = (bottom - top + 1) * (right - left + 1)
    height, width = field.size
    jump = field.jump[0]
    return (
        f"**Unit ({unit[0]}, {unit[1]}) of {field.name}** has a receptive field of {height} x "
        f"{width} pixels. In this image it reads rows {top} to {bottom} and columns {left} to "
        f"{right}: {seen:,} of {SIDE * SIDE:,} pixels. "
        + (f"The fields of neighboring units are {jump} pixels apart." if jump and jump > 1 else "")
    )
