"""Models of timm and transformers are the same before and after an analysis.

transformers is not needed by the project: `pip install transformers` for the slow tests of it.
"""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from cifar_resnet import receptive_field

TIMM = ["test_convnext", "test_efficientnet", "test_vit"]
TIMM_SLOW = [  # some make position embeddings or grids in the forward pass, or cache them
    "test_byobnet",
    "test_mambaout",
    "test_resnet",
    "eva02_tiny_patch14_224",
    "hiera_tiny_224",
    "mvitv2_tiny",
    "naflexvit_base_patch16_gap",
    "swinv2_tiny_window8_256",
    "vit_relpos_small_patch16_224",
]
TINY: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
DEPTHS: dict[str, Any] = {"image_size": 64, "depths": [1, 1, 1, 1]}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "BeitForImageClassification": TINY | {"use_relative_position_bias": True},
    "ConvNextForImageClassification": DEPTHS,
    "Data2VecVisionForImageClassification": TINY | {"use_relative_position_bias": True},
    "DeiTForImageClassification": TINY,
    "Dinov2ForImageClassification": TINY,
    "DINOv3ViTModel": TINY,
    "FocalNetForImageClassification": DEPTHS,
    "HieraForImageClassification": {},
    "LevitForImageClassification": {"depths": [1, 1, 1]},
    "MobileViTForImageClassification": {"image_size": 64},
    "PvtV2ForImageClassification": DEPTHS,
    "SegformerForSemanticSegmentation": DEPTHS,
    "Swinv2ForImageClassification": DEPTHS | {"num_heads": [3, 6, 12, 24]},
    "ViTForImageClassification": TINY,
}


def build_timm(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False)
    return model, (1, *model.pretrained_cfg["input_size"])


def build_transformers(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    config = kind.config_class(**TRANSFORMERS[name])
    size = getattr(config, "image_size", 64)
    height, width = (size, size) if isinstance(size, int) else size
    return kind(config), (1, 3, height, width)


def outputs(model: nn.Module, image: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        return [output for output in tree_leaves(model(image)) if isinstance(output, Tensor)]


def tensors_without_values() -> set[int]:
    gc.collect()
    return {id(found) for found in gc.get_objects() if type(found) is FakeTensor}


def check(build: Callable[[str], tuple[nn.Module, tuple[int, ...]]], name: str) -> None:
    torch.manual_seed(0)
    model, size = build(name)
    image = torch.randn(size)
    model.eval()
    already = tensors_without_values()
    # The first model is analyzed before its first call, when its caches are empty.
    assert len(receptive_field(model, size)) > 5
    assert not tensors_without_values() - already
    first = outputs(model, image)
    receptive_field(model, size)
    assert not tensors_without_values() - already
    torch.manual_seed(0)
    untouched = build(name)[0].eval()
    assert first
    for output, again, new in zip(
        first, outputs(model, image), outputs(untouched, image), strict=True
    ):
        assert type(output) is type(again) is type(new) is Tensor
        assert torch.equal(output, again)
        assert torch.equal(output, new)
    assert {name for name, _ in model.named_buffers()} == {n for n, _ in untouched.named_buffers()}


@pytest.mark.filterwarnings("ignore")  # of timm
@pytest.mark.parametrize("name", TIMM)
def test_a_model_of_timm_is_left_unchanged(name: str) -> None:
    check(build_timm, name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of timm
@pytest.mark.parametrize("name", TIMM_SLOW)
def test_another_model_of_timm_is_left_unchanged(name: str) -> None:
    check(build_timm, name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_model_of_transformers_is_left_unchanged(name: str) -> None:
    check(build_transformers, name)
