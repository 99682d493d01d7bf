"""Whether a tag may be released: it agrees with the version, the changelog and the citation, and
whether the documentation installs from PyPI and the project names its addresses.

python .ci/check_release.py v0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """What has to be put right before `tag` can be released; empty if nothing."""
    version = tag.removeprefix("v")
    sources = {
        "cifar_resnet/__init__.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## \[(.+?)\]",  # the newest comes first
    }
    found = {name: _first(root / name, pattern) for name, pattern in sources.items()}
    wrong = [
        f"{name} says {said}, but the tag is {tag}."
        for name, said in found.items()
        if said != version
    ]
    changed = _first(root / "CHANGELOG.md", r"^## \[.+?\](?: - )?(.*)$")
    cited = _first(root / "CITATION.cff", r"^date-released: (.+)$")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", changed or ""):
        wrong.append("The newest entry of CHANGELOG.md has no date: write it as 2026-01-31.")
    elif cited != changed:
        wrong.append(f"date-released in CITATION.cff is {cited}, but CHANGELOG.md says {changed}.")
    wrong += [
        f"{name} installs from a clone (pip install .): write pip install cifar-resnet."
        for name in ("README.md", "docs/snippets/install.md")
        if re.search(r"pip install \"?\.", (root / name).read_text(encoding="utf-8"))
    ]
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    wrong += [
        f"pyproject.toml has no address of the {name.lower()}: add {name} to [project.urls]."
        for name in ("Repository", "Documentation")
        if not re.search(rf'^{name} = "https://', project, re.MULTILINE)
    ]
    return wrong if tag.startswith("v") else [f"A release's tag starts with v, but got {tag!r}."]


def _first(path: Path, pattern: str) -> str | None:
    match = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit("\n".join(problems(sys.argv[1])) or 0)
