"""Options of Lightning's Trainer, each tested for its documented effect.

| option | where |
| --- | --- |
| fast_dev_run, limit_*, max_steps, max_time, min_epochs, no epochs | here: how long a run is |
| overfit_batches | here; an integer with a Recorder: test_datamodule |
| accumulate_grad_batches | here: weights; the schedule under it: also test_classifier |
| gradient_clip_val | here by value; by norm: test_classifier |
| StochasticWeightAveraging, WeightAveraging, EMAWeightAveraging | here |
| val_check_interval, check_val_every_n_epoch, num_sanity_val_steps | here |
| reload_dataloaders_every_n_epochs | here; with a new batch size: test_datamodule |
| predict, inference_mode, validate and test alone | here; against an oracle: test_classifier |
| BatchSizeFinder, LearningRateFinder | here |
| loggers, logger=False, enable_checkpointing=False, ModelCheckpoint, EarlyStopping | here |
| ckpt_path (resume) | test_classifier, test_datamodule |
| deterministic, precision, profiler, detect_anomaly, barebones | here |
| Timer, DeviceStatsMonitor, RichProgressBar, OnExceptionCheckpoint, ModelPruning | here |
| log_every_n_steps | test_classifier |
| fit again: one trainer, two trainers, after test | here |
| loaders in place of a data module | test_classifier, test_datamodule |
| devices, strategy="ddp" | test_classifier, test_datamodule |
"""

import itertools
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import Collect, Flat, per_sample, small, trainer
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from cifar_resnet import CIFAR10DataModule, CustomResNet, ImageClassifier, Recipe, make_scheduler
from cifar_resnet.data import sources
from cifar_resnet.data.formats import Arrays
from cifar_resnet.training.curves import read_curves

PLAIN_SGD = Recipe(optimizer="sgd", learning_rate=0.01, momentum=0.0)


@pytest.fixture(autouse=True)
def _read_once(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading and verifying the files is tested elsewhere, and takes longer than these fits."""
    monkeypatch.setattr(sources, "prepare", lambda folder, *, allow_download: None)
    monkeypatch.setattr(sources, "load", lambda folder: arrays)


class Seen(pl.Callback):
    """Keep the labels of every batch of every stage, with the epoch."""

    def __init__(self) -> None:
        self.batches: dict[str, list[tuple[int, list[int]]]] = {
            "train": [], "sanity_check": [], "validate": [], "test": [], "predict": []
        }  # fmt: skip

    def see(self, t: pl.Trainer, m: Any, batch: Any, *_: Any) -> None:
        stage = t.state.stage
        assert stage is not None
        self.batches[stage.value].append((t.current_epoch, batch[1].tolist()))

    on_train_batch_start = on_validation_batch_start = see  # type: ignore[assignment]
    on_test_batch_start = on_predict_batch_start = see  # type: ignore[assignment]

    def counts(self) -> dict[str, int]:
        return {stage: len(batches) for stage, batches in self.batches.items() if batches}

    def labels(self, stage: str) -> list[list[int]]:
        return [labels for _, labels in self.batches[stage]]


class Weights(pl.Callback):
    """Keep the weights after every optimizer step and at the start of every epoch."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []
        self.epochs: list[Tensor] = []

    def on_train_epoch_start(self, t: pl.Trainer, m: Any) -> None:
        self.epochs.append(flat(m))

    def on_train_batch_end(self, t: pl.Trainer, m: Any, *_: Any) -> None:
        self.steps.append(flat(m))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def assert_equal(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


def linear(recipe: Recipe | str = PLAIN_SGD) -> ImageClassifier:
    """Return a classifier without BatchNorm, always with the same weights."""
    torch.manual_seed(1)
    return ImageClassifier(Flat(), recipe, num_classes=10)


def resnet(recipe: Recipe | str = PLAIN_SGD, **options: Any) -> ImageClassifier:
    torch.manual_seed(1)
    return ImageClassifier(CustomResNet(width=1, **options), recipe)


def fitted(
    data_dir: Path,
    folder: Path,
    model: ImageClassifier | None = None,
    data: CIFAR10DataModule | None = None,
    **options: Any,
) -> ImageClassifier:
    """Return a classifier after ten steps of 100 images, unless the options change that."""
    model = model or linear()
    trainer(folder, **{"limit_val_batches": 0} | options).fit(model, data or small(data_dir))
    return model


# --- how long a run is ---------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [True, 2])
def test_fast_dev_run_is_a_batch_of_each_stage_and_writes_nothing(
    data_dir: Path, tmp_path: Path, batches: int
) -> None:
    seen, model, data = Seen(), resnet("sgd"), small(data_dir)
    t = pl.Trainer(
        accelerator="cpu", fast_dev_run=batches, default_root_dir=tmp_path, callbacks=[seen],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    t.fit(model, data)
    t.test(model, data, verbose=False)
    t.predict(model, data)
    assert seen.counts() == dict.fromkeys(("train", "validate", "test", "predict"), int(batches))
    assert t.global_step == batches
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        ({"train": 3, "val": 4, "test": 2, "predict": 5}, (3, 4, 2, 5)),
        # of 10, 490, 100 and 100 batches
        ({"train": 0.35, "val": 0.01, "test": 0.03, "predict": 0.02}, (3, 4, 3, 2)),
        ({"train": 0, "val": 0, "test": 0, "predict": 0}, (0, 0, 0, 0)),
    ],
)
def test_limits_select_the_first_batches(
    data_dir: Path, tmp_path: Path, limits: dict[str, Any], counts: tuple[int, ...]
) -> None:
    seen, model, data = Seen(), linear(), small(data_dir)
    options = {f"limit_{stage}_batches": limit for stage, limit in limits.items()}
    t = trainer(tmp_path, callbacks=[seen], num_sanity_val_steps=0, **options)
    t.fit(model, data)
    t.test(model, data, verbose=False)
    t.predict(model, data)
    whole = small(data_dir)
    whole.setup()
    for stage, loader, count in zip(
        ("train", "validate", "test", "predict"),
        (
            whole.train_dataloader(), whole.val_dataloader(),
            whole.test_dataloader(), whole.predict_dataloader(),
        ),
        counts,
        strict=True,
    ):  # fmt: skip
        expected = [labels.tolist() for _, labels in itertools.islice(loader, count)]
        assert seen.labels(stage) == expected


@pytest.mark.parametrize("steps", [7, 10, 13])
def test_max_steps_ends_after_exactly_so_many(data_dir: Path, tmp_path: Path, steps: int) -> None:
    collect = Collect()
    t = trainer(tmp_path, max_steps=steps, max_epochs=-1, callbacks=[collect], limit_val_batches=0)
    t.fit(linear("sgd"), small(data_dir))
    recipe = Recipe.preset("sgd")
    factors = [recipe.learning_rate_factor((k + 0.5) / steps) for k in range(steps)]
    assert t.global_step == len(collect.losses) == steps
    assert collect.rates == pytest.approx([recipe.learning_rate * factor for factor in factors])


def test_max_time_ends_a_run_without_any_other_limit(data_dir: Path, tmp_path: Path) -> None:
    data = small(data_dir)
    t = trainer(tmp_path, max_epochs=-1, max_time=timedelta(seconds=0.3), limit_val_batches=0)
    model = linear()
    t.fit(model, data)
    assert t.global_step > 0
    as_many = fitted(data_dir, tmp_path, data=data, max_epochs=-1, max_steps=t.global_step)
    assert torch.equal(flat(model), flat(as_many))


def test_early_stopping_and_min_epochs(data_dir: Path, tmp_path: Path) -> None:
    for name, least in (("val_acc", 1), ("train_loss_epoch", 1), ("val_loss", 3)):
        stop = EarlyStopping(name, stopping_threshold=-1.0, mode="max")  # any value is above it
        t = trainer(
            tmp_path, max_epochs=5, min_epochs=least, callbacks=[stop], limit_val_batches=1,
            limit_train_batches=2,
        )  # fmt: skip
        t.fit(linear(), small(data_dir))
        assert t.current_epoch == least
        assert stop.stopped_epoch == least - 1


@pytest.mark.parametrize("end", [{"max_epochs": 0}, {"max_steps": 0}])
def test_no_epochs(data_dir: Path, tmp_path: Path, end: dict[str, int]) -> None:
    before = flat(linear("sgd"))
    assert torch.equal(before, flat(fitted(data_dir, tmp_path, linear("sgd"), **end)))


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1, 0.2])
@pytest.mark.parametrize("feeding", [small, per_sample])
def test_overfit_batches_shows_the_first_images_again(
    data_dir: Path, tmp_path: Path, feeding: Any, share: float
) -> None:
    seen, data = Seen(), feeding(data_dir, batch_size=100)
    validating = {"check_val_every_n_epoch": 1 if share == 1 else 4, "num_sanity_val_steps": 0}
    t = trainer(tmp_path, max_epochs=3, overfit_batches=share, callbacks=[seen], **validating)
    t.fit(linear(), data)
    count = 1 if share == 1 else 2
    first = data._arrays.train_labels[data._split["train"][: 100 * count]].reshape(count, 100)
    assert seen.labels("train") == first.tolist() * 3
    held_out = data._arrays.train_labels[data._split["val"][:100]].tolist()
    assert seen.labels("validate") == ([held_out] * 3 if share == 1 else [])


def test_accumulated_batches_are_one_batch(data_dir: Path, tmp_path: Path) -> None:
    whole, parts = Collect(), Collect()
    # in double precision, because training amplifies rounding errors
    expected = fitted(
        data_dir, tmp_path, linear("sgd"), callbacks=[whole], max_epochs=2, precision="64-true"
    )
    got = fitted(
        data_dir, tmp_path, linear("sgd"), small(data_dir, batch_size=25),
        accumulate_grad_batches=4, callbacks=[parts], max_epochs=2, precision="64-true",
    )  # fmt: skip
    assert len(parts.losses) == 4 * len(whole.losses)
    torch.testing.assert_close(flat(got), flat(expected), rtol=1e-9, atol=1e-12)
    # each is divided by four, so that their gradients add up to the mean
    np.testing.assert_allclose(np.reshape(parts.losses, (-1, 4)).sum(1), whole.losses, rtol=1e-9)


def test_the_remaining_batches_of_an_epoch_are_a_step_too(data_dir: Path, tmp_path: Path) -> None:
    collect = Collect()
    t = trainer(
        tmp_path, accumulate_grad_batches=4, callbacks=[collect], limit_val_batches=0, max_epochs=2
    )
    t.fit(linear("sgd"), small(data_dir))
    assert t.global_step == 6  # of 4, 4 and 2 batches, twice
    recipe = Recipe.preset("sgd")
    rates = [recipe.learning_rate * recipe.learning_rate_factor((k + 0.5) / 6) for k in range(6)]
    assert collect.rates == pytest.approx(np.repeat(rates, [4, 4, 2, 4, 4, 2]))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("feeding", [small, per_sample])
def test_reloaded_loaders_continue(
    data_dir: Path, tmp_path: Path, feeding: Any, every: int
) -> None:
    options: dict[str, Any] = {"max_epochs": 3, "limit_train_batches": 3}
    expected = fitted(data_dir, tmp_path, data=feeding(data_dir), **options)
    again = fitted(
        data_dir, tmp_path, data=feeding(data_dir), reload_dataloaders_every_n_epochs=every,
        **options,
    )  # fmt: skip
    assert torch.equal(flat(again), flat(expected))


# --- gradients and averages ----------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_by_value(
    data_dir: Path, tmp_path: Path, optimizer: Any, precision: str
) -> None:
    before: list[float] = []
    after: list[float] = []

    def largest(m: nn.Module) -> float:
        return max(p.grad.abs().max().item() for p in m.parameters() if p.grad is not None)

    class Largest(pl.Callback):
        def on_before_optimizer_step(self, t: pl.Trainer, m: Any, optimizer: Any) -> None:
            before.append(largest(m))

        def on_before_zero_grad(self, t: pl.Trainer, m: Any, optimizer: Any) -> None:
            if before:
                after.append(largest(m))

    fitted(
        data_dir, tmp_path, resnet(replace(PLAIN_SGD, optimizer=optimizer)), precision=precision,
        gradient_clip_val=1e-4, gradient_clip_algorithm="value", limit_train_batches=3,
        callbacks=[Largest()],
    )  # fmt: skip
    assert min(before) > 1e-3
    assert after == pytest.approx([1e-4, 1e-4])


def swa(folder: Path, data_dir: Path, model: ImageClassifier) -> tuple[Weights, pl.Trainer]:
    weights = Weights()
    average = StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2, annealing_epochs=1)
    t = trainer(folder, max_epochs=4, callbacks=[weights, average], limit_val_batches=0)
    t.fit(model, small(data_dir))
    return weights, t


# Our schedule, stepped after every batch, is replaced by that of the callback.
swa_warns = pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")


@swa_warns
def test_stochastic_weight_averaging(data_dir: Path, tmp_path: Path) -> None:
    """It averages the weights at the start of each epoch, beginning with the second."""
    model = linear("sgd")
    weights, t = swa(tmp_path, data_dir, model)
    assert t.global_step == 40
    assert_equal(flat(model), torch.stack(weights.epochs[1:]).mean(0))
    assert t.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.02)


@swa_warns
def test_batch_norm_under_stochastic_weight_averaging(data_dir: Path, tmp_path: Path) -> None:
    """The callback recomputes the statistics in an additional epoch.

    Lightning 2.6 intends to do this without optimizer steps, but ends it with one, which uses the
    gradients left from the last training step.
    """
    model = resnet("sgd")
    norm = model.network.prep[2]
    means: list[Tensor] = []
    norm.register_forward_hook(lambda m, inputs, output: means.append(inputs[0].mean((0, 2, 3))))
    weights, _ = swa(tmp_path, data_dir, model)
    assert len(means) == 50
    assert_equal(weights.steps[48], torch.stack(weights.epochs[1:4]).mean(0))
    torch.testing.assert_close(norm.running_mean, torch.stack(means[40:]).mean(0).detach())


class Scores(pl.Callback):
    """Keep the weights that are validated."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_validation_batch_start(self, t: pl.Trainer, m: Any, *_: Any) -> None:
        if not t.sanity_checking:
            self.weights.append(flat(m))


@pytest.mark.parametrize("exponential", [False, True])
def test_weight_averaging(data_dir: Path, tmp_path: Path, exponential: bool) -> None:
    average = EMAWeightAveraging(decay=0.8) if exponential else WeightAveraging()
    weights, validated, model = Weights(), Scores(), linear("sgd")
    t = trainer(
        tmp_path, max_epochs=2, callbacks=[weights, average, validated], limit_val_batches=1
    )
    t.fit(model, small(data_dir))

    def averaged(steps: list[Tensor]) -> Tensor:
        if not exponential:
            return torch.stack(steps).mean(0)
        first, *rest = steps
        for step in rest:
            first = 0.8 * first + 0.2 * step
        return first

    assert_equal(flat(model), averaged(weights.steps))
    assert_equal(validated.weights[0], averaged(weights.steps[:10]))
    assert_equal(validated.weights[1], averaged(weights.steps))
    plain = Weights()
    fitted(data_dir, tmp_path, linear("sgd"), callbacks=[plain], max_epochs=2)
    assert torch.equal(torch.stack(plain.steps), torch.stack(weights.steps))


@pytest.mark.parametrize("stop_after", [4, 10, 13])
def test_a_resumed_run_goes_on_with_its_averages(
    data_dir: Path, tmp_path: Path, stop_after: int
) -> None:
    class Stop(pl.callbacks.Checkpoint):
        def on_train_batch_end(self, t: pl.Trainer, m: Any, *_: Any) -> None:
            if t.global_step == stop_after:
                t.save_checkpoint(tmp_path / "middle.ckpt")
                t.should_stop = True

    def run(*callbacks: pl.Callback, checkpoint: Path | None = None) -> ImageClassifier:
        model = resnet("sgd")
        t = trainer(
            tmp_path, max_epochs=2, limit_val_batches=0, enable_checkpointing=bool(callbacks),
            callbacks=[EMAWeightAveraging(decay=0.8), *callbacks],
        )  # fmt: skip
        t.fit(model, small(data_dir), ckpt_path=checkpoint, weights_only=True)
        return model

    whole, stopped = run(), run(Stop())
    saved = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert all(torch.equal(saved["state_dict"][n], v) for n, v in stopped.state_dict().items())
    assert any(
        not torch.equal(saved["state_dict"][n], v) for n, v in saved["current_model_state"].items()
    )
    resumed = run(checkpoint=tmp_path / "middle.ckpt")
    assert all(torch.equal(whole.state_dict()[n], v) for n, v in resumed.state_dict().items())


# --- validation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({"val_check_interval": 4}, [4, 8, 14, 18]),
        ({"val_check_interval": 0.25}, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        ({"val_check_interval": 15, "check_val_every_n_epoch": None}, [15]),
        ({"check_val_every_n_epoch": 2}, [20]),
        ({}, [10, 20]),
    ],
)
def test_validation_runs_on_time_and_does_not_change_training(
    data_dir: Path, tmp_path: Path, options: dict[str, Any], after: list[int]
) -> None:
    steps = []

    class When(pl.Callback):
        def on_validation_start(self, t: pl.Trainer, *_: Any) -> None:
            if not t.sanity_checking:
                steps.append(t.global_step)

    seen, alone = Seen(), Seen()
    logger = CSVLogger(tmp_path, name="", version="log")
    with_it = fitted(
        data_dir, tmp_path, resnet("sgd"), max_epochs=2, limit_val_batches=3, logger=logger,
        num_sanity_val_steps=2, callbacks=[seen, When()], **options,
    )  # fmt: skip
    without = fitted(data_dir, tmp_path, resnet("sgd"), max_epochs=2, callbacks=[alone])
    assert steps == after
    assert seen.batches["train"] == alone.batches["train"]
    assert seen.labels("validate") == seen.labels("validate")[:3] * len(after)
    assert seen.labels("sanity_check") == seen.labels("validate")[:2]
    assert all(torch.equal(v, without.state_dict()[n]) for n, v in with_it.state_dict().items())
    logged = read_curves(tmp_path / "log")
    assert len(logged["val_acc"][1]) == len(after)
    assert len(logged["train_loss_epoch"][1]) == 2


def test_validation_within_an_epoch_uses_all_images(data_dir: Path, tmp_path: Path) -> None:
    seen = Seen()
    data = CIFAR10DataModule(data_dir, val_split=45_000, batch_size=1000)
    fitted(
        data_dir, tmp_path, data=data, callbacks=[seen], limit_val_batches=1.0,
        val_check_interval=2, num_sanity_val_steps=0,
    )  # fmt: skip
    assert seen.counts() == {"train": 5, "validate": 2 * 45}
    held_out = data._arrays.train_labels[data._split["val"]].tolist()
    shown = seen.labels("validate")
    assert list(itertools.chain(*shown[:45])) == list(itertools.chain(*shown[45:])) == held_out


# --- other stages --------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("feeding", [small, per_sample])
def test_predict_gives_scores_in_order(
    data_dir: Path, tmp_path: Path, feeding: Any, inference: bool
) -> None:
    model, data = resnet(), feeding(data_dir, batch_size=100)
    model.train()
    t = trainer(tmp_path, inference_mode=inference, limit_predict_batches=7)
    predicted = t.predict(model, data)
    assert [scores.shape for scores in predicted] == [(100, 10)] * 7
    assert all(scores.is_inference() == inference for scores in predicted)
    assert not any(scores.requires_grad for scores in predicted)
    assert model.training  # restored
    model.eval()
    data.trainer = None
    with torch.no_grad():
        expected = [model(x) for x, _ in itertools.islice(data.predict_dataloader(), 7)]
    torch.testing.assert_close(torch.cat(predicted), torch.cat(expected))


def test_validate_and_test_without_fit_change_nothing(data_dir: Path, tmp_path: Path) -> None:
    model, data = resnet(), small(data_dir, batch_size=1000)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    t = trainer(tmp_path, limit_val_batches=5, limit_test_batches=5)
    (val,) = t.validate(model, data, verbose=False)
    (test,) = t.test(model, data, verbose=False)
    for stage, metrics, loader in (
        ("val", val, data.val_dataloader()), ("test", test, data.test_dataloader())
    ):  # fmt: skip
        model.eval()
        with torch.no_grad():
            right = [model(x).argmax(1) == y for x, y in itertools.islice(loader, 5)]
        assert metrics[f"{stage}_acc"] == pytest.approx(torch.cat(right).double().mean().item())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert t.global_step == 0


def test_a_run_after_a_test_is_the_same_run(data_dir: Path, tmp_path: Path) -> None:
    model, data = resnet("sgd"), small(data_dir)
    t = trainer(tmp_path, limit_val_batches=2, limit_test_batches=2)
    t.test(model, data, verbose=False)
    t.validate(model, data, verbose=False)
    t.fit(model, data)
    assert torch.equal(flat(model), flat(fitted(data_dir, tmp_path, resnet("sgd"))))


# --- again ---------------------------------------------------------------------------------------


def test_a_trainer_with_more_epochs_continues(data_dir: Path, tmp_path: Path) -> None:
    model, data = linear(), small(data_dir)
    t = trainer(tmp_path, limit_val_batches=0)
    t.fit(model, data)
    once = flat(model)
    t.fit(model, data)  # it has already trained the requested number of epochs
    assert torch.equal(flat(model), once)
    t.fit_loop.max_epochs = 2
    t.fit(model, data)
    assert t.global_step == 20
    assert torch.equal(flat(model), flat(fitted(data_dir, tmp_path, max_epochs=2)))


def test_a_second_trainer_trains_the_model_further(data_dir: Path, tmp_path: Path) -> None:
    model, data, seen, collect = linear("sgd"), small(data_dir), Seen(), Collect()
    logger = CSVLogger(tmp_path, name="", version="log")
    fitted(data_dir, tmp_path, model, data, callbacks=[seen])
    fitted(data_dir, tmp_path, model, data, callbacks=[seen, collect], max_steps=6, logger=logger)
    labels = seen.labels("train")
    assert labels == labels[:10] + labels[:6]
    recipe = Recipe.preset("sgd")
    rates = [recipe.learning_rate * recipe.learning_rate_factor((k + 0.5) / 6) for k in range(6)]
    assert collect.rates == pytest.approx(rates)
    loss = read_curves(tmp_path / "log")["train_loss_epoch"][1]
    assert loss == pytest.approx([np.mean(collect.losses)])


# --- finders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("feeding", "mode"), [(small, "power"), (per_sample, "binsearch")])
def test_batch_size_finder(data_dir: Path, tmp_path: Path, feeding: Any, mode: str) -> None:
    finder = BatchSizeFinder(mode, steps_per_trial=2, init_val=8, max_trials=3, margin=0.0)
    model, data = resnet("sgd"), feeding(data_dir)
    fitted(data_dir, tmp_path, model, data, callbacks=[finder])
    assert finder.optimal_batch_size == data.batch_size == 32
    plain = fitted(data_dir, tmp_path, resnet("sgd"), feeding(data_dir, batch_size=32))
    assert all(torch.equal(v, plain.state_dict()[n]) for n, v in model.state_dict().items())
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("feeding", [small, per_sample])
def test_batch_size_finder_stops_at_the_number_of_images(
    data_dir: Path, tmp_path: Path, feeding: Any
) -> None:
    data = feeding(data_dir, batch_size=8)
    finder = BatchSizeFinder(steps_per_trial=1, init_val=512)
    fitted(data_dir, tmp_path, data=data, callbacks=[finder])
    assert finder.optimal_batch_size == data.batch_size == 1024  # all of the 1,000


def test_learning_rate_finder(data_dir: Path, tmp_path: Path) -> None:
    finder = LearningRateFinder(num_training_steps=9, update_attr=False)
    model = fitted(data_dir, tmp_path, resnet(), callbacks=[finder])
    assert finder.optimal_lr is not None
    assert finder.optimal_lr.results["lr"][0] == 1e-8
    assert finder.optimal_lr.results["lr"][8] == pytest.approx(1)
    assert 1e-8 < finder.optimal_lr.suggestion(skip_begin=1) <= 1
    plain = fitted(data_dir, tmp_path, resnet())
    assert all(torch.equal(v, plain.state_dict()[n]) for n, v in model.state_dict().items())
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("name", Recipe.presets())
def test_learning_rate_finder_sets_the_rate(data_dir: Path, tmp_path: Path, name: str) -> None:
    finder, collect = LearningRateFinder(num_training_steps=30), Collect()
    model = fitted(
        data_dir,
        tmp_path,
        resnet(name, **Recipe.preset(name).network_options()),
        small(data_dir, batch_size=25),
        callbacks=[collect, finder],
    )  # fmt: skip
    assert finder.optimal_lr is not None
    found = finder.optimal_lr.suggestion()
    assert found is not None
    assert model.recipe == replace(Recipe.preset(name), learning_rate=found)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=found)
    scheduler, rates = make_scheduler(optimizer, model.recipe, 40), []
    for _ in range(40):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert collect.rates == pytest.approx(rates)
    assert Recipe(**model.hparams["recipe"]) == model.recipe


# --- what is written -----------------------------------------------------------------------------


def test_several_loggers_hold_the_same_values(data_dir: Path, tmp_path: Path) -> None:
    loggers = [
        TensorBoardLogger(tmp_path, name="", version="board"),
        CSVLogger(tmp_path, name="", version="table"),
    ]
    fitted(
        data_dir, tmp_path, max_epochs=2, logger=loggers, log_every_n_steps=2, limit_val_batches=2
    )
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    table = read_curves(tmp_path / "table")
    assert set(table) >= {"train_loss_step", "train_acc_step", "train_loss_epoch", "val_acc"}
    for name, (_, values) in table.items():
        assert values == pytest.approx([event.value for event in board.Scalars(name)])


def test_without_logger_and_checkpoints_nothing_is_written(data_dir: Path, tmp_path: Path) -> None:
    model, data = linear(), small(data_dir)
    t = trainer(tmp_path, limit_val_batches=1, limit_test_batches=1, log_every_n_steps=1)
    t.fit(model, data)
    t.test(model, data, verbose=False)
    assert set(t.callback_metrics) == {"test_loss", "test_acc"}
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_every_few_steps_and_the_best_ones(data_dir: Path, tmp_path: Path) -> None:
    class Losses(pl.Callback):
        def __init__(self) -> None:
            self.values: dict[int, float] = {}

        def on_validation_end(self, t: pl.Trainer, *_: Any) -> None:
            self.values[t.global_step] = t.callback_metrics["val_loss"].item()

    weights, losses, model = Weights(), Losses(), linear()
    steps = ModelCheckpoint(
        tmp_path / "steps", "{step}", every_n_train_steps=3, save_top_k=-1, save_last=True
    )
    best = ModelCheckpoint(tmp_path / "best", "{step}", monitor="val_loss", save_top_k=2)
    fitted(
        data_dir, tmp_path, model, callbacks=[weights, losses, steps, best], limit_val_batches=2,
        val_check_interval=2, enable_checkpointing=True, num_sanity_val_steps=0,
    )  # fmt: skip
    saved = {path.stem: path for path in (tmp_path / "steps").iterdir()}
    assert set(saved) == {"step=3", "step=6", "step=9", "last"}
    for name, path in saved.items():
        step = 9 if name == "last" else int(name.removeprefix("step="))
        loaded = ImageClassifier.load_from_checkpoint(
            path, network=Flat(), num_classes=10, weights_only=True
        )
        assert torch.equal(flat(loaded), weights.steps[step - 1])
        assert loaded.recipe == PLAIN_SGD
    least = sorted(losses.values, key=losses.values.__getitem__)[:2]
    assert set(losses.values) == {2, 4, 6, 8, 10}
    assert {path.name for path in (tmp_path / "best").iterdir()} == {
        f"step={s}.ckpt" for s in least
    }
    assert best.best_model_path.endswith(f"step={least[0]}.ckpt")


# --- how it is computed --------------------------------------------------------------------------


@pytest.mark.parametrize("name", Recipe.presets())
def test_deterministic_runs_are_the_same_run(data_dir: Path, tmp_path: Path, name: str) -> None:
    recipe = replace(Recipe.preset(name), cutout=8)
    try:
        runs = [
            fitted(
                data_dir, tmp_path, resnet(recipe, **recipe.network_options()),
                small(data_dir, **recipe.data_options() | {"batch_size": 100}),
                deterministic=True, limit_train_batches=4,
            ).state_dict()
            for _ in range(2)
        ]  # fmt: skip
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize(
    ("precision", "weights", "scores"),
    [
        ("32-true", torch.float32, torch.float32),
        ("64-true", torch.float64, torch.float64),
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("16-true", torch.float16, torch.float16),
        pytest.param(
            "16-mixed", torch.float32, torch.bfloat16,
            # Lightning uses bfloat16 instead
            marks=pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU"),
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("feeding", [small, per_sample])
def test_every_precision_of_a_cpu(
    data_dir: Path, tmp_path: Path, precision: str, weights: Any, scores: Any, feeding: Any
) -> None:
    collect, reference = Collect(), Collect()
    model, data = linear("adam"), feeding(data_dir, batch_size=100)
    t = trainer(
        tmp_path, precision=precision, callbacks=[collect], limit_train_batches=5,
        limit_val_batches=2, limit_test_batches=2, limit_predict_batches=2,
    )  # fmt: skip
    t.fit(model, data)
    assert model.network.linear.weight.dtype == weights
    fitted(
        data_dir, tmp_path, linear("adam"), feeding(data_dir, batch_size=100),
        callbacks=[reference], limit_train_batches=5,
    )  # fmt: skip
    np.testing.assert_allclose(collect.losses, reference.losses, rtol=0.05)
    assert np.isfinite(t.test(model, data, verbose=False)[0]["test_loss"])
    assert torch.cat(t.predict(model, data)).dtype == scores


@pytest.mark.parametrize(
    "options", [{"profiler": "simple"}, {"detect_anomaly": True}, {"benchmark": True}]
)
def test_profiling_and_anomaly_detection_do_not_change_a_run(
    data_dir: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    watched = fitted(data_dir, tmp_path, resnet("sgd"), **options)
    assert torch.equal(flat(watched), flat(fitted(data_dir, tmp_path, resnet("sgd"))))


@pytest.mark.filterwarnings("ignore:.*was called without a model:UserWarning")
@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available:UserWarning")
@pytest.mark.parametrize(
    "callback",
    [
        lambda _: Timer("00:00:10:00"),
        lambda _: DeviceStatsMonitor(cpu_stats=True),
        lambda _: RichProgressBar(),
        lambda folder: OnExceptionCheckpoint(folder),
    ],
)
def test_callbacks_that_watch_do_not_change_a_run(
    data_dir: Path, tmp_path: Path, callback: Any
) -> None:
    watch = callback(tmp_path)
    options: dict[str, Any] = {"enable_progress_bar": isinstance(watch, RichProgressBar)}
    if isinstance(watch, DeviceStatsMonitor):
        options["logger"] = CSVLogger(tmp_path)
    if isinstance(watch, OnExceptionCheckpoint):
        options["enable_checkpointing"] = True
    watched = fitted(data_dir, tmp_path, resnet("muon"), callbacks=[watch], **options)
    assert torch.equal(flat(watched), flat(fitted(data_dir, tmp_path, resnet("muon"))))


def test_pruning_reaches_its_fraction(data_dir: Path, tmp_path: Path) -> None:
    """Muon, which keeps the norm of a kernel, must not revive weights that were removed."""
    pruning = ModelPruning("l1_unstructured", amount=0.25, use_lottery_ticket_hypothesis=False)
    model = fitted(data_dir, tmp_path, resnet("muon"), callbacks=[pruning])
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    removed = sum(int((weight == 0).sum()) for weight in weights)
    assert removed >= 0.25 * sum(weight.numel() for weight in weights) - len(weights)


def test_a_profiler_records_every_step(data_dir: Path, tmp_path: Path) -> None:
    t = trainer(tmp_path, profiler="simple", limit_val_batches=0)
    t.fit(linear(), small(data_dir))
    seen = t.profiler.recorded_durations
    assert len(seen["run_training_batch"]) == 10
    assert len(seen["[_TrainingEpochLoop].train_dataloader_next"]) == 10


def test_anomaly_detection_names_the_function(data_dir: Path, tmp_path: Path) -> None:
    class Root(Flat):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (0 * x).abs().sqrt().mean() * self.linear.bias.sqrt().sum()

    model = ImageClassifier(Root(), PLAIN_SGD, num_classes=10)
    nn.init.zeros_(model.network.linear.bias)
    with (
        pytest.warns(UserWarning, match="Error detected in SqrtBackward0"),
        pytest.raises(RuntimeError, match="'SqrtBackward0' returned nan values"),
    ):
        fitted(data_dir, tmp_path, model, detect_anomaly=True)
    assert not torch.is_anomaly_enabled()


@pytest.mark.filterwarnings("ignore:You are trying to `self.log\\(\\)` but")
def test_barebones(data_dir: Path, tmp_path: Path) -> None:
    model = resnet("sgd")
    t = pl.Trainer(
        accelerator="cpu", max_epochs=1, barebones=True, default_root_dir=tmp_path,
        limit_val_batches=1,
    )  # fmt: skip
    t.fit(model, small(data_dir))
    assert torch.equal(flat(model), flat(fitted(data_dir, tmp_path, resnet("sgd"))))
    assert list(tmp_path.iterdir()) == []
