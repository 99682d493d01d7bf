"""Fixtures: the real CIFAR-10, fetched once into the folder that users have."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_resnet.data import sources
from cifar_resnet.data.formats import Arrays


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """A folder with the verified dataset: $CIFAR10_DIR, else the user's cache."""
    folder = sources.default_data_dir()
    sources.prepare(folder)
    os.environ["CIFAR10_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def arrays(data_dir: Path) -> Arrays:
    return sources.load(data_dir)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` takes 5 ms
    np.random.seed(0)
