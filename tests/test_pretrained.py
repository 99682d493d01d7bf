"""Weight files: those in the package are as described, and damaged or hostile files are refused."""

import itertools
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Flat, trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cifar_resnet import (
    CustomResNet,
    ImageClassifier,
    Recipe,
    pretrained_weights,
    show_class_samples,
    show_training_curves,
)
from cifar_resnet.data import cifar10
from cifar_resnet.data.formats import Arrays
from cifar_resnet.plotting.saving import save_figure

NAMES = ["quarter", "quarter-best", "full"]
OPTIONS: dict[str, Any] = {"norm_first": True, "activation": "gelu", "residual2": True}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    CustomResNet(2, 3, **OPTIONS, head_scale=0.5).save_pretrained(path)
    return path


def test_the_weights_of_the_package_are_listed() -> None:
    listed = pretrained_weights()
    assert [weights.name for weights in listed] == NAMES
    for weights in listed:
        options = Recipe.preset(weights.training["recipe"]).network_options()
        width = 64 if weights.name == "full" else 16
        sizes = {"width": width, "num_classes": 10, "in_channels": 3}
        assert weights.arguments == sizes | options
        assert weights.training["epochs"] == 24
        assert f"--seed {weights.training['seed']}" in weights.training["command"]
        assert weights.path.stat().st_size < 1.5e6 * (width / 16) ** 2


@pytest.mark.parametrize(
    "name",
    # the full network takes a minute
    [pytest.param(name, marks=[pytest.mark.slow] if name == "full" else []) for name in NAMES],
)
def test_the_weights_of_the_package_have_the_stated_accuracy(name: str, arrays: Arrays) -> None:
    stated = next(w for w in pretrained_weights() if w.name == name).training["accuracy"]
    model = CustomResNet.from_pretrained(name)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cifar10.MEAN, cifar10.STD))
    images = torch.from_numpy(arrays.test_images).permute(0, 3, 1, 2).div(255).sub(mean).div(std)
    labels = torch.from_numpy(arrays.test_labels)
    with torch.inference_mode():
        scores = torch.cat([model(part) for part in images.split(1000)])
    # Summation in a different order may flip the prediction for a borderline image.
    assert (scores.argmax(1) == labels).float().mean().item() == pytest.approx(stated, abs=5e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_network_is_ready_to_use_or_to_train(name: str) -> None:
    before = torch.get_rng_state()
    model = CustomResNet.from_pretrained(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in model.modules())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()


def test_two_loaded_networks_share_nothing() -> None:
    first, second = (CustomResNet.from_pretrained("quarter") for _ in range(2))
    with torch.no_grad():
        first.head.weight.zero_()
    assert second.head.weight.abs().sum() > 0


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("half", [False, True])
def test_changing_the_file_later_changes_nothing(tmp_path: Path, suffix: str, half: bool) -> None:
    path = tmp_path / "a.safetensors"
    CustomResNet(4).save_pretrained(path, half=half)
    if suffix == "ckpt":
        path, _ = checkpoint(tmp_path, CustomResNet(4, 3))
    model = CustomResNet.from_pretrained(path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        file.truncate(0)  # a memory map would kill the process
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_arguments_and_weights_are_read_from_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    stop = threading.Event()

    def write() -> None:
        for width in itertools.cycle((2, 4)):
            CustomResNet(width).save_pretrained(path)
            if stop.is_set():
                return

    CustomResNet(2).save_pretrained(path)
    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        widths = {CustomResNet.from_pretrained(path).width for _ in range(30)}
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert widths <= {2, 4}
    assert [item.name for item in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_loading_restores_what_was_saved(tmp_path: Path, memory: torch.memory_format) -> None:
    network = CustomResNet(2, 3, 1, **OPTIONS, head_scale=0.5)
    network.train()(torch.randn(8, 1, 32, 32))  # changes the running statistics
    network = network.to(memory_format=memory)  # type: ignore[call-overload]
    network.save_pretrained(tmp_path / "own.safetensors")
    again = CustomResNet.from_pretrained(tmp_path / "own.safetensors")
    assert repr(again) == repr(network)
    state = again.state_dict()
    assert list(state) == list(network.state_dict())
    for key, value in network.state_dict().items():
        assert torch.equal(state[key], value)
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"]


def test_half_precision_rounds_only_the_kernels(tmp_path: Path) -> None:
    network = CustomResNet(2)
    network.prep[2].running_var.fill_(1e6)  # more than half precision can hold
    network.save_pretrained(tmp_path / "half.safetensors", half=True)
    stored = load_file(tmp_path / "half.safetensors")
    for key, value in (
        CustomResNet.from_pretrained(tmp_path / "half.safetensors").state_dict().items()
    ):
        original = network.state_dict()[key]
        kernel = original.dim() > 1
        assert stored[key].dtype == (torch.float16 if kernel else original.dtype)
        assert torch.equal(value, original.half().float() if kernel else original)


def test_a_weight_too_large_for_half_precision_is_refused(saved: Path) -> None:
    before = saved.read_bytes()
    network = CustomResNet(2)
    torch.nn.init.constant_(network.head.weight, 1e6)
    with pytest.raises(ValueError, match=r"head.weight does not fit into half .* leave out half"):
        network.save_pretrained(saved, half=True)
    assert saved.read_bytes() == before


def test_a_description_that_json_cannot_hold_leaves_the_file_alone(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        CustomResNet(2).save_pretrained(saved, training={"who": object()})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_the_description_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cifar_resnet.pretrained as module

    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    CustomResNet(2).save_pretrained(tmp_path / "mine.safetensors", training={"accuracy": 0.5})
    (weights,) = pretrained_weights()
    assert (weights.name, weights.training) == ("mine", {"accuracy": 0.5})


def test_a_subclass_loads_as_itself(saved: Path) -> None:
    class Own(CustomResNet):
        pass

    assert type(Own.from_pretrained(saved)) is Own


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no weights 'half'; choose one of \('quarter', 'quart"):
        CustomResNet.from_pretrained("half")


def test_loading_into_an_instance_is_refused() -> None:
    network = CustomResNet(2)
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(TypeError, match=r"call it on the class, network = CustomResNet\.from_pre"):
        network.from_pretrained("quarter")
    assert all(map(torch.equal, before, network.parameters()))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none.safetensors"):
        CustomResNet.from_pretrained(tmp_path / "none.safetensors")


def test_a_different_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in .safetensors, but got .*own.pt"):
        CustomResNet(2).save_pretrained(tmp_path / "own.pt")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "own.safetensors").mkdir()
    with pytest.raises(OSError, match=r"own.safetensors"):
        CustomResNet(2).save_pretrained(tmp_path / "own.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*none'; create it first"):
        CustomResNet(2).save_pretrained(tmp_path / "none" / "own.safetensors")


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved: Path, fraction: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match=r"small.safetensors is not a readable safetensors file: "):
        CustomResNet.from_pretrained(saved)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    torch.save(CustomResNet(2), tmp_path / "evil.safetensors")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        CustomResNet.from_pretrained(tmp_path / "evil.safetensors")


def rewrite(path: Path, tensors: dict[str, Tensor], **changes: Any) -> None:
    """Store tensors with the description of a network of width 2, with changes."""
    arguments = {"width": 2, "num_classes": 3, "in_channels": 3, **OPTIONS} | changes
    save_file(tensors, path, metadata={"cifar_resnet.arguments": json.dumps(arguments)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 4}, r"prep.0.weight has shape \(2, 3, 3, 3\) instead of \(4, 3, 3, 3\)"),
        ({"num_classes": 4}, r"head.weight has shape \(3, 16\) instead of \(4, 16\)"),
        ({"width": 10**7}, "does not fit its own description"),  # would take 460 TB
        ({"width": 10**12}, "has no valid arguments of CustomResNet"),
        ({"width": 10**40}, "has no valid arguments of CustomResNet"),
        ({"width": "2"}, "has no valid arguments of CustomResNet: width must be an integer"),
        ({"depth": 2}, "has no valid arguments of CustomResNet: .*depth"),
        ({"residual2": False}, r"residual2\.block1\.\S+ is unexpected"),
    ],
)
def test_a_false_description_is_refused(saved: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(saved, load_file(saved), **changes)
    with pytest.raises(ValueError, match=message):
        CustomResNet.from_pretrained(saved)


def test_a_missing_tensor_is_named(saved: Path) -> None:
    tensors = load_file(saved)
    del tensors["head.weight"]
    rewrite(saved, tensors)
    with pytest.raises(ValueError, match="description: head.weight is missing"):
        CustomResNet.from_pretrained(saved)


@pytest.mark.parametrize("text", ["[1]", "{", "3"])
def test_a_description_that_is_not_a_dictionary_is_refused(saved: Path, text: str) -> None:
    save_file(load_file(saved), saved, metadata={"cifar_resnet.arguments": text})
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        CustomResNet.from_pretrained(saved)


def test_a_file_from_another_program_is_refused(saved: Path) -> None:
    save_file(load_file(saved), saved)
    with pytest.raises(ValueError, match=r"does not say which network .* load_state_dict"):
        CustomResNet.from_pretrained(saved)


def test_a_copy_of_a_weight_file_is_loaded_by_path(tmp_path: Path) -> None:
    copy = shutil.copy(pretrained_weights()[0].path, tmp_path / "copy.safetensors")
    assert CustomResNet.from_pretrained(copy).width == 16
    assert CustomResNet.from_pretrained(str(copy)).width == 16


def test_a_network_with_a_replaced_layer_is_saved_only_if_it_fits(tmp_path: Path) -> None:
    network = CustomResNet(2)
    network.head = torch.nn.Linear(16, 7, bias=False)
    with pytest.raises(ValueError, match=r"head.weight has shape \(7, 16\) .* set network.num_cl"):
        network.save_pretrained(tmp_path / "a.safetensors")
    network.num_classes = 7
    network.save_pretrained(tmp_path / "a.safetensors")
    assert CustomResNet.from_pretrained(tmp_path / "a.safetensors").num_classes == 7
    network.extra = torch.nn.Linear(2, 2, bias=False)
    with pytest.raises(ValueError, match=r"extra.weight .* with torch.save"):
        network.save_pretrained(tmp_path / "a.safetensors")
    del network.extra
    network.layer2 = torch.nn.Identity()
    with pytest.raises(
        ValueError, match="other arguments of the network: layer2.0.weight is missing"
    ):
        network.save_pretrained(tmp_path / "a.safetensors")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    CustomResNet(1).save_pretrained("~/a.safetensors")
    assert (tmp_path / "a.safetensors").is_file()
    assert CustomResNet.from_pretrained("~/a.safetensors").width == 1
    data = TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4))
    save_figure(show_class_samples(data), "~/a.png")
    assert (tmp_path / "a.png").is_file()
    with pytest.raises(
        NotADirectoryError, match="is a file. Pass the folder of the run that contains"
    ):
        show_training_curves("~/a.png")


# --- checkpoints ---------------------------------------------------------------------------------


def checkpoint(folder: Path, network: nn.Module) -> tuple[Path, ImageClassifier]:
    """Train for two steps; return the checkpoint and the trained module."""
    model = ImageClassifier(network, "sgd", num_classes=getattr(network, "num_classes", 10))
    t = trainer(folder)
    data = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 3)
    t.fit(model, DataLoader(data, batch_size=4))
    path = folder / "trained.ckpt"
    t.save_checkpoint(path)
    return path, model


def compiled(network: CustomResNet) -> nn.Module:
    module = torch.compile(network, backend="eager")
    assert isinstance(module, nn.Module)
    return module


@pytest.mark.parametrize("change", [lambda network: network, compiled], ids=["plain", "compiled"])
def test_a_checkpoint_is_enough_to_load_the_network(
    tmp_path: Path, change: Callable[[CustomResNet], nn.Module]
) -> None:
    network = CustomResNet(2, 3, **OPTIONS, head_scale=0.5)
    config = network.config()
    path, model = checkpoint(tmp_path, change(network))
    loaded = CustomResNet.from_pretrained(path)
    again = ImageClassifier.load_from_checkpoint(path, weights_only=True)
    assert again.recipe == model.recipe
    assert isinstance(again.network, CustomResNet)
    for other in (loaded, again.network):
        assert other.config() == config
        assert not any("_orig_mod" in key for key in other.state_dict())
        for key, value in model.network.state_dict().items():
            assert torch.equal(other.state_dict()[key.replace("_orig_mod.", "")], value)
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_plain_checkpoint_is_loaded_into_a_compiled_network(tmp_path: Path) -> None:
    path, model = checkpoint(tmp_path, CustomResNet(2, 3))
    other = compiled(CustomResNet(2, 3))
    ImageClassifier.load_from_checkpoint(path, network=other)
    for key, value in model.network.state_dict().items():
        assert torch.equal(other.state_dict()[f"_orig_mod.{key}"], value)


def test_the_checkpoint_describes_the_network_as_it_was_saved(tmp_path: Path) -> None:
    network = CustomResNet(2, 3)
    path, model = checkpoint(tmp_path, network)
    network.head_scale = 0.25
    model.trainer.save_checkpoint(path)
    assert CustomResNet.from_pretrained(path).config() == network.config()


class Own(CustomResNet):
    """A subclass that a checkpoint cannot rebuild."""


@pytest.mark.parametrize("network", [Flat, lambda: Own(2, 3)], ids=["foreign", "subclass"])
def test_another_network_must_be_passed(tmp_path: Path, network: Callable[[], nn.Module]) -> None:
    made = network()
    path, _ = checkpoint(tmp_path, made)
    with pytest.raises(TypeError, match=r"use load_from_checkpoint\(path, network=\.\.\.\)"):
        ImageClassifier.load_from_checkpoint(path)
    again = ImageClassifier.load_from_checkpoint(path, network=network())
    assert all(map(torch.equal, again.network.parameters(), made.parameters()))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, Flat())
    with pytest.raises(ValueError, match=r"does not say which network .*\(path, network=\.\.\.\)"):
        CustomResNet.from_pretrained(path)


def test_a_checkpoint_that_does_not_fit_its_description_is_refused(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, CustomResNet(2, 3))
    saved = torch.load(path, weights_only=True)
    saved["cifar_resnet.network"]["width"] = 10**7  # would take 460 TB
    torch.save(saved, path)
    with pytest.raises(ValueError, match="does not fit its own description: prep.0.weight has"):
        CustomResNet.from_pretrained(path)


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, fraction: float) -> None:
    path, _ = checkpoint(tmp_path, CustomResNet(2, 3))
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match=r"trained.ckpt is not a readable checkpoint: ."):
        CustomResNet.from_pretrained(path)


def test_loading_a_checkpoint_into_an_instance_is_refused(tmp_path: Path) -> None:
    path, model = checkpoint(tmp_path, CustomResNet(2, 3))
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        model.load_from_checkpoint(path)
