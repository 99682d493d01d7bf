"""Provide CIFAR-10 to the tests, downloaded once, and keep tests from affecting each other."""

import ctypes
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DATA_MODULES

from cifar_resnet.data import sources
from cifar_resnet.data.formats import Arrays
from cifar_resnet.data.sharing import load_shared

# The networks of the tests are so small that a second thread costs more than it saves.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Iterator[Path]:
    """A folder with the verified dataset: $CIFAR10_DIR, else the user's cache."""
    folder = sources.default_data_dir()
    sources.prepare(folder)
    os.environ["CIFAR10_DIR"] = str(folder)
    shared = load_shared(folder)  # read once for all tests
    yield folder
    del shared


@pytest.fixture(scope="session")
def arrays(data_dir: Path) -> Arrays:
    return load_shared(data_dir)


@pytest.fixture
def read_once(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all data modules share the images that are already read."""
    monkeypatch.setattr(sources, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(sources, "load", lambda _: arrays)


@pytest.fixture(autouse=True, scope="module")
def _release_memory() -> Iterator[None]:
    """Drop what the tests of a file have left: data modules, and networks in reference cycles."""
    yield
    DATA_MODULES.clear()
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # returns free pages to the system


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` takes 5 ms
    np.random.seed(0)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The installed Chromium; tests that need it are skipped without it or playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()
