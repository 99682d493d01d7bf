"""Recipe: presets, schedule and checks."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from cifar_resnet import CIFAR10DataModule, CustomResNet, Recipe


def test_the_default_is_the_specified_training() -> None:
    recipe = Recipe()
    assert recipe == Recipe.preset("adam")
    assert (recipe.optimizer, recipe.learning_rate, recipe.schedule) == ("adam", 0.001, "constant")
    assert [recipe.learning_rate_factor(t) for t in (0, 0.5, 1)] == [1, 1, 1]


def test_every_preset_is_found_by_its_name() -> None:
    assert [Recipe.preset(name).name for name in Recipe.presets()] == list(Recipe.presets())


def test_linear_schedule() -> None:
    recipe = Recipe(schedule="linear", warmup=0.25)
    expected = {0: 0, 0.125: 0.5, 0.25: 1, 0.5: 0.5 / 0.75, 0.8: 0.2 / 0.75, 1: 0}
    for progress, factor in expected.items():
        assert recipe.learning_rate_factor(progress) == pytest.approx(factor)
    assert Recipe(schedule="linear", warmup=0).learning_rate_factor(0) == 1
    assert Recipe(schedule="linear", warmup=1).learning_rate_factor(0.5) == 0.5


def test_a_recipe_is_restored_from_its_dictionary_and_cannot_be_changed() -> None:
    recipe = replace(Recipe.preset("sgd"), learning_rate=0.3)
    assert Recipe(**recipe.to_dict()) == recipe
    with pytest.raises(FrozenInstanceError):
        recipe.learning_rate = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("flip", ["random", "alternating", "none"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_data_and_network_accept_every_choice(flip: Any, activation: Any) -> None:
    recipe = Recipe(flip=flip, activation=activation)
    CIFAR10DataModule(**recipe.data_options())
    CustomResNet(width=1, **recipe.network_options())


@pytest.mark.parametrize("name", Recipe.presets())
def test_the_options_of_every_preset_fit_network_and_data(name: str) -> None:
    recipe = Recipe.preset(name)
    data = CIFAR10DataModule(**recipe.data_options())
    assert data.batch_size == recipe.batch_size
    assert data.augmentation.crop_padding == recipe.crop_padding
    network = CustomResNet(width=2, **recipe.network_options())
    own = {"width": 2, "num_classes": 10, "in_channels": 3, "image_size": 32}
    assert network.config() == own | recipe.network_options()
