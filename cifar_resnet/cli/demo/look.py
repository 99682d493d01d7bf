"""Texts and style of the demo's page."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata

import gradio as gr

from cifar_resnet import __version__
from cifar_resnet.cli.demo.views import CLASSES
from cifar_resnet.cli.images import SIDE

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
  for (const id of ["seen", "map", "true-map", "region", "grid", "confusion"])
    for (const button of document.querySelectorAll(`#${id} ${without}`))
      named(button, document.querySelector(`#${id} label`).innerText);
  for (const button of document.querySelectorAll("#errors button[aria-label^=Thumbnail]"))
    if (button.innerText) named(button, button.innerText);
}).observe(document, { childList: true, subtree: true });
</script>
"""


def about(choices: Sequence[tuple[str, str]]) -> str:
    """Return the text of the last tab, with the networks as (label, name)."""
    lines = [
        f"**cifar-resnet {__version__}** trains this network on CIFAR-10 and draws its errors.",
        "",
        "The networks to choose from:",
        "",
        *(f"- {label}" for label, _ in choices),
        "",
        "- They always predict one of ten classes. A high probability does not mean that the image "
        "shows an object of that class.",
        "- They were trained on photographs of 32 x 32 pixels that show one object.",
        "- A class activation map shows which regions contribute to the score of a class, not why.",
        "- Images that you upload are deleted within 70 minutes.",
    ]
    try:
        links = metadata("cifar-resnet").get_all("Project-URL") or []
    except PackageNotFoundError:  # a copy of the source, as in a Hugging Face Space
        links = []
    lines += [
        "",
        *(f"- [{label}]({url})" for label, url in (link.split(", ", 1) for link in links)),
    ]
    return "\n".join(lines)
