"""Test the loaders: several processes, memory, transforms with generators, resuming, datasets."""

import copy
import functools
import gc
import random
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import Recorder, per_sample, ready, trainer
from torch import Tensor
from torch.utils.data import DataLoader, random_split
from torchvision.transforms import v2

from cifar_resnet import CIFAR10DataModule
from cifar_resnet.data.datasets import PerSampleImages
from cifar_resnet.data.formats import Arrays

# --- several processes ---------------------------------------------------------------------------


def iterate(rank: int, world_size: int, folder: Path, loaders: dict[str, Any]) -> None:
    """Save the batches of loaders that were created before there was a process group."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size
    )
    seen = {name: (len(loader), [b[1] for b in loader]) for name, loader in loaders.items()}
    torch.save(seen, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_a_process_group_divides_the_batches_without_a_trainer(
    data_dir: Path, tmp_path: Path
) -> None:
    def loaders(batch_size: int) -> dict[str, Any]:
        result = {}
        for make in (ready, per_sample):
            data = make(data_dir, val_split=49_700, batch_size=batch_size)
            data.setup()
            result[f"{make.__name__} train"] = data.train_dataloader()
        return result

    torch.multiprocessing.start_processes(
        iterate, (2, tmp_path, loaders(batch_size=64)), nprocs=2, start_method="fork"
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, whole in loaders(batch_size=128).items():
        expected = [labels for _, labels in whole]
        for length, batches in (rank[name] for rank in ranks):
            assert length == len(batches) == len(expected), name
        for *parts, both in zip(*(rank[name][1] for rank in ranks), expected, strict=True):
            assert torch.cat(parts).equal(both), name


LAUNCHED = {
    "trainer": """
        t = trainer(folder, devices=2, strategy="ddp")
        def fit(loader):
            model = Recorder()
            t.fit(model, loader)
            return [sums for _, sums in model.seen["train"]]
        rank = lambda: t.global_rank
    """,
    "fabric": """
        from lightning_fabric import Fabric
        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
        fabric.launch()
        def fit(loader):
            if isinstance(loader, torch.utils.data.DataLoader):
                loader = fabric.setup_dataloaders(loader)
            return [images.double().sum(dim=(1, 2, 3)) for images, _ in loader]
        rank = lambda: fabric.global_rank
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("launched", LAUNCHED)
@pytest.mark.parametrize("make", ["ready", "per_sample"])
def test_loaders_passed_to_a_trainer_or_to_fabric_are_divided_once(
    data_dir: Path, tmp_path: Path, launched: str, make: str
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nimport torch\n"
        "from helpers import Recorder, per_sample, ready, trainer\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"data = {make}({str(data_dir)!r}, val_split=49_000, batch_size=64)\n"
        f"data.setup()\n{textwrap.dedent(LAUNCHED[launched])}\n"
        'sums = fit(data.train_dataloader())\ntorch.save(sums, folder / f"{rank()}.pt")\n'
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = globals()[make](data_dir, val_split=49_000, batch_size=128)
    whole.setup()
    for *parts, (images, _) in zip(*ranks, whole.train_dataloader(), strict=True):
        torch.testing.assert_close(
            torch.cat(parts), images.double().sum(dim=(1, 2, 3)), atol=1e-3, rtol=1e-5
        )


def test_accelerate_leaves_the_loaders_as_they_are(data_dir: Path) -> None:
    data = per_sample(data_dir)
    data.setup()
    assert data.train_dataloader()._is_accelerate_prepared  # read by Accelerator.prepare
    assert not isinstance(ready(data_dir).train_dataloader(), DataLoader)


# --- memory --------------------------------------------------------------------------------------


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Failing(Recorder):
    """A model whose first step fails, as a trial that is pruned."""

    def training_step(self, batch: Any, index: int) -> Tensor:
        raise ValueError("pruned")


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("model", [Recorder, Failing])
def test_a_run_frees_its_images_without_the_garbage_collector(
    data_dir: Path, tmp_path: Path, model: Any
) -> None:
    class Keep(pl.Callback):
        def on_train_start(self, t: pl.Trainer, *_: Any) -> None:
            stored.extend(weakref.ref(v.stored()[0]) for v in t.datamodule._resident.values())

    stored: list[Any] = []
    data = CIFAR10DataModule(data_dir, val_split=49_000)
    t = trainer(
        tmp_path, limit_train_batches=1, limit_val_batches=1, num_sanity_val_steps=1,
        callbacks=[Keep()],
    )  # fmt: skip
    try:
        t.fit(model(), data)
    except ValueError as error:
        assert str(error) == "pruned"  # noqa: PT017
    assert len(stored) == 2
    assert all(reference() is None for reference in stored)
    loader = t.train_dataloader  # the trainer keeps it; it works as before
    loader.set_epoch(0)
    fresh = ready(data_dir, val_split=49_000).train_dataloader()
    assert next(iter(loader))[0].equal(next(iter(fresh))[0])


def test_modules_share_the_images_that_they_read(data_dir: Path, arrays: Arrays) -> None:
    data, other = ready(data_dir), per_sample(data_dir)
    other.setup()
    images = data._arrays.train_images
    assert other._arrays.train_images is images
    assert other.train_dataloader().dataset._images.array is images  # nor do loaders copy them
    assert (images == arrays.train_images).all()


TRIALS = """
import resource, sys
sys.path.insert(0, {tests!r})
from helpers import CIFAR10DataModule, CustomResNet, ImageClassifier, per_sample, trainer
def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB on Linux
for make in (CIFAR10DataModule, per_sample):
    for trial in range(24):
        t = trainer({folder!r}, limit_train_batches=2, limit_val_batches=2)
        model = ImageClassifier(CustomResNet(width=1))
        t.fit(model, make({data_dir!r}, val_split=5000))
        if trial == 1:
            before = memory()
    print(memory() - before)
"""


@pytest.mark.slow
def test_many_runs_do_not_need_more_memory(data_dir: Path, tmp_path: Path) -> None:
    script = TRIALS.format(
        tests=str(Path(__file__).parent), folder=str(tmp_path), data_dir=str(data_dir)
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    growth = [float(line) for line in result.stdout.splitlines() if line[:1].isdigit()]
    assert len(growth) == 2
    assert max(growth) < 50


# --- transforms with generators of their own -----------------------------------------------------

GLOBAL = np.random.default_rng(0)
TO_TENSOR = CIFAR10DataModule.default_transforms()


class Shift:
    """Adds a random number, from a function that draws one."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __call__(self, image: Any) -> Tensor:
        return TO_TENSOR(image) + self.draw()


class Method:
    """Has its generator as an attribute, and uses it in another method."""

    def __init__(self) -> None:
        self.rng = {"all": [random.Random(1)]}

    def __call__(self, image: Any) -> Tensor:
        return self.shifted(TO_TENSOR(image))

    def shifted(self, image: Tensor) -> Tensor:
        return image + self.rng["all"][0].random()


class FromGlobal:
    def __call__(self, image: Any) -> Tensor:
        return TO_TENSOR(image) + GLOBAL.random()


class Compose:
    """Behaves as the class of Albumentations does."""

    def __init__(self, result: str = "tensor") -> None:
        self.set_random_seed(None)
        self.result = result

    def set_random_seed(self, seed: int | None) -> None:
        self.random_generator = np.random.default_rng(seed)

    def __call__(self, *args: Any, **data: Any) -> dict[str, Any]:
        if args:
            raise KeyError("You have to pass data to augmentations as named arguments")
        image = data["image"].astype(np.float32) + self.random_generator.random(dtype=np.float32)
        return {"image": torch.from_numpy(image).permute(2, 0, 1)} if self.result else data


Compose.__module__ = "albumentations.core.composition"


def in_closure() -> Any:
    generator = torch.Generator()
    return v2.Lambda(lambda image: TO_TENSOR(image) + torch.rand(1, generator=generator))


def shifted(image: Any, generator: Any) -> Tensor:
    return TO_TENSOR(image) + generator.random_sample()


COMPOSED = Compose()
TRANSFORMS: dict[str, Callable[[], Any]] = {
    "albumentations": Compose,
    "a function that calls albumentations": lambda: (
        lambda image: COMPOSED(image=np.array(image))["image"]
    ),
    "an attribute": Method,
    "a closure": in_closure,
    "a global": FromGlobal,
    "a partial": lambda: functools.partial(shifted, generator=np.random.RandomState(3)),
    "a bound method": lambda: Shift(random.Random(2).random),
    "a bound method of NumPy": lambda: v2.Compose([Shift(np.random.default_rng(2).random)]),
}


def dataset(arrays: Arrays, transform: Any) -> PerSampleImages:
    return PerSampleImages(
        arrays.train_images[:9], arrays.train_labels[:9], np.arange(9), transform, seed=4
    )


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms_with_generators_depend_on_seed_epoch_and_image(
    arrays: Arrays, make: Callable[[], Any]
) -> None:
    images = dataset(arrays, make())
    first = images[[(0, 0), (0, 1)]][0]
    second = images[[(1, 0), (1, 1)]][0]
    base = TO_TENSOR(arrays.train_images[0])
    assert not first.equal(second)
    assert len({float(batch[0, 0, 0, 0] - base[0, 0, 0]) for batch in (first, second)}) == 2
    # as in worker processes, which get a copy, in any order and with any state of the generators
    images[3]
    assert images[[(1, 1), (0, 1), (0, 0)]][0].equal(torch.stack([second[1], first[1], first[0]]))


def test_epochs_with_workers_that_persist(data_dir: Path) -> None:
    def epochs(**options: Any) -> list[Tensor]:
        data = CIFAR10DataModule(
            data_dir, val_split=49_990, batch_size=4, train_transforms=Compose(), **options
        )
        data.setup()
        loader = data.train_dataloader()
        assert loader.persistent_workers is (options == {"num_workers": 1} | PERSISTENT)
        return [torch.cat([images for images, _ in loader]) for _ in range(2)]

    first, second = epochs()
    assert not first.equal(second)
    for options in ({"num_workers": 1}, {"num_workers": 1} | PERSISTENT, PERSISTENT):
        again = epochs(**options)
        assert again[0].equal(first)
        assert again[1].equal(second)


PERSISTENT = {"persistent_workers": True}


def test_the_generators_of_a_transform_are_restored(arrays: Arrays) -> None:
    own = [
        random.Random(1), np.random.RandomState(1), np.random.default_rng(1),
        torch.Generator().manual_seed(1),
    ]  # fmt: skip
    expected = copy.deepcopy(own)

    def draw(image: Any) -> Tensor:
        values = [own[0].random(), own[1].rand(), own[2].random(), torch.rand(1, generator=own[3])]
        return torch.tensor([float(value) for value in values])

    batch = dataset(arrays, draw)[[(0, 0), (0, 1)]][0]
    assert batch.unique().numel() == 8  # nor do two generators draw the same numbers
    for part, same in zip(own[:3], expected[:3], strict=True):
        assert part.random() == same.random()
    assert torch.rand(1, generator=own[3]).equal(torch.rand(1, generator=expected[3]))


def test_a_transform_that_cannot_be_repeated(data_dir: Path) -> None:
    def unseeded(image: Any) -> Tensor:
        return TO_TENSOR(image) + np.random.default_rng().random()

    data = CIFAR10DataModule(data_dir, val_split=49_990, train_transforms=unseeded)
    data.setup()
    with pytest.warns(UserWarning, match="train_transforms give different images for the same"):
        data.train_dataloader()
    data.train_dataloader()  # warns once


def test_albumentations_without_a_tensor(arrays: Arrays) -> None:
    with pytest.raises(TypeError, match=r"ndarray of shape \(32, 32, 3\). End it with albument"):
        dataset(arrays, Compose(result=""))[0]


# --- sizes ---------------------------------------------------------------------------------------


def resized(side: int) -> Any:
    return v2.Compose([v2.Resize(side), TO_TENSOR])


@pytest.mark.parametrize("val_first", [True, False])
@pytest.mark.parametrize("subset", ["val", "test"])
def test_images_for_evaluation_of_another_size(
    data_dir: Path, subset: str, val_first: bool
) -> None:
    data = CIFAR10DataModule(data_dir, val_split=49_990, train_transforms=resized(28))
    data.setup()
    first, second = data.train_dataloader, getattr(data, f"{subset}_dataloader")
    if val_first:
        first, second = second, first
    first()
    with pytest.warns(
        UserWarning,
        match=f"Training images are 3 x 28 x 28, but {subset} images are 3 x 32 x 32. Pass "
        f"{subset}_transforms that return images of the same size as train_transforms.",
    ):
        second()
    second()  # warns once
    setattr(data, f"{subset}_transforms", resized(28))
    data.train_dataloader()
    getattr(data, f"{subset}_dataloader")()


# --- resuming ------------------------------------------------------------------------------------


class OneCycle(Recorder):
    """Asks for the number of steps before the state of a checkpoint is restored."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StopAt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, t: pl.Trainer, *_: Any) -> None:
        if t.global_step == self.step:
            t.save_checkpoint(Path(t.default_root_dir) / "middle.ckpt")
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [3, 8, 11])
@pytest.mark.parametrize("make", [ready, per_sample])
def test_resuming_a_run_whose_schedule_asks_for_the_number_of_steps(
    data_dir: Path, tmp_path: Path, make: Any, step: int
) -> None:
    def fit(data: Any, checkpoint: Path | None = None, *callbacks: Any) -> list[Tensor]:
        model = OneCycle()
        options = {"max_epochs": 2, "limit_val_batches": 0, "callbacks": list(callbacks)}
        try:
            trainer(tmp_path, **options).fit(model, data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:
            assert callbacks
        return [sums for _, sums in model.seen["train"]]

    data = make(data_dir, val_split=49_800, batch_size=25)  # 8 batches in an epoch
    whole = fit(data)
    first = fit(data, None, StopAt(step))
    second = fit(data, tmp_path / "middle.ckpt")
    assert len(whole) == 2 * 8
    assert torch.cat([*first, *second]).equal(torch.cat(whole))
    assert torch.cat(fit(data)).equal(torch.cat(whole))  # the position is used only once


def test_a_position_is_not_kept_from_a_test(data_dir: Path, tmp_path: Path) -> None:
    data = ready(data_dir, val_split=49_800, batch_size=25)
    with pytest.raises(SystemExit):
        trainer(tmp_path, callbacks=[StopAt(3)], limit_val_batches=0).fit(OneCycle(), data)
    model, checkpoint = OneCycle(), tmp_path / "middle.ckpt"
    t = trainer(tmp_path, limit_test_batches=1, limit_val_batches=0)
    t.test(model, data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    t.fit(model, data)
    assert len(model.seen["train"]) == 8
    fresh = ready(data_dir, val_split=49_800, batch_size=25).train_dataloader()
    sums = torch.cat([images.double().sum(dim=(1, 2, 3)) for images, _ in fresh])
    assert torch.cat([sums for _, sums in model.seen["train"]]).equal(sums)


# --- datasets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ready, per_sample])
@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_the_dataset_of_a_loader(data_dir: Path, make: Any, subset: str) -> None:
    data = make(data_dir, val_split=49_990 if subset == "train" else 10)
    if make is per_sample:
        data.train_transforms = TO_TENSOR
    data.setup()
    images = getattr(data, f"{subset}_dataloader")().dataset
    size = {"train": 10, "val": 10, "test": 10_000}[subset]
    assert len(images) == len(images.targets) == size
    assert images.classes == list(data.classes)
    arrays, split = data._arrays, data._split[subset]
    pixels = arrays.test_images if subset == "test" else arrays.train_images
    labels = arrays.test_labels if subset == "test" else arrays.train_labels
    assert images.targets == labels[split].tolist()
    for index in (0, 3, -1):
        image, label = images[index]
        assert (image.shape, image.dtype, type(label)) == ((3, 32, 32), torch.float32, int)
        torch.testing.assert_close(image, TO_TENSOR(pixels[split[index]]), atol=2e-6, rtol=1e-5)
        assert label == images.targets[index]
    with pytest.raises(IndexError):
        images[size]
    assert copy.deepcopy(images)[3][0].equal(images[3][0])


@pytest.mark.parametrize("make", [ready, per_sample])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_in_a_dataloader(data_dir: Path, make: Any, workers: int) -> None:
    data = make(data_dir, val_split=10)
    data.setup()
    loader = data.val_dataloader()
    expected = next(iter(loader))
    plain = DataLoader(loader.dataset, batch_size=10, num_workers=workers)
    images, labels = next(iter(plain))
    assert images.equal(expected[0])
    assert labels.equal(expected[1])
    parts = random_split(loader.dataset, [0.7, 0.3], torch.Generator().manual_seed(0))
    split = [label for part in parts for _, label in part]
    assert sorted(split) == sorted(labels.tolist())
