"""Progressive resizing: smaller training images in the first part of a run."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import Collect, Flat, small, small_vit, trainer
from pytorch_lightning.callbacks import LearningRateFinder
from torch import Tensor, nn

from cifar_resnet import CustomResNet, ImageClassifier, LastCheckpoint, Recipe

HALF = replace(Recipe.preset("sgd"), image_scale=0.75)


class Sizes(pl.Callback):
    """Keep the input of the first layer in each stage."""

    def __init__(self, layer: nn.Module) -> None:
        self.seen: dict[str, list[Tensor]] = {}
        self.stage = "train"
        layer.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.seen.setdefault(self.stage, []).append(inputs[0].detach().clone())

    def sides(self, stage: str = "train") -> list[int]:
        return [images.shape[2] for images in self.seen[stage]]

    def on_train_batch_start(self, *_: Any) -> None:
        self.stage = "train"

    def on_validation_start(self, *_: Any) -> None:
        self.stage = "val"

    def on_test_start(self, *_: Any) -> None:
        self.stage = "test"


def antialiased(images: Tensor, size: int) -> Tensor:
    """Scale square images by weights that fall linearly with the distance of two pixels' centers,
    written out for each pixel.
    """
    side = images.shape[-1]
    ratio = side / size
    weights = np.zeros((size, side))
    for target in range(size):
        center = (target + 0.5) * ratio
        for source in range(side):
            weights[target, source] = max(0.0, 1 - abs(source + 0.5 - center) / ratio)
    matrix = torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))
    return torch.einsum("yh,nchw,xw->ncyx", matrix, images.double(), matrix)


@pytest.mark.parametrize(
    ("until", "sides"),
    [(0.5, [24] * 5 + [32] * 5), (0.25, [24] * 3 + [32] * 7), (0, [32] * 10), (1, [24] * 10)],
)
def test_images_are_small_up_to_a_fraction_of_the_run(
    data_dir: Path, tmp_path: Path, until: float, sides: list[int]
) -> None:
    model = ImageClassifier(CustomResNet(width=1), replace(HALF, image_scale_until=until))
    seen, data = Sizes(model.network.prep[0]), small(data_dir, batch_size=200)
    fit = trainer(tmp_path, max_epochs=2, callbacks=[seen], limit_val_batches=1)
    fit.fit(model, data)
    assert seen.sides() == sides
    assert set(seen.sides("val")) == {32}
    fit.limit_test_batches = 1
    fit.test(model, data, verbose=False)
    assert set(seen.sides("test")) == {32}
    assert model.network.image_size == (32, 32)
    assert model.network.pool.kernel_size == 4


def test_images_are_scaled_with_antialiasing(data_dir: Path, tmp_path: Path) -> None:
    given: list[Tensor] = []

    class Given(pl.Callback):
        def on_train_batch_start(self, t: Any, m: Any, batch: Any, *_: Any) -> None:
            given.append(batch[0])

    model = ImageClassifier(CustomResNet(width=1), HALF)
    seen = Sizes(model.network.prep[0])
    trainer(tmp_path, max_steps=1, callbacks=[seen, Given()], limit_val_batches=0).fit(
        model, small(data_dir)
    )
    assert given[0].shape == (100, 3, 32, 32)  # what callbacks see is not scaled
    torch.testing.assert_close(
        seen.seen["train"][0].double(), antialiased(given[0], 24), rtol=0, atol=1e-5
    )


def test_the_losses_are_those_of_a_loop_written_out(data_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe(optimizer="sgd", learning_rate=0.05, momentum=0, image_scale=0.5)
    torch.manual_seed(0)
    network = CustomResNet(width=2).double()
    twins = {side: CustomResNet(2, image_size=side).double() for side in (16, 32)}
    weights = copy.deepcopy(network.state_dict())
    collect, data = Collect(), small(data_dir, val_split=0)
    trainer(tmp_path, max_steps=6, callbacks=[collect], precision="64-true").fit(
        ImageClassifier(network, recipe), data
    )

    again = small(data_dir, val_split=0)
    again.setup()
    batches = iter(again.train_dataloader())
    for step in range(6):
        images, labels = next(batches)
        images, side = images.double(), 16 if step < 3 else 32
        if side == 16:
            images = antialiased(images, 16)
        twin = twins[side]  # a network that was built for this size
        twin.load_state_dict(weights)
        loss = nn.functional.nll_loss(twin.train()(images), labels)
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        assert collect.losses[step] == pytest.approx(loss.item(), rel=1e-5)
        weights = copy.deepcopy(twin.state_dict())
        for (name, _), gradient in zip(twin.named_parameters(), gradients, strict=True):
            weights[name] -= 0.05 * gradient


def test_a_resumed_run_continues_with_the_size_of_its_step(data_dir: Path, tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_batch_start(self, t: pl.Trainer, *_: Any) -> None:
            if t.global_step == 3:
                raise KeyError("stopped")

    def run(*stop: pl.Callback, path: Path | None = None) -> tuple[list[int], dict[str, Tensor]]:
        torch.manual_seed(0)
        model = ImageClassifier(CustomResNet(width=1), HALF)
        seen = Sizes(model.network.prep[0])
        callbacks = [seen, LastCheckpoint(tmp_path, every_seconds=0), *stop]
        fit = trainer(
            tmp_path, max_epochs=2, enable_checkpointing=True, limit_val_batches=0,
            callbacks=callbacks,
        )  # fmt: skip
        with pytest.raises(KeyError) if stop else nullcontext():
            fit.fit(model, small(data_dir, batch_size=250), ckpt_path=path)
        return seen.sides(), model.network.state_dict()

    sides, expected = run()
    assert sides == [24] * 4 + [32] * 4
    (tmp_path / "last.ckpt").unlink()
    assert run(Stop())[0] == [24] * 3
    sides, weights = run(path=tmp_path / "last.ckpt")
    assert sides == [24] * 2 + [32] * 4  # the third step had not been saved
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_search_for_a_learning_rate_keeps_the_size(data_dir: Path, tmp_path: Path) -> None:
    model = ImageClassifier(CustomResNet(width=1), HALF)
    seen = Sizes(model.network.prep[0])
    finder = LearningRateFinder(num_training_steps=8, update_attr=False)
    trainer(tmp_path, max_steps=4, callbacks=[seen, finder], limit_val_batches=0).fit(
        model, small(data_dir)
    )
    assert seen.sides() == [24] * 8 + [24, 24, 32, 32]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_and_compiled_networks(
    data_dir: Path, tmp_path: Path, precision: str
) -> None:
    network = CustomResNet(width=1)
    seen = Sizes(network.prep[0])
    compiled: Any = torch.compile(network, backend="eager")
    model = ImageClassifier(compiled, HALF, num_classes=10)
    trainer(tmp_path, max_steps=4, precision=precision, limit_val_batches=0).fit(
        model, small(data_dir)
    )
    assert seen.sides() == [24, 24, 32, 32]
    assert network.image_size == (32, 32)


def test_any_network_that_takes_the_size(data_dir: Path, tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    seen = Sizes(network[0])
    trainer(tmp_path, max_steps=4, limit_val_batches=0).fit(
        ImageClassifier(network, replace(HALF, image_scale=0.7), num_classes=10), small(data_dir)
    )
    assert seen.sides() == [22, 22, 32, 32]  # 22.4 rounded


@pytest.mark.parametrize(
    ("network", "scale", "size"),
    [(Flat(), 0.75, 24), (small_vit(), 0.75, 24), (CustomResNet(width=1), 0.7, 22)],
    ids=["linear layer", "vision transformer", "CustomResNet"],
)
def test_a_network_that_does_not_take_the_size_is_refused(
    data_dir: Path, tmp_path: Path, network: nn.Module, scale: float, size: int
) -> None:
    model = ImageClassifier(network, replace(HALF, image_scale=scale), num_classes=10)
    with pytest.raises((RuntimeError, AssertionError, ValueError)) as error:
        trainer(tmp_path, limit_val_batches=0).fit(model, small(data_dir))
    assert any(
        f"image_scale={scale} of the recipe has scaled the images to {size}x{size} pixels" in note
        for note in error.value.__notes__
    )
    if isinstance(network, CustomResNet):
        assert "image_size must be a multiple of 8" in str(error.value)
        assert network.image_size == (32, 32)


def test_a_training_step_that_does_not_scale_is_refused(data_dir: Path, tmp_path: Path) -> None:
    class Own(ImageClassifier):
        scores = "forward"

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            images, labels = batch
            return nn.functional.cross_entropy(getattr(self, self.scores)(images), labels)

    model = Own(CustomResNet(width=1), HALF)
    with pytest.raises(ValueError, match=r"image_scale=0.75 has no effect, because the training_s"):
        trainer(tmp_path, limit_val_batches=0).fit(model, small(data_dir))

    class Scaled(Own):
        scores = "training_scores"

    model = Scaled(CustomResNet(width=1), HALF)
    seen = Sizes(model.network.prep[0])
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(model, small(data_dir))
    assert seen.sides() == [24, 32]


def test_small_images_need_a_run_of_known_length(data_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe(image_scale=0.75)  # its learning rate is constant
    model = ImageClassifier(CustomResNet(width=1), recipe)
    with pytest.raises(ValueError, match=r"The image_scale=0.75 of recipe 'adam' needs a run of k"):
        trainer(tmp_path, max_epochs=-1, limit_val_batches=0).fit(model, small(data_dir))


def test_scale_of_a_position_in_the_run() -> None:
    recipe = Recipe(image_scale=0.5, image_scale_until=0.3)
    assert [recipe.image_scale_at(t) for t in (0, 0.29, 0.3, 1, 2)] == [0.5, 0.5, 1, 1, 1]
    assert {Recipe.preset("adam").image_scale_at(t) for t in (0, 0.5, 1)} == {1}
    with pytest.raises(ValueError, match=r"progress must be a finite number of at least 0"):
        recipe.image_scale_at(-0.1)


# --- the network --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 24, 40, (16, 24)])
def test_a_network_at_another_size_equals_one_built_for_it(size: Any) -> None:
    torch.manual_seed(0)
    model = CustomResNet(width=2).eval()
    built = CustomResNet(2, image_size=size).eval()
    built.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, *built.image_size)
    with model.at_size(size):
        assert model.image_size == built.image_size
        assert torch.equal(model(images), built(images))
        with pytest.raises(ValueError, match=r"CustomResNet expects images of shape"):
            model(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"CustomResNet expects images of shape"):
        model(images)


def test_the_size_is_restored_after_an_error() -> None:
    model = CustomResNet(width=1)
    with pytest.raises(KeyError), model.at_size(24):
        raise KeyError
    with pytest.raises(ValueError, match=r"image_size must be a multiple of 8"), model.at_size(30):
        pass
    assert model.image_size == (32, 32)
    assert repr(model.pool) == repr(nn.MaxPool2d(4))
