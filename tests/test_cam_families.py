"""Test the default maps of classifiers of torchvision and timm."""

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import cam_layers  # noqa: E402


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("family", cam_layers.FAMILIES, ids=lambda family: family.name)
def test_the_default_map_is_that_of_the_usual_layer(family: Any) -> None:
    row = cam_layers.compare(family)
    assert row.correlation > 0.99
    page = (ROOT / "docs" / "misclassified.md").read_text()
    assert f"    {cam_layers.line(family, row)}" in page.splitlines()


def test_there_are_enough_families() -> None:
    counts = [family.library for family in cam_layers.FAMILIES]
    assert counts.count("torchvision") >= 17
    assert counts.count("timm") >= 20
