"""ImageClassifier: agreement with a handwritten loop, logging, schedule, checkpoints, bad input."""

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from helpers import Collect, Flat, small, trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cifar_resnet import CIFAR10DataModule, CustomResNet, ImageClassifier, Recipe
from cifar_resnet.training.curves import read_curves
from cifar_resnet.training.muon import Muon
from cifar_resnet.training.tta import six_view_scores


@pytest.mark.parametrize("name", Recipe.presets())
def test_losses_equal_those_of_a_handwritten_loop(
    data_dir: Path, tmp_path: Path, name: str
) -> None:
    recipe = replace(Recipe.preset(name), learning_rate=1e-3)
    torch.manual_seed(5)
    network = CustomResNet(width=4, **recipe.network_options())
    collect = Collect()
    torch.manual_seed(5)
    by_hand = CustomResNet(width=4, **recipe.network_options()).double()
    options = recipe.data_options() | {"batch_size": 100}
    # in double precision, because training amplifies rounding errors
    trainer(tmp_path, callbacks=[collect], limit_val_batches=0, precision="64-true").fit(
        ImageClassifier(network, recipe), small(data_dir, **options)
    )

    data = small(data_dir, **options)
    data.setup()
    # ten steps, evaluated in the middle of each; a fifth of the run is warm-up
    factors = [min((k + 0.5) / 10 / 0.2, (1 - (k + 0.5) / 10) / 0.8) for k in range(10)]
    kernels = [p for p in by_hand.parameters() if p.dim() == 4]
    rest = [p for p in by_hand.parameters() if p.dim() != 4]
    momentum: dict[str, Any] = {"momentum": 0.9, "weight_decay": recipe.weight_decay}
    cycle = None
    if name == "onecycle":
        adam = torch.optim.Adam(by_hand.parameters())
        cycle = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-3, total_steps=10, pct_start=5 / 24)
        optimizers: list[Any] = [(adam, 1e-3)]
    elif name == "adam":
        factors = [1.0] * 10
        optimizers = [(torch.optim.Adam(by_hand.parameters()), 1e-3)]
    elif name == "sgd":
        sgd = torch.optim.SGD(by_hand.parameters(), nesterov=True, **momentum)
        optimizers = [(sgd, 1e-3)]
    else:
        muon = Muon([{"params": kernels, "orthogonal": True}], lr=0.05, momentum=0.9)
        sgd = torch.optim.SGD(rest, nesterov=True, **momentum)
        optimizers = [(muon, recipe.conv_learning_rate), (sgd, 1e-3)]
    smoothing = 0.0 if "adam" in recipe.optimizer else recipe.label_smoothing
    losses, rates = [], []
    for (images, labels), factor in zip(data.train_dataloader(), factors, strict=True):
        logits = by_hand.logits(images.double())
        targets = F.one_hot(labels, 10).double() * (1 - smoothing) + smoothing / 10
        loss = -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()
        by_hand.zero_grad()
        loss.backward()
        for optimizer, rate in optimizers:
            if cycle is None:
                optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
        losses.append(loss.item())
        rates.append(optimizers[-1][0].param_groups[0]["lr"])
        if cycle is not None:
            cycle.step()
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
    """3 epochs on 8,000 real images give far more than the 10 % of guessing."""
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
    recipe = replace(Recipe.preset("sgd"), tta="six")
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
    """The batches are unequal, so that a mean of means differs from the mean over the images."""
    logger = CSVLogger(tmp_path, name="", version="log")

    class Watch(Collect):
        def __init__(self) -> None:
            super().__init__()
            self.right: list[int] = []
            self.sizes: list[int] = []

        def on_train_batch_start(self, t: pl.Trainer, m: Any, batch: Any, index: int) -> None:
            m.network.eval()  # so that the scores of the step can be recomputed
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


def test_callbacks_see_the_values_of_the_epoch(data_dir: Path, tmp_path: Path) -> None:
    seen = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, t: pl.Trainer, *_: Any) -> None:
            seen.append({name: value.item() for name, value in t.callback_metrics.items()})

    logger = CSVLogger(tmp_path, name="", version="log")
    options: dict[str, Any] = {"logger": logger, "limit_val_batches": 0, "callbacks": [Look()]}
    t = trainer(tmp_path, max_epochs=2, limit_train_batches=3, **options)
    t.fit(ImageClassifier(CustomResNet(width=2)), small(data_dir))
    logged = read_curves(tmp_path / "log")
    assert [values["train_loss_epoch"] for values in seen] == logged["train_loss_epoch"][1]
    assert [values["train_acc_epoch"] for values in seen] == logged["train_acc_epoch"][1]
    assert len(seen) == 2


def test_a_run_that_ends_within_an_epoch_logs_the_batches_so_far(
    data_dir: Path, tmp_path: Path
) -> None:
    logger, collect = CSVLogger(tmp_path, name="", version="log"), Collect()

    class Stop(pl.Callback):
        def on_train_batch_end(self, t: pl.Trainer, *_: Any) -> None:
            t.should_stop = t.global_step == 5

    t = trainer(
        tmp_path, logger=logger, log_every_n_steps=3, callbacks=[collect, Stop()],
        limit_val_batches=0,
    )  # fmt: skip
    t.fit(ImageClassifier(CustomResNet(width=2)), small(data_dir))
    assert len(collect.losses) == 5
    logged = read_curves(tmp_path / "log")
    # the third step, and the last one: Lightning logs when it stops
    assert logged["train_loss_step"][1] == pytest.approx([collect.losses[2], collect.losses[4]])
    assert logged["train_loss_epoch"][1] == pytest.approx([np.mean(collect.losses)])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_in_every_precision(
    data_dir: Path, tmp_path: Path, precision: str
) -> None:
    norms = []

    class Norms(pl.Callback):
        def on_before_zero_grad(self, t: pl.Trainer, m: Any, optimizer: Any) -> None:
            gradients = [p.grad for p in m.parameters() if p.grad is not None]
            if gradients:
                norms.append(torch.nn.utils.get_total_norm(gradients).item())

    t = trainer(
        tmp_path, precision=precision, gradient_clip_val=0.01, limit_train_batches=3,
        limit_val_batches=0, callbacks=[Norms()],
    )  # fmt: skip
    t.fit(ImageClassifier(CustomResNet(width=2), "sgd"), small(data_dir))
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)
    assert norms


def test_rate_and_decay_of_norm_biases(data_dir: Path, tmp_path: Path) -> None:
    recipe = replace(Recipe.preset("sgd"), norm_bias_lr_scale=64)
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


def test_the_schedule_counts_optimizer_steps(data_dir: Path, tmp_path: Path) -> None:
    collect = Collect()
    trainer(
        tmp_path, max_epochs=2, callbacks=[collect], limit_val_batches=0, accumulate_grad_batches=5
    ).fit(ImageClassifier(CustomResNet(width=2), "sgd"), small(data_dir))
    recipe = Recipe.preset("sgd")
    expected = [recipe.learning_rate * recipe.learning_rate_factor((k + 0.5) / 4) for k in range(4)]
    assert collect.rates == pytest.approx(np.repeat(expected, 5))


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("stop_after", [13, 20, 25])
def test_a_resumed_run_continues_exactly(
    data_dir: Path, tmp_path: Path, optimizer: Any, stop_after: int
) -> None:
    """Stopped within the second epoch of ten batches, after its last one, and within the third."""
    recipe = replace(Recipe.preset("sgd"), optimizer=optimizer)

    def run(checkpoint: Path | None = None, stop: bool = False) -> tuple[list[float], dict, dict]:
        torch.manual_seed(3)
        collect = Collect()
        model = ImageClassifier(CustomResNet(width=2), recipe)
        t = trainer(
            tmp_path, max_epochs=3, callbacks=[collect, *([Stop()] if stop else [])],
            limit_val_batches=0, enable_checkpointing=stop,
        )  # fmt: skip
        with contextlib.suppress(SystemExit):  # how Lightning answers an interrupt
            t.fit(model, small(data_dir), ckpt_path=checkpoint, weights_only=True)
        return collect.losses, model.state_dict(), t.callback_metrics

    class Stop(pl.callbacks.Checkpoint):
        """Save after all other callbacks, like Lightning's checkpoint callbacks."""

        def on_train_batch_end(self, t: pl.Trainer, *_: Any) -> None:
            if t.global_step == stop_after:
                t.save_checkpoint(tmp_path / "middle.ckpt")
                raise KeyboardInterrupt

    whole, weights, metrics = run()
    first, _, _ = run(stop=True)
    second, resumed, metrics_again = run(tmp_path / "middle.ckpt")
    assert len(first) == stop_after
    assert first + second == whole
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert set(metrics) == {"train_loss_epoch", "train_acc_epoch"}
    assert metrics == metrics_again


def test_two_processes_measure_what_one_does(data_dir: Path, tmp_path: Path) -> None:
    """Compare epoch values under DDP, also after resuming within the epoch, with one process.

    A negligible learning rate keeps the network the same, so that the values must agree.
    """
    script = tmp_path / "ddp.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from dataclasses import replace
from helpers import *
import json

class Stop(pl.callbacks.Checkpoint):
    def on_train_batch_end(self, t, *_):
        if t.global_step == 3:
            t.save_checkpoint({str(tmp_path / "middle.ckpt")!r})
            t.should_stop = True

def run(processes, callbacks=(), **options):
    torch.manual_seed(3)
    network = CustomResNet(width=2)
    for module in network.modules():  # statistics of a batch differ between the processes
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
            module.eps = 1e12
    recipe = replace(Recipe.preset("sgd"), learning_rate=1e-30)
    t = trainer(
        {str(tmp_path)!r}, devices=processes, strategy="ddp" if processes > 1 else "auto",
        limit_val_batches=0, callbacks=list(callbacks), enable_checkpointing=bool(callbacks),
    )
    model = ImageClassifier(network, recipe)
    t.fit(model, small({str(data_dir)!r}, batch_size=100 // processes), **options)
    return {{k: v.item() for k, v in t.callback_metrics.items()}}, t.global_rank

whole, rank = run(2)
run(2, [Stop()])
resumed, rank = run(2, ckpt_path={str(tmp_path / "middle.ckpt")!r}, weights_only=True)
json.dump([whole, resumed], open({str(tmp_path)!r} + f"/rank{{rank}}.json", "w"))
if rank == 0:
    import torch.distributed
    torch.distributed.destroy_process_group()
    json.dump(run(1)[0], open({str(tmp_path)!r} + "/one.json", "w"))
""")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    one = json.loads((tmp_path / "one.json").read_text())
    assert one.keys() == {"train_loss_epoch", "train_acc_epoch"}
    for rank in range(2):
        for values in json.loads((tmp_path / f"rank{rank}.json").read_text()):
            assert values == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_two_processes_train_what_one_does(data_dir: Path, tmp_path: Path, optimizer: str) -> None:
    """Compare the weights and results of two processes with one of twice the batch size.

    There is no BatchNorm, which would use the statistics of each half of a batch.
    """
    script = tmp_path / "ddp.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from dataclasses import replace
from helpers import *
import json

def run(processes):
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.GELU(), nn.Flatten(), nn.Linear(8 * 49, 10)
    )
    recipe = replace(Recipe.preset("muon"), optimizer={optimizer!r}, learning_rate=0.1)
    t = trainer(
        {str(tmp_path)!r}, devices=processes, strategy="ddp" if processes > 1 else "auto",
        max_epochs=3, limit_val_batches=1.0, use_distributed_sampler=True,
    )
    model = ImageClassifier(network, recipe, num_classes=10)
    data = small({str(data_dir)!r}, batch_size=100 // processes)
    t.fit(model, data)
    values = {{k: v.item() for k, v in t.callback_metrics.items()}}
    values |= t.test(model, data, verbose=False)[0]
    name = f"{{processes}}-{{t.global_rank}}.pt"
    torch.save([model.state_dict(), values], Path({str(tmp_path)!r}) / name)
    return t.global_rank

rank = run(2)
if rank == 0:
    import torch.distributed
    torch.distributed.destroy_process_group()
    run(1)
""")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    weights, values = torch.load(tmp_path / "1-0.pt")
    for rank in range(2):
        shared, measured = torch.load(tmp_path / f"2-{rank}.pt")
        # Muon computes in bfloat16, where a rounding error of a gradient can change a step.
        close = {"rtol": 1e-4, "atol": 1e-5} if optimizer == "sgd" else {"rtol": 0, "atol": 0.02}
        for name, tensor in weights.items():
            torch.testing.assert_close(shared[name], tensor, **close)
        assert measured.keys() == values.keys()
        assert {"val_acc", "val_loss", "test_acc", "test_acc_six", "train_acc_epoch"} <= set(values)
        precision = 1e-4 if optimizer == "sgd" else 0.02
        assert measured == pytest.approx(values, rel=precision, abs=precision)


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
        r"different network: network\.prep\.0\.weight has shape \(4, 3, 3, 3\) instead of "
        r"\(8, 3, 3, 3\); .* more\. Build the network with the arguments of the saved run"
    )
    other = CustomResNet(width=8)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        ImageClassifier.load_from_checkpoint(path, network=other, weights_only=True)
    assert all(torch.equal(before[n], tensor) for n, tensor in other.state_dict().items())
    with pytest.raises(ValueError, match="linear.weight is missing"):
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


@pytest.mark.parametrize(
    ("every", "saves", "seen"),
    [(4, False, 8), (100, False, 9), (0, False, 9), (100, True, 8)],
    ids=["logging", "epoch end", "no logging", "saving"],
)
def test_the_first_bad_loss_of_several_is_named(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    saves: bool,
    seen: int,
) -> None:
    """As on a GPU, where several losses are read together to avoid waiting at every step."""
    monkeypatch.setattr(
        ImageClassifier, "_needs_synchronization", staticmethod(lambda device: True)
    )

    class Poison(pl.Callback):
        def on_train_batch_start(self, t: pl.Trainer, m: Any, batch: Any, index: int) -> None:
            if index >= 6:
                batch[0].fill_(float("nan"))

        def on_train_batch_end(self, t: pl.Trainer, *_: Any) -> None:
            if saves and t.global_step in (2, 8):
                t.save_checkpoint(tmp_path / f"{t.global_step}.ckpt")

    collect = Collect()
    model = ImageClassifier(CustomResNet(width=2), "sgd")
    with pytest.raises(FloatingPointError, match=r"became nan at step 6 ") as error:
        trainer(
            tmp_path, limit_val_batches=0, callbacks=[collect, Poison()], log_every_n_steps=every
        ).fit(model, small(data_dir))
    assert f"learning rate {collect.rates[6]:.3g})" in str(error.value)
    assert len(collect.losses) == seen
    assert [path.name for path in tmp_path.glob("*.ckpt")] == (["2.ckpt"] if saves else [])


def test_a_linear_schedule_needs_an_end(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a run of known length: pass max_epochs"):
        trainer(tmp_path, max_epochs=-1, limit_val_batches=0).fit(
            ImageClassifier(CustomResNet(width=2), "sgd"), small(data_dir)
        )


def test_frozen_networks_and_wrong_arguments(data_dir: Path, tmp_path: Path) -> None:
    frozen = CustomResNet(width=2).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        trainer(tmp_path, limit_val_batches=0).fit(ImageClassifier(frozen), small(data_dir))
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module, but got 'resnet'"):
        ImageClassifier("resnet")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"but got None\. Pass num_classes, or set this attribute of the F"
    ):
        ImageClassifier(Flat())
    with pytest.raises(ValueError, match="no recipe 'bets'"):
        ImageClassifier(CustomResNet(width=1), "bets")
    with pytest.raises(TypeError, match=r"recipe must be a Recipe or one of .* but got 3"):
        ImageClassifier(CustomResNet(width=1), 3)  # type: ignore[arg-type]


def test_a_recipe_for_a_different_network_warns() -> None:
    recipe = Recipe.preset("best")
    with pytest.warns(
        UserWarning, match="for a network with norm_first=True, activation='gelu', r"
    ):
        ImageClassifier(CustomResNet(1), recipe)
    ImageClassifier(CustomResNet(1, **recipe.network_options()), recipe)
    ImageClassifier(CustomResNet(1, norm_first=True), "muon")  # a deliberate choice
    ImageClassifier(Flat(), recipe, num_classes=10)  # a network without these options


def test_a_schedule_of_a_subclass_is_not_changed(data_dir: Path, tmp_path: Path) -> None:
    class Own(ImageClassifier):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 100)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    collect = Collect()
    t = trainer(tmp_path, callbacks=[collect], limit_train_batches=4, limit_val_batches=0)
    t.fit(Own(CustomResNet(1), "sgd"), small(data_dir))
    assert collect.rates == pytest.approx([0.01, 0.02, 0.03, 0.04])


def test_labels_may_be_class_probabilities(tmp_path: Path) -> None:
    images, labels = torch.randn(30, 3, 32, 32), torch.arange(30) % 10
    probabilities = (
        0.7 * F.one_hot(labels, 10).float() + 0.3 * F.one_hot(labels.roll(1), 10).float()
    )
    logged = []
    for targets in (labels, probabilities):
        torch.manual_seed(0)
        t = trainer(tmp_path, limit_val_batches=0)
        loader = DataLoader(TensorDataset(images, targets), batch_size=10)
        model = ImageClassifier(CustomResNet(1), replace(Recipe(), learning_rate=1e-9))
        t.fit(model, loader)
        logged.append(t.callback_metrics)
    assert logged[0]["train_acc_epoch"] == logged[1]["train_acc_epoch"]
    assert logged[0]["train_loss_epoch"] != logged[1]["train_loss_epoch"]
