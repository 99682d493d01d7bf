"""Muon: orthogonalized steps against the singular value decomposition, others against SGD."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small, trainer
from torch import nn

from cifar_resnet import CustomResNet, ImageClassifier, Recipe
from cifar_resnet.training.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 8), (8, 20), (20, 8), (1, 9)])
def test_singular_vectors_stay_and_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    result = orthogonalize(matrix)
    u, _, v = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    inner = u.T @ result.double().numpy() @ v.T
    assert np.abs(inner - np.diag(np.diag(inner))).max() < 0.1  # bfloat16
    # singular values that are nearly 0 have not converged after five steps
    assert np.all((np.diag(inner) > 0.1) & (np.diag(inner) < 1.3))
    np.testing.assert_allclose(orthogonalize(100 * matrix), result, atol=0.1)
    assert result.dtype == torch.float32


def test_parameters_without_a_gradient_stay() -> None:
    kernel, scale = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.randn(6))
    before = kernel.detach().clone(), scale.detach().clone()
    groups = [{"params": [kernel], "orthogonal": True}, {"params": [scale], "orthogonal": False}]
    optimizer = Muon(groups, lr=0.01)
    optimizer.step()
    assert torch.equal(kernel, before[0])
    assert torch.equal(scale, before[1])
    scale.grad = torch.ones(6)
    optimizer.step()  # only one group has gradients
    assert torch.equal(kernel, before[0])
    assert not torch.equal(scale, before[1])


def test_a_step_moves_a_kernel_against_its_gradient_and_keeps_its_norm() -> None:
    kernel = nn.Parameter(torch.randn(6, 3, 3, 3))
    before = kernel.detach() * (6**0.5 / kernel.detach().norm())
    optimizer = Muon([{"params": [kernel], "orthogonal": True}], lr=0.01)
    gradient = torch.randn_like(kernel)
    kernel.grad = gradient.clone()
    optimizer.step()
    assert kernel.norm().item() == pytest.approx(6**0.5, rel=1e-5)
    step = before - 0.01 * orthogonalize(1.9 * gradient.flatten(1)).view_as(kernel)
    torch.testing.assert_close(kernel.detach(), step * (6**0.5 / step.norm()))
    assert torch.equal(kernel.grad, gradient)


def test_kernels_of_one_shape_are_updated_like_each_alone() -> None:
    shapes = [(6, 4, 3, 3), (4, 6, 3, 3), (6, 4, 3, 3), (20, 2, 3, 3), (4, 6, 3, 3), (6, 4, 3, 3)]
    together = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = [nn.Parameter(kernel.detach().clone()) for kernel in together]
    optimizers = [
        Muon([{"params": kernels, "orthogonal": True}], lr=0.05)
        for kernels in (together, *([kernel] for kernel in alone))
    ]
    for _ in range(3):
        for ours, theirs in zip(together, alone, strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)  # sums in bfloat16


def test_several_matrices_at_once() -> None:
    for shape in ((3, 8, 20), (3, 20, 8)):
        matrices = torch.randn(shape)
        matrices[1] *= 100  # each has a scale of its own
        result = orthogonalize(matrices)
        for one, matrix in zip(result, matrices, strict=True):
            torch.testing.assert_close(one, orthogonalize(matrix), atol=0.02, rtol=0)


def test_other_groups_step_like_sgd() -> None:
    start = torch.randn(5, 4)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    muon = Muon([ours], lr=0.1, momentum=0.8, weight_decay=0.01)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01)
    for step in range(5):
        for parameter, optimizer in ((ours, muon), (theirs, sgd)):
            optimizer.zero_grad()
            (parameter.square().sum() * (step + 1)).backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_state_continues_exactly() -> None:
    def run(steps: int, kernel: nn.Parameter, optimizer: Muon) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (kernel * torch.arange(54.0).view_as(kernel)).square().sum().backward()
            optimizer.step()

    def fresh(start: torch.Tensor) -> tuple[nn.Parameter, Muon]:
        kernel = nn.Parameter(start.clone())
        return kernel, Muon([{"params": [kernel], "orthogonal": True}], lr=0.05)

    start = torch.randn(2, 3, 3, 3)
    whole, optimizer = fresh(start)
    run(3, whole, optimizer)
    saved, saved_weights = copy.deepcopy(optimizer.state_dict()), whole.detach().clone()
    run(3, whole, optimizer)
    again, optimizer = fresh(saved_weights)
    optimizer.load_state_dict(saved)
    run(3, again, optimizer)
    assert torch.equal(whole, again)


def test_the_recipe_gives_muon_the_convolutions(data_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe(name="muon", optimizer="muon", learning_rate=0.1, conv_learning_rate=0.03)
    network = CustomResNet(width=2)
    t = trainer(tmp_path, limit_train_batches=2, limit_val_batches=0)
    t.fit(ImageClassifier(network, recipe), small(data_dir))
    (optimizer,) = t.optimizers
    assert isinstance(optimizer, Muon)
    rest, kernels = optimizer.param_groups
    assert [id(p) for p in kernels["params"]] == [
        id(m.weight) for m in network.modules() if isinstance(m, nn.Conv2d)
    ]
    assert (kernels["orthogonal"], kernels["lr"]) == (True, 0.03)
    assert (rest["orthogonal"], rest["lr"]) == (False, 0.1)
    assert len(rest["params"]) + len(kernels["params"]) == len(list(network.parameters()))


def test_a_wrong_group_is_refused_and_not_added() -> None:
    optimizer = Muon([nn.Parameter(torch.zeros(2, 2))], lr=0.1)
    with pytest.raises(ValueError, match="lr must be a finite number of at least 0, but"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))], "lr": -1})
    with pytest.raises(ValueError, match=r"one has shape \(3,\)"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "orthogonal": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("shape", [(64, 3, 3, 3), (64, 64, 3, 3)], ids=["tall", "wide"])
def test_the_learning_rate_is_about_the_fraction_by_which_a_kernel_rotates(shape: tuple) -> None:
    kernel = nn.Parameter(torch.randn(shape))
    before = kernel.detach() / kernel.detach().norm()
    optimizer = Muon([{"params": [kernel], "orthogonal": True}], lr=0.05)
    kernel.grad = torch.randn(shape)
    optimizer.step()
    turned = (kernel.detach() / kernel.detach().norm() - before).norm().item()
    assert 0.7 * 0.05 < turned < 1.2 * 0.05


def test_a_kernel_of_zeros_is_updated() -> None:
    kernel = nn.Parameter(torch.zeros(4, 4, 3, 3))
    optimizer = Muon([{"params": [kernel], "orthogonal": True}], lr=0.05)
    kernel.grad = torch.randn_like(kernel)
    optimizer.step()
    assert kernel.norm().item() == pytest.approx(2, rel=1e-5)
