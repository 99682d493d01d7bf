"""Long and odd use: many fits in one process, notebooks, threads, forks, copies, other defaults."""

import collections
import contextlib
import copy
import ctypes
import gc
import multiprocessing
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from helpers import per_sample, ready, small, trainer
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torch.utils.hooks import RemovableHandle

import cifar_resnet
from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    Recipe,
    find_misclassified,
    receptive_field,
    show_misclassified,
)
from cifar_resnet.data import sources
from cifar_resnet.data.formats import Arrays
from cifar_resnet.training.epoch_sums import EpochSums


@pytest.fixture(autouse=True)
def _read_once(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip reading and verifying the files, which takes longer than these fits."""
    monkeypatch.setattr(sources, "prepare", lambda folder, *, allow_download: None)
    monkeypatch.setattr(sources, "load", lambda folder: arrays)


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Free the images that a trainer and its data module keep, because they refer to each other."""
    yield
    gc.collect()


def resnet(seed: int = 1) -> ImageClassifier:
    torch.manual_seed(seed)
    return ImageClassifier(CustomResNet(width=1), "sgd")


def fitted(data_dir: Path, folder: Path, seed: int = 1) -> dict[str, Tensor]:
    model = resnet(seed)
    trainer(folder, limit_val_batches=1).fit(model, small(data_dir))
    return model.state_dict()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


# --- many fits -----------------------------------------------------------------------------------

COUNTED = (
    Tensor, nn.Module, pl.LightningModule, pl.Trainer, CIFAR10DataModule, RemovableHandle, Figure
)  # fmt: skip


def use(model: ImageClassifier, data: CIFAR10DataModule, folder: Path, *, inspect: bool) -> None:
    """Run all stages of a Trainer on a few batches, and sometimes draw errors and fields."""
    limits = {f"limit_{stage}_batches": 2 for stage in ("train", "val", "test", "predict")}
    logger = TensorBoardLogger(folder)
    t = trainer(folder, logger=logger, log_every_n_steps=1, enable_checkpointing=True, **limits)
    t.fit(model, data)
    t.validate(model, data, verbose=False)
    t.test(model, data, verbose=False)
    t.predict(model, data)
    if inspect:
        dataset = TensorDataset(*next(iter(data.test_dataloader())))
        found = find_misclassified(model, dataset, n=8, mean=data.mean, std=data.std)
        show_misclassified(model, found, n=4, cam="both").canvas.draw()
        receptive_field(model.network, (1, 3, 32, 32))


def memory_and_counts(model: nn.Module) -> tuple[float, dict[str, int]]:
    """Return what the process holds after a garbage collection: megabytes, and counts of things."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # returns free pages to the system
    status = dict(re.findall(r"(\w+):\s+(\d+)", Path("/proc/self/status").read_text()))
    kinds = collections.Counter(type(thing) for thing in gc.get_objects())
    return int(status["VmRSS"]) * 1024 / 1e6, {
        "threads": int(status["Threads"]),
        "files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "hooks": sum(
            len(value)
            for module in model.modules()
            for name, value in vars(module).items()
            if name.endswith("_hooks")
        ),
        **{
            counted.__name__: sum(n for kind, n in kinds.items() if issubclass(kind, counted))
            for counted in COUNTED
        },
    }


@pytest.mark.parametrize("fits", [8, pytest.param(120, marks=pytest.mark.slow)])
def test_memory_does_not_grow(data_dir: Path, tmp_path: Path, fits: int) -> None:
    """Fit a new model and the same one in turns, and change the data module now and then."""
    data, same_model = small(data_dir, batch_size=32), resnet()
    every = fits // 4
    results = []
    for done in range(1, fits + 1):
        model = same_model if done % 2 else resnet()
        use(model, data, tmp_path, inspect=done % every == 0)
        if done % every == 0:
            data = small(data_dir, batch_size=32)
            del model
            results.append(memory_and_counts(same_model))
    counts = [each for _, each in results[1:]]  # the first fits import modules and fill caches
    assert counts == [counts[0]] * 3
    if fits > 100:
        assert results[-1][0] - results[1][0] < 1


def test_the_files_are_verified_once(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = []
    monkeypatch.setattr(sources, "prepare", lambda folder, **_: verified.append(folder))
    model, data = resnet(), small(data_dir)
    t = trainer(tmp_path, limit_train_batches=1, limit_val_batches=1, limit_test_batches=1)
    t.fit(model, data)
    t.validate(model, data, verbose=False)
    t.test(model, data, verbose=False)
    assert verified == [data_dir]


# --- a notebook ----------------------------------------------------------------------------------

CELL = """
from pytorch_lightning import Trainer
from cifar_resnet import CIFAR10DataModule, CustomResNet, ImageClassifier
import torch
torch.manual_seed(1)
model = ImageClassifier(CustomResNet(width=1), "sgd")
data = CIFAR10DataModule(data_dir, batch_size=100, val_split=49_000)
trainer = Trainer(
    accelerator="cpu", max_epochs=1, logger=False, limit_val_batches=1, default_root_dir=folder,
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
)
trainer.fit(model, data)
weights.append(model.state_dict())
"""
AGAIN = """
import pytorch_lightning as pl
class Interrupt(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 4:
            raise KeyboardInterrupt
torch.manual_seed(1)
model = ImageClassifier(CustomResNet(width=1), "sgd")
start = {name: value.clone() for name, value in model.state_dict().items()}
trainer = Trainer(
    accelerator="cpu", max_epochs=1, logger=False, limit_val_batches=1, default_root_dir=folder,
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    callbacks=[Interrupt()],
)
trainer.fit(model, data)
weights.append(None)
"""
AFTER = """
trainer = Trainer(
    accelerator="cpu", max_epochs=1, logger=False, limit_val_batches=1, default_root_dir=folder,
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
)
seen = {name: value.clone() for name, value in model.state_dict().items()}
model.load_state_dict(start)
trainer.fit(model, data)
weights.append(model.state_dict())
"""


def test_cells_of_a_notebook_run_again(data_dir: Path, tmp_path: Path) -> None:
    """In IPython's own shell: a cell twice, one interrupted in the middle, and the next one."""
    from IPython.core.interactiveshell import InteractiveShell

    interrupts = signal.getsignal(signal.SIGINT)
    weights: list[Any] = []
    shell = InteractiveShell()
    shell.history_manager.enabled = False
    shell.push({"data_dir": data_dir, "folder": tmp_path, "weights": weights})
    try:
        for _ in range(2):
            shell.run_cell(CELL).raise_error()
        assert isinstance(shell.run_cell(AGAIN).error_in_exec, SystemExit | KeyboardInterrupt)
        shell.run_cell(AFTER).raise_error()
    finally:
        signal.signal(signal.SIGINT, interrupts)  # Lightning ignores it from then on
    expected = fitted(data_dir, tmp_path)
    assert len(weights) == 3
    assert all(same(each, expected) for each in weights)
    assert not same(shell.user_ns["seen"], expected)  # it really was interrupted
    assert not same(shell.user_ns["seen"], shell.user_ns["start"])


# --- threads and processes -----------------------------------------------------------------------


def test_two_threads_fit_at_once(data_dir: Path, tmp_path: Path) -> None:
    alone = [fitted(data_dir, tmp_path / str(seed), seed) for seed in (1, 2)]
    # networks are made one after the other: torch's random numbers belong to the whole process
    models = [resnet(seed) for seed in (1, 2)]
    failures: list[BaseException] = []
    together = threading.Barrier(2)

    class Meet(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            together.wait(60)

    def fit(model: ImageClassifier, folder: Path) -> None:
        try:
            t = trainer(folder, limit_val_batches=1, callbacks=[Meet()])
            t.fit(model, small(data_dir))
        except BaseException as error:
            failures.append(error)
            together.abort()

    threads = [
        threading.Thread(target=fit, args=(model, tmp_path / f"thread{k}"))
        for k, model in enumerate(models)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    for model, expected in zip(models, alone, strict=True):
        assert same(model.state_dict(), expected)


def draw_and_trace(data: CIFAR10DataModule, queue: Any) -> None:
    torch.set_num_threads(1)  # as the workers of a DataLoader do
    images, labels = next(iter(data.train_dataloader()))
    fields = receptive_field(CustomResNet(width=1), (1, 3, 32, 32))
    queue.put((images.numpy(), labels.numpy(), str(fields)))


@pytest.mark.parametrize(
    ("feeding", "method"), [(small, "fork"), (per_sample, "fork"), (small, "spawn")]
)
# from Python 3.12 on, a fork of a process with threads warns
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_data_module_in_another_process(data_dir: Path, method: str, feeding: Any) -> None:
    data = feeding(data_dir)
    data.setup()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    count = 2 if method == "fork" else 1  # a spawned one imports torch for seconds
    processes = [context.Process(target=draw_and_trace, args=(data, queue)) for _ in range(count)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=100) for _ in processes]
    for process in processes:
        process.join(100)
        assert process.exitcode == 0
    images, labels = next(iter(data.train_dataloader()))
    text = str(receptive_field(CustomResNet(width=1), (1, 3, 32, 32)))
    for theirs, their_labels, their_text in results:
        assert (theirs == images.numpy()).all()
        assert (their_labels == labels.numpy()).all()
        assert their_text == text


def test_workers_of_a_loader_end_with_its_iteration(data_dir: Path) -> None:
    data = per_sample(data_dir, num_workers=2)
    data.setup()
    gc.collect()  # what other tests have left
    files = []
    for turn in range(4):
        batches = iter(data.train_dataloader())
        next(batches)
        assert len(multiprocessing.active_children()) == 2
        if turn % 2 == 0:  # read to the end, or left in the middle
            for _ in batches:
                pass
        del batches
        gc.collect()
        assert multiprocessing.active_children() == []
        files.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
    assert max(files[1:]) <= files[0]


# --- copies --------------------------------------------------------------------------------------


def through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("feeding", [small, per_sample])
@pytest.mark.parametrize("used", ["new", "set up", "fitted"])
def test_a_copy_of_a_data_module_gives_the_same_batches(
    data_dir: Path, tmp_path: Path, copied: Any, feeding: Any, used: str
) -> None:
    data = feeding(data_dir, seed=3)
    if used == "fitted":
        trainer(tmp_path, limit_train_batches=1, limit_val_batches=1).fit(resnet(), data)
    elif used == "set up":
        data.setup()
    other = copied(data)
    assert str(other) == str(data)
    assert other.trainer is None
    other.setup()
    data.setup()
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        ours, theirs = (next(iter(getattr(module, name)())) for module in (data, other))
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=1).fit(resnet(), other)


def test_a_copy_does_not_carry_what_can_be_made_again(data_dir: Path, tmp_path: Path) -> None:
    data = small(data_dir)
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=1).fit(resnet(), data)
    arrays = sum(part.nbytes for part in data._arrays)
    assert len(pickle.dumps(data)) < 1.01 * arrays
    assert len(pickle.dumps(small(data_dir))) < 5000


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("recipe", ["adam", "best"])
def test_a_copy_of_a_classifier_trains_as_the_first(
    data_dir: Path, tmp_path: Path, copied: Any, recipe: str
) -> None:
    torch.manual_seed(1)
    options = Recipe.preset(recipe).network_options()
    model = ImageClassifier(CustomResNet(width=1, **options), recipe)
    trainer(tmp_path, limit_val_batches=0, limit_train_batches=2).fit(model, small(data_dir))
    other = copied(model)
    assert same(other.state_dict(), model.state_dict())
    assert other.recipe == model.recipe == copied(model.recipe)
    trainer(tmp_path, limit_val_batches=0, limit_train_batches=2).fit(model, small(data_dir))
    assert not same(other.state_dict(), model.state_dict())  # nothing is shared
    trainer(tmp_path, limit_val_batches=0, limit_train_batches=2).fit(other, small(data_dir))
    assert same(other.state_dict(), model.state_dict())


# --- other defaults ------------------------------------------------------------------------------


@contextlib.contextmanager
def default(what: str) -> Iterator[None]:
    """What a user may have set for networks; "meta" stands for a GPU that is not there."""
    try:
        if what == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, what))
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("what", ["meta", "float64", "float16"])
@pytest.mark.parametrize("feeding", [small, per_sample])
def test_batches_do_not_follow_the_users_defaults(data_dir: Path, feeding: Any, what: str) -> None:
    data = feeding(data_dir)
    data.setup()
    copied = copy.deepcopy(data)
    loaders = [data.train_dataloader, data.val_dataloader, data.test_dataloader]
    with default(what):
        got = [next(iter(loader())) for loader in loaders]
    loaders[0] = copied.train_dataloader  # the other has gone on to the next epoch
    expected = [next(iter(loader())) for loader in loaders]
    if feeding is per_sample and what != "meta":
        got[0][0] = expected[0][0]  # torchvision draws its random numbers in the default dtype
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours[0].device.type, ours[0].dtype) == ("cpu", torch.float32)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("what", ["float64", "float16"])
def test_a_fit_under_another_default_dtype(data_dir: Path, tmp_path: Path, what: str) -> None:
    model = resnet()
    with default(what):
        trainer(tmp_path, limit_val_batches=1).fit(model, small(data_dir))
    assert same(model.state_dict(), fitted(data_dir, tmp_path))


def test_the_sums_of_an_epoch_do_not_follow_the_default_device() -> None:
    scores, labels = torch.eye(3), torch.tensor([0, 1, 1])
    with default("meta"):
        epoch_sums = EpochSums()
        epoch_sums.add(
            nn.functional.cross_entropy(scores, labels), scores, labels, step=0, learning_rate=1
        )
        epoch_sums.synchronize()
    assert epoch_sums.sums()[1:].tolist() == [2, 3]


def test_a_network_of_doubles(data_dir: Path, tmp_path: Path) -> None:
    """Images are float32: torch says so, and Lightning's precision is the remedy."""
    torch.manual_seed(1)
    model = ImageClassifier(CustomResNet(width=1).double(), "sgd")
    with pytest.raises(
        TypeError, match=r"torch\.float64 weights, but got images of torch\.float32"
    ):
        trainer(tmp_path, limit_val_batches=0).fit(model, small(data_dir))
    trainer(tmp_path, limit_val_batches=0, precision="64-true").fit(model, small(data_dir))


def test_loaders_made_in_inference_mode_serve_a_training(data_dir: Path) -> None:
    data = ready(data_dir, val_split=49_000, batch_size=100)
    model = resnet()
    with torch.inference_mode():
        loader = data.train_dataloader()
        scores = model(next(iter(loader))[0])
        assert scores.is_inference()
        found = find_misclassified(model, data, n=3)
        assert len(found) == 3
        receptive_field(model.network, (1, 3, 32, 32))
    for images, labels in loader:
        nn.functional.cross_entropy(model(images), labels).backward()
        break
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- other interpreters --------------------------------------------------------------------------

EVERY_NAME = """
import cifar_resnet

for name in cifar_resnet.__all__:
    getattr(cifar_resnet, name)
print(len(cifar_resnet.__all__), __debug__, cifar_resnet.CustomResNet.__doc__ is None)
from cifar_resnet import CustomResNet, Recipe, receptive_field

print(receptive_field(CustomResNet(width=1), (1, 3, 32, 32)).output.size)
try:
    Recipe(learning_rate=0)
except ValueError as error:
    print(error)
"""


def test_the_package_without_assertions_and_with_warnings_as_errors(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-OO", "-W", "error", "-X", "dev", "-c", EVERY_NAME],
        capture_output=True, text=True, timeout=200, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    names, *rest = result.stdout.splitlines()
    assert names == f"{len(cifar_resnet.__all__)} False True"
    assert rest[0] == "(88, 88)"
    assert re.fullmatch(r"learning_rate must be .*, but got 0\.", rest[1])
    assert result.stderr == ""
