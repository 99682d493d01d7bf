"""Between two logged steps the device is not synchronized, and all tensors of a step are on it.

Tensors on PyTorch's `meta` device have no values: reading one raises an error, where a GPU would be
synchronized, and so does mixing them with tensors on the CPU.
"""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from helpers import small
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy

from cifar_resnet import CustomResNet, ImageClassifier, Recipe

READ = r"meta tensor|on meta tensors"  # the errors of PyTorch


class WithoutValues(SingleDeviceStrategy):
    """One device whose tensors have no values."""

    def __init__(self) -> None:
        super().__init__(torch.device("meta"), accelerator=CPUAccelerator())

    def setup_environment(self) -> None:
        """Skip the check of Lightning's CPU accelerator, which refuses other devices."""

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return torch.ones(())  # Lightning checks before the training whether there are batches

    def teardown(self) -> None:
        """Skip moving the weights to the CPU, which is impossible."""


class Count(pl.Callback):
    """Count the batches that ended."""

    ended = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.ended += 1

    on_validation_batch_end = on_test_batch_end = on_train_batch_end


def without_values(count: Count, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        strategy=WithoutValues(),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[count],
        **{"log_every_n_steps": 50, "limit_val_batches": 0} | options,
    )


@pytest.mark.parametrize("name", Recipe.presets())
def test_training_steps_do_not_read_values(data_dir: Path, name: str) -> None:
    recipe = Recipe.preset(name)
    network = CustomResNet(width=2, **recipe.network_options()).to("meta")
    data = small(data_dir, **recipe.data_options() | {"batch_size": 50, "cutout": 4})
    count = Count()
    with pytest.raises((NotImplementedError, RuntimeError), match=READ):
        without_values(count).fit(ImageClassifier(network, recipe), data)
    assert count.ended == 19  # of 20: the last one logs the epoch


def test_a_logged_step_reads_values(data_dir: Path) -> None:
    count = Count()
    with pytest.raises((NotImplementedError, RuntimeError), match=READ):
        without_values(count, log_every_n_steps=7).fit(
            ImageClassifier(CustomResNet(width=2).to("meta"), "sgd"), small(data_dir)
        )
    assert count.ended == 7  # callbacks come before the logging of the module


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_reads_values_at_its_end(data_dir: Path, stage: str) -> None:
    recipe = Recipe.preset("best")
    network = CustomResNet(width=2, **recipe.network_options()).to("meta")
    model = ImageClassifier(network, recipe)
    count = Count()
    t = without_values(count, limit_val_batches=7, limit_test_batches=7)
    with pytest.raises((NotImplementedError, RuntimeError), match=READ):
        getattr(t, stage)(model, small(data_dir), verbose=False)
    assert count.ended == 7
