"""Add to the built site what the page "Lab" takes from the package: weights and constants."""

from __future__ import annotations

import json
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from cifar_resnet.data import cifar10

FOLDER = "javascripts/lab"
WEIGHTS = Path(__file__).parents[1] / "cifar_resnet/weights/quarter.safetensors"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the weights and a module of constants to the files of the site."""
    constants = {"CLASSES": cifar10.CLASSES, "MEAN": cifar10.MEAN, "STD": cifar10.STD}
    module = "".join(f"export const {k} = {json.dumps(v)};\n" for k, v in constants.items())
    files.append(File.generated(config, f"{FOLDER}/constants.js", content=module))
    files.append(File.generated(config, f"{FOLDER}/{WEIGHTS.name}", abs_src_path=str(WEIGHTS)))
    return files
