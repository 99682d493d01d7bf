"""Add a summary table to each page of the reference, while the site is built."""

from __future__ import annotations

import inspect
import re
from typing import Any

import cifar_resnet

PLACE = "<!-- summary -->"
NAMES = re.compile(r"^::: cifar_resnet\.(\w+)$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the place of the summary by a table of the page's names and what they are for."""
    if PLACE not in markdown:
        return markdown
    rows = [
        f"| [`{name}`][cifar_resnet.{name}] | {summary(getattr(cifar_resnet, name))} |"
        for name in NAMES.findall(markdown)
    ]
    return markdown.replace(PLACE, "\n".join(["| name | summary |", "| --- | --- |", *rows]))


def summary(obj: object) -> str:
    """Return the first paragraph of a docstring, in one line."""
    first = (inspect.getdoc(obj) or "").split("\n\n")[0]
    return " ".join(first.split()).replace("|", r"\|")
