"""ImageClassifier: the same numbers as a loop by hand, logging, schedule, checkpoints, faults."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from sklearn.metrics import accuracy_score, log_loss
from test_datamodule import trainer
from torch import nn

from cifar_resnet import CIFAR10DataModule, CustomResNet, ImageClassifier, Recipe
from cifar_resnet.curves import read_curves
from cifar_resnet.views import six_view_scores


class Collect(pl.Callback):
    """Keeps the loss and the learning rate of every training step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, t: pl.Trainer, *_: Any) -> None:
        self.rates.append(t.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, t: pl.Trainer, m: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"].item())


def small(data_dir: Path, **options: Any) -> CIFAR10DataModule:
    return CIFAR10DataModule(data_dir, **{"val_split": 49_000, "batch_size": 100} | options)


class Flat(nn.Module):
    """A network of somebody else's, which returns logits."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3072, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("name", Recipe.presets())
def test_losses_equal_those_of_a_loop_by_hand(data_dir: Path, tmp_path: Path, name: str) -> None:
    recipe = replace(Recipe.preset(name), learning_rate=1e-3)
    torch.manual_seed(5)
    network = CustomResNet(width=4)
    collect = Collect()
    torch.manual_seed(5)
    by_hand = CustomResNet(width=4).double()
    options = recipe.data_options() | {"batch_size": 100}
    # in double precision, since training spreads a difference in the last bit of a float
    trainer(tmp_path, callbacks=[collect], limit_val_batches=0, precision="64-true").fit(
        ImageClassifier(network, recipe), small(data_dir, **options)
    )

    data = small(data_dir, **options)
    data.setup()
    loader = data.train_dataloader()
    if name == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(by_hand.parameters(), lr=1e-3)
        rates = [recipe.learning_rate] * 10
        smoothing = 0.0
    else:
        optimizer = torch.optim.SGD(
            by_hand.parameters(),
            lr=1,
            momentum=0.9,
            nesterov=True,
            weight_decay=recipe.weight_decay,
        )
        peak, smoothing = recipe.learning_rate, recipe.label_smoothing
        # ten steps, the middle of each; a fifth of the run goes up
        rates = [peak * min((k + 0.5) / 10 / 0.2, (1 - (k + 0.5) / 10) / 0.8) for k in range(10)]
    losses = []
    for (images, labels), rate in zip(loader, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        logits = by_hand.logits(images.double())
        targets = F.one_hot(labels, 10) * (1 - smoothing) + smoothing / 10
        loss = -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert collect.rates == pytest.approx(rates)
    np.testing.assert_allclose(collect.losses, losses, rtol=1e-7)


def test_adam_for_one_epoch_has_exactly_the_trace_of_a_plain_loop(
    data_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    collect = Collect()
    trainer(tmp_path, callbacks=[collect], limit_val_batches=0).fit(
        ImageClassifier(CustomResNet(width=4)), small(data_dir)
    )
    torch.manual_seed(5)
    model = CustomResNet(width=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    data = small(data_dir)
    data.setup()
    losses = []
    for images, labels in data.train_dataloader():
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert collect.losses == losses


def test_a_short_training_learns(data_dir: Path, tmp_path: Path) -> None:
    """3 epochs on 8,000 real images: far better than the 10 % of guessing."""
    torch.manual_seed(0)
    data = CIFAR10DataModule(
        data_dir, val_split=42_000, **Recipe.preset("sgd").data_options() | {"batch_size": 200}
    )
    model = ImageClassifier(CustomResNet(width=8), "sgd")
    collect = Collect()
    t = trainer(tmp_path, max_epochs=3, callbacks=[collect], limit_val_batches=0)
    t.fit(model, data)
    assert np.mean(collect.losses[-20:]) < np.mean(collect.losses[:20]) - 0.3
    scores = t.test(model, data, verbose=False)[0]
    assert scores["test_acc"] > 0.33
    assert scores["test_acc_mirror"] > 0.33


def test_logged_names(data_dir: Path, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="log")
    t = trainer(
        tmp_path,
        logger=logger,
        log_every_n_steps=2,
        callbacks=[LearningRateMonitor("step")],
        limit_val_batches=2,
    )
    model, data = ImageClassifier(CustomResNet(width=2), "sgd"), small(data_dir)
    t.fit(model, data)
    scores = t.test(model, data, verbose=False)[0]
    assert set(read_curves(tmp_path / "log")) >= {
        "train_loss_step", "train_loss_epoch", "train_acc_step", "train_acc_epoch",
        "val_loss", "val_acc", "test_loss", "test_acc", "learning_rate",
    }  # fmt: skip
    assert set(scores) == {"test_loss", "test_acc", "test_acc_mirror"}
    plain = ImageClassifier(CustomResNet(width=2))
    scores = trainer(tmp_path, limit_test_batches=1).test(plain, data, verbose=False)[0]
    assert set(scores) == {"test_loss", "test_acc"}


def test_metrics_against_scikit_learn(data_dir: Path, tmp_path: Path) -> None:
    recipe = replace(Recipe.preset("sgd"), test_views="six")
    model, data = ImageClassifier(CustomResNet(width=2), recipe), small(data_dir, batch_size=999)
    t = trainer(tmp_path)
    scores = t.test(model, data, verbose=False)[0]
    model.eval()
    with torch.no_grad():
        views = [
            torch.cat([model(x.flip(3) if mirrored else x) for x, _ in data.test_dataloader()])
            for mirrored in (False, True)
        ]
    labels = data._arrays.test_labels
    assert scores["test_acc"] == pytest.approx(accuracy_score(labels, views[0].argmax(1)))
    assert scores["test_loss"] == pytest.approx(
        log_loss(labels, views[0].double().softmax(1)), rel=1e-5
    )
    both = (views[0] + views[1]).argmax(1)
    assert scores["test_acc_mirror"] == pytest.approx(accuracy_score(labels, both))
    with torch.no_grad():
        six = torch.cat([six_view_scores(model, x) for x, _ in data.test_dataloader()]).argmax(1)
    assert scores["test_acc_six"] == pytest.approx(accuracy_score(labels, six))
    predicted = torch.cat(t.predict(model, data))
    torch.testing.assert_close(predicted, views[0])


@pytest.mark.parametrize("every", [1, 3, 100])
def test_step_and_epoch_values_against_those_of_every_batch(
    data_dir: Path, tmp_path: Path, every: int
) -> None:
    """Unequal batches, so that a mean of means would differ from the mean over the images."""
    logger = CSVLogger(tmp_path, name="", version="log")

    class Watch(Collect):
        def __init__(self) -> None:
            super().__init__()
            self.right: list[int] = []
            self.sizes: list[int] = []

        def on_train_batch_start(self, t: pl.Trainer, m: Any, batch: Any, index: int) -> None:
            m.network.eval()  # so that the scores of the step can be had again
            with torch.no_grad():
                self.right.append((m(batch[0]).argmax(1) == batch[1]).sum().item())
            self.sizes.append(len(batch[1]))

    watch = Watch()
    data = small(data_dir, batch_size=300)
    t = trainer(
        tmp_path, logger=logger, log_every_n_steps=every, callbacks=[watch], limit_val_batches=0
    )
    t.fit(ImageClassifier(CustomResNet(width=2)), data)
    assert watch.sizes == [300, 300, 300, 100]
    logged = read_curves(tmp_path / "log")
    total = sum(watch.sizes)
    loss = np.dot(watch.losses, watch.sizes) / total
    assert logged["train_loss_epoch"][1] == pytest.approx([loss])
    assert logged["train_acc_epoch"][1] == pytest.approx([sum(watch.right) / total])
    if every == 100:
        assert "train_loss_step" not in logged
        return
    steps = range(every - 1, 4, every)
    assert logged["train_loss_step"][1] == pytest.approx([watch.losses[k] for k in steps])
    shares = [watch.right[k] / watch.sizes[k] for k in steps]
    assert logged["train_acc_step"][1] == pytest.approx(shares)


def test_averaged_weights_against_the_formula(data_dir: Path, tmp_path: Path) -> None:
    """Every parameter and BatchNorm statistic follows the moving average, from the start."""

    class Keep(pl.Callback):
        history: list[dict[str, torch.Tensor]] = []  # noqa: RUF012

        def on_train_batch_end(self, t: pl.Trainer, m: Any, *_: Any) -> None:
            state = m.network.state_dict()
            self.history.append({name: value.clone() for name, value in state.items()})

    keep, decay = Keep(), 0.75
    recipe = replace(Recipe.preset("sgd"), ema_decay=decay, learning_rate=0.01)
    model = ImageClassifier(CustomResNet(width=2), recipe)
    t = trainer(tmp_path, callbacks=[keep], limit_val_batches=0, limit_train_batches=6)
    t.fit(model, small(data_dir))
    assert len(keep.history) == 6
    averaged = model.network.state_dict()
    for name in averaged:
        values = [state[name].double() for state in keep.history]
        if name.endswith("num_batches_tracked"):
            continue
        expected = values[0]
        for value in values[1:]:
            expected = decay * expected + (1 - decay) * value
        torch.testing.assert_close(averaged[name].double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(averaged[name], keep.history[-1][name])
    # a test afterwards takes the averaged weights as they are
    t.test(model, small(data_dir), verbose=False)
    assert all(torch.equal(model.network.state_dict()[name], averaged[name]) for name in averaged)


def test_rate_and_decay_of_norm_biases(data_dir: Path, tmp_path: Path) -> None:
    recipe = replace(Recipe.preset("sgd"), norm_bias_lr=64)
    network = CustomResNet(width=2)
    network.prep[2].bias.requires_grad_(False)
    model = ImageClassifier(network, recipe)
    t = trainer(tmp_path, limit_val_batches=0, limit_train_batches=1)
    t.fit(model, small(data_dir))
    others, biases = t.optimizers[0].param_groups
    expected = [
        m.bias for m in network.modules()
        if isinstance(m, nn.BatchNorm2d) and m.bias.requires_grad
    ]  # fmt: skip
    assert [id(p) for p in biases["params"]] == [id(p) for p in expected]
    assert len(expected) == 7
    assert len(others["params"]) + 7 + 1 == len(list(network.parameters()))
    assert biases["initial_lr"] == pytest.approx(64 * recipe.learning_rate)
    assert biases["lr"] == pytest.approx(64 * others["lr"])
    assert biases["weight_decay"] == pytest.approx(recipe.weight_decay / 64)
    assert others["weight_decay"] == recipe.weight_decay


def test_any_module_and_any_loader(tmp_path: Path) -> None:
    dataset = torch.utils.data.TensorDataset(
        torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=16)
    model = ImageClassifier(Flat(), num_classes=10)
    before = model.network.linear.weight.clone()
    t = trainer(tmp_path)
    t.fit(model, loader)
    assert not torch.equal(before, model.network.linear.weight)
    assert "test_acc" in t.test(model, loader, verbose=False)[0]
    images = torch.utils.data.DataLoader(dataset.tensors[0], batch_size=16)
    assert torch.cat(t.predict(model, images)).shape == (64, 10)


def test_the_schedule_counts_optimiser_steps(data_dir: Path, tmp_path: Path) -> None:
    collect = Collect()
    trainer(
        tmp_path, max_epochs=2, callbacks=[collect], limit_val_batches=0, accumulate_grad_batches=5
    ).fit(ImageClassifier(CustomResNet(width=2), "sgd"), small(data_dir))
    recipe = Recipe.preset("sgd")
    expected = [recipe.learning_rate * recipe.learning_rate_factor((k + 0.5) / 4) for k in range(4)]
    assert collect.rates == pytest.approx(np.repeat(expected, 5))


@pytest.mark.parametrize("ema_decay", [0, 0.9])
def test_a_resumed_run_goes_on_exactly(data_dir: Path, tmp_path: Path, ema_decay: float) -> None:
    recipe = replace(Recipe.preset("sgd"), ema_decay=ema_decay)

    def run(checkpoint: Path | None = None, stop: bool = False) -> tuple[list[float], dict, dict]:
        torch.manual_seed(3)
        collect = Collect()
        model = ImageClassifier(CustomResNet(width=2), recipe)
        t = trainer(
            tmp_path, max_epochs=2, callbacks=[collect, *([Stop()] if stop else [])],
            limit_val_batches=0, enable_checkpointing=stop,
        )  # fmt: skip
        with contextlib.suppress(SystemExit):  # how Lightning answers an interrupt
            t.fit(model, small(data_dir), ckpt_path=checkpoint, weights_only=True)
        return collect.losses, model.state_dict(), t.callback_metrics

    class Stop(pl.callbacks.Checkpoint):
        """Saves in the middle of the second epoch, after all other callbacks, as Lightning does."""

        def on_train_batch_end(self, t: pl.Trainer, *_: Any) -> None:
            if t.global_step == 13:
                t.save_checkpoint(tmp_path / "middle.ckpt")
                raise KeyboardInterrupt

    whole, weights, metrics = run()
    first, _, _ = run(stop=True)
    second, resumed, metrics_again = run(tmp_path / "middle.ckpt")
    assert first + second == whole
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert set(metrics) == {"train_loss_epoch", "train_acc_epoch"}
    assert metrics == metrics_again


# --- bad input -----------------------------------------------------------------------------------


def test_a_checkpoint_of_another_width_is_refused(data_dir: Path, tmp_path: Path) -> None:
    t = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    t.fit(ImageClassifier(CustomResNet(width=4), "sgd"), small(data_dir))
    path = tmp_path / "width4.ckpt"
    t.save_checkpoint(path)
    loaded = ImageClassifier.load_from_checkpoint(
        path, network=CustomResNet(width=4), weights_only=True
    )
    assert loaded.recipe == Recipe.preset("sgd")
    message = (
        r"another network: network\.prep\.0\.weight has shape \(4, 3, 3, 3\) in the checkpoint and "
        r"\(8, 3, 3, 3\) here; .* more\. Build the network with the arguments of the saved run"
    )
    other = CustomResNet(width=8)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        ImageClassifier.load_from_checkpoint(path, network=other, weights_only=True)
    assert all(torch.equal(before[n], tensor) for n, tensor in other.state_dict().items())
    with pytest.raises(ValueError, match="is missing from the checkpoint"):
        ImageClassifier.load_from_checkpoint(
            path, network=Flat(), num_classes=10, weights_only=True
        )


@pytest.mark.parametrize("bad_step", [0, 4])
def test_a_loss_that_is_not_finite_stops_the_run(
    data_dir: Path, tmp_path: Path, bad_step: int
) -> None:
    class Poison(pl.Callback):
        def on_train_batch_start(self, t: pl.Trainer, m: Any, batch: Any, index: int) -> None:
            if index == bad_step:
                batch[0].fill_(float("nan"))

    model = ImageClassifier(CustomResNet(width=2))
    collect = Collect()
    with pytest.raises(
        FloatingPointError,
        match=rf"became nan at step {bad_step} \(epoch 0, learning rate 0\.001\)",
    ):
        trainer(tmp_path, callbacks=[Poison(), collect], limit_val_batches=0).fit(
            model, small(data_dir)
        )
    assert len(collect.losses) == bad_step
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("every", "seen"), [(4, 7), (100, 10)], ids=["interval", "epoch end"])
def test_the_first_bad_loss_of_several_collected_is_named(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, seen: int
) -> None:
    """As on a GPU, where losses are looked at together to avoid waiting at every step."""
    monkeypatch.setattr(ImageClassifier, "_check_every", lambda self, device: every)

    class Poison(pl.Callback):
        def on_train_batch_start(self, t: pl.Trainer, m: Any, batch: Any, index: int) -> None:
            if index >= 6:
                batch[0].fill_(float("nan"))

    collect = Collect()
    model = ImageClassifier(CustomResNet(width=2), "sgd")
    with pytest.raises(FloatingPointError, match=r"became nan at step 6 ") as error:
        trainer(tmp_path, limit_val_batches=0, callbacks=[collect, Poison()]).fit(
            model, small(data_dir)
        )
    assert f"learning rate {collect.rates[6]:.3g})" in str(error.value)
    assert len(collect.losses) == seen


def test_a_linear_schedule_needs_an_end(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a run that ends: give the Trainer max_epochs"):
        trainer(tmp_path, max_epochs=-1, limit_val_batches=0).fit(
            ImageClassifier(CustomResNet(width=2), "sgd"), small(data_dir)
        )


def test_frozen_networks_and_wrong_arguments(data_dir: Path, tmp_path: Path) -> None:
    frozen = CustomResNet(width=2).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        trainer(tmp_path, limit_val_batches=0).fit(ImageClassifier(frozen), small(data_dir))
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module, but got 'resnet'"):
        ImageClassifier("resnet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"but got None\. Pass num_classes: Flat does not tell it"):
        ImageClassifier(Flat())
    with pytest.raises(ValueError, match="no recipe 'best'"):
        ImageClassifier(CustomResNet(width=1), "best")
    with pytest.raises(TypeError, match=r"recipe must be a Recipe or one of .* but got 3"):
        ImageClassifier(CustomResNet(width=1), 3)  # type: ignore[arg-type]
