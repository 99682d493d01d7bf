"""Ways in which users of Lightning train: fine-tuning, subclasses, schedulers, labels, losses."""

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from helpers import Collect, Flat, per_sample, same, small, trainer
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
    LearningRateFinder,
)
from torch import Tensor, nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.functional.classification import multiclass_accuracy
from torchvision.models.feature_extraction import create_feature_extractor

from cifar_resnet import CustomResNet, ImageClassifier, Recipe
from cifar_resnet.training.tta import mirror_scores, six_view_scores

IMAGES = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 10
SGD_RECIPE = Recipe.preset("sgd")


def loader(labels: Tensor = LABELS, batch_size: int = 5) -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES, labels), batch_size=batch_size)


class Resumable:
    """Batches with a position that is saved and restored."""

    def __init__(self) -> None:
        self.batches = list(loader())
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.position, len(self)):
            self.position = (index + 1) % len(self)
            yield self.batches[index]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def resnet(recipe: Recipe | str = "sgd", **options: Any) -> ImageClassifier:
    torch.manual_seed(1)
    return ImageClassifier(CustomResNet(1), recipe, **options)


def fitted(
    model: pl.LightningModule, *callbacks: pl.Callback, data: Any = None, **options: Any
) -> pl.Trainer:
    settings: dict[str, Any] = {"limit_val_batches": 0} | options
    settings["enable_checkpointing"] = any(isinstance(c, Stop) for c in callbacks)
    checkpoint = settings.pop("ckpt_path", None)
    with tempfile.TemporaryDirectory() as folder:
        t = trainer(Path(folder), callbacks=list(callbacks), **settings)
        with contextlib.suppress(SystemExit):  # how Lightning answers an interrupt
            t.fit(
                model,
                loader() if data is None else data,
                ckpt_path=checkpoint,
                weights_only=bool(checkpoint),
            )
    return t


class Stop(pl.callbacks.Checkpoint):
    """Save a checkpoint after a step, and interrupt the run."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, t: pl.Trainer, *_: Any) -> None:
        if t.global_step == self.step:
            t.save_checkpoint(self.path)
            raise KeyboardInterrupt


class Seen(Collect):
    """Also keep the labels of every batch that was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[list[int]] = []

    def on_train_batch_end(self, t: pl.Trainer, m: Any, outputs: Any, batch: Any, i: int) -> None:
        self.losses.append(outputs["loss"].item())
        self.labels.append(batch[1].tolist())


def assert_resumes_exactly(
    path: Path,
    make: Callable[[], pl.LightningModule],
    step: int,
    callbacks: Callable[[], list[pl.Callback]] = list,
    **options: Any,
) -> None:
    """Compare a run that is stopped after a step and resumed with one that is not."""
    runs = []
    for extra, checkpoint in (([], None), ([Stop(path, step)], None), ([], path)):
        torch.manual_seed(3)
        model, seen = make(), Seen()
        settings = {"data": Resumable()} | options
        fitted(model, seen, *callbacks(), *extra, ckpt_path=checkpoint, **settings)
        runs.append((seen, model.state_dict()))
    (whole, weights), (first, _), (second, resumed) = runs
    assert first.labels + second.labels == whole.labels
    assert first.losses + second.losses == whole.losses
    assert same(resumed, weights)


eval_mode_warns = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start")

# --- fine-tuning ---------------------------------------------------------------------------------


def with_new_head() -> CustomResNet:
    network = CustomResNet.from_pretrained("quarter")
    torch.manual_seed(1)
    network.head = nn.Linear(128, 10, bias=False)
    return network


@pytest.mark.parametrize(
    "make", [lambda: CustomResNet.from_pretrained("quarter"), with_new_head], ids=["whole", "head"]
)
def test_a_pretrained_network_is_trained_in_training_mode(
    make: Callable[[], CustomResNet], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pytorch_lightning.utilities.rank_zero")
    recipe = replace(SGD_RECIPE, learning_rate=0.01)
    expected, given = ImageClassifier(make().train(), recipe), ImageClassifier(make(), recipe)
    losses, got = Collect(), Collect()
    fitted(expected, losses, limit_train_batches=3)
    assert "evaluation mode" not in caplog.text
    fitted(given, got, limit_train_batches=3)
    assert "The network is in evaluation mode" in caplog.text
    assert got.losses == losses.losses
    assert same(given.state_dict(), expected.state_dict())
    assert given.network.prep[2].num_batches_tracked == 3 + make().prep[2].num_batches_tracked


@eval_mode_warns
def test_frozen_parts_of_a_pretrained_network_keep_their_statistics() -> None:
    network = with_new_head()
    network.requires_grad_(False)
    network.head.requires_grad_(True)
    before = copy.deepcopy(network.state_dict())
    fitted(ImageClassifier(network, SGD_RECIPE), limit_train_batches=2)
    changed = [name for name, t in network.state_dict().items() if not torch.equal(t, before[name])]
    assert changed == ["head.weight"]


@eval_mode_warns
def test_parts_in_evaluation_mode_stay_in_it_if_the_network_is_in_training_mode() -> None:
    model = resnet()
    model.network.prep.eval()
    fitted(model, limit_train_batches=2)
    assert model.network.prep[2].num_batches_tracked == 0
    assert model.network.layer1[3].num_batches_tracked == 2


def test_a_model_is_trained_again_after_eval() -> None:
    model = resnet().eval()
    fitted(model, limit_train_batches=2)
    assert model.training
    assert model.network.prep[2].num_batches_tracked == 2


@pytest.mark.parametrize("name", ["adam", "sgd", "onecycle"])
def test_backbone_finetuning(name: str) -> None:
    class Model(ImageClassifier):
        def __init__(self) -> None:
            super().__init__(CustomResNet(1), name)
            blocks = [m for n, m in self.network.named_children() if n not in ("pool", "head")]
            self.backbone = nn.Sequential(*blocks)

    model = Model()
    before = copy.deepcopy(model.state_dict())
    t = fitted(model, BackboneFinetuning(1, lambda epoch: 1.5, train_bn=False), max_epochs=4)
    head, backbone = t.optimizers[0].param_groups
    assert model.network.prep[0].weight.requires_grad
    assert not torch.equal(model.network.prep[0].weight, before["network.prep.0.weight"])
    if name == "adam":
        assert head["lr"] == 0.001
        assert backbone["lr"] == pytest.approx(0.001 / 10 * 1.5**2)


# --- labels --------------------------------------------------------------------------------------


def soft() -> Tensor:
    return 0.8 * F.one_hot(LABELS, 10).float() + 0.02


@pytest.mark.parametrize(
    "make",
    [
        lambda: F.one_hot(LABELS, 10),
        lambda: F.one_hot(LABELS, 10).double(),
        soft,
        lambda: LABELS.to(torch.uint8),
    ],
    ids=["one-hot", "double", "soft", "bytes"],
)
def test_labels_of_every_form_are_evaluated(tmp_path: Path, make: Callable[[], Tensor]) -> None:
    targets, recipe = make(), replace(SGD_RECIPE, tta="six", learning_rate=1e-9)
    model = resnet(recipe)
    data = loader(targets, batch_size=7)
    t = trainer(tmp_path)
    t.fit(model, data, data)
    values = {name: value.item() for name, value in t.callback_metrics.items()}
    values |= t.test(model, data, verbose=False)[0]
    model.eval()
    with torch.no_grad():
        scores = model(IMAGES)
        mirrored, six = mirror_scores(model, IMAGES), six_view_scores(model, IMAGES)
    probabilities = targets.double() if targets.dim() == 2 else F.one_hot(LABELS, 10).double()
    loss = -(probabilities * F.log_softmax(scores.double(), 1)).sum(1).mean().item()
    for name, expected in (
        ("val_acc", scores), ("test_acc", scores), ("test_acc_mirror", mirrored),
        ("test_acc_six", six),
    ):  # fmt: skip
        accuracy = multiclass_accuracy(expected, LABELS, 10, average="micro").item()
        assert values[name] == pytest.approx(accuracy), name
    assert values["val_loss"] == pytest.approx(loss, rel=1e-5)
    assert values["test_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (LABELS + 1, ValueError, r"Labels must be in \[0, 10\) for num_classes=10, but one is 10"),
        (LABELS - 1, ValueError, r"Labels must be in \[0, 10\) .*but one is -1"),
        (LABELS[:, None], ValueError, r"of shape \(5,\) or class .* but have shape \(5, 1\)"),
        (LABELS.float(), TypeError, "Class indices must be integers, but are torch.float32"),
        (LABELS > 4, TypeError, "Class indices must be integers, but are torch.bool"),
        (F.one_hot(LABELS, 12), ValueError, r"but have shape \(5, 12\)"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, labels: Tensor, error: type[Exception], message: str, stage: str
) -> None:
    model = ImageClassifier(Flat(), num_classes=10)
    with pytest.raises(error, match=message):
        getattr(trainer(tmp_path), stage)(model, loader(labels))


def test_scores_of_a_different_number_of_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of shape \(N, 9\), but returned \(5, 10\)"):
        trainer(tmp_path).fit(ImageClassifier(Flat(), num_classes=9), loader())

    class Pair(Flat):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    with pytest.raises(TypeError, match="must return a tensor of class scores, but returned a tup"):
        trainer(tmp_path).fit(ImageClassifier(Pair(), num_classes=10), loader())


def test_a_softmax_in_the_network_warns_once(tmp_path: Path) -> None:
    class Softmax(Flat):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(1)

    model = ImageClassifier(Softmax(), num_classes=10)
    with pytest.warns(UserWarning, match="The network returns probabilities"):
        fitted(model)
    fitted(model)
    with pytest.warns(UserWarning, match="Remove the softmax at the end"):
        trainer(tmp_path).test(ImageClassifier(Softmax(), num_classes=10), loader(), verbose=False)
    own = ImageClassifier(Softmax(), num_classes=10, loss=lambda p, y: F.nll_loss(p.log(), y))
    fitted(own)  # a loss for probabilities


def test_batches_that_are_mappings(tmp_path: Path) -> None:
    samples = [
        {"id": i, "img": x, "label": int(y)}
        for i, (x, y) in enumerate(zip(IMAGES, LABELS, strict=True))
    ]
    batches = DataLoader(samples, batch_size=5)  # type: ignore[arg-type,var-annotated]
    expected, got = Collect(), Collect()
    fitted(resnet(), expected)
    model = resnet()
    fitted(model, got, data=batches)
    assert got.losses == expected.losses
    t = trainer(tmp_path)
    scores = t.test(model, batches, verbose=False)[0]
    assert scores == t.test(model, loader(), verbose=False)[0]
    assert torch.cat(t.predict(model, batches)).shape == (40, 10)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((IMAGES, LABELS, LABELS), r"must be \(images, labels\), but is a tuple of 3 values"),
        (IMAGES, r"must be \(images, labels\), but is a Tensor\."),
        ({"x": IMAGES, "class": LABELS}, "has the keys 'x', 'class'. Let the dataset return"),
    ],
)
def test_other_batches_are_refused(tmp_path: Path, batch: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        trainer(tmp_path).fit(resnet(), DataLoader(range(1), collate_fn=lambda _: batch))  # type: ignore[arg-type,var-annotated]


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights(tmp_path: Path, smoothing: float) -> None:
    weights = torch.linspace(0.5, 2, 10)
    collect = Collect()
    recipe = replace(SGD_RECIPE, label_smoothing=smoothing, learning_rate=1e-9)
    model = resnet(recipe, class_weights=weights.tolist())
    expected = copy.deepcopy(model.network)
    t = fitted(model, collect, data=loader(batch_size=8))
    oracle = nn.CrossEntropyLoss(weights, label_smoothing=smoothing)
    losses = [oracle(expected(x), y).item() for x, y in loader(batch_size=8)]
    assert collect.losses == pytest.approx(losses, rel=1e-5)
    test_loss = t.test(model, loader(batch_size=8), verbose=False)[0]["test_loss"]
    model.eval()
    assert test_loss == pytest.approx(F.cross_entropy(model(IMAGES), LABELS).item(), rel=1e-5)
    t.save_checkpoint(tmp_path / "a.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.hparams["class_weights"] == pytest.approx(weights.tolist())
    assert same(loaded.state_dict(), model.state_dict())


def focal(scores: Tensor, labels: Tensor) -> Tensor:
    probabilities = scores.softmax(1)[torch.arange(len(labels)), labels]
    return (-((1 - probabilities) ** 2) * probabilities.log()).mean()


def test_a_custom_loss(tmp_path: Path) -> None:
    collect = Collect()
    recipe = replace(SGD_RECIPE, label_smoothing=0.0, learning_rate=1e-9)
    model = resnet(recipe, loss=focal)
    expected = copy.deepcopy(model.network)
    t = fitted(model, collect)
    losses = [focal(expected(x), y).item() for x, y in loader()]
    assert collect.losses == pytest.approx(losses, rel=1e-5)
    value = t.test(model, loader(), verbose=False)[0]["test_loss"]
    model.eval()
    assert value == pytest.approx(focal(model(IMAGES), LABELS).item(), rel=1e-5)
    path = tmp_path / "a.ckpt"
    t.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["loss"] == "test_idioms.focal"
    loaded = ImageClassifier.load_from_checkpoint(path, loss=focal, weights_only=True)
    assert same(loaded.state_dict(), model.state_dict())
    with pytest.raises(
        TypeError, match=r"got 'test_idioms\.focal'.*load_from_checkpoint\(path, lo"
    ):
        ImageClassifier.load_from_checkpoint(path, weights_only=True)


def test_weighted_and_custom_losses_resume_exactly(tmp_path: Path) -> None:
    def weighted() -> ImageClassifier:
        return resnet(class_weights=[1.0] * 9 + [3.0])

    def custom() -> ImageClassifier:
        loss = nn.CrossEntropyLoss(weight=torch.linspace(1, 2, 10))
        return resnet(replace(SGD_RECIPE, label_smoothing=0.0), loss=loss)

    for make in (weighted, custom):
        assert_resumes_exactly(tmp_path / "a.ckpt", make, 5)


@pytest.mark.parametrize("loss", [lambda s, y: s.sum(1), lambda s, y: 3.0])
def test_a_loss_must_be_a_scalar(tmp_path: Path, loss: Any) -> None:
    with pytest.raises(ValueError, match="loss must return a scalar tensor.*but returned "):
        trainer(tmp_path).fit(resnet("adam", loss=loss), loader())


def test_the_progress_bar_shows_the_loss_of_a_step() -> None:
    t = fitted(resnet(), Collect(), log_every_n_steps=1)
    assert {"train_loss_step", "train_acc_epoch"} <= t.progress_bar_metrics.keys()


# --- own steps -----------------------------------------------------------------------------------


class MixUp(ImageClassifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        order = torch.arange(len(labels)).flip(0)
        scores = self(0.7 * images + 0.3 * images[order])
        return 0.7 * F.cross_entropy(scores, labels) + 0.3 * F.cross_entropy(scores, labels[order])


class Manual(ImageClassifier):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [MixUp, Manual])
def test_an_own_training_step(kind: type[ImageClassifier]) -> None:
    model = kind(CustomResNet(1), "sgd")
    before = copy.deepcopy(model.state_dict())
    t = fitted(model, log_every_n_steps=1)
    assert t.global_step == 8
    assert not same(model.state_dict(), before)
    assert t.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.0]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(IMAGES, LABELS, strict=True))


def test_loaders_without_a_length() -> None:
    data: DataLoader[Any] = DataLoader(Endless(), batch_size=5)
    expected, got = Collect(), Collect()
    t = fitted(resnet(), expected, max_steps=6)
    assert fitted(resnet(), got, data=data, max_steps=6).global_step == 6
    assert (got.losses, got.rates) == (expected.losses, expected.rates)
    constant = fitted(resnet("adam"), data=data)
    assert constant.global_step == 8
    assert "train_loss_epoch" in constant.callback_metrics
    with pytest.raises(ValueError, match=r"\(max_steps if the training loader has no length\)"):
        fitted(resnet(), data=data)
    assert t.global_step == 6


# --- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_one_cycle_equals_that_of_pytorch(strategy: Any, three_phase: bool, optimizer: Any) -> None:
    recipe = Recipe(
        optimizer=optimizer, schedule="onecycle", learning_rate=0.03, warmup=0.3, div_factor=10,
        final_div_factor=100, anneal_strategy=strategy, three_phase=three_phase,
        base_momentum=0.8, max_momentum=0.9,
    )  # fmt: skip
    values: list[list[float]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, t: pl.Trainer, *_: Any) -> None:
            group = t.optimizers[0].param_groups[0]
            values.append([group["lr"], *group.get("betas", [group.get("momentum")])[:1]])

    fitted(resnet(recipe), Watch(), max_epochs=3)
    weight = nn.Parameter(torch.zeros(1))
    oracle = (
        torch.optim.Adam([weight]) if optimizer == "adam" else SGD([weight], lr=1, momentum=0.9)
    )
    cycle = lr_scheduler.OneCycleLR(
        oracle, 0.03, total_steps=24, pct_start=0.3, div_factor=10, final_div_factor=100,
        anneal_strategy=strategy, three_phase=three_phase, base_momentum=0.8, max_momentum=0.9,
    )  # fmt: skip
    expected = []
    for _ in range(24):
        group = oracle.param_groups[0]
        expected.append([group["lr"], *group.get("betas", [group.get("momentum")])[:1]])
        oracle.step()
        cycle.step()
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_the_one_cycle_preset() -> None:
    recipe = Recipe.preset("onecycle")
    assert (recipe.optimizer, recipe.schedule) == ("adam", "onecycle")
    factors = [recipe.learning_rate_factor(k / 2400) for k in range(2401)]
    assert int(np.argmax(factors)) == 500  # the end of epoch 5 of 24
    assert (factors[0], factors[500]) == pytest.approx((1 / 25, 1))
    assert factors[-1] == pytest.approx(1 / 25 / 1e4)
    fixed = Recipe(schedule="onecycle", cycle_momentum=False)
    t = fitted(resnet(fixed))
    assert t.optimizers[0].param_groups[0]["betas"] == (0.9, 0.999)


def test_one_cycle_resumes_exactly(tmp_path: Path) -> None:
    assert_resumes_exactly(tmp_path / "a.ckpt", lambda: resnet("onecycle"), 11, max_epochs=2)


class Grow(pl.Callback):
    """Accumulate one more batch in every epoch."""

    def on_train_epoch_start(self, t: pl.Trainer, m: Any) -> None:
        t.accumulate_grad_batches = 1 + t.current_epoch


@pytest.mark.parametrize(
    ("callback", "steps"),
    [(lambda: GradientAccumulationScheduler({0: 1, 1: 2, 2: 8}), 8 + 4 + 1), (Grow, 8 + 4 + 3)],
)
def test_the_schedule_ends_at_0_if_the_accumulation_changes(
    callback: Callable[[], pl.Callback], steps: int
) -> None:
    collect = Collect()
    t = fitted(resnet(), callback(), collect, max_epochs=3)
    assert t.global_step == steps
    last = SGD_RECIPE.learning_rate * SGD_RECIPE.learning_rate_factor((steps - 0.5) / steps)
    assert collect.rates[-1] == pytest.approx(last)
    assert t.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.0]


@pytest.mark.parametrize("step", [5, 10, 12])
def test_changing_accumulation_resumes_exactly(tmp_path: Path, step: int) -> None:
    def callbacks() -> list[pl.Callback]:
        return [GradientAccumulationScheduler({0: 1, 1: 2, 2: 8})]

    assert_resumes_exactly(tmp_path / "a.ckpt", resnet, step, callbacks, max_epochs=3)


class OneCycle(ImageClassifier):
    """The idiom in Lightning's documentation."""

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("feeding", [small, per_sample])
def test_estimated_stepping_batches_in_configure_optimizers(
    data_dir: Path, tmp_path: Path, feeding: Any
) -> None:
    def make() -> ImageClassifier:
        torch.manual_seed(1)
        return OneCycle(CustomResNet(1))

    data = feeding(data_dir, batch_size=50, val_split=49_800)
    assert_resumes_exactly(tmp_path / "a.ckpt", make, 6, data=data, max_epochs=2)


SCHEDULERS: dict[str, Callable[[SGD], Any]] = {
    "plateau": lambda o: {
        "scheduler": lr_scheduler.ReduceLROnPlateau(o), "monitor": "train_loss_epoch"
    },
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, o.defaults["lr"], total_steps=40),
    "none": lambda o: None,
}  # fmt: skip


# of the sequence of torch
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_learning_rate_finder_with_schedulers_of_pytorch(name: str) -> None:
    """After the search, the rates are those of a run that starts with the suggested one."""

    class Own(ImageClassifier):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=self.learning_rate)
            schedule = SCHEDULERS[name](optimizer)
            if schedule is None:
                return optimizer
            if not isinstance(schedule, dict):
                schedule = {"scheduler": schedule, "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    finder = LearningRateFinder(1e-5, 1e-1, num_training_steps=20, early_stop_threshold=None)
    model = Own(CustomResNet(1), "sgd")
    got, expected = Collect(), Collect()
    fitted(model, finder, got, max_epochs=3)
    assert finder.optimal_lr is not None
    assert model.learning_rate == finder.optimal_lr.suggestion() != 0.4
    other = Own(CustomResNet(1), replace(SGD_RECIPE, learning_rate=model.learning_rate))
    fitted(other, expected, max_epochs=3)
    assert got.rates == pytest.approx(expected.rates)


# --- subclasses and checkpoints ------------------------------------------------------------------


class Everything(ImageClassifier):
    def __init__(
        self, network: nn.Module, recipe: Any = "adam", alpha: float = 0.2, **options: Any
    ) -> None:
        super().__init__(network, recipe, **options)
        self.save_hyperparameters()


class WithoutNetwork(ImageClassifier):
    def __init__(self, network: nn.Module, recipe: Any = "adam", alpha: float = 0.2) -> None:
        super().__init__(network, recipe)
        self.save_hyperparameters(ignore=["network"])


class Builds(ImageClassifier):
    def __init__(self, width: int = 1, learning_rate: float = 0.1, alpha: float = 0.2) -> None:
        super().__init__(CustomResNet(width), replace(SGD_RECIPE, learning_rate=learning_rate))
        self.save_hyperparameters()


class PassesOn(ImageClassifier):
    def __init__(self, width: int = 1, alpha: float = 0.2, **options: Any) -> None:
        super().__init__(CustomResNet(width), **options)
        self.save_hyperparameters()


def recipe_at(rate: float) -> Recipe:
    return replace(SGD_RECIPE, learning_rate=rate)


@pytest.mark.filterwarnings("ignore:Attribute 'network' is an instance of `nn.Module`")
@pytest.mark.parametrize(
    "make",
    [
        lambda rate: Everything(CustomResNet(1), recipe_at(rate), alpha=0.3),
        lambda rate: WithoutNetwork(CustomResNet(1), recipe_at(rate), alpha=0.3),
        lambda rate: Builds(1, rate, alpha=0.3),
        lambda rate: PassesOn(1, recipe=recipe_at(rate), alpha=0.3),
    ],
    ids=["everything", "ignore", "builds", "passes on"],
)
def test_a_subclass_that_saves_its_hyperparameters(
    tmp_path: Path, make: Callable[[float], ImageClassifier]
) -> None:
    path = tmp_path / "a.ckpt"
    model = make(0.1)
    fitted(model).save_checkpoint(path)
    loaded = type(model).load_from_checkpoint(path, weights_only=True)
    assert loaded.recipe == recipe_at(0.1)
    assert loaded.hparams["alpha"] == 0.3
    assert same(loaded.state_dict(), model.state_dict())
    assert CustomResNet.from_pretrained(path).width == 1
    with pytest.raises(
        ValueError, match=r"different recipe: learning_rate is 0\.1 instead of 0\.2"
    ):
        fitted(make(0.2), ckpt_path=path, max_epochs=2)
    resumed = fitted(make(0.1), ckpt_path=path, max_epochs=2)
    assert resumed.global_step == 16


def test_loading_that_is_not_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    model = resnet()
    fitted(model).save_checkpoint(path)
    larger = CustomResNet(1, residual2=True)
    loaded = ImageClassifier.load_from_checkpoint
    with pytest.raises(ValueError, match="different network: .*residual2"):
        loaded(path, network=larger, weights_only=True)
    with pytest.warns(UserWarning, match="in the model state dict but not in the checkpoint"):
        got = loaded(path, network=larger, strict=False, weights_only=True)
    assert torch.equal(got.network.head.weight, model.network.head.weight)

    again = ImageClassifier(CustomResNet(1, residual2=True), "sgd")
    with pytest.raises(ValueError, match="different network: .*residual2"):
        trainer(tmp_path).test(again, loader(), ckpt_path=path, weights_only=True)
    again.strict_loading = False
    trainer(tmp_path).test(again, loader(), ckpt_path=path, weights_only=True, verbose=False)
    assert torch.equal(again.network.head.weight, model.network.head.weight)


def test_compiled_parts_and_wrong_names(tmp_path: Path) -> None:
    network = CustomResNet(1)
    weight = network.layer1[0].weight
    network.layer1 = torch.compile(network.layer1, backend="eager")
    model, path = ImageClassifier(network), tmp_path / "a.ckpt"
    fitted(model, limit_train_batches=0).save_checkpoint(path)
    plain = ImageClassifier.load_from_checkpoint(path, weights_only=True)
    assert torch.equal(plain.network.layer1[0].weight, weight)
    network.save_pretrained(tmp_path / "a.safetensors")
    loaded = CustomResNet.from_pretrained(tmp_path / "a.safetensors")
    assert torch.equal(loaded.layer1[0].weight, weight)

    bare = torch.compile(CustomResNet(1), backend="eager")
    checkpoint = torch.load(path, weights_only=True) | {"state_dict": bare.state_dict()}
    torch.save(checkpoint, path)
    with pytest.raises(
        ValueError, match=r"the weights of the network alone, .* compiled network\."
    ):
        ImageClassifier.load_from_checkpoint(path, weights_only=True)


def test_checkpoints_without_a_network(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    fitted(ImageClassifier(Flat(), num_classes=10)).save_checkpoint(path)
    message = r"got None\. Only a CustomResNet is rebuilt .* load_from_checkpoint\(path, network="
    with pytest.raises(TypeError, match=message):
        ImageClassifier.load_from_checkpoint(path, weights_only=True)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["hyper_parameters"]  # of another LightningModule
    torch.save(checkpoint, path)
    with pytest.raises(TypeError, match=message):
        ImageClassifier.load_from_checkpoint(path, weights_only=True)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_every_precision_resumes_exactly(tmp_path: Path, precision: str) -> None:
    assert_resumes_exactly(tmp_path / "a.ckpt", resnet, 5, precision=precision)


# --- torch.fx ------------------------------------------------------------------------------------


def test_symbolic_tracing() -> None:
    network = CustomResNet(1, residual2=True, head_scale=0.5).eval()
    traced = torch.fx.symbolic_trace(network)
    assert torch.equal(traced(IMAGES), network(IMAGES))
    features = create_feature_extractor(network, {"layer2": "middle", "residual3": "end"})(IMAGES)
    assert torch.equal(
        features["end"],
        network.residual3(network.layer3(network.residual2(features["middle"]))),
    )
    with pytest.raises(TypeError, match="expects a float tensor"):
        network(3)
