"""Test the README and the site: Python blocks run unless they are marked with a reason, the output
below a block is what it prints, and the messages on the troubleshooting page are exact.
"""

import io
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cifar_resnet.data import sources
from cifar_resnet.data.download import DownloadError
from cifar_resnet.data.formats import Arrays

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "snippets"),
]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# Group 2 is the indentation, which a block in a collapsible answer has.
BLOCK = re.compile(
    r"( *<!-- not run: [^\n]+ -->\n)?( *)```python\n(.*?)\2```(?:\n\n\2```text\n(.*?)\2```)?",
    re.DOTALL,
)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_run(
    page: Path,
    arrays: Arrays,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # some blocks save a figure
    monkeypatch.setattr(sources, "prepare", lambda *_, **__: None)  # read and verified once
    monkeypatch.setattr(sources, "load", lambda _: arrays)
    namespace: dict[str, Any] = {}
    for skipped, indent, *block in BLOCK.findall(page.read_text()):
        code, output = (re.sub(f"^{indent}", "", text, flags=re.MULTILINE) for text in block)
        compiled = compile(code, str(page), "exec")
        if not skipped:
            capsys.readouterr()
            exec(compiled, namespace)
            if output:
                assert capsys.readouterr().out == output


def test_the_site_lists_every_page() -> None:
    config = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert re.search(rf"[:-] {page.relative_to(ROOT / 'docs').as_posix()}\n", config)


def test_every_public_name_is_in_the_api_reference() -> None:
    import cifar_resnet

    pages = (ROOT / "docs/reference").glob("*.md")
    text = "".join(page.read_text() for page in pages)
    assert sorted(re.findall(r"^::: cifar_resnet\.(.+)$", text, re.M)) == cifar_resnet.__all__


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_placeholder_is_left(page: Path) -> None:
    assert not re.findall(r"^[A-Z_]{5,}$", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_picture_has_a_description(page: Path) -> None:
    for text, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
        assert len(text) > 20, target
        assert (page.parent / target).is_file(), target


def test_the_trained_weights_have_their_accuracies_on_the_page() -> None:
    from cifar_resnet import pretrained_weights

    page = (ROOT / "docs/network.md").read_text()
    for weights in pretrained_weights():
        names = ("accuracy", "accuracy_mirror", "accuracy_six")
        percentages = " | ".join(f"{100 * weights.training[name]:.2f}" for name in names)
        assert f"| `{weights.name}` | {percentages} |" in page


# --- messages ------------------------------------------------------------------------------------

QUOTED = re.findall(r"^\*\*`(.+)`\*\*$", (ROOT / "docs/troubleshooting.md").read_text(), re.M)


def _data(folder: Path, **options: Any) -> Any:
    from cifar_resnet import CIFAR10DataModule

    return CIFAR10DataModule(folder, **options)


def _network(**options: Any) -> Any:
    from cifar_resnet import CustomResNet

    return CustomResNet(width=2, **options)


def _truncated(folder: Path) -> None:
    (folder / "cifar-10-binary.tar.gz").write_bytes(b"the beginning")
    _data(folder).prepare_data()


def _damaged(folder: Path) -> None:
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir()
    (batches / "data_batch_1.bin").write_bytes(bytes(10_000 * 3073))  # black airplanes
    _data(folder).setup()


def _own_source(folder: Path) -> None:
    with mock.patch.dict(os.environ, {"CIFAR10_URL": "/data/cifar-10-python.tar.gz"}):
        _data(folder).prepare_data()


def _in_the_way(folder: Path) -> None:
    (folder / "cifar-10-batches-bin").mkdir()
    (folder / "cifar-10-batches-bin" / "notes.txt").touch()
    _data(folder).prepare_data()


def _unwritable(folder: Path) -> None:
    (folder / "file").touch()
    _data(folder / "file").prepare_data()


def _foreign_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    from cifar_resnet import CustomResNet

    save_file({"weight": torch.zeros(1)}, folder / "other.safetensors")
    CustomResNet.from_pretrained(folder / "other.safetensors")


def _trainer(folder: Path, **options: Any) -> Any:
    from pytorch_lightning import Trainer

    return Trainer(
        default_root_dir=folder,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "enable_checkpointing": False} | options,
    )


def _batches(value: float = 0.5) -> Any:
    from torch.utils.data import DataLoader

    images = torch.full((4, 3, 32, 32), value)
    return DataLoader(TensorDataset(images, torch.arange(4)), batch_size=2)


def _fit(folder: Path, value: float = 0.5, recipe: str = "adam", **options: Any) -> Any:
    from cifar_resnet import ImageClassifier

    trainer = _trainer(folder, **options)
    trainer.fit(ImageClassifier(_network(), recipe), _batches(value))
    return trainer


def _test(folder: Path, network: nn.Module, *labels: torch.Tensor) -> None:
    from torch.utils.data import DataLoader

    from cifar_resnet import ImageClassifier

    dataset = TensorDataset(torch.zeros(8, 3, 32, 32), *(labels or [torch.arange(8)]))
    model = ImageClassifier(network, num_classes=10)
    _trainer(folder).test(model, DataLoader(dataset, batch_size=8), verbose=False)


def _last_checkpoint(folder: str) -> Any:
    from cifar_resnet import LastCheckpoint

    return LastCheckpoint(folder)


def _other_width(folder: Path) -> None:
    from cifar_resnet import CustomResNet, ImageClassifier

    _fit(folder).save_checkpoint(folder / "run.ckpt")
    ImageClassifier.load_from_checkpoint(
        folder / "run.ckpt", network=CustomResNet(width=4), weights_only=True
    )


def _other_batch_size(data_dir: Path) -> None:
    data = _data(data_dir, batch_size=25_000)
    data.setup()
    data.train_dataloader().load_state_dict({"epoch": 0, "batch": 7})


def _other_rate(folder: Path) -> None:
    from cifar_resnet import ImageClassifier, Recipe

    _fit(folder).save_checkpoint(folder / "run.ckpt")
    model = ImageClassifier(_network(), replace(Recipe.preset("adam"), learning_rate=0.1))
    _trainer(folder).fit(model, _batches(), ckpt_path=folder / "run.ckpt")


def _saved(**more: Any) -> bytes:
    file = io.BytesIO()
    torch.save({"global_step": 1, **more}, file)
    return file.getvalue()


class _Raise(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError(record.getMessage())


def _warned(function: Callable[[], Any]) -> None:
    """Raise warnings that are logged."""
    log, handler = logging.getLogger("cifar_resnet"), _Raise(logging.WARNING)
    log.addHandler(handler)
    try:
        function()
    finally:
        log.removeHandler(handler)


def _resumed(folder: Path, **files: bytes) -> None:
    from cifar_resnet import LastCheckpoint
    from cifar_resnet.cli.run_folder import newest_checkpoint

    for name, content in files.items():
        (folder / f"{name}.ckpt").write_bytes(content)
    _warned(lambda: newest_checkpoint(LastCheckpoint(folder)))


def _unwritable_checkpoint(folder: Path) -> None:
    from pytorch_lightning import Callback

    from cifar_resnet import LastCheckpoint

    last = LastCheckpoint(folder / "checkpoints", every_seconds=0)

    class Replace(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            last.dirpath.rmdir()
            last.dirpath.touch()

    _warned(lambda: _fit(folder, callbacks=[last, Replace()], enable_checkpointing=True))


def _pictures() -> list[Any]:
    from PIL import Image

    return [(Image.new("RGB", (32, 32)), 0)]


def _errors(data: Any, model: nn.Module | None = None, **options: Any) -> Any:
    from cifar_resnet import show_misclassified

    return show_misclassified(model or _network(), data, **options)


def _samples(value: float) -> TensorDataset:
    return TensorDataset(torch.full((8, 3, 32, 32), value), torch.arange(8))


def _maps(model: nn.Module, **options: Any) -> Any:
    from cifar_resnet import compute_cams

    return compute_cams(model, torch.rand(2, 3, 32, 32), 0, **options)


def _untrained() -> nn.Module:
    network = _network()
    nn.init.zeros_(network.head.weight)
    return network


def _fields(size: Any, model: nn.Module | None = None, **options: Any) -> Any:
    from cifar_resnet import receptive_field

    return receptive_field(model or _network(), size, **options)


def _recipe(name: str) -> Any:
    from cifar_resnet import Recipe

    return Recipe.preset(name)


def _classifier(network: nn.Module) -> Any:
    from cifar_resnet import ImageClassifier

    return ImageClassifier(network)


def _pretrained(name: str) -> Any:
    from cifar_resnet import CustomResNet

    return CustomResNet.from_pretrained(name)


FLAT = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
IMAGE = torch.zeros(1, 3, 32, 32)

# In the order of the page. Each takes an empty folder and the folder with the data set.
PROVOKED: list[Callable[[Path, Path], Any]] = [
    lambda empty, data: _data(empty).setup(),
    lambda empty, data: _data(empty, download=False).prepare_data(),
    lambda empty, data: _data(empty).prepare_data(),
    lambda empty, data: _own_source(empty),
    lambda empty, data: _damaged(empty),
    lambda empty, data: _truncated(empty),
    lambda empty, data: _in_the_way(empty),
    lambda empty, data: _unwritable(empty),
    lambda empty, data: _data(data).train_dataloader(),
    lambda empty, data: _data(data, val_split=1.0),
    lambda empty, data: _network()(IMAGE[0]),
    lambda empty, data: _network()(IMAGE.byte()),
    lambda empty, data: _network()(IMAGE.half()),
    lambda empty, data: _pretrained("half"),
    lambda empty, data: _foreign_weights(empty),
    lambda empty, data: _fit(empty, float("nan")),
    lambda empty, data: _other_width(empty),
    lambda empty, data: _other_rate(empty),
    lambda empty, data: _other_batch_size(data),
    lambda empty, data: _classifier(FLAT),
    lambda empty, data: _recipe("adamw"),
    lambda empty, data: _fit(empty, recipe="sgd", max_epochs=-1),
    lambda empty, data: _test(empty, nn.Sequential(*FLAT, nn.Softmax(1))),
    lambda empty, data: _test(empty, FLAT, torch.full((8,), 10)),
    lambda empty, data: _test(empty, FLAT, torch.arange(8), torch.arange(8)),
    lambda empty, data: _last_checkpoint("s3://bucket/run"),
    lambda empty, data: _maps(_network(), target_layers=["residual2"]),
    lambda empty, data: _maps(FLAT),
    lambda empty, data: _maps(_network(), target_layers=["pool"]),
    lambda empty, data: _maps(_untrained()),
    lambda empty, data: _errors(_samples(2.0)),
    lambda empty, data: _errors(_pictures()),
    lambda empty, data: _errors(_samples(0.5), class_names=["cat", "dog"]),
    lambda empty, data: _fields(32),
    lambda empty, data: _fields((3, 32, 32), nn.Conv2d(3, 4, 3)),
    lambda empty, data: _fields((1, 3, 32, 32))["residual2"],
    lambda empty, data: _fields((1, 3, 32, 32), ignore="residual2"),
    lambda empty, data: _resumed(empty, last=b"PK", previous=_saved()),
    lambda empty, data: _resumed(empty, last=b"PK", previous=b""),
    lambda empty, data: _resumed(empty, last=_saved(more=Fraction(1))),
    lambda empty, data: _unwritable_checkpoint(empty),
]


def test_every_quoted_message_is_provoked() -> None:
    assert len(QUOTED) == len(PROVOKED) >= 10


@pytest.mark.parametrize(
    ("quoted", "provoke"),
    list(zip(QUOTED, PROVOKED, strict=False)),
    ids=[quoted[:30] for quoted in QUOTED],
)
def test_messages_are_quoted_exactly(
    quoted: str,
    provoke: Callable[[Path, Path], Any],
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise DownloadError("no connection")

    monkeypatch.setattr(sources, "download", refuse)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no npm either
    with pytest.raises(Exception) as raised:  # noqa: PT011
        provoke(tmp_path, data_dir)
    message = " ".join(str(raised.value.args[0]).split())
    pattern = ".+?".join(re.escape(part) for part in quoted.split("…"))
    assert re.match(pattern, message), message
