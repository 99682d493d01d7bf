"""Test CIFAR10DataModule: batches, splits and both kinds of loaders, with and without a Trainer."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import Recorder, per_sample, ready, trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cifar_resnet import CIFAR10DataModule
from cifar_resnet.data.formats import Arrays

# --- batches and splits --------------------------------------------------------------------------


def test_shapes_sizes_and_attributes(data_dir: Path) -> None:
    data = ready(data_dir, batch_size=300, val_split=0.1)
    assert (data.dims, data.num_classes, data.num_samples) == ((3, 32, 32), 10, 45_000)
    assert data.classes[0] == "airplane"
    for loader, count in (
        (data.train_dataloader(), 45_000 // 300),
        (data.val_dataloader(), -(-5000 // 300)),
        (data.test_dataloader(), -(-10_000 // 300)),
        (data.predict_dataloader(), -(-10_000 // 300)),
    ):
        assert len(loader) == count
        images, labels = next(iter(loader))
        assert images.shape == (300, 3, 32, 32)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_batches_are_the_normalized_images_in_order(
    data_dir: Path, arrays: Arrays
) -> None:
    data = ready(data_dir, batch_size=999)
    batches = list(data.test_dataloader())
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert (labels.numpy() == arrays.test_labels).all()
    pixels = (data.denormalize(images) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert (pixels.numpy() == arrays.test_images).all()
    # compared with torchvision's normalization of one image at a time
    transform = data.default_transforms()
    for index in (0, 4567):
        np.testing.assert_allclose(
            images[index], transform(arrays.test_images[index]), atol=2e-6, rtol=1e-5
        )


def test_training_images_are_normalized_and_complete(data_dir: Path, arrays: Arrays) -> None:
    data = ready(data_dir, val_split=0, crop_padding=0, flip="none")
    moments, ours = torch.zeros(2, 3, dtype=torch.float64), []
    for images, labels in data.train_dataloader():
        double = images.double()
        moments += torch.stack([double.sum((0, 2, 3)), double.square().sum((0, 2, 3))])
        ours += zip(sums([images]), labels.tolist(), strict=True)
    mean, square = moments / (50_000 * 32 * 32)
    assert abs(mean).max() < 1e-3
    assert abs((square - mean**2).sqrt() - 1).max() < 1e-3
    assert Counter(label for _, label in ours) == dict.fromkeys(range(10), 5000)
    # each image comes with its own label: the sorted pairs are the same
    in_order = (images for _, images, _ in data.train_dataloader().in_order())
    assert sorted(ours) == sorted(zip(sums(in_order), arrays.train_labels.tolist(), strict=True))


def sums(batches: Iterable[Tensor]) -> list[float]:
    return [
        total
        for images in batches
        for total in images.double().sum(dim=(1, 2, 3)).round(decimals=2).tolist()
    ]


def test_the_split_is_stratified_and_does_not_depend_on_the_seed(data_dir: Path) -> None:
    def held_out(seed: int) -> tuple[Tensor, Tensor]:
        loader = ready(data_dir, val_split=1000, seed=seed).val_dataloader()
        images, labels = (torch.cat(p) for p in zip(*loader, strict=True))
        return images, labels

    first, second = held_out(0), held_out(7)
    assert torch.equal(first[0], second[0])
    assert torch.bincount(first[1]).tolist() == [100] * 10


def test_no_validation_split(data_dir: Path, tmp_path: Path) -> None:
    data = CIFAR10DataModule(data_dir, batch_size=500, val_split=0)
    model = Recorder()
    trainer(tmp_path, limit_train_batches=2).fit(model, data)
    assert data.val_dataloader() == []
    assert model.seen["val"] == []


def test_an_images_augmentation_does_not_depend_on_split_or_batch_size(data_dir: Path) -> None:
    def shown(**options: Any) -> set[float]:
        loader = ready(data_dir, seed=3, **options).train_dataloader()
        return {
            round(v, 3) for images, _ in loader for v in images.double().sum(dim=(1, 2, 3)).tolist()
        }

    few, all_images = shown(val_split=45_000, batch_size=64), shown(val_split=0, batch_size=1000)
    assert len(few) > 4990
    assert len(few - all_images) < 10  # rounding


def test_epochs_follow_each_other_or_set_epoch(data_dir: Path) -> None:
    def labels_of(loader: Any) -> list[int]:
        return next(iter(loader))[1].tolist()

    loader = ready(data_dir, val_split=40_000).train_dataloader()
    first, second = labels_of(loader), labels_of(loader)
    assert first != second
    loader.set_epoch(0)
    assert labels_of(loader) == first
    assert labels_of(loader) == second
    unused = iter(loader)  # creating an iterator changes nothing
    loader.set_epoch(1)
    assert labels_of(loader) == second
    assert next(unused)[0].shape[0] == 512


def test_shuffle_and_drop_last_affect_only_training(data_dir: Path) -> None:
    data = ready(
        data_dir, batch_size=700, shuffle=False, drop_last=True, flip="none", crop_padding=0
    )
    assert [len(b[1]) for b in data.train_dataloader()] == [700] * 64
    assert sum(len(b[1]) for b in data.test_dataloader()) == 10_000
    first = next(iter(data.train_dataloader()))[1][:10].tolist()
    kept = data._split["train"][:10]
    assert first == data._arrays.train_labels[kept].tolist()


def test_denormalize_is_the_inverse(data_dir: Path) -> None:
    images = torch.rand(4, 3, 5, 5)
    normalized = v2.functional.normalize(images, CIFAR10DataModule.mean, CIFAR10DataModule.std)
    torch.testing.assert_close(CIFAR10DataModule.denormalize(normalized), images)
    with pytest.raises(ValueError, match=r"shape \(..., 3, H, W\), but got \(4, 1, 5, 5\)"):
        CIFAR10DataModule.denormalize(torch.rand(4, 1, 5, 5))


def test_print(data_dir: Path) -> None:
    text = str(CIFAR10DataModule(data_dir, batch_size=64))
    assert "train=45000, val=5000, test=10000, batch_size=64, seed=0, resident" in text
    data = ready(data_dir)
    data.train_dataloader()
    assert str(data).startswith("CIFAR10DataModule(data_dir=")


# --- per-sample transforms -----------------------------------------------------------------------


def test_per_sample_transforms_go_through_a_dataloader(data_dir: Path) -> None:
    data = per_sample(data_dir)
    data.setup()
    loader = data.train_dataloader()
    assert isinstance(loader, DataLoader)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [128] * 7 + [1000 - 7 * 128]
    assert batches[0][0].shape == (128, 3, 32, 32)
    assert "DataLoader" in str(data)


def test_per_sample_and_resident_evaluation_agree(data_dir: Path) -> None:
    resident = ready(data_dir, val_split=49_000, batch_size=128)
    sampled = per_sample(data_dir)
    sampled.setup()
    for ours, theirs, _ in zip(
        resident.test_dataloader(), sampled.test_dataloader(), range(3), strict=False
    ):
        torch.testing.assert_close(ours[0], theirs[0].contiguous(), atol=1e-5, rtol=1e-5)
        assert torch.equal(ours[1], theirs[1])


def test_per_sample_randomness_depends_on_seed_epoch_and_sample(data_dir: Path) -> None:
    def epoch(workers: int, seed: int = 0) -> Tensor:
        data = per_sample(data_dir, num_workers=workers, seed=seed)
        data.setup()
        loader = data.train_dataloader()
        loader.set_epoch(5) if hasattr(loader, "set_epoch") else loader.sampler.set_epoch(5)
        return torch.cat([images for images, _ in loader])

    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = epoch(0)
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    torch.manual_seed(99)  # the global generators have no influence
    assert torch.equal(first, epoch(2))
    assert not torch.equal(first, epoch(0, seed=1))


def test_transforms_set_after_setup_are_used(data_dir: Path) -> None:
    data = ready(data_dir, val_split=49_000)
    data.train_transforms = data.default_transforms()
    assert isinstance(data.train_dataloader(), DataLoader)


# --- under a Trainer -----------------------------------------------------------------------------


@pytest.fixture(params=["resident", "per-sample"])
def make(request: pytest.FixtureRequest, data_dir: Path) -> Any:
    def build(**options: Any) -> CIFAR10DataModule:
        if request.param == "per-sample":
            return per_sample(data_dir, **options)
        return CIFAR10DataModule(data_dir, **{"val_split": 49_000, "batch_size": 128} | options)

    return build


def test_every_stage_of_a_trainer(make: Any, tmp_path: Path) -> None:
    model, data = Recorder(), make()
    t = trainer(tmp_path, limit_val_batches=3, limit_test_batches=2, limit_predict_batches=2)
    t.fit(model, data)
    assert len(model.epoch("train", 0)) == 1000
    t.validate(model, data, verbose=False)
    t.test(model, data, verbose=False)
    predictions = torch.cat(t.predict(model, data))
    assert predictions[:5].tolist() == [3, 8, 8, 0, 6]
    assert len(predictions) == 256


def test_loaders_given_to_the_trainer_directly(make: Any, tmp_path: Path) -> None:
    data = make()
    data.setup()
    model = Recorder()
    t = trainer(tmp_path, max_epochs=2, limit_predict_batches=2)
    t.fit(model, data.train_dataloader())
    assert len(model.epoch("train", 1)) == 1000
    assert sorted(model.epoch("train", 0)) != sorted(model.epoch("train", 1))
    assert torch.cat(t.predict(model, data.predict_dataloader()))[:5].tolist() == [3, 8, 8, 0, 6]


def test_epochs_differ_and_a_second_run_repeats_them(make: Any, tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        model = Recorder()
        trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(model, make())
        runs.append([model.epoch("train", 0), model.epoch("train", 1)])
    assert runs[0] == runs[1]
    assert sorted(runs[0][0]) != sorted(runs[0][1])


def test_resume_in_the_middle_of_an_epoch(make: Any, tmp_path: Path) -> None:
    whole = Recorder()
    trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(whole, make())

    class Stop(pl.Callback):
        def on_train_batch_end(self, t: pl.Trainer, *_: Any) -> None:
            if t.global_step == 11:  # the third batch of the second epoch
                t.save_checkpoint(tmp_path / "middle.ckpt")
                raise KeyboardInterrupt

    first = Recorder()
    with pytest.raises(SystemExit):
        trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[Stop()]).fit(first, make())
    second = Recorder()
    trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(
        second, make(), ckpt_path=tmp_path / "middle.ckpt", weights_only=True
    )
    assert len(first.epoch("train", 1)) == 3 * 128
    assert first.epoch("train", 1) + second.epoch("train", 1) == whole.epoch("train", 1)


def test_overfit_batches_repeats_the_same_images(make: Any, tmp_path: Path) -> None:
    model = Recorder()
    data = make(crop_padding=0, flip="none")
    data.train_transforms = data.default_transforms() if data.train_transforms else None
    trainer(tmp_path, max_epochs=3, overfit_batches=2).fit(model, data)
    epochs = [model.epoch("train", e) for e in range(3)]
    assert len(epochs[0]) == 256
    assert epochs[0] == epochs[1] == epochs[2]


def test_reloading_and_a_new_batch_size(data_dir: Path, tmp_path: Path) -> None:
    class Double(pl.Callback):
        def on_train_epoch_end(self, t: pl.Trainer, *_: Any) -> None:
            t.datamodule.batch_size *= 2

    model, data = Recorder(), CIFAR10DataModule(data_dir, val_split=49_000, batch_size=100)
    trainer(
        tmp_path,
        max_epochs=3,
        limit_val_batches=0,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[Double()],
    ).fit(model, data)
    sizes = [[len(v) for e, v in model.seen["train"] if e == epoch] for epoch in range(3)]
    assert sizes == [[100] * 10, [200] * 5, [400, 400, 200]]
    plain = Recorder()
    trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(
        plain, CIFAR10DataModule(data_dir, val_split=49_000, batch_size=100)
    )
    assert sorted(model.epoch("train", 2)) == pytest.approx(sorted(plain.epoch("train", 2)))


def test_two_processes_share_every_epoch(data_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import torch
from helpers import CIFAR10DataModule, Recorder, per_sample, trainer
folder = Path({str(tmp_path)!r})
for name, data in (
    ("resident", CIFAR10DataModule({str(data_dir)!r}, val_split=49_000, batch_size=64)),
    ("sampled", per_sample({str(data_dir)!r}, batch_size=64)),
):
    model = Recorder()
    t = trainer(folder, devices=2, strategy="ddp", max_epochs=2, limit_val_batches=0)
    t.fit(model, data)
    t.test(model, data, verbose=False)
    torch.save(model.seen, folder / f"{{name}}{{t.global_rank}}.pt")
torch.distributed.destroy_process_group()  # its threads may abort the process when it exits
""")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    one = Recorder()
    data = CIFAR10DataModule(data_dir, val_split=49_000, batch_size=128)
    t = trainer(tmp_path, max_epochs=2, limit_val_batches=0)
    t.fit(one, data)
    t.test(one, data, verbose=False)
    for name in ("resident", "sampled"):
        ranks = [torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2)]
        assert len(ranks[0]["train"]) == len(ranks[1]["train"]) == len(one.seen["train"])
        tests = torch.cat([v for rank in ranks for _, v in rank["test"]])
        assert len(tests) == 10_000
        reference = torch.cat([v for _, v in one.seen["test"]])
        torch.testing.assert_close(tests.sort()[0], reference.sort()[0], atol=0.1, rtol=1e-5)
        if name == "resident":  # step by step the same images as one process with the whole batch
            for left, right, (_, whole) in zip(
                ranks[0]["train"], ranks[1]["train"], one.seen["train"], strict=True
            ):
                both = torch.cat([left[1], right[1]])
                torch.testing.assert_close(both.sort()[0], whole.sort()[0], atol=1e-3, rtol=1e-5)


# --- bad input -----------------------------------------------------------------------------------


def test_loaders_before_setup(data_dir: Path) -> None:
    with pytest.raises(RuntimeError, match=r"call prepare_data\(\) and setup\(\) first"):
        CIFAR10DataModule(data_dir).train_dataloader()


def test_a_position_saved_with_another_batch_size(data_dir: Path) -> None:
    loader = ready(data_dir, val_split=49_000, batch_size=500).train_dataloader()
    with pytest.raises(ValueError, match="saved position is batch 5, but an epoch has 2"):
        loader.load_state_dict({"epoch": 0, "batch": 5})


@pytest.mark.parametrize("make", [ready, per_sample])
def test_a_new_loader_continues_with_the_next_epoch(data_dir: Path, make: Any) -> None:
    options = {"val_split": 49_900, "batch_size": 50}
    data, other = (make(data_dir, **options) for _ in range(2))
    for module in (data, other):
        module.setup()
    whole = other.train_dataloader()
    for epoch in range(3):
        expected = torch.cat([images for images, _ in whole])
        assert torch.cat([images for images, _ in data.train_dataloader()]).equal(expected), epoch
    again = data.train_dataloader()
    again.set_epoch(0)
    first = next(iter(again))[0]
    whole.set_epoch(0)
    assert first.equal(next(iter(whole))[0])
