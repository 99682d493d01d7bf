"""The history of the training images is what a hand-written loop computes, and survives all ways
in which a run can be started, stopped, resumed and distributed.
"""

import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning_fabric
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from helpers import Flat, Training, per_sample, same, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    ImageDataModule,
    ImageHistory,
    TrainingHistory,
)


def images(n: int = 60, classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    return rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), labels


def module(n: int = 60, **options: Any) -> ImageDataModule:
    settings: dict[str, Any] = {"batch_size": 16, "val_split": 0, "seed": 3} | options
    return ImageDataModule(images(n), **settings)


def linear(classes: int = 3) -> nn.Module:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Dropout(0.2), nn.Linear(8, classes))
    network.num_classes = classes  # type: ignore[assignment]
    return network


def record(
    folder: Path, data: Any, *others: pl.Callback, epochs: int = 3, model: Any = None,
    recorder: TrainingHistory | None = None, **options: Any,
) -> tuple[ImageHistory, pl.LightningModule]:  # fmt: skip
    recorder = recorder or TrainingHistory()
    model = model or ImageClassifier(linear())
    settings = {"max_epochs": epochs, "limit_val_batches": 0} | options
    trainer(folder, callbacks=[recorder, *others], **settings).fit(model, data)
    return recorder.history, model


class Loop(pl.Callback):
    """Computes the values image by image from the batches, which it identifies by their pixels."""

    def __init__(self, find: Callable[[Tensor, int], list[int]]) -> None:
        self.find = find
        self.values: dict[tuple[int, int], tuple[float, float, float, int]] = {}

    def on_train_batch_start(self, t: pl.Trainer, m: Any, batch: Any, batch_idx: int) -> None:
        x, y = batch
        with torch.random.fork_rng(), torch.no_grad():  # the same dropout as in the step
            scores = m.network(x).double()
        for index, z, label in zip(self.find(x, t.current_epoch), scores, y.tolist(), strict=True):
            p = np.exp(z.numpy()) / np.exp(z.numpy()).sum()
            others = [float(value) for k, value in enumerate(z) if k != label]
            self.values[index, t.current_epoch] = (
                -float(np.log(p[label])), float(z[label]) - max(others), float(p[label]),
                int(np.argmax(p)),
            )  # fmt: skip


def by_pixels(data: ImageDataModule) -> Callable[[Tensor, int], list[int]]:
    """Identify images that are not augmented."""
    data.setup()
    indices = data.indices().tolist()
    dataset = data.train_dataloader().dataset
    known = {dataset[row][0].numpy().tobytes(): index for row, index in enumerate(indices)}
    return lambda x, _: [known[image.contiguous().numpy().tobytes()] for image in x]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"val_split": 12},
        {"subset": 30, "label_noise": 0.4},
        {"drop_last": True},
        {"folds": (1, 3)},
        {"class_subset": (2, 0)},
        {"train_indices": [50, 4, 17, 33, 8, 20, 29, 1], "batch_size": 3},
        {"sampling": "balanced", "imbalance": 3},
    ],
    ids=str,
)
def test_values_are_those_of_a_loop(options: dict[str, Any], tmp_path: Path) -> None:
    if "imbalance" in options or "folds" in options:
        options = {"val_split": 0.1} | options
    data = module(flip="none", crop_padding=0, **options)
    model = ImageClassifier(linear(data.num_classes))
    loop = Loop(by_pixels(data))
    history, _ = record(tmp_path, data, loop, model=model)
    assert history.indices.tolist() == data.indices().tolist()
    assert history.labels.tolist() == data.labels().tolist()
    assert history.changed is not None
    assert history.changed.sum() == (data.labels() != data.labels(clean=True)).sum()
    assert history.class_names == data.classes
    assert history.seen.sum() == len(loop.values)
    for row, index in enumerate(history.indices.tolist()):
        assert history.row(index) == row
        for epoch in range(3):
            entry = (history.loss, history.margin, history.probability, history.prediction)
            own = [values[row, epoch] for values in entry]
            expected = loop.values.get((index, epoch), (np.nan, np.nan, np.nan, -1))
            np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["muon", "sgd"])
def test_the_run_is_the_same_with_and_without_it(
    recipe: str, data_dir: Path, tmp_path: Path
) -> None:
    left = []
    for callbacks in ([], [TrainingHistory()]):
        torch.manual_seed(0)
        network = nn.Sequential(CustomResNet(width=2), nn.Dropout(0.1))
        model = ImageClassifier(network, recipe, num_classes=10)
        data = CIFAR10DataModule(data_dir, subset=300, batch_size=100, val_split=100)
        t = trainer(tmp_path, max_epochs=2, callbacks=callbacks)
        t.fit(model, data)
        left.append((model.state_dict(), torch.get_rng_state(), dict(t.logged_metrics)))
        assert model.step_scores is None
    assert same(left[0], left[1])


def test_a_network_runs_once_for_each_batch(tmp_path: Path) -> None:
    network, calls = linear(), []
    network.register_forward_hook(lambda *_: calls.append(1))
    record(tmp_path, module(), model=ImageClassifier(network))
    assert len(calls) == 3 * 4


# --- resuming -------------------------------------------------------------------------------------


class Stop(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, t: pl.Trainer, *_: Any) -> None:
        if t.global_step == self.step:
            raise RuntimeError("stopped")


@pytest.mark.parametrize("step", [3, 10, 23])  # within and at the end of epochs of 10 steps
@pytest.mark.parametrize("sampled", [False, True])
def test_a_stopped_run_resumes_exactly(
    step: int, sampled: bool, data_dir: Path, tmp_path: Path
) -> None:
    recorders: list[TrainingHistory] = []

    def callbacks() -> list[pl.Callback]:
        recorders.append(TrainingHistory())
        return [recorders[-1]]

    def training(name: str) -> Training:
        each = Training(
            tmp_path / name, data_dir, network=Flat, recipe="sgd", callbacks=callbacks,
            data={"batch_size": 100, "val_split": 49_000}, every_seconds=0.0, limit_val_batches=0,
        )  # fmt: skip
        if sampled:
            each._data_module = lambda: per_sample(data_dir, batch_size=100, subset=400)  # type: ignore[method-assign]
        return each

    steps = step if not sampled else max(step // 2, 1)
    whole, halted = training("whole"), training("halted")
    whole.run()
    with pytest.raises(RuntimeError, match="stopped"):
        halted.run(Stop(steps))
    halted.run()
    expected, history = recorders[0].history, recorders[-1].history
    assert history.seen.all()
    assert np.array_equal(history.loss, expected.loss)
    assert np.array_equal(history.margin, expected.margin)
    assert np.array_equal(history.prediction, expected.prediction)


def checkpoint(folder: Path, data: Any, recorder: TrainingHistory, epochs: int = 1) -> Path:
    model = ImageClassifier(linear())
    t = trainer(folder, max_epochs=epochs, callbacks=[recorder], limit_val_batches=0)
    t.fit(model, data)
    t.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 4}, "other data: seed is 3 instead of 4. Resume with the data of that run"),
        ({"flip": "none"}, "flip is 'random' instead of 'none'"),
        ({"subset": 40}, "subset is None instead of 40; the number of images is 60 instead of 40"),
        ({"n": 63}, "dataset is '60 x 8 x 8 x 3 .*' instead of '63 x 8 x 8 x 3"),
    ],
)
def test_a_checkpoint_of_other_data_is_refused(
    other: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path, module(), TrainingHistory())
    loader = module(**other)  # only the loader, since the data module refuses most of them itself
    loader.setup()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_epochs=2, callbacks=[TrainingHistory()]).fit(
            ImageClassifier(linear()), loader.train_dataloader(), ckpt_path=path,
            weights_only=True,
        )  # fmt: skip


def test_a_checkpoint_without_history_leaves_the_first_epochs_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ImageClassifier(linear())
    t = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    t.fit(model, module())
    t.save_checkpoint(tmp_path / "a.ckpt")
    recorder = TrainingHistory()
    t = trainer(tmp_path, max_epochs=3, callbacks=[recorder], limit_val_batches=0)
    t.fit(model, module(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert recorder.history.seen.all(0).tolist() == [False, True, True]
    assert not recorder.history.seen[:, 0].any()
    assert "contains no history of the images: their values before step 4" in caplog.text


def test_checkpoints_hold_the_history_after_a_test_and_before_a_run(tmp_path: Path) -> None:
    recorder = TrainingHistory()
    path = checkpoint(tmp_path, module(), recorder)
    saved = torch.load(path, weights_only=True)["callbacks"]["TrainingHistory"]
    assert np.array_equal(saved["values"][0].numpy(), recorder.history.loss)
    fresh = TrainingHistory()
    assert fresh.state_dict() == {}
    fresh.load_state_dict(saved)
    assert fresh.state_dict() is saved
    with pytest.raises(RuntimeError, match="Nothing is recorded yet: pass the callback to Trainer"):
        _ = fresh.history


# --- several fits, trainers and processes ---------------------------------------------------------


def test_a_new_fit_starts_again_and_a_longer_one_continues(tmp_path: Path) -> None:
    recorder = TrainingHistory()
    data, model = module(), ImageClassifier(linear())
    t = trainer(tmp_path, max_epochs=1, callbacks=[recorder], limit_val_batches=0)
    t.fit(model, data)
    first = recorder.history
    t.fit_loop.max_epochs = 3
    t.validate(model, module(val_split=6), verbose=False)
    t.fit(model, data)
    assert recorder.history.loss.shape == (60, 3)
    assert np.array_equal(recorder.history.loss[:, :1], first.loss)
    again, _ = record(tmp_path, module(40), recorder=recorder, epochs=2)
    assert again.loss.shape == (40, 2)


def test_a_longer_fit_with_other_data_is_refused(tmp_path: Path) -> None:
    recorder = TrainingHistory()
    t = trainer(tmp_path, max_epochs=1, callbacks=[recorder], limit_val_batches=0)
    t.fit(ImageClassifier(linear()), module())
    t.fit_loop.max_epochs = 3
    with pytest.raises(ValueError, match="seed is 3 instead of 9"):
        t.fit(ImageClassifier(linear()), module(seed=9))


def test_trainers_in_threads_do_not_mix(tmp_path: Path) -> None:
    expected = [record(tmp_path, module(seed=seed))[0].loss for seed in (1, 2)]
    got: dict[int, Any] = {}

    def run(seed: int) -> None:
        model = Tutorial()
        recorder = TrainingHistory(scores_from="model")
        got[seed] = record(tmp_path, module(seed=seed), model=model, recorder=recorder)[0]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, loss in zip((1, 2), expected, strict=True):
        assert got[seed].seen.all()
        assert got[seed].loss.shape == loss.shape
        assert not Tutorial().model._forward_hooks


def test_one_callback_records_one_trainer_at_a_time(tmp_path: Path) -> None:
    recorder = TrainingHistory()

    class Second(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            with pytest.raises(RuntimeError, match="already records a run of another trainer"):
                record(tmp_path, module(), recorder=recorder)

    record(tmp_path, module(), Second(), recorder=recorder)


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"limit_train_batches": 2}, [32, 32, 32]),
        ({"max_steps": 6}, [60, 32]),
        ({"accumulate_grad_batches": 3}, [60, 60, 60]),
        ({"overfit_batches": 1}, [16, 16, 16]),
        ({"reload_dataloaders_every_n_epochs": 1}, [60, 60, 60]),
        ({"fast_dev_run": True}, [16]),
        ({"precision": "bf16-mixed"}, [60, 60, 60]),
        ({"precision": "64-true"}, [60, 60, 60]),
    ],
    ids=str,
)
def test_options_of_the_trainer(options: dict[str, Any], seen: list[int], tmp_path: Path) -> None:
    path = tmp_path / "runs" / "history.npz"
    history, _ = record(tmp_path, module(), recorder=TrainingHistory(path), **options)
    assert history.seen.sum(0).tolist() == seen
    assert path.exists() == ("fast_dev_run" not in options)


def test_overfitting_per_sample_images(data_dir: Path, tmp_path: Path) -> None:
    data = per_sample(data_dir)
    history, _ = record(
        tmp_path, data, model=ImageClassifier(Flat(), "sgd", num_classes=10), overfit_batches=2
    )
    assert history.seen[:256].all()
    assert not history.seen[256:].any()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_per_sample_images_with_workers(workers: int, data_dir: Path, tmp_path: Path) -> None:
    data = per_sample(data_dir, subset=300, num_workers=workers)
    recorder = TrainingHistory()
    model = ImageClassifier(Flat(), "sgd", num_classes=10)
    history, _ = record(tmp_path, data, model=model, recorder=recorder, epochs=2)
    assert history.seen.all()  # labels are compared with those of the batches


def test_two_processes_are_as_one_with_twice_the_batch(data_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_history import fit_in_process
fit_in_process(Path({str(tmp_path)!r}), {str(data_dir)!r}, 2)
import torch.distributed
torch.distributed.destroy_process_group()  # its threads may abort the process when it exits
""")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    fit_in_process(tmp_path, str(data_dir), 1)
    for sampling in ("uniform", "balanced"):
        one, two = (ImageHistory.load(tmp_path / f"{sampling}{n}.npz") for n in (1, 2))
        assert (one.data, one.indices.tolist()) == (two.data, two.indices.tolist())
        assert np.array_equal(one.seen, two.seen)
        assert one.seen.all() == (sampling == "uniform")
        np.testing.assert_allclose(one.loss, two.loss, rtol=1e-2, atol=1e-2)
    # Both processes contribute to a checkpoint within the second epoch.
    saved = torch.load(tmp_path / "uniform2.ckpt", weights_only=True)
    loss, _, prediction = saved["callbacks"]["TrainingHistory"]["values"]
    seen = prediction.numpy() >= 0
    assert seen.sum(0).tolist() == [300, 64]
    two = ImageHistory.load(tmp_path / "uniform2.npz")
    np.testing.assert_array_equal(loss.numpy()[seen], two.loss[seen])


def fit_in_process(folder: Path, data_dir: str, devices: int) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, t: pl.Trainer, *_: Any) -> None:
            if t.global_step == 6:
                t.save_checkpoint(folder / f"{sampling}{devices}.ckpt")

    for sampling in ("uniform", "balanced"):
        torch.manual_seed(0)
        data = CIFAR10DataModule(
            data_dir, subset=300, batch_size=64 // devices, val_split=0, sampling=sampling
        )
        recorder = TrainingHistory(
            folder / f"{sampling}{devices}.npz", scores_from="network.linear"
        )
        t = trainer(
            folder, devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2,
            callbacks=[recorder, Save()],
        )  # fmt: skip
        t.fit(ImageClassifier(Flat(), "adam", num_classes=10), data)


# --- other people's modules and loaders -----------------------------------------------------------


class Tutorial(pl.LightningModule):
    """A module as in tutorials."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.model = linear(classes)
        self.bias = nn.Parameter(torch.ones(3))
        self.calls = 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch
        for _ in range(self.calls):
            scores = self.model(x)
        return F.cross_entropy(scores if self.calls else x.flatten(1)[:, :3] * self.bias.sum(), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.model(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Numbered(Dataset[Any]):
    """Samples as dictionaries with their positions."""

    def __init__(self, size: int = 40, shift: int = 0, key: str = "index") -> None:
        pixels, self.labels = images(size)
        self.images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        self.shift, self.key = shift, key

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = index + self.shift
        return {"image": self.images[index], "label": int(self.labels[index]), self.key: number}


def test_a_tutorial_module_with_our_data_module(tmp_path: Path) -> None:
    model = Tutorial()
    recorder = TrainingHistory(scores_from="model")
    data = module(val_split=6, flip="none", crop_padding=0)
    history, _ = record(
        tmp_path, data, model=model, recorder=recorder, limit_val_batches=1, val_check_interval=2
    )
    assert history.seen.all()
    assert not model.model._forward_hooks


@pytest.mark.parametrize("classifier", [True, False])
def test_dictionaries_with_an_index(classifier: bool, tmp_path: Path) -> None:
    data = Numbered()
    loader = DataLoader(data, batch_size=16, shuffle=True)
    model = ImageClassifier(linear()) if classifier else Tutorial()
    recorder = TrainingHistory(scores_from=None if classifier else "model")
    history, _ = record(tmp_path, loader, model=model, recorder=recorder)
    assert history.seen.all()
    assert history.labels.tolist() == data.labels.tolist()
    assert history.clean_labels is None
    assert history.changed is None
    assert history.class_names == ("0", "1", "2")


def test_an_object_with_logits_holds_the_scores(tmp_path: Path) -> None:
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, x: Tensor) -> Output:
            return Output(self.inner(x))

    class Module(Tutorial):
        def __init__(self) -> None:
            super().__init__()
            self.model = Transformer()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.model(batch["pixel_values"]).logits, batch["labels"])

    class Mapped(Numbered):
        def __getitem__(self, index: int) -> dict[str, Any]:
            image, label, number = super().__getitem__(index).values()
            return {"pixel_values": image, "labels": label, "index": number}

    recorder = TrainingHistory(scores_from="model")
    loader = DataLoader(Mapped(), batch_size=16, shuffle=True)
    history, _ = record(tmp_path, loader, model=Module(), recorder=recorder)
    assert history.seen.all()


def test_the_hook_is_removed_after_an_exception(tmp_path: Path) -> None:
    class Broken(Tutorial):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            super().training_step(batch, batch_idx)
            raise RuntimeError("broken")

    model = Broken()
    recorder = TrainingHistory(scores_from="model")
    with pytest.raises(RuntimeError, match="broken"):
        record(tmp_path, module(), model=model, recorder=recorder)
    assert not model.model._forward_hooks
    record(tmp_path, module(), model=Tutorial(), recorder=recorder)  # it can be used again


def test_another_thread_may_use_the_network(tmp_path: Path) -> None:
    class Watched(Tutorial):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            thread = threading.Thread(target=self.model, args=(batch[0],))
            thread.start()
            thread.join()
            return super().training_step(batch, batch_idx)

    recorder = TrainingHistory(scores_from="model")
    history, _ = record(tmp_path, module(), model=Watched(), recorder=recorder, epochs=1)
    assert history.seen.all()


def test_diverged_values_count_as_unseen(tmp_path: Path) -> None:
    class Diverged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.inner(x) * float("nan")
            return scores

    class Module(Tutorial):
        def __init__(self) -> None:
            super().__init__()
            self.model = Diverged()

    recorder = TrainingHistory(scores_from="model")
    history, _ = record(tmp_path, module(), model=Module(), recorder=recorder, epochs=1)
    assert not history.seen.any()


# --- refusals -------------------------------------------------------------------------------------


class Subclass(ImageClassifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


class Reversed(Tutorial):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0].flip(0), batch[1].flip(0)


class Shorter(Tutorial):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0][:-1], batch[1][:-1]


class Soft(Tutorial):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0], F.one_hot(batch[1], 3).float()


class Twice(Tutorial):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 2


class Never(Tutorial):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0


class Changing(Numbered):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index) | {"label": int(torch.randint(3, ()))}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([Numbered()[0]])


def own_loader(**options: Any) -> Any:
    data = module()
    data.setup()
    return DataLoader(data.train_dataloader().dataset, batch_size=16, **options)


def pairs() -> Any:
    pixels, labels = images()
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return DataLoader(TensorDataset(x, torch.from_numpy(labels)), batch_size=16)


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
@pytest.mark.parametrize(
    ("model", "data", "scores_from", "error", "message"),
    [
        (Tutorial, module, None, ValueError,
         "does not know where Tutorial computes the class scores. Pass scores_from.*has 'model'"),
        (Tutorial, module, "net", ValueError,
         "scores_from must be the name of a submodule of Tutorial, such as 'model', but got 'net'"),
        (Twice, module, "model", ValueError,
         "'model' must be called once in each training step.* but was called 2 times"),
        (Never, module, "model", ValueError, "but was called 0 times"),
        (lambda: Subclass(linear()), module, None, ValueError,
         "Subclass.training_step does not call that of ImageClassifier.* scores_from='network'"),
        (Reversed, module, "model", ValueError, r"Image \d+ has the label ., but the network was "),
        (Shorter, module, "model", ValueError, "returned 60 images, but .* trained on 56"),
        (Soft, module, "model", ValueError,
         r"one class index for each image.* found torch.float32 of shape \(16, 3\)"),
        (Tutorial, lambda: module(mix="cutmix"), "model", ValueError,
         "mix='cutmix' trains on mixtures of two images. Use mix=None"),
        (Tutorial, pairs, "model", ValueError,
         "called 'index', but the batch is a list. Let the dataset return dictionaries such as"),
        (Tutorial, lambda: DataLoader(Numbered(key="id"), batch_size=8), "model", ValueError,
         "'index', but the batch has the keys 'image', 'label', 'id'"),
        (Tutorial, lambda: DataLoader(Numbered(shift=5), batch_size=8), "model", IndexError,
         "'index' must be the position of a sample .* from 0 to 39, but a batch contains 40"),
        (Tutorial, lambda: DataLoader(Changing(), batch_size=8), "model", ValueError,
         r"Image \d+ has the label .*do not reorder, mix or relabel them"),
        (Tutorial, lambda: DataLoader(Stream(), batch_size=8), "model", TypeError,
         "needs a training loader whose `dataset` has a length, but got a DataLoader of a Stream"),
        (Tutorial, lambda: own_loader(shuffle=True), "model", ValueError,
         "does not know the order in which a DataLoader reads the images. Pass the data module"),
        (Tutorial, lambda: [pairs(), pairs()], "model", TypeError,
         "records one training loader, but there are 2. Combine the datasets"),
    ],
)  # fmt: skip
def test_what_cannot_be_known_is_refused(
    model: Any, data: Any, scores_from: str | None, error: type[Exception], message: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    with pytest.raises(error, match=message):
        record(tmp_path, data(), model=model(), recorder=TrainingHistory(scores_from=scores_from))


def test_output_that_is_not_scores_is_refused(tmp_path: Path) -> None:
    class Pair(Tutorial):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Unflatten(1, (4, 2))
            self.tuple = nn.MaxPool2d(1, return_indices=True)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.tuple(batch[0])
            self.features(batch[0].flatten(1)[:, :8])
            return super().training_step(batch, batch_idx)

    for name, got in (("features", r"shape \(16, 4, 2\)"), ("tuple", "tuple")):
        recorder = TrainingHistory(scores_from=name)
        with pytest.raises(ValueError, match=rf"'{name}' must return scores .*returned {got}"):
            record(tmp_path, module(), model=Pair(), recorder=recorder)


def test_a_callback_of_the_other_lightning_is_named() -> None:
    with pytest.raises(TypeError, match="but the trainer is a lightning_fabric.Trainer"):
        TrainingHistory().setup(lightning_fabric.Fabric(), None, "fit")  # type: ignore[arg-type]


def test_a_loader_that_outlives_its_data_module_is_known(tmp_path: Path) -> None:
    data = module()
    data.setup()
    loader = data.train_dataloader()
    del data
    history, _ = record(tmp_path, copy.copy(loader))
    assert history.data["seed"] == 3
