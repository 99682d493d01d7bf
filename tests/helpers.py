"""Networks, trainers and data that several test files use."""

import contextlib
import math
import os
import random
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.transforms import v2

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    LastCheckpoint,
    Recipe,
    receptive_field,
)
from cifar_resnet.training.curves import read_curves

DATA_MODULES: dict[str, CIFAR10DataModule] = {}


class Recorder(pl.LightningModule):
    """Trains next to nothing, and keeps a fingerprint of every image it is shown, by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: dict[str, list[tuple[int, Tensor]]] = {"train": [], "val": [], "test": []}

    def see(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        assert images.shape[1:] == (3, 32, 32)
        assert len(images) == len(labels)
        self.seen[stage].append((self.current_epoch, images.double().sum(dim=(1, 2, 3))))
        return self.layer(images.mean().reshape(1, 1)).sum()

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.see("train", batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.see("val", batch)

    def test_step(self, batch: Any, index: int) -> None:
        self.see("test", batch)

    def predict_step(self, batch: Any, index: int) -> Tensor:
        return batch[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def epoch(self, stage: str, epoch: int) -> list[float]:
        return [v for e, values in self.seen[stage] if e == epoch for v in values.tolist()]


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(**settings | options)


def ready(data_dir: Path, **options: Any) -> CIFAR10DataModule:
    data = CIFAR10DataModule(data_dir, **options)
    data.setup()
    return data


def per_sample(data_dir: Path, **options: Any) -> CIFAR10DataModule:
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            CIFAR10DataModule.default_transforms(),
        ]
    )
    plain = CIFAR10DataModule.default_transforms()
    # a small training set keeps these tests fast: 49,000 images are held out
    settings: dict[str, Any] = {"val_split": 49_000, "batch_size": 128} | options
    return CIFAR10DataModule(
        data_dir,
        train_transforms=transform,
        val_transforms=plain,
        test_transforms=plain,
        **settings,
    )


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


class Function(nn.Module):
    """A network that calls a function of its inputs."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *inputs: Any) -> Any:
        return self.run(*inputs)


class Net(Function):
    """A network that calls a function of itself and its inputs, with the modules it uses."""

    def __init__(self, run: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__(run)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


class Send(pl.Callback):
    """Sends this process a signal, as the user or the system does, when a batch begins."""

    def __init__(self, number: int, at: int, times: int = 1, validation: bool = False) -> None:
        self.number, self.at, self.times, self.validation = number, at, times, validation

    def on_train_batch_start(self, t: pl.Trainer, *_: Any) -> None:
        if t.global_step == self.at and not self.validation:
            self._send()

    def on_validation_batch_start(self, t: pl.Trainer, *_: Any) -> None:
        if t.global_step == self.at and self.validation:
            self._send()

    def _send(self) -> None:
        times, self.times = self.times, 0
        for _ in range(times):
            os.kill(os.getpid(), self.number)


class Training:
    """One training that is started as often as it takes, with the same lines each time."""

    def __init__(
        self,
        folder: Path,
        data_dir: Path,
        network: Callable[[], nn.Module] = lambda: CustomResNet(width=1),
        recipe: Recipe | str = "muon",
        callbacks: Callable[[], list[pl.Callback]] = list,
        data: dict[str, Any] | None = None,
        every_seconds: float = 1000.0,
        **options: Any,
    ) -> None:
        self.folder = folder
        self.last = LastCheckpoint(folder, every_seconds=every_seconds)
        self.data_dir, self.data = data_dir, data or {}
        self.network, self.recipe = network, recipe
        self.callbacks = callbacks
        self.options = {"max_epochs": 3, "log_every_n_steps": 1} | options
        self.losses: list[float] = []

    def run(self, *callbacks: pl.Callback) -> pl.Trainer:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        collect = Collect()
        model = ImageClassifier(self.network(), self.recipe, num_classes=10)
        logger = TensorBoardLogger(str(self.folder), name="", version="log")
        t = trainer(
            self.folder, callbacks=[self.last, collect, *self.callbacks(), *callbacks],
            logger=logger, enable_checkpointing=True, **self.options,
        )  # fmt: skip
        try:
            newest = self.last.newest()
            t.fit(model, self._data_module(), ckpt_path=newest, weights_only=True)
        finally:
            self.losses += collect.losses
        return t

    def _data_module(self) -> CIFAR10DataModule:
        """One for all trainings of a kind: it gives each fit a loader of its own."""
        key = str(self.data)
        if key not in DATA_MODULES:
            DATA_MODULES.clear()  # each holds all images
            DATA_MODULES[key] = small(self.data_dir, **self.data)
        return DATA_MODULES[key]

    def left(self) -> dict[str, Any]:
        """What a finished training has left."""
        path = self.last.newest()
        assert path is not None
        saved = torch.load(path, weights_only=True)
        return {
            "weights": saved["state_dict"],
            "averages": saved.get("current_model_state"),
            "optimizer": saved["optimizer_states"],
            "schedule": saved["lr_schedulers"],
            "generators": saved["callbacks"].get("LastCheckpoint"),
            "step": saved["global_step"],
            "log": read_curves(self.folder / "log"),
        }


def python_2_pickle(batch: NDArray[np.uint8]) -> bytes:
    """Pickle records (N, 3073) as Python 2 did for the official files, which Python 3 cannot."""

    def string(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    rows, columns = (b"M" + struct.pack("<H", size) for size in (len(batch), 3072))
    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR(K\x03" + string(b"|")
    dtype += b"NNN" + 2 * (b"J" + struct.pack("<i", -1)) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85"
    array += string(b"b") + b"tR(K\x01" + rows + columns + b"\x86" + dtype
    array += b"\x89" + string(batch[:, 1:].tobytes()) + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in batch[:, 0]) + b"e"
    return b"\x80\x02}(" + string(b"labels") + labels + string(b"data") + array + b"u."


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def state(module: nn.Module) -> dict[str, Any]:
    """Return everything that a call might change in a module, as values that can be compared."""
    result: dict[str, Any] = {}
    for name, part in module.named_modules():
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        result[name] = (part.training, sorted(vars(part)), [list(hook.items()) for hook in hooks])
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        values = [None if t is None else (id(t), t.tolist()) for t in (tensor, tensor.grad)]
        result[f"{name} values"] = (tensor.requires_grad, *values)
    return result


# --- wrong arguments: see test_arguments.py ------------------------------------------------------


class Row(NamedTuple):
    """A wrong value, the error it must raise, and other arguments to pass with it.

    `{name}` in the message stands for the name of the argument.
    """

    value: Any
    error: type[Exception]
    message: str
    others: dict[str, Any]


def row(value: Any, error: type[Exception], message: str, **others: Any) -> Row:
    return Row(value, error, message, others)


def types_and_values(expected: str, types: list[Any], values: list[Any]) -> list[Row]:
    """Return rows for values of a wrong type and for values out of range."""
    return [
        row(value, error, f"{{name}} must be {expected}, but got {value!r}")
        for error, group in ((TypeError, types), (ValueError, values))
        for value in group
    ]


def integers(least: int, *, instead: str = "", optional: bool = False) -> list[Row]:
    types = ["4", 4.0, True, [4], math.nan, np.float64(4), np.bool_(True)]
    values = [least - 1, np.int64(least - 1), -(10**30)]
    expected = f"an integer of at least {least}{instead}"
    return types_and_values(expected, types + ([] if optional else [None]), values)


def numbers(expected: str, *outside: float) -> list[Row]:
    types = ["0.1", True, None, [0.1], 1j, np.bool_(False)]
    return types_and_values(expected, types, [math.nan, math.inf, -math.inf, *outside])


def flags() -> list[Row]:
    return types_and_values("True or False", ["no", 1, None, np.bool_(True), [True]], [])


def choices(*given: str | None) -> list[Row]:
    expected = f"one of {', '.join(map(repr, given))}"
    types = [3, True, [given[0]], {given[0]}, b"x", *([] if None in given else [None])]
    values = ["", "other", str(given[0]).upper(), f"{given[0]} "]
    return types_and_values(expected, types, values)


def paths(expected: str = "a path", *, none: bool = False) -> list[Row]:
    return types_and_values(expected, [3, b"x", True, *([None] if none else [])], ["", "a\0b"])


def functions(expected: str) -> list[Row]:
    return types_and_values(expected, ["flip", 3, [len]], [])


def killed(folder: Path, step: int) -> None:
    """Kill the process that calls this in a step of a run, and leave its folder."""

    class Kill(pl.Callback):
        def on_before_optimizer_step(self, t: pl.Trainer, *_: Any) -> None:
            if t.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

    Training(folder, Path(os.environ["CIFAR10_DIR"]), limit_val_batches=2, every_seconds=0.0).run(
        Kill()
    )


def small_vit() -> nn.Module:
    """A vision transformer for images of 32 x 32 pixels: 16 patches and a class token."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16,
        num_classes=10,
    )  # fmt: skip
    nn.init.normal_(vit.heads.head.weight)  # initialized to zeros, whose maps are all 0
    return vit


def seen_by_perturbation(network: nn.Module, x: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """Return which rows of a float64 input each element of the output really depends on.

    Each row is changed by small and by large amounts of both signs. Elements that change are bool
    (rows, *shape of the output), one tensor for each dimension.
    """
    noise = torch.Generator().manual_seed(0)
    network.eval()
    with torch.no_grad():
        before = network(x.clone())
        answers = []
        for dim in dims:
            changed = torch.zeros(x.shape[dim], *before.shape, dtype=torch.bool)
            for row in range(x.shape[dim]):
                for scale in (0.3, 3.0, 30.0):
                    other = x.clone()
                    part = other.select(dim, row)
                    part += scale * torch.randn(part.shape, generator=noise, dtype=x.dtype)
                    after = network(other)
                    same = after.shape == before.shape
                    changed[row] |= (after != before) if same else True
            answers.append(changed)
    return answers


def compare_with_perturbation(network: nn.Module, x: Tensor) -> tuple[bool, bool]:
    """Return whether the analysis contains all dependencies of the output, and no others."""
    output = receptive_field(network, inputs=(x.clone(),)).output
    dims = range(2, x.dim())
    complete = exact = True
    for axis, changed in enumerate(seen_by_perturbation(network, x, dims)):
        others = [d + 1 for d in range(len(output.shape)) if d not in output.unit_dims]
        found = changed.any(dim=others) if others else changed
        expected = output.seen(axis)
        complete &= not bool((found & ~expected).any())
        exact &= bool((found == expected).all())
    return complete, exact


@contextlib.contextmanager
def watched_page(browser: Any, address: str, *, seconds: int) -> Iterator[Any]:
    """A page that must fetch nothing from elsewhere than `address` and report no error."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(1000 * seconds)  # for a machine that is busy
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    own = (address, "data:", "blob:")
    assert [each for each in requests if not each.startswith(own)] == []
    assert requests
    assert errors == []
