"""Compute class activation maps, with the arithmetic of the grad-cam library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.misclassified.execution import gradients, run_in_float32
from cifar_resnet.misclassified.layers import (
    Reshape,
    TargetLayer,
    as_target_layers,
    find_target_layers,
    record_outputs,
)
from cifar_resnet.misclassified.scores import check_finite, class_scores
from cifar_resnet.model_state import unwrap_compiled

__all__ = ["compute_cams"]

# The class in pytorch_grad_cam and the usual name of each method.
METHODS = {
    "gradcam": ("GradCAM", "Grad-CAM"),
    "gradcam++": ("GradCAMPlusPlus", "Grad-CAM++"),
    "hirescam": ("HiResCAM", "HiResCAM"),
    "layercam": ("LayerCAM", "LayerCAM"),
    "xgradcam": ("XGradCAM", "XGrad-CAM"),
    "gradcamelementwise": ("GradCAMElementWise", "element-wise Grad-CAM"),
    "eigencam": ("EigenCAM", "EigenCAM"),
    "eigengradcam": ("EigenGradCAM", "EigenGradCAM"),
}

_WITHOUT_GRADIENT = "eigencam"


def compute_cams(
    model: nn.Module,
    images: Tensor,
    classes: Tensor | Sequence[int] | int | None = None,
    *,
    against: Tensor | Sequence[int] | int | None = None,
    method: str = "gradcam",
    target_layers: str | nn.Module | Sequence[str | nn.Module] | None = None,
    reshape_transform: Reshape | None = None,
    raw: bool = False,
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Compute class activation maps for a batch of images.

    The explained score is the logit, also if the model ends in a softmax or sigmoid. If the logits
    cannot be observed, as in a scripted model or the mean of an ensemble, it is the
    log-probability (see `find_misclassified`). Maps are computed in float32, and each image's map
    is independent of the others. The model is left unchanged.

    Several threads may explain one model, one after the other, while others run it in evaluation
    mode. Only if its weights have to be converted (to float32, or to another device) must no other
    thread run it. In the main thread, the state of the global random number generators is restored.

    Args:
        model: Any module from images to class scores (N, classes). Wrappers for compilation and
            data parallelism are removed. Scripted, traced and exported programs are refused.
        images: Tensor (N, C, H, W), as the model expects it: normalized floating-point images, or
            integers if the model preprocesses them itself; also (N, H, W, C).
        classes: Class to explain, one for each image or one for all. If None, the predicted class.
        against: Classes whose score is subtracted, to explain why one class and not the other.
        method: "gradcam" (Selvaraju et al., ICCV 2017), "gradcam++" (Chattopadhay et al., WACV
            2018), "hirescam" (Draelos and Carin, 2020), "layercam" (Jiang et al., TIP 2021),
            "xgradcam" (Fu et al., BMVC 2020), "gradcamelementwise", "eigencam" (Muhammad and
            Yeasin, IJCNN 2020; ignores the class and needs no gradient) or "eigengradcam".
        target_layers: Names or submodules, one or several, whose maps are averaged. If None, the
            last layer with spatial output that the scores depend on.
        reshape_transform: Function from the output of each target layer to (N, C, height, width).
            Not needed for feature maps, nor for tokens on a square grid or on the grid of the
            patch embedding. Without `target_layers`, the last layer that it can convert is used.
        raw: If True, return the map of one layer as the method defines it: at the resolution of the
            layer and with its sign. With "hirescam" it sums to the logit if everything after the
            layer is linear without a bias (for a given image, max pooling is linear).
        batch_size: Number of images processed at once.
        device: Device to compute on. If None, the model's device. The model is not moved.

    Returns:
        float32 (N, H, W) on the CPU, in [0, 1]: positive evidence relative to the maximum of the
        image; all 0 where there is none. With `raw` (N, height, width) of the layer.

    Raises:
        TypeError: If `model` is not a module, `images` is not a tensor, or another argument has the
            wrong type.
        ValueError: If an argument is out of its range, a layer does not exist or has no spatial
            output, or the model fails on the images or does not return finite scores (N, classes).

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet, compute_cams
        >>> model, images = CustomResNet(width=4), torch.randn(2, 3, 32, 32)
        >>> compute_cams(model, images, classes=3).shape
        torch.Size([2, 32, 32])
        >>> raw = compute_cams(model, images, 3, method="hirescam", raw=True)
        >>> torch.allclose(raw.sum((1, 2)), model.eval().logits(images)[:, 3], atol=1e-4)
        True
    """
    model = unwrap_compiled(model)
    options = CamOptions(method, target_layers, reshape_transform, raw, batch_size)
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images must be a tensor (N, C, H, W), but got {type(images).__name__}. "
            f"{arguments.PICTURES}"
        )
    if images.dim() != 4 or images.is_complex():
        raise ValueError(
            f"images must have the shape (N, C, H, W), as the model expects them, but got "
            f"{images.dtype} of shape {tuple(images.shape)}."
        )
    if device is not None:
        device = arguments.device("device", device)
    if len(images) == 0:
        return torch.zeros(0, *_size(images), dtype=torch.float32, device="cpu")
    targets = _as_classes(classes, len(images), "classes")
    others = _as_classes(against, len(images), "against")
    return cams_and_layers(model, images, targets, others, options, device)[0]


@dataclass(frozen=True)
class CamOptions:
    """Method and layers of class activation maps: checked arguments of `compute_cams`."""

    method: str = "gradcam"
    target_layers: Any = None  # converted to tuple[str | nn.Module, ...] | None
    reshape_transform: Reshape | None = None
    raw: bool = False
    batch_size: int = 32

    def __post_init__(self) -> None:
        arguments.choice("method", self.method, (*METHODS,))
        object.__setattr__(self, "target_layers", as_target_layers(self.target_layers))
        expected = "a function from a layer's output to its maps"
        arguments.function("reshape_transform", self.reshape_transform, expected)
        arguments.boolean("raw", self.raw)
        batch_size = arguments.integer("batch_size", self.batch_size, minimum=1)
        object.__setattr__(self, "batch_size", batch_size)


Classes = list[int] | None  # one for each image


def cams_and_layers(
    model: nn.Module,
    images: Tensor,
    targets: Classes,
    others: Classes,
    options: CamOptions,
    device: torch.device | None,
    layers: list[TargetLayer] | None = None,
) -> tuple[Tensor, list[TargetLayer]]:
    """Compute the maps of at least one image, and return them with their layers.

    Args:
        model: As for `compute_cams`, not compiled.
        images: As for `compute_cams`.
        targets: Class to explain for each image. If None, the predicted class.
        others: Class whose score is subtracted for each image. If None, nothing is subtracted.
        options: Method and layers.
        device: As for `compute_cams`.
        layers: Layers of an earlier call with the same options and images of the same size. If
            None, find them.
    """
    check_visible(model)
    maps = []
    with run_in_float32(model, device) as move_inputs:
        _prepare_recurrent_layers(model)

        def inputs(rows: slice) -> Tensor:
            batch = move_inputs(images[rows].detach().clone())
            # a copy, as the model may write to it, which is an error if it is a leaf of the graph
            return batch.requires_grad_().clone() if batch.is_floating_point() else batch

        without_gradient = options.method == _WITHOUT_GRADIENT
        layers = layers or find_target_layers(
            model,
            inputs(slice(1)),
            options.target_layers,
            options.reshape_transform,
            without_gradient,
        )
        if options.raw and len(layers) > 1:
            raise ValueError(f"raw maps are of one layer, but target_layers has {len(layers)}.")
        cam_method = _cam_method(options.method)
        for start in range(0, len(images), options.batch_size):
            rows = slice(start, start + options.batch_size)
            with record_outputs(layers) as outputs:
                scores = class_scores(model, inputs(rows))
            check_finite(scores, range(len(images))[rows], "image")
            score = _explained_scores(
                scores, targets and targets[rows], others and others[rows]
            ).sum()
            layer_maps = _layer_maps(score, layers, outputs, cam_method, without_gradient)
            maps.append(layer_maps[0] if options.raw else _merged(layer_maps, _size(images)))
    return torch.cat(maps), layers


def check_visible(model: nn.Module) -> None:
    """Raise if the outputs of a model's layers cannot be recorded.

    Raises:
        ValueError: If the model is a scripted, traced or exported program.
    """
    scripted = isinstance(model, torch.jit.ScriptModule)
    if scripted or (
        isinstance(model, torch.fx.GraphModule)
        and {n.target for n in model.graph.nodes if n.op == "call_module"} <= {"_guards_fn"}
    ):
        made_by = "torch.jit" if scripted else "torch.export"
        raise ValueError(
            f"The model is a program made by {made_by}, which does not call its layers as modules, "
            "so their outputs cannot be recorded. Pass the module that it was made from."
        )


def _prepare_recurrent_layers(model: nn.Module) -> None:
    """Put recurrent layers without dropout into training mode: cuDNN differentiates no others."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase) and any(p.is_cuda for p in module.parameters()):
            module.training, module.dropout = True, 0.0


def _size(images: Tensor) -> torch.Size:
    """Return the height and width of images (N, C, H, W), or (N, H, W, C) if C is 1, 3 or 4."""
    _, first, second, last = images.shape
    return images.shape[1:3] if last in (1, 3, 4) and min(first, second) > 4 else images.shape[2:]


CamMethod = Callable[[Tensor, Tensor], Tensor]


def _layer_maps(
    score: Tensor,
    layers: Sequence[TargetLayer],
    outputs: dict[str, Tensor],
    cam_method: CamMethod,
    without_gradient: bool,
) -> list[Tensor]:
    """Compute the raw maps (N, height, width) of each layer."""
    tensors = [outputs[layer.name] for layer in layers]
    grads = tensors if without_gradient else gradients(score, tensors, any)
    maps = []
    for layer, values, grad in zip(layers, tensors, grads, strict=True):
        if grad is None:
            raise ValueError(f"The scores do not depend on the output of layer {layer.name!r}.")
        maps.append(cam_method(layer.to_map(values.detach()), layer.to_map(grad)))
    return maps


def _merged(layer_maps: Sequence[Tensor], size: torch.Size) -> Tensor:
    """Average the maps of layers at the size of the images, each scaled to its maximum."""
    total = torch.zeros(len(layer_maps[0]), *size, dtype=torch.float32, device="cpu")
    for maps in layer_maps:
        total += _scaled(F.interpolate(maps.relu()[:, None], size, mode="bilinear"))
    return _scaled(total[:, None])


def _scaled(maps: Tensor) -> Tensor:
    """Scale (N, 1, H, W) to (N, H, W) with a maximum of 1, unless a map is all 0."""
    largest = maps.amax((2, 3), keepdim=True)
    return (maps / torch.where(largest > 0, largest, 1))[:, 0]


def _explained_scores(scores: Tensor, targets: Classes, others: Classes) -> Tensor:
    """Return the score (N,) of each image's target class, minus that of its other class."""
    classes = scores.shape[1]
    for name, numbers in (("classes", targets), ("against", others)):
        outside = [number for number in numbers or () if not 0 <= number < classes]
        if outside:
            raise ValueError(
                f"{name} holds {outside[0]}, but the model has the classes 0 to {classes - 1}."
            )

    def scores_of(numbers: list[int]) -> Tensor:
        return scores.gather(1, torch.tensor(numbers, device=scores.device)[:, None])[:, 0]

    explained = scores.amax(1) if targets is None else scores_of(targets)
    return explained if others is None else explained - scores_of(others)


def _cam_method(name: str) -> CamMethod:
    """Return a method as a function of activations and gradients (N, C, h, w) to maps (N, h, w)."""
    import pytorch_grad_cam  # takes a second to import

    cam = getattr(pytorch_grad_cam, METHODS[name][0])(_DummyModel(), [])

    def compute(activations: Tensor, grads: Tensor) -> Tensor:
        arrays = (tensor.detach().float().cpu().numpy() for tensor in (activations, grads))
        # only methods that run the model again use its input, layer and targets
        return torch.from_numpy(cam.get_cam_image(None, None, None, *arrays, False)).float()

    return compute


class _DummyModel(nn.Module):
    """A module with a parameter, whose device the library reads."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros((), device="cpu"))


def _as_classes(classes: Any, number: int, name: str) -> Classes:
    """Convert the classes of a number of images to a list with one class for each."""
    if classes is None:
        return None
    expected = f"a class number, or one for each of the {number} images"
    values = classes.tolist() if isinstance(classes, Tensor | np.ndarray) else classes
    if arguments.is_integer(values):
        return [int(values)] * number
    values = arguments.sequence(name, values, expected)
    message = f"{name} must be {expected}, but got {classes!r}."
    if not all(map(arguments.is_integer, values)):
        raise TypeError(message)
    if len(values) != number:
        raise ValueError(message)
    return [int(value) for value in values]
