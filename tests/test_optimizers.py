"""make_optimizer and make_scheduler: a plain loop trains exactly like ImageClassifier."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Collect, small, trainer
from torch import nn

from cifar_resnet import CustomResNet, ImageClassifier, Recipe, make_optimizer, make_scheduler
from cifar_resnet.training.muon import Muon


@pytest.mark.parametrize("norm_bias_lr_scale", [1, 64])
@pytest.mark.parametrize("name", Recipe.presets())
def test_a_plain_loop_trains_exactly_like_lightning(
    data_dir: Path, tmp_path: Path, name: str, norm_bias_lr_scale: int
) -> None:
    recipe = replace(Recipe.preset(name), norm_bias_lr_scale=norm_bias_lr_scale, batch_size=100)
    options = recipe.data_options() | {"val_split": 49_500}  # 5 steps per epoch
    torch.manual_seed(5)
    network = CustomResNet(width=2, **recipe.network_options())
    collect = Collect()
    trainer(tmp_path, max_epochs=2, callbacks=[collect], limit_val_batches=0).fit(
        ImageClassifier(network, recipe), small(data_dir, **options)
    )

    torch.manual_seed(5)
    plain = CustomResNet(width=2, **recipe.network_options())
    data = small(data_dir, **options)
    data.setup()
    loader = data.train_dataloader()
    optimizer = make_optimizer(plain, recipe)
    scheduler = make_scheduler(optimizer, recipe, total_steps=2 * len(loader))
    losses, rates = [], []
    for _ in range(2):
        for images, labels in loader:
            loss = F.cross_entropy(plain(images), labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            losses.append(loss.item())
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert len(losses) == 10
    assert losses == collect.losses
    assert rates == collect.rates
    for key, value in plain.state_dict().items():
        assert torch.equal(value, network.state_dict()[key])


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD), ("muon", Muon)]
)
def test_every_trainable_parameter_is_in_one_group(name: str, kind: Any) -> None:
    network = CustomResNet(width=2)
    network.head.weight.requires_grad_(False)
    recipe = replace(Recipe.preset(name), norm_bias_lr_scale=2)
    optimizer = make_optimizer(network, recipe)
    assert type(optimizer) is kind
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    biases = next(g for g in optimizer.param_groups if g["name"] == "norm_biases")
    assert biases["lr"] == 2 * recipe.learning_rate


@pytest.mark.parametrize(("fused", "device"), [(True, "cpu"), (False, "meta")])
def test_the_default_of_fused_depends_on_the_device(fused: bool, device: str) -> None:
    network = nn.Linear(2, 2, device=device)
    for name in ("adam", "sgd"):
        assert make_optimizer(network, name).defaults["fused"] == fused
        assert make_optimizer(network, name, fused=False).defaults["fused"] is False


def test_the_schedule_ends_at_zero_and_stays_there() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), "sgd")
    scheduler = make_scheduler(optimizer, "sgd", total_steps=3)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # the middle of each step: 1/6 within the warm-up of 1/5, then 3/6 and 5/6
    assert rates == pytest.approx([0.4 * 5 / 6, 0.4 * 5 / 8, 0.4 * 5 / 24, 0, 0])


def test_a_scheduler_resumes_from_its_state() -> None:
    def made() -> tuple[Any, Any]:
        optimizer = make_optimizer(nn.Linear(2, 2), "sgd")
        return optimizer, make_scheduler(optimizer, "sgd", total_steps=10)

    optimizer, scheduler = made()
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    again, resumed = made()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for one, other in ((optimizer, scheduler), (again, resumed)):
        one.step()
        other.step()
    assert resumed.get_last_lr() == scheduler.get_last_lr() != made()[1].get_last_lr()


def test_wrong_arguments_are_named() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), Recipe())
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module, but got 'resnet'"):
        make_optimizer("resnet", "adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="There is no recipe 'adma'"):
        make_optimizer(nn.Linear(2, 2), "adma")
    with pytest.raises(TypeError, match=r"recipe must be a Recipe or one of .* but got 3"):
        make_scheduler(optimizer, 3, 10)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fused must be True or False, but got 'yes'"):
        make_optimizer(nn.Linear(2, 2), "adam", fused="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="total_steps must be an integer of at least 1, but got 0"):
        make_scheduler(optimizer, "adam", 0)
    with pytest.raises(ValueError, match="no trainable parameters"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), "adam")
