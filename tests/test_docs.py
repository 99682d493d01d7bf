"""Every Python block of README and site runs, unless it is marked with the reason why not."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # some blocks save a figure
    namespace: dict[str, Any] = {}
    for skipped, code in BLOCK.findall(page.read_text()):
        compiled = compile(code, str(page), "exec")
        if not skipped:
            exec(compiled, namespace)


def test_the_site_lists_every_page() -> None:
    config = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in config


def test_every_public_name_is_in_the_api_reference() -> None:
    import cifar_resnet

    listed = re.findall(
        r"^::: cifar_resnet\.[\w.]+\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M
    )
    assert sorted(listed) == cifar_resnet.__all__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_is_left(page: Path) -> None:
    assert not re.findall(r"^[A-Z_]{5,}$", page.read_text(), re.MULTILINE)
