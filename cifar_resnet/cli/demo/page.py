"""Build and serve the page of the demo with Gradio; what it shows comes from `views`."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from cifar_resnet.cli.demo.drawing import ZOOM
from cifar_resnet.cli.demo.views import ANY, CLASSES, METHODS, PREDICTED, Demo, nearest_unit
from cifar_resnet.cli.images import SIDE, Pixels, read_image

# Named NUMBER-CLASS.png; sorted by class.
EXAMPLES = sorted(
    (Path(__file__).parent / "images").glob("*.png"),
    key=lambda path: CLASSES.index(path.stem.partition("-")[2]),
)
INTRODUCTION = f"""# CIFAR-10 with a custom ResNet
The network distinguishes ten classes: {", ".join(CLASSES)}. It always predicts one of them, even if
the image shows something else.
"""
PREPROCESSING = (
    f"The network receives the central square of the image, scaled to {SIDE} x {SIDE} pixels. "
    "Transparent pixels become white. The first frame of an animation is used."
)


# System fonts: nothing is loaded from other sites. The grays are dark enough to be read.
THEME = gr.themes.Default(
    primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["monospace"]
).set(body_text_color_subdued="*neutral_500", slider_color="*primary_600")
STYLE = """
.pixels img, #examples img { image-rendering: pixelated }
:is(.pixels, #figure) label[data-testid=block-label] { position: static; width: fit-content }
#upload img { width: 100%; height: 100%; object-fit: contain }
#errors .grid-wrap { max-height: none }
#errors .grid-container { grid-auto-rows: auto }
#errors .thumbnail-item, #errors .thumbnail-item img { height: auto }
#errors .caption-label { position: static; max-width: none; white-space: normal }
button[role=tab].selected { color: var(--body-text-color) }
@media (max-width: 640px) { #errors .grid-container { grid-template-columns: 1fr 1fr } }
"""
# Names for screen readers: Gradio gives its clickable pictures none, or numbers.
NAMES = r"""
<script>
const named = (button, name) => button.setAttribute("aria-label", name);
const without = "button:has(img):not([aria-label])";
new MutationObserver(() => {
  for (const button of document.querySelectorAll(`#examples ${without}`))
    named(button, button.querySelector("img").src.match(/\d+-(\w+).png$/)[1]);
  for (const id of ["seen", "region", "grid"])
    for (const button of document.querySelectorAll(`#${id} ${without}`))
      named(button, document.querySelector(`#${id} label`).innerText);
  for (const button of document.querySelectorAll("#errors button[aria-label^=Thumbnail]"))
    if (button.innerText) named(button, button.innerText);
}).observe(document, { childList: true, subtree: true });
</script>
"""


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
        name = gr.Dropdown(demo.choices, value=first, label="Weights")
        pixels, opened = gr.State(), gr.State(False)

        with gr.Tab("Classify"), gr.Row():
            with gr.Column():
                upload = gr.Image(
                    str(EXAMPLES[CLASSES.index("cat")]),
                    label="Image", sources=["upload", "clipboard"],
                    type="filepath", height=300, buttons=[], elem_id="upload",
                )  # fmt: skip
                gr.Markdown(PREPROCESSING)
                gr.Examples(
                    [[str(path)] for path in EXAMPLES], upload,
                    label="Or the first test image of each class",
                    elem_id="examples",
                )  # fmt: skip
            with gr.Column():
                probabilities = gr.Label(label="Probabilities")
                top_k = gr.Slider(1, len(CLASSES), 3, step=1, label="Classes to list")
                seen = gr.Image(label="What the network gets", elem_id="seen", **view)
                caption = gr.Markdown()
            with gr.Column():
                cam = gr.Checkbox(True, label="Class activation map")
                method = gr.Dropdown(METHODS, value="gradcam", label="Method")
                layer = gr.Dropdown(layers, value=layers[-1][1], label="Layer")
                target = gr.Dropdown([PREDICTED, *classes], label="Evidence for")
                opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity of the map")

        with gr.Tab("Errors") as errors_tab:
            with gr.Row():
                count = gr.Slider(1, 48, 12, step=1, label="Errors to show", min_width=240)
                true = gr.Dropdown([ANY, *classes], label="True class", min_width=240)
                predicted = gr.Dropdown([ANY, *classes], label="Predicted class", min_width=240)
            with_maps = gr.Checkbox(False, label="Class activation maps")
            summary = gr.Markdown("The network classifies the test set, which takes a few seconds.")
            fetch = gr.Button("Download CIFAR-10 (170 MB)", visible=False)
            errors = gr.Gallery(
                label="Errors", format="png", object_fit="contain", columns=6, height="auto",
                buttons=[], elem_id="errors", elem_classes="pixels",
            )  # fmt: skip

        with gr.Tab("Receptive fields") as fields_tab:
            gr.Markdown(
                "A unit is one spatial position of a layer's output. The pixels of the image that "
                "it depends on are framed. Click on the image or on the units, or move the sliders."
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

        def take(payload: dict[str, Any] | None) -> Pixels | None:
            try:
                return None if payload is None else read_image(payload["path"])
            except ValueError as error:
                raise gr.Error(
                    str(error), title="The image was not accepted", print_exception=False
                ) from None

        def classify(*chosen: Any) -> Any:
            scores, picture, text = demo.classify(*chosen)
            return scores, None if picture is None else _unique(picture), text

        def show_errors(name: str, opened: bool, *chosen: Any) -> Any:
            if not opened:  # classify the test set only when the tab is opened
                return gr.skip(), gr.skip(), gr.skip()
            return gallery_of(name, *chosen, download=False)

        def download_and_show(name: str, *chosen: Any) -> Any:
            return gallery_of(name, *chosen, download=True)

        def gallery_of(*chosen: Any, download: bool) -> Any:
            pictures, summary, is_on_disk = demo.gallery(*chosen, download=download)
            named = [(_unique(picture), text) for picture, text in pictures]
            return named, summary, gr.Button(visible=not is_on_disk)

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
        inputs: Any = [pixels, name, top_k, cam, method, layer, opacity, target]
        filters: Any = [count, true, predicted, with_maps]
        gallery, unit = [errors, summary, fetch], [name, unit_layer]
        field = {"fn": show_field, "inputs": [pixels, *unit, row, column],
                 "outputs": [region, grid, figure, sentence], **quiet}  # fmt: skip

        gr.on([page.load, upload.change], take, upload, pixels, preprocess=False).failure(
            lambda: (None, None), outputs=[upload, pixels], **hidden
        )
        gr.on(
            [control.change for control in inputs],
            classify, inputs, [probabilities, seen, caption], **last,
        )  # fmt: skip
        name.change(network_layers, [name, layer, unit_layer], [layer, unit_layer], **quiet)
        errors_tab.select(lambda: True, outputs=opened, **hidden)
        gr.on(
            [control.change for control in [opened, name, *filters]],
            show_errors, [name, opened, *filters], gallery, trigger_mode="always_last", **hidden,
        )  # fmt: skip
        fetch.click(download_and_show, [name, *filters], gallery, **hidden)
        unit_layer.change(middle_unit, unit, [row, column], **quiet).then(**field)
        region.select(clicked_pixel, unit, [row, column], **quiet).then(**field)
        grid.select(clicked_unit, unit, [row, column], **quiet).then(**field)
        gr.on([row.input, column.input, pixels.change, fields_tab.select], **field)
    return page


def _unique(picture: Image.Image) -> Image.Image:
    """Make the file unique: Gradio names files by content, and would overwrite one being read."""
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
