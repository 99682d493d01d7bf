"""Run a model on another device or in another precision without moving the model itself."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd.graph import Node

from cifar_resnet.model_state import in_this_thread, preserve_state

MoveInputs = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def run_in_float32(model: nn.Module, device: torch.device | None) -> Iterator[MoveInputs]:
    """Prepare a model to run in float32 with gradients, whatever the caller's context is.

    The model is in evaluation mode until the end. The arguments, the result and the errors are
    those of `run_on_device`.
    """
    with (
        preserve_state(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cuda", enabled=False),
        torch.autocast("cpu", enabled=False),
        run_on_device(model, device, torch.float32) as move_inputs,
    ):
        yield move_inputs


@contextlib.contextmanager
def run_on_device(
    model: nn.Module, device: torch.device | None, dtype: torch.dtype | None = None
) -> Iterator[MoveInputs]:
    """Prepare a model to run, and yield a function that moves inputs to its device.

    Weights that are elsewhere or in another precision are replaced by converted copies until the
    end. Other threads that call the model meanwhile get them, too: this works for inputs on the
    same device and in the same precision. Compiled parts of the model run uncompiled.

    Args:
        model: The model; it is not moved.
        device: Where to run. If None, where the model is.
        dtype: Precision to run in. If None, that of the model.

    Raises:
        ValueError: If the model has no values (meta device), or is a scripted program, whose
            weights cannot be replaced, on another device or in another precision.
    """
    stored = [each for each in _stored_tensors(model) if not each[2].is_meta]
    tensors = [tensor for _, _, tensor in stored]
    if not tensors and next(model.parameters(), None) is not None:
        raise ValueError(
            "The weights of the model are on the meta device, where they have no values. Load "
            "them, or create the model on another device."
        )
    target = tensors[0].device if device is None and tensors else device
    floats = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    input_dtype = dtype or next(iter(floats), torch.get_default_dtype())

    def move_inputs(inputs: Tensor) -> Tensor:
        # converted before it is moved: MPS has no float64
        inputs = inputs.to(input_dtype) if inputs.is_floating_point() else inputs
        return inputs if target is None else inputs.to(target)

    with _converted(stored, device, dtype), _uncompiled(model):
        yield move_inputs


@contextlib.contextmanager
def watch_outputs(
    modules: Mapping[str, nn.Module], function: Callable[[str, Any], Any]
) -> Iterator[None]:
    """Pass the name and output of each module's calls to a function, which may replace the output.

    Ignored are calls by other threads and inside function transforms (`torch.vmap`), whose tensors
    are not valid outside of them. Scripted modules have no such hooks.
    """
    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                continue

            def hook(module: nn.Module, args: Any, output: Any, name: str = name) -> Any:
                values = tensor_of(output)
                transformed = values is not None and is_functorch_wrapped_tensor(values)
                return None if transformed else function(name, output)

            hooks.enter_context(module.register_forward_hook(in_this_thread(hook)))
        yield


def tensor_of(output: Any) -> Tensor | None:
    """Return the output of a module, or the first one of several, if it is a tensor."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def with_tensor(output: Any, values: Tensor) -> Any:
    """Return the output of a module with other values for what `tensor_of` returns."""
    if isinstance(output, Tensor):
        return values
    if hasattr(output, "_make"):  # a named tuple
        return output._make([values, *output[1:]])
    return type(output)([values, *output[1:]])


def with_gradient(output: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a layer's output to differentiate by, and what replaces it, or None if nothing does.

    An output without a gradient (after integer images, or under `torch.no_grad()`) starts a new
    graph, so that layers of such models can be explained if the rest of the model can be.
    """
    if output.is_quantized:
        return output.dequantize(), None
    if output.requires_grad or not output.is_floating_point():
        return output, None
    with torch.inference_mode(False), torch.enable_grad():
        start = output.detach().clone().requires_grad_()
        return start, start.clone()  # the model may write to it


def gradients(
    score: Tensor, tensors: Sequence[Tensor], lost: Callable[[Iterable[bool]], bool]
) -> list[Tensor | None]:
    """Compute the gradients of a score by tensors; None where it does not depend on one.

    Raises:
        ValueError: If reentrant checkpoints of the model hide the gradients. `lost` decides whether
            it matters if `all` of them or `any` of them are missing.
    """
    tracked = [tensor for tensor in tensors if tensor.requires_grad]
    try:
        found = iter(
            torch.autograd.grad(score, tracked, allow_unused=True)
            if tracked and score.requires_grad
            else [None] * len(tracked)
        )
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise _reentrant_checkpoint() from error
        raise
    grads = [next(found) if tensor.requires_grad else None for tensor in tensors]
    if lost(grad is None for grad in grads) and any(
        node.name() == "CheckpointFunctionBackward" for node in _users(score)
    ):
        raise _reentrant_checkpoint()
    return grads


def nodes_between(starts: Iterable[Node | None], score: Tensor) -> set[Node | None]:
    """Return the nodes of the graph of a score that depend on one of the nodes `starts`."""
    users, nodes = _users(score), list(starts)
    reached: set[Node | None] = set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in reached:
            reached.add(node)
            nodes.extend(users[node])
    return reached


def _users(score: Tensor) -> defaultdict[Node, list[Node]]:
    """Return the nodes of the graph of a score, each with the nodes that use its result."""
    users: defaultdict[Node, list[Node]] = defaultdict(list)
    nodes, seen = [score.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for earlier, _ in node.next_functions:
            if earlier is not None:
                users[earlier].append(node)
                nodes.append(earlier)
    return users


def _reentrant_checkpoint() -> ValueError:
    return ValueError(
        "The model uses torch.utils.checkpoint.checkpoint(use_reentrant=True), which hides the "
        "gradients of its layers. Use use_reentrant=False, which gives the same results, or switch "
        "checkpointing off."
    )


def _stored_tensors(model: nn.Module) -> list[tuple[Any, str, Tensor]]:
    """Return the dictionary or scripted module of each parameter and buffer, its name and value."""
    return [
        (module if isinstance(module, torch.jit.ScriptModule) else stored, name, tensor)
        for module in model.modules()
        for stored in (module._parameters, module._buffers)
        for name, tensor in stored.items()
        if tensor is not None
    ]


@contextlib.contextmanager
def _converted(
    stored: list[tuple[Any, str, Tensor]], device: torch.device | None, dtype: torch.dtype | None
) -> Iterator[None]:
    """Replace the tensors that are elsewhere or in another precision.

    A tensor that is stored under several names is replaced by one tensor, a parameter by a
    parameter.
    """
    values: dict[int, Tensor] = {}
    for owner, name, tensor in stored:
        value = tensor.detach().to(device, dtype if tensor.is_floating_point() else None)
        if value.is_inference():
            value = value.clone()  # can be saved for gradients
        elif value.device == tensor.device and value.dtype == tensor.dtype:
            continue
        if isinstance(owner, torch.jit.ScriptModule):
            raise ValueError(
                f"{name!r} of a scripted or traced program is {tensor.dtype} on {tensor.device}, "
                f"where {value.dtype} on {value.device} is needed. Convert the model with "
                f"model.to({str(value.device)!r}, {value.dtype}) first."
            )
        is_parameter = isinstance(tensor, nn.Parameter)
        values.setdefault(
            id(tensor), nn.Parameter(value, requires_grad=False) if is_parameter else value
        )
    changed = [each for each in stored if id(each[2]) in values]
    try:
        for owner, name, tensor in changed:
            owner[name] = values[id(tensor)]
        yield
    finally:
        for owner, name, tensor in changed:
            owner[name] = tensor


_stance_lock = threading.Lock()
_stance_users = 0
_stance: Any = None


@contextlib.contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Run the compiled parts of a model uncompiled, so that the hooks of its layers are called.

    PyTorch has one such setting for the whole process, so the last thread to leave resets it.
    """
    global _stance, _stance_users
    if not any(map(_is_compiled, model.modules())):
        yield
        return
    with _stance_lock:
        if _stance_users == 0:
            _stance = torch.compiler.set_stance("force_eager")
        _stance_users += 1
    try:
        yield
    finally:
        with _stance_lock:
            _stance_users -= 1
            if _stance_users == 0:
                _stance.__exit__(None, None, None)


def _is_compiled(module: nn.Module) -> bool:
    """Return whether a module or one of its methods is compiled."""
    own = [c for c in type(module).__mro__ if c not in nn.Module.__mro__]
    values = [*vars(module).values(), *(value for c in own for value in vars(c).values())]
    return module._compiled_call_impl is not None or any(
        hasattr(value, "_torchdynamo_orig_callable") for value in values
    )
