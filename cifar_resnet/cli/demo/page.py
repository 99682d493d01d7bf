"""Build and serve the page of the demo with Gradio; what it shows comes from `views`."""

from __future__ import annotations

import uuid
from typing import Any

import gradio as gr
from PIL import Image

from cifar_resnet.cli.demo.drawing import ZOOM, confused_pair
from cifar_resnet.cli.demo.look import INTRODUCTION, NAMES, PREPROCESSING, STYLE, THEME, about
from cifar_resnet.cli.demo.views import (
    ANY,
    CLASSES,
    EXAMPLES,
    METHODS,
    NO_NETWORK,
    PREDICTED,
    Answer,
    Demo,
    Gallery,
    MapOptions,
    nearest_unit,
    pixels_of,
)
from cifar_resnet.cli.images import SIDE, Pixels, read_image

PICTURES = (  # of the first tab: label, and identifier in the page
    ("What the network gets", "seen"),
    ("Class activation map", "map"),
    ("For the true class", "true-map"),
)


def build(demo: Demo) -> gr.Blocks:
    """Build the page around the demo's functions."""
    first = demo.choices[0][1]
    layers, all_layers = demo.layers(first), demo.layers(first, min_units=1)
    classes = [*CLASSES]
    view: Any = {"format": "png", "interactive": False, "buttons": [], "elem_classes": "pixels"}
    # Uploads and generated pictures are deleted when they are an hour old.
    page = gr.Blocks(title="CIFAR-10 with a custom ResNet", delete_cache=(600, 3600))
    with page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            name = gr.Dropdown(demo.choices, value=first, label="Weights", scale=2, min_width=280)
            method = gr.Dropdown(METHODS, value="gradcam", label="Method", min_width=150)
            layer = gr.Dropdown(layers, value=layers[-1][1], label="Layer", min_width=150)
            opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity", min_width=150)
            cam = gr.Checkbox(True, label="Class activation maps", min_width=240)
        pixels, opened, samples = gr.State(), gr.State(False), gr.State(())

        with gr.Tabs() as tabs:
            with gr.Tab("Classify", id="classify"):
                with gr.Row():
                    with gr.Column():
                        upload = gr.Image(
                            str(EXAMPLES[CLASSES.index("cat")]),
                            label="Image", sources=["upload", "clipboard"], format="png",
                            type="filepath", height=300, buttons=[], elem_id="upload",
                        )  # fmt: skip
                        gr.Markdown(PREPROCESSING)
                    with gr.Column():
                        probabilities = gr.Label(label="Probabilities")
                    with gr.Column(scale=2):
                        caption = gr.Markdown()
                        with gr.Row():
                            seen, map_, true_map = (
                                gr.Image(label=label, elem_id=id_, min_width=100, **view)
                                for label, id_ in PICTURES
                            )
                with gr.Row():
                    top_k = gr.Slider(
                        1, len(CLASSES), 3, step=1, label="Classes to list", min_width=240
                    )  # fmt: skip
                    targets = [PREDICTED, *classes]
                    target = gr.Dropdown(targets, label="Evidence for", min_width=240)
                    others: Any = [NO_NETWORK, *demo.choices]
                    other = gr.Dropdown(
                        others, value=NO_NETWORK, label="Compare with", min_width=240
                    )  # fmt: skip
                with gr.Row(visible=False) as comparison:
                    with gr.Column():
                        other_probabilities = gr.Label(label="Probabilities of the other network")
                    with gr.Column():
                        other_caption = gr.Markdown()
                    with gr.Column():
                        other_map = gr.Image(label="Map of the other network", **view)
                gr.Examples(
                    [[str(path)] for path in EXAMPLES], upload,
                    label="Or the first test image of each class",
                    elem_id="examples",
                )  # fmt: skip

            with gr.Tab("Errors", id="errors") as errors_tab:
                with gr.Row():
                    count = gr.Slider(1, 48, 12, step=1, label="Errors to show", min_width=240)
                    true = gr.Dropdown([ANY, *classes], label="True class", min_width=240)
                    predicted = gr.Dropdown(
                        [ANY, *classes], label="Predicted class", min_width=240
                    )  # fmt: skip
                summary = gr.Markdown(
                    "The network classifies the test set, which takes a few seconds."
                )
                fetch = gr.Button("Download CIFAR-10 (170 MB)", visible=False)
                errors = gr.Gallery(
                    label="Errors: click on one to open it", format="png", object_fit="contain",
                    columns=6, height="auto", buttons=[], elem_id="errors", elem_classes="pixels",
                    allow_preview=False,
                )  # fmt: skip
                confusion = gr.Image(
                    label="How often each class (row) is predicted as another (column): click on a "
                    "number to see these errors",
                    elem_id="confusion", **view,
                )  # fmt: skip

            with gr.Tab("Receptive fields", id="fields") as fields_tab:
                gr.Markdown(
                    "A unit is one spatial position of a layer's output. The pixels of the image "
                    "that it depends on are framed. Click on the image or on the units, or move "
                    "the sliders."
                )
                with gr.Row():
                    unit_layer = gr.Dropdown(
                        all_layers, value="residual1", label="Layer of the unit", min_width=240
                    )
                    row = gr.Slider(0, 15, 8, step=1, label="Row of the unit", min_width=240)
                    column = gr.Slider(0, 15, 8, step=1, label="Column of the unit", min_width=240)
                sentence = gr.Markdown()
                with gr.Row():
                    region = gr.Image(label="What the unit reads", elem_id="region", **view)
                    grid = gr.Image(label="The units of the layer", elem_id="grid", **view)
                    figure = gr.Plot(
                        label="With the part outside the image", format="png", elem_id="figure"
                    )

        with gr.Accordion("About", open=False):
            gr.Markdown(about(demo.choices))

        def take(image: dict[str, Any] | None) -> Pixels | None:
            try:
                return None if image is None else read_image(image["path"])
            except ValueError as error:
                raise gr.Error(
                    str(error), title="The image was not accepted", print_exception=False
                ) from None

        def show_answer(pixels: Any, name: str, top_k: int, target: str, *options: Any) -> Any:
            return shown(demo.classify(pixels, name, top_k, MapOptions(*options), target))

        def compare(
            pixels: Any, name: str, top_k: int, target: str, other: str, *options: Any
        ) -> Any:
            if other == NO_NETWORK:
                return gr.Row(visible=False), None, "", None
            answer = demo.classify(pixels, other, top_k, MapOptions(*options), target)
            return gr.Row(visible=True), answer.probabilities, answer.text, _unique(answer.map)

        def answer(
            image: dict[str, Any] | None,
            weights: str,
            top_k: int,
            class_activation_map: bool,
            method: str,
            layer: str,
            opacity: float,
            target: str,
        ) -> Any:
            """Classify an image in one call, for programs."""
            options = MapOptions(class_activation_map, method, layer, opacity)
            found = demo.classify(take(image), weights, top_k, options, target)
            return found.probabilities, _unique(found.map or found.seen), found.text

        def show_errors(name: str, opened: bool, *chosen: Any) -> Any:
            if not opened:  # classify the test set only when the tab is opened
                return [gr.skip()] * 5
            return gallery_of(name, *chosen)

        def gallery_of(
            name: str, count: int, true: str, predicted: str, *options: Any, download: bool = False
        ) -> Any:
            found: Gallery = demo.gallery(
                name, count, true, predicted, MapOptions(*options), download=download
            )
            named = [(_unique(picture), text) for picture, text in found.pictures]
            missing = found.confusion is None
            return (
                named, found.text, gr.Button(visible=missing), _unique(found.confusion),
                [pixels_of(sample) for sample in found.samples],
            )  # fmt: skip

        def download_and_show(*chosen: Any) -> Any:
            return gallery_of(*chosen, download=True)

        def open_error(samples: list[Pixels], event: gr.SelectData) -> Any:
            return Image.fromarray(samples[event.index]), gr.Tabs(selected="classify")

        def clicked_pair(event: gr.SelectData) -> Any:
            pair = confused_pair(event.index, CLASSES)
            return pair if pair is not None else (ANY, ANY)

        def show_field(*chosen: Any) -> Any:
            region, grid, figure, text = demo.field(*chosen)
            return _unique(region), _unique(grid), figure, text

        def network_layers(name: str, layer: str, unit_layer: str) -> Any:
            """Keep the chosen layers if the other network has them."""
            updates = []
            for minimum, value in ((2, layer), (1, unit_layer)):
                choices = demo.layers(name, min_units=minimum)
                kept = demo.layer(name, value, min_units=minimum)
                updates.append(gr.Dropdown(choices, value=kept))
            return updates

        def middle_unit(name: str, layer: str) -> Any:
            field = demo.fields(name)[demo.layer(name, layer, min_units=1)]
            return [
                gr.Slider(maximum=max(size - 1, 1), value=unit, interactive=size > 1)
                for size, unit in zip(field.unit_shape, field.middle, strict=True)
            ]

        def clicked_pixel(name: str, layer: str, event: gr.SelectData) -> tuple[int, int]:
            x, y = ((position + 0.5) / ZOOM - 0.5 for position in event.index)
            return nearest_unit(demo.fields(name)[layer], x, y)

        def clicked_unit(name: str, layer: str, event: gr.SelectData) -> tuple[int, int]:
            rows, columns = demo.fields(name)[layer].unit_shape
            side = SIDE * ZOOM
            x, y = (min(max(position, 0), side - 1) for position in event.index)
            return y * rows // side, x * columns // side

        hidden: Any = {"api_visibility": "private"}
        # If controls move faster than the network runs, only their last state counts.
        last: Any = {"trigger_mode": "always_last", "show_progress": "hidden"}
        quiet = hidden | last
        options: Any = [cam, method, layer, opacity]
        inputs: Any = [pixels, name, top_k, target]
        filters: Any = [count, true, predicted, *options]
        gallery, unit = [errors, summary, fetch, confusion, samples], [name, unit_layer]
        field = {"fn": show_field, "inputs": [pixels, *unit, row, column],
                 "outputs": [region, grid, figure, sentence], **quiet}  # fmt: skip

        gr.on([page.load, upload.change], take, upload, pixels, preprocess=False, **hidden).failure(
            lambda: (None, None), outputs=[upload, pixels], **hidden
        )
        gr.on(
            [control.change for control in [*inputs, *options]], show_answer, [*inputs, *options],
            [probabilities, seen, map_, true_map, caption], **quiet,
        )  # fmt: skip
        gr.on(
            [control.change for control in [*inputs, other, *options]], compare,
            [*inputs, other, *options],
            [comparison, other_probabilities, other_caption, other_map], **quiet,
        )  # fmt: skip
        gr.Button(visible=False).click(
            answer,
            [gr.Image(type="filepath", visible=False), name, top_k, *options, target],
            [
                gr.Label(visible=False),
                gr.Image(visible=False, format="png"),
                gr.Markdown(visible=False),
            ],
            preprocess=False, api_name="classify",
        )  # fmt: skip
        name.change(network_layers, [name, layer, unit_layer], [layer, unit_layer], **quiet)
        errors_tab.select(lambda: True, outputs=opened, **hidden)
        gr.on(
            [control.change for control in [opened, name, *filters]],
            show_errors, [name, opened, *filters], gallery, trigger_mode="always_last", **hidden,
        )  # fmt: skip
        fetch.click(download_and_show, [name, *filters], gallery, **hidden)
        errors.select(open_error, samples, [upload, tabs], **hidden)
        confusion.select(clicked_pair, outputs=[true, predicted], **hidden)
        unit_layer.change(middle_unit, unit, [row, column], **quiet).then(**field)
        region.select(clicked_pixel, unit, [row, column], **quiet).then(**field)
        grid.select(clicked_unit, unit, [row, column], **quiet).then(**field)
        gr.on([row.input, column.input, pixels.change, fields_tab.select], **field)
    return page


def shown(answer: Answer) -> Any:
    """Return the outputs of the first tab; a picture that does not exist is hidden."""
    maps = [
        gr.Image(value=_unique(picture), visible=picture is not None)
        for picture in (answer.map, answer.true_map)
    ]
    return answer.probabilities, _unique(answer.seen), *maps, answer.text


def _unique(picture: Image.Image | None) -> Image.Image | None:
    """Make the file unique: Gradio names files by content, and would overwrite one being read."""
    if picture is None:
        return None
    picture.info["made"] = uuid.uuid4().hex
    return picture


def launch(page: gr.Blocks, **options: Any) -> None:
    """Serve the page; `options` are those of Gradio's `launch`."""
    # Gradio's server-side rendering needs Node, and its footer links to other sites.
    page.launch(
        theme=THEME,
        css=STYLE,
        head=NAMES,
        ssr_mode=False,
        footer_links=[],
        max_file_size="20mb",
        show_error=True,
        **options,
    )
