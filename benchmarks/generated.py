"""The part of a page that a script writes from raw results."""

from __future__ import annotations

from collections.abc import Iterable

BEGIN, END = "<!-- begin of the generated part -->\n", "<!-- end of the generated part -->\n"


def filled(text: str, parts: Iterable[str]) -> str:
    """Return the text of a page with these parts between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    content = "".join(f"\n{part}\n" for part in parts)
    return f"{before}{BEGIN}{content}\n{END}{after}"
