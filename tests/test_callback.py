"""Test that `LogMisclassified` analyzes what the trainer tests, and logs it to any logger."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning.loggers as lightning_loggers
import torch
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities import CombinedLoader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from cifar_resnet import CIFAR10DataModule, CustomResNet, ImageClassifier, LogMisclassified

NAMES = ["calibration", "confusion_matrix", "misclassified"]


class Watched(LightningModule):
    """Predict the brightest channel, and remember the images and labels of each test step."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, classes, 1, bias=False)
        self.layer.weight.data = torch.eye(classes, 3)[:, :, None, None]
        self.tested: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images).mean((2, 3))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        images, labels = batch
        self.tested.setdefault(dataloader_idx, []).append((images.clone(), labels.clone()))
        self.log("count", float(len(labels)), reduce_fx="sum")

    def samples(self, loader: int = 0) -> tuple[Tensor, Tensor]:
        images, labels = zip(*self.tested[loader], strict=True)
        return torch.cat(images), torch.cat(labels)


def some_data(number: int = 20, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(number, 3, 4, 4, generator=generator)
    return TensorDataset(images, torch.randint(3, (number,), generator=generator))


def run_test(
    callback: LogMisclassified, data: Any, model: LightningModule | None = None, **options: Any
) -> tuple[Trainer, Any]:
    options = {"logger": False} | options
    trainer = Trainer(
        accelerator="cpu", callbacks=[callback], max_epochs=1, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*treespec")
        warnings.filterwarnings("ignore", ".*sampler has shuffling enabled")
        warnings.filterwarnings("ignore", ".*You are using `fast_dev_run")
        return trainer, trainer.test(model or Watched(), data, verbose=False)


def expected_confusion(images: Tensor, labels: Tensor) -> list[list[int]]:
    predicted = images.mean((2, 3)).argmax(1)
    return [
        [int(((labels == true) & (predicted == pred)).sum()) for pred in range(3)]
        for true in range(3)
    ]


class Stream(IterableDataset[Any]):
    """A stream whose samples differ in each iteration."""

    def __init__(self) -> None:
        self.iterations = 0

    def __iter__(self) -> Iterator[Any]:
        self.iterations += 1
        yield from some_data(seed=self.iterations)


class Renewed:
    """A sampler that chooses other samples in each iteration."""

    def __init__(self) -> None:
        self.iterations = 0

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[int]:
        self.iterations += 1
        return iter(range(self.iterations, self.iterations + 8))


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(some_data(), **{"batch_size": 6} | options)


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "in order": loader,
    "dropping the last": lambda: loader(drop_last=True),
    "shuffled": lambda: loader(shuffle=True),
    "shuffled, dropping the last": lambda: loader(shuffle=True, drop_last=True),
    "a random part": lambda: loader(sampler=RandomSampler(some_data(), num_samples=9)),
    "a subset": lambda: loader(sampler=SubsetRandomSampler(range(3, 14))),
    "weighted": lambda: loader(sampler=WeightedRandomSampler(range(20), 11)),
    "a sampler": lambda: loader(sampler=Renewed()),
    "a batch sampler": lambda: DataLoader(
        some_data(), batch_sampler=BatchSampler(SequentialSampler(some_data()), 7, True)
    ),
    "another batch sampler": lambda: DataLoader(some_data(), batch_sampler=[[3, 1], [7, 7, 2]]),
    "batches as samples": lambda: DataLoader(
        some_data(), batch_size=None, sampler=BatchSampler(Renewed(), 4, False)
    ),
    "a stream": lambda: DataLoader(Stream(), batch_size=6),
}


@pytest.mark.parametrize(
    "limit",
    [{}, {"limit_test_batches": 1}, {"limit_test_batches": 0.5}, {"fast_dev_run": True}],
    ids=str,
)
@pytest.mark.parametrize("kind", LOADERS)
def test_it_analyzes_the_samples_that_are_tested(
    kind: str, limit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_resnet.misclassified.callback.draw_all", lambda *_: {})
    if kind == "a stream" and limit == {"limit_test_batches": 0.5}:
        pytest.skip("the trainer needs the length")
    callback, model = LogMisclassified(cam=None), Watched()
    run_test(callback, LOADERS[kind](), model, **limit)
    images, labels = model.samples()
    assert callback.found is not None
    assert callback.found.confusion.tolist() == expected_confusion(images, labels)
    wrong = images[images.mean((2, 3)).argmax(1) != labels]
    kept = torch.stack([sample.inputs for sample in callback.found])
    assert sorted(kept.flatten(1).tolist()) == sorted(wrong.flatten(1).tolist())
    dataset = LOADERS[kind]().dataset
    for sample in callback.found:
        if sample.index is not None and sample.index >= 0 and kind != "a stream":
            assert torch.equal(sample.inputs, dataset[sample.index][0])
        elif kind in ("in order", "dropping the last", "a stream"):
            assert sample.index in range(20)


@pytest.mark.parametrize("transforms", [None, CIFAR10DataModule.default_transforms()])
def test_the_loaders_of_the_data_module(transforms: Any, data_dir: Path) -> None:
    module = CIFAR10DataModule(data_dir, batch_size=5, test_transforms=transforms)
    callback, model = LogMisclassified(cam=None), Watched(classes=10)
    run_test(callback, module, model, limit_test_batches=3)
    assert callback.found is not None
    assert callback.found.total == 15
    assert {sample.index for sample in callback.found} <= set(range(15))
    assert callback.found.class_names[3] == "cat"


def test_a_training_loader_is_analyzed_as_tested(data_dir: Path) -> None:
    module = CIFAR10DataModule(data_dir, batch_size=5, subset=100)
    module.prepare_data()
    module.setup("fit")
    callback = LogMisclassified(cam=None, mean=module.mean, std=module.std)
    model = Watched(classes=10)
    run_test(callback, module.train_dataloader(), model, limit_test_batches=2)
    images, _ = model.samples()  # shuffled and augmented
    assert callback.found is not None
    for sample in callback.found:
        assert (images == sample.inputs).flatten(1).all(1).any()


class Flipped(LightningDataModule):
    """Change the batches on the way to the device."""

    def test_dataloader(self) -> Any:
        return loader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        return images.flip(1), labels  # red and blue


def test_batches_that_a_hook_changes() -> None:
    callback, model = LogMisclassified(cam=None), Watched()
    run_test(callback, Flipped(), model)
    assert callback.found is not None
    assert callback.found.confusion.tolist() == expected_confusion(*model.samples())
    for sample in callback.found:
        assert torch.equal(sample.inputs.flip(0), some_data()[sample.index][0])


def test_batches_are_copied_before_the_model_changes_them() -> None:
    class InPlace(Watched):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            batch[0].zero_()

    callback = LogMisclassified(cam=None)
    run_test(callback, LOADERS["a batch sampler"](), InPlace())
    assert callback.found is not None
    assert callback.found.confusion.sum() == 14
    assert all(bool(sample.inputs.any()) for sample in callback.found)


def test_the_data_module_of_an_earlier_fit_does_not_describe_the_test() -> None:
    class WithNames(Flipped):
        classes = ("a", "b", "c")

    callback = LogMisclassified(cam=None)
    trainer, _ = run_test(callback, WithNames())
    assert callback.found is not None
    assert callback.found.class_names == ("a", "b", "c")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.test(Watched(), loader(), verbose=False)
    assert callback.found.class_names == ("0", "1", "2")


def test_several_loaders(tmp_path: Path) -> None:
    callback, model = LogMisclassified(n=2, save_dir=tmp_path, cam=None), Watched()
    assert callback.found is None
    run_test(callback, [loader(), LOADERS["another batch sampler"]()], model)
    assert len(callback.all_found) == 2
    for number, found in enumerate(callback.all_found):
        assert found.confusion.tolist() == expected_confusion(*model.samples(number))
    assert callback.found is callback.all_found[0]
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert files == {f"{name}/dataloader_idx_{i}.png" for name in NAMES for i in range(2)}
    run_test(callback, {"first": loader(), "second": [loader(), loader()]})
    assert len(callback.all_found) == 3


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"class_names": "ab"}, loader, "The model has 3 classes, but there are 2 class names"),
        ({"target_layers": "head"}, loader, "head"),
        ({"true_class": 4}, loader, "true_class"),
        ({"mean": 5, "std": 1, "target_layers": "head"}, loader, "head"),
        (
            {},
            lambda: DataLoader(TensorDataset(torch.full((4, 3, 4, 4), 3.0), torch.zeros(4).long())),
            "Pass the mean and std",
        ),
        (
            {},
            lambda: DataLoader(
                TensorDataset(torch.full((4, 3, 4, 4), 3.0), torch.zeros(4).long()),
                batch_sampler=[[0, 1]],
            ),
            "Pass the mean and std",
        ),
        ({}, lambda: DataLoader(torch.rand(4, 3, 4, 4)), "Errors cannot be found in data without"),
        (
            {},
            lambda: CombinedLoader([loader(), loader()], "max_size"),
            "mode 'max_size'. Pass them to trainer.test as a list",
        ),
    ],
)
def test_a_mistake_is_reported_before_the_test(
    options: Any, data: Callable[[], Any], message: str
) -> None:
    model = Watched()
    with pytest.raises((ValueError, TypeError), match=message):
        run_test(LogMisclassified(**options), data(), model)
    assert model.tested == {}


def test_a_later_failure_does_not_cost_the_results(tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    callback = LogMisclassified(save_dir=folder, cam=None)
    folder.write_text("in the way")
    with pytest.warns(UserWarning, match="could not analyze the errors of this test: .*figures"):
        _, results = run_test(callback, loader())
    assert results[0]["count"] == 20
    assert callback.found is not None


# -- precision and loggers ------------------------------------------------------------------------


def test_the_callback_uses_the_precision_of_the_trainer() -> None:
    lower: list[bool] = []

    class Lower(Watched):
        def forward(self, images: Tensor) -> Tensor:
            lower.append(torch.is_autocast_enabled("cpu"))
            return super().forward(images)

    run_test(LogMisclassified(n=1, cam=None), loader(), Lower(), precision="bf16-mixed")
    assert len(lower) == 5  # the first batch is checked, then each of the four
    assert all(lower)


def test_the_figures_of_the_cifar_10_test(data_dir: Path, tmp_path: Path) -> None:
    callback = LogMisclassified(n=3, save_dir=tmp_path / "figures", method="hirescam", cam="true")
    loggers = [TensorBoardLogger(tmp_path, name=""), CSVLogger(tmp_path)]
    model = ImageClassifier(CustomResNet(width=2))
    trainer, _ = run_test(callback, CIFAR10DataModule(data_dir), model, logger=loggers)
    assert callback.found is not None
    assert callback.found.total == 10_000
    assert callback.found.class_names[3] == "cat"
    accuracy = float(trainer.callback_metrics["test_acc"])
    assert callback.found.accuracy == pytest.approx(accuracy, abs=1e-6)
    loggers[0].finalize("success")
    events = EventAccumulator(loggers[0].log_dir).Reload()
    assert sorted(events.Tags()["images"]) == NAMES
    assert sorted(path.stem for path in (tmp_path / "figures").glob("*.png")) == NAMES
    assert not list(Path(loggers[1].log_dir).glob("*.png"))  # they are in save_dir


class Fake(Logger):
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    name = version = "fake"

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        pass

    log_hyperparams = log_metrics


class WandbLogger(Fake):
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        assert isinstance(images, list)
        assert isinstance(images[0], Image.Image)
        self.kept[key] = images[0].copy()


class MLFlowLogger(Fake):
    run_id = "run 3"

    @property
    def experiment(self) -> Any:
        def log_figure(run_id: str, figure: Figure, artifact_file: str) -> None:
            assert run_id == "run 3"
            self.kept[artifact_file.removesuffix(".png")] = figure

        return SimpleNamespace(log_figure=log_figure)


class CometLogger(Fake):
    @property
    def experiment(self) -> Any:
        def log_figure(
            figure_name: str, figure: Figure, overwrite: bool = False, step: int | None = None
        ) -> None:
            assert step == 0
            self.kept[figure_name] = figure

        return SimpleNamespace(log_figure=log_figure)


class NeptuneLogger(Fake):
    @property
    def experiment(self) -> Any:
        kept = self.kept

        class Run:
            def __getitem__(self, name: str) -> Any:
                return SimpleNamespace(upload=lambda figure: kept.update({name: figure}))

        return Run()


class WandbOfTheUser(WandbLogger):
    pass


@pytest.mark.parametrize(
    "kind", [WandbLogger, MLFlowLogger, CometLogger, NeptuneLogger, WandbOfTheUser]
)
def test_other_loggers_receive_the_figures(kind: type[Fake], tmp_path: Path) -> None:
    logger = kind()
    run_test(LogMisclassified(cam=None, save_dir=tmp_path), loader(), logger=logger)
    assert sorted(logger.kept) == NAMES
    for kept in logger.kept.values():
        assert isinstance(kept, Image.Image if isinstance(logger, WandbLogger) else Figure)


def test_the_fake_has_the_signature_of_lightning() -> None:
    assert hasattr(lightning_loggers, "WandbLogger")
    for name in inspect.signature(WandbLogger.log_image).parameters:
        assert name in inspect.signature(lightning_loggers.WandbLogger.log_image).parameters
    assert isinstance(lightning_loggers.MLFlowLogger.run_id, property)
    assert isinstance(lightning_loggers.CometLogger.experiment, property)


def test_the_csv_logger_saves_the_figures_in_its_folder(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    run_test(LogMisclassified(cam=None), loader(), logger=logger)
    assert sorted(path.stem for path in Path(logger.log_dir).glob("*.png")) == NAMES


def test_a_logger_that_accepts_nothing() -> None:
    callback = LogMisclassified(cam=None)
    with pytest.warns(UserWarning, match="Fake accepts neither figures nor files"):
        run_test(callback, loader(), logger=Fake())
    assert callback.found is not None
