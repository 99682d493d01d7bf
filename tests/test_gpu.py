"""On a GPU: the same numbers as on a CPU; compiled and low-precision training works."""

import copy
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Collect, Send, Training, same, small, trainer
from torch import Tensor, nn

from cifar_resnet import (
    CustomResNet,
    ImageClassifier,
    Recipe,
    compute_cams,
    effective_receptive_field,
    find_misclassified,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU: dict[str, Any] = {"accelerator": "gpu", "limit_val_batches": 0}


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable TensorFloat-32 in convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def losses(data_dir: Path, folder: Path, recipe: Recipe, **options: Any) -> Tensor:
    """Return the losses of 20 steps from the same weights."""
    torch.manual_seed(1)
    network = CustomResNet(8, **recipe.network_options()).to(memory_format=torch.channels_last)
    collect = Collect()
    trainer(folder, callbacks=[collect], **options).fit(
        ImageClassifier(network, recipe),
        small(data_dir, **recipe.data_options() | {"batch_size": 50, "cutout": 4}),
    )
    assert len(collect.losses) == 20
    return torch.tensor(collect.losses, dtype=torch.float64)


@pytest.mark.parametrize("name", Recipe.presets())
def test_twenty_losses_equal_those_of_the_cpu(data_dir: Path, tmp_path: Path, name: str) -> None:
    recipe = replace(Recipe.preset(name), learning_rate=1e-3)
    cpu: dict[str, Any] = {"limit_val_batches": 0}
    exact = losses(data_dir, tmp_path, recipe, precision="64-true", **cpu)
    of_cpu = losses(data_dir, tmp_path, recipe, precision="32-true", **cpu)
    of_gpu = losses(data_dir, tmp_path, recipe, precision="32-true", **GPU)
    # The deviation of float32 from float64 on the CPU gives the tolerance for each step.
    deviation = (of_cpu - exact).abs().cummax(0).values
    assert torch.all((of_gpu - exact).abs() <= 10 * deviation + 1e-4)


@pytest.mark.parametrize("mode", [None, "default", "reduce-overhead"])
def test_a_fast_training_learns(data_dir: Path, tmp_path: Path, mode: str | None) -> None:
    torch.manual_seed(1)
    recipe = replace(Recipe.preset("muon"), batch_size=100)
    network = CustomResNet(8).to(memory_format=torch.channels_last)
    if mode:
        network.compile(mode=mode)
    model = ImageClassifier(network, recipe)
    data = small(data_dir, val_split=45_000, **recipe.data_options())
    t = trainer(tmp_path, max_epochs=4, precision="bf16-mixed", **GPU)
    t.fit(model, data)
    (scores,) = t.test(model, data, verbose=False)
    assert scores["test_acc"] > 0.4
    assert scores["test_acc_six"] > scores["test_acc"] - 0.02


def test_a_stopped_run_resumes_exactly(data_dir: Path, tmp_path: Path) -> None:
    options = {"network": lambda: CustomResNet(8), "precision": "bf16-mixed", "deterministic": True}
    try:
        alone = Training(tmp_path / "alone", data_dir, **options | GPU)
        alone.run()
        stopped = Training(tmp_path / "stopped", data_dir, **options | GPU)
        for step in (3, 17):
            with pytest.raises(SystemExit):
                stopped.run(Send(signal.SIGTERM, step))
        stopped.run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert stopped.losses == alone.losses
    assert same(stopped.left(), alone.left())


def test_errors_and_class_activation_maps_equal_those_of_the_cpu(data_dir: Path) -> None:
    network = CustomResNet.from_pretrained("quarter")
    cpu = find_misclassified(network)
    gpu = find_misclassified(copy.deepcopy(network).cuda())
    assert abs(gpu.accuracy - cpu.accuracy) <= 2e-4
    both = {sample.index: sample for sample in cpu}
    for sample in gpu:
        if sample.index in both:
            assert sample.loss == pytest.approx(both[sample.index].loss, abs=1e-3)
    images = torch.randn(4, 3, 32, 32)
    of_gpu = compute_cams(copy.deepcopy(network).cuda(), images.cuda(), 3)
    torch.testing.assert_close(of_gpu.cpu(), compute_cams(network, images, 3), atol=1e-3, rtol=0)


def test_the_effective_field_equals_that_of_the_cpu() -> None:
    network = CustomResNet(4).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    of_cpu, of_gpu = (
        effective_receptive_field(network.to(device), images, layer="layer2").map.cpu()
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(of_gpu, of_cpu)


@pytest.mark.filterwarnings("ignore:RNN module weights are not part")  # of converted copies
def test_maps_before_a_recurrent_layer_equal_those_of_the_cpu() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Conv2d(3, 8, 3, 2, 1)
            self.lstm = nn.LSTM(8, 10, 2, dropout=0.5, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            return self.lstm(self.maps(images).flatten(2).transpose(1, 2))[0][:, -1]

    model, images = Recurrent(), torch.randn(4, 3, 16, 16)
    of_cpu = compute_cams(model, images, 3)
    assert torch.allclose(compute_cams(model, images, 3, device="cuda"), of_cpu, atol=1e-3)
    assert torch.allclose(compute_cams(model.cuda(), images, 3), of_cpu, atol=1e-3)
    assert model.lstm.training
    assert model.lstm.dropout == 0.5
