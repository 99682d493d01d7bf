"""Test the choice of the precision by a measurement of convolutions."""

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cifar_resnet.machine import pick_precision

CPU = torch.device("cpu")


def changed(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, change: Callable[[Tensor], Tensor]
) -> None:
    """Change the results of convolutions in one format."""
    original = functional.conv2d

    def conv2d(images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = original(images, *args, **kwargs)
        return change(output) if images.dtype == dtype else output

    monkeypatch.setattr(functional, "conv2d", conv2d)


def slow(output: Tensor) -> Tensor:
    time.sleep(0.3)
    return output


@pytest.mark.parametrize(
    ("slower", "expected"), [(torch.float32, "bf16-mixed"), (torch.bfloat16, "32-true")]
)
def test_the_faster_format_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    slower: torch.dtype,
    expected: str,
) -> None:
    changed(monkeypatch, slower, slow)
    assert pick_precision(CPU) == expected
    assert not caplog.messages


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 1.1 * gradients[0]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda output: output * 0.9, id="output"),
        pytest.param(lambda output: output + float("nan"), id="nan"),
        pytest.param(_WrongGradient.apply, id="gradient"),
    ],
)
def test_wrong_convolutions_are_reported_and_not_used(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Tensor], Tensor],
) -> None:
    changed(monkeypatch, torch.bfloat16, change)
    with caplog.at_level(logging.WARNING, "cifar_resnet"):
        assert pick_precision(CPU) == "32-true"
    assert "bfloat16 convolutions are wrong on this machine" in caplog.text
    assert "expected less than 0.02" in caplog.text


def test_several_processes_do_not_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, torch.float32, lambda output: pytest.fail("measured"))
    assert pick_precision(CPU, processes=2) == "32-true"
    assert pick_precision(torch.device("mps")) == "32-true"
