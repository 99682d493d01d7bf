"""Take the addresses of the site and of the repository from pyproject.toml, once they are there."""

from __future__ import annotations

import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the addresses, which nothing else in the site may contain."""
    urls = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"].get("urls", {})
    config.site_url = urls.get("Documentation", config.site_url)
    config.repo_url = urls.get("Repository", config.repo_url)
    return config
