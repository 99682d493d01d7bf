"""The Muon optimizer: orthogonalized steps for convolutions, SGD for all other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from cifar_resnet import arguments

__all__ = ["Muon", "orthogonalize"]

# Coefficients of the quintic polynomial that the Newton-Schulz iteration applies to singular values
# (Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum in which the step of each kernel is orthogonalized.

    A group with `orthogonal=True` holds kernels of at least two dimensions, which are treated as
    matrices (output channels x everything else). The direction of SGD is replaced by the nearest
    orthogonal matrix, scaled to the Frobenius norm that the kernel keeps, `sqrt(outputs)`; so `lr`
    is approximately the fraction by which the kernel rotates per step. This suits kernels followed
    by a normalization, for which their scale does not matter. Other groups take SGD steps with
    Nesterov momentum and weight decay.

    Args:
        params: Parameters or groups of parameters; `orthogonal` (default False), `lr`, `momentum`
            and `weight_decay` may differ between groups.
        lr: Learning rate, at least 0.
        momentum: Momentum, in [0, 1).
        weight_decay: L2 penalty for groups that are not orthogonal, at least 0.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of range, or an orthogonal parameter is a vector.

    Examples:
        >>> import torch
        >>> from cifar_resnet.training.muon import Muon
        >>> conv = torch.nn.Conv2d(3, 8, 3, bias=False)
        >>> optimizer = Muon([{"params": [conv.weight], "orthogonal": True}], lr=0.05)
        >>> conv(torch.randn(2, 3, 8, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> conv.weight.norm().square().round().item()
        8.0
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "orthogonal": False,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if not isinstance(param_group, dict):
            raise TypeError(f"A group of parameters must be a dictionary, but got {param_group!r}.")
        group = self.defaults | param_group
        for name, within in (
            ("lr", arguments.NON_NEGATIVE),
            ("momentum", arguments.BELOW_ONE),
            ("weight_decay", arguments.NON_NEGATIVE),
        ):
            group[name] = arguments.number(name, group[name], within)
        arguments.boolean("orthogonal", group["orthogonal"])
        super().add_param_group(group)
        added = self.param_groups[-1]
        vectors = [p for p in added["params"] if p.dim() < 2]
        if added["orthogonal"] and vectors:
            self.param_groups.pop()
            raise ValueError(
                "Parameters of an orthogonal group need at least 2 dimensions, but one has shape "
                f"{tuple(vectors[0].shape)}. Put it into a group with orthogonal=False."
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            first = [p for p in parameters if not self.state[p]]
            directions = self._directions(parameters, group)
            if group["orthogonal"]:
                _set_norms(first)  # later, it is kept at the end of each step
                matrices = [direction.flatten(1) for direction in directions]
                updates = _orthogonalize_all(matrices)
                for parameter, update in zip(parameters, updates, strict=True):
                    rows, columns = update.shape
                    scale = max(1, rows / columns) ** 0.5
                    parameter.add_(update.view(parameter.shape), alpha=-scale * group["lr"])
                _set_norms(parameters)
            else:
                torch._foreach_add_(parameters, directions, alpha=-group["lr"])
        return loss

    def _directions(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Update the momentum, and return the directions of SGD with Nesterov momentum."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momenta.append(state["momentum_buffer"])
        if group["weight_decay"] and not group["orthogonal"]:
            decay = group["weight_decay"]
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        return list(torch._foreach_add(gradients, momenta, alpha=group["momentum"]))


def _set_norms(kernels: list[Tensor]) -> None:
    """Scale each kernel to a Frobenius norm of `sqrt(outputs)`. A kernel of zeros is unchanged."""
    if not kernels:
        return
    factors = torch._foreach_norm(kernels)
    torch._foreach_clamp_min_(factors, 1e-12)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, [len(kernel) ** 0.5 for kernel in kernels])
    torch._foreach_mul_(kernels, factors)


def _orthogonalize_all(matrices: list[Tensor]) -> list[Tensor]:
    """Orthogonalize each matrix. Those of one shape form a batch: fewer and larger operations."""
    groups: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for index, matrix in enumerate(matrices):
        groups.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(index)
    result = list(matrices)
    for indices in groups.values():
        if len(indices) == 1:
            result[indices[0]] = orthogonalize(matrices[indices[0]])
        else:
            batch = orthogonalize(torch.stack([matrices[index] for index in indices]))
            for index, orthogonal in zip(indices, batch, strict=True):
                result[index] = orthogonal
    return result


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate the orthogonal matrix nearest to `matrix` with the Newton-Schulz iteration.

    The result has the same singular vectors and singular values between about 0.7 and 1.2, except
    for those that are nearly 0 in `matrix`, which are smaller.

    Args:
        matrix: Floating-point tensor (rows, columns), or a batch (N, rows, columns). The iteration
            runs in bfloat16.
        steps: Number of iterations, at least 1.

    Returns:
        Tensor of the same shape and dtype.
    """
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above 1
    add_product = torch.addmm if x.dim() == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = add_product(gram, gram, gram, beta=_B, alpha=_C)
        x = add_product(x, polynomial, x, beta=_A)
    result: Tensor = (x.mT if tall else x).to(matrix.dtype)
    return result
