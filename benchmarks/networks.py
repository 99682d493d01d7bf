"""The networks of public libraries that `network_sweep.py` analyzes, without their weights.

Each library lists its networks by name, and builds one when asked to. Of libraries with hundreds of
similar networks, one of each family is listed: the first by size words and numbers in its name.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from torch import nn

Shape = tuple[int, ...]
Built = tuple[nn.Module, tuple[Shape, ...]]  # a model and the shapes of its inputs
IMAGE: Shape = (1, 3, 224, 224)

# To import, besides the library itself, installed with `pip install --no-deps`.
NEEDS = {
    "torchvision": ("torchvision",),
    "timm": ("timm",),
    "transformers": ("transformers", "tokenizers", "regex"),
    "pytorchcv": ("pytorchcv",),
    "segmentation-models-pytorch": ("segmentation-models-pytorch", "timm"),
    "monai": ("monai", "einops"),
    "efficientnet-pytorch": ("efficientnet-pytorch",),
    "torchaudio": ("torchaudio",),
}
# fmt: off
_SIZE_WORDS = [
    "atto", "femto", "pico", "nano", "xxxtiny", "xxtiny", "xtiny", "tiny", "xxxs", "xxs", "xs",
    "xxsmall", "xsmall", "mini", "small", "s", "light", "lite", "half", "medium", "m", "base", "b",
    "large", "l", "xlarge", "xl", "huge", "h", "giant", "g", "gigantic", "enormous", "xxl",
    "xxlarge",
]
_TASKS = (
    "IMAGE_CLASSIFICATION", "BACKBONE", "DEPTH_ESTIMATION", "SEMANTIC_SEGMENTATION",
    "OBJECT_DETECTION", "UNIVERSAL_SEGMENTATION", "KEYPOINT_DETECTION", "IMAGE_TO_IMAGE",
    "VIDEO_CLASSIFICATION", "AUDIO_CLASSIFICATION", "CTC", "IMAGE",
)
_ARCHITECTURES = (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3",
    "DeepLabV3Plus", "UPerNet", "Segformer",
)
# fmt: on


@dataclass(frozen=True)
class Network:
    library: str
    name: str
    build: Callable[[], Built]


def networks(library: str) -> list[Network]:
    """List the networks of a library."""
    listed = {
        "torchvision": _torchvision,
        "timm": _timm,
        "transformers": _transformers,
        "pytorchcv": _pytorchcv,
        "segmentation-models-pytorch": _segmentation_models,
        "monai": _monai,
        "efficientnet-pytorch": _efficientnets,
        "torchaudio": _torchaudio,
    }[library]()
    return [Network(library, name, build) for name, build in listed]


Listed = Iterator[tuple[str, Callable[[], Built]]]


def _smallest(names: list[str]) -> str:
    def rank(name: str) -> tuple[Any, ...]:
        words = ["giant" if re.fullmatch(r"\d+b", word) else word for word in name.split("_")]
        sizes = [_SIZE_WORDS.index(word) for word in words if word in _SIZE_WORDS]
        numbers = [int(number) for number in re.findall(r"\d+", name)]
        return (min(sizes, default=_SIZE_WORDS.index("medium")), numbers, name)

    return min(names, key=rank)


def _families(names: Iterable[str], pattern: str = "[a-z]+") -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for name in names:
        match = re.match(pattern, name)
        families.setdefault(match[0] if match else name, []).append(name)
    return families


def _torchvision() -> Listed:
    from torchvision import models

    def build(name: str, shape: Shape) -> Built:
        options: dict[str, Any] = {"weights": None}
        builder = models.get_model_builder(name)
        parameters = inspect.signature(builder).parameters
        if "weights_backbone" in parameters:
            options["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # the default takes a minute
        if name.startswith("vit"):
            options["image_size"] = shape[-1]
        model = models.get_model(name, **options)
        if hasattr(models.detection, name):  # their inputs are lists, and their outputs boxes
            model = model.backbone
        two = 2 if name.startswith("raft") else 1
        return model, (shape,) * two

    def size(name: str) -> int:
        return int(models.get_model_weights(name).DEFAULT.transforms().crop_size[0])

    names: list[str] = models.list_models(module=models)
    firsts = _families(names, "[a-z]+(_v2|_v3|_y)?").values()  # one of each family comes first
    for name in dict.fromkeys([*map(_smallest, firsts), *names]):
        yield name, partial(build, name, (1, 3, size(name), size(name)))
    for name in models.list_models(module=models.segmentation):
        yield name, partial(build, name, (1, 3, 520, 520))
    for name in models.list_models(module=models.optical_flow):
        yield name, partial(build, name, (1, 3, 128, 128))
    for name in models.list_models(module=models.video):
        yield name, partial(build, name, (1, 3, 16, 112, 112))
    for name in models.list_models(module=models.detection):
        yield f"{name}.backbone", partial(build, name, (1, 3, 320, 320))


def _timm() -> Listed:
    import timm

    def build(name: str) -> Built:
        model: Any = timm.create_model(name, pretrained=False)
        return model, ((1, *model.pretrained_cfg["input_size"]),)

    by_module = [
        [_smallest(names) for names in _families(timm.list_models(module=module)).values()]
        for module in timm.list_modules()
    ]
    firsts = [names[0] for names in by_module if names]  # one of each module comes first
    for name in dict.fromkeys([*firsts, *chain.from_iterable(by_module)]):
        yield name, partial(build, name)


def _transformers() -> Listed:
    importlib.import_module("transformers.modeling_utils")  # and not again in each process
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    seen: set[str] = set()
    for task in _TASKS:
        for kind, names in getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            if kind in seen or "timm" in kind:
                continue
            seen.add(kind)
            name = names if isinstance(names, str) else names[0]
            if name in seen:
                continue
            seen.add(name)
            audio = task in ("AUDIO_CLASSIFICATION", "CTC")
            yield name, partial(_pretrained_class, kind, name, audio)


class _MainInput(nn.Module):
    """Calls a model with its main input, which need not be its first argument."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(**{self.model.main_input_name: x})


def _pretrained_class(kind: str, name: str, audio: bool) -> Built:
    """Build a class of transformers from a configuration with at most two layers per stage."""
    transformers: Any = importlib.import_module("transformers")
    config = transformers.CONFIG_MAPPING[kind]()
    _shrink(config)
    model = _MainInput(getattr(transformers, name)(config))
    vision = getattr(config, "vision_config", config)
    if audio:
        if model.model.main_input_name == "input_values" and not hasattr(config, "max_length"):
            return model, ((1, 4000),)
        features = getattr(config, "num_mel_bins", None) or config.feature_projection_input_dim
        if name.startswith("Whisper"):
            return model, ((1, features, 2 * config.max_source_positions),)
        return model, ((1, getattr(config, "max_length", 128), features),)
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = getattr(vision, "num_channels", 3)
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    if frames:
        return model, ((1, frames, channels, height, width),)
    return model, ((1, channels, height, width),)


def _shrink(config: Any) -> None:
    base = importlib.import_module("transformers").PreTrainedConfig
    for key, value in vars(config).items():
        if isinstance(value, base):
            _shrink(value)
        elif key in ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers"):
            setattr(config, key, min(2, value) if isinstance(value, int) else value)
        elif key == "depths":
            config.depths = [min(2, depth) for depth in value]
    if not getattr(config, "use_pretrained_backbone", True) or hasattr(config, "backbone_config"):
        config.use_pretrained_backbone = False


def _pytorchcv() -> Listed:
    model_provider = importlib.import_module("pytorchcv.model_provider")
    shapes: dict[str, tuple[Shape, ...]] = {
        "raft": ((1, 3, 128, 128),) * 2,
        "jasper": ((1, 64, 256),),
        "superpointnet": ((1, 1, 224, 224),),
    }

    def build(name: str, family: str) -> Built:
        model = model_provider.get_model(name, pretrained=False)
        if family in shapes:
            return model, shapes[family]
        size = getattr(model, "in_size", (224, 224))
        channels = getattr(model, "in_channels", 3)
        return model, ((1, channels, *size),)

    for family, names in _families(model_provider._models).items():
        yield _smallest(names), partial(build, _smallest(names), family)


def _segmentation_models() -> Listed:
    smp = importlib.import_module("segmentation_models_pytorch")

    def build(name: str, encoder: str) -> Built:
        size = 224 if name == "dpt" else 256  # a vision transformer has one size
        return smp.create_model(name, encoder, encoder_weights=None), ((1, 3, size, size),)

    for name in _ARCHITECTURES:
        yield f"{name} resnet18", partial(build, name.lower(), "resnet18")
    yield "DPT tu-vit_tiny", partial(build, "dpt", "tu-vit_tiny_patch16_224")
    for names in _families(smp.encoders.encoders, "(timm-)?[a-z]+").values():
        yield f"Unet {_smallest(names)}", partial(build, "unet", _smallest(names))


def _efficientnets() -> Listed:
    EfficientNet = importlib.import_module("efficientnet_pytorch").EfficientNet  # noqa: N806

    def build(name: str, size: int) -> Built:
        return EfficientNet.from_name(name), ((1, 3, size, size),)

    for number in range(8):
        name = f"efficientnet-b{number}"
        yield name, partial(build, name, EfficientNet.get_image_size(name))


def _torchaudio() -> Listed:
    models = importlib.import_module("torchaudio.models")
    wave = (1, 1, 4000)
    yield "Wav2Letter", lambda: (models.Wav2Letter(40), (wave,))
    yield "ConvTasNet", lambda: (models.ConvTasNet(num_sources=2, msk_num_layers=3), (wave,))
    yield "HDemucs", lambda: (models.HDemucs(["a", "b"], channels=8), ((1, 2, 65536),))
    yield "DeepSpeech", lambda: (models.DeepSpeech(40, n_hidden=64), ((1, 1, 50, 40),))
    yield "wav2vec2_base", lambda: (models.wav2vec2_base(), ((1, 4000),))
    yield "squim_objective_base", lambda: (models.squim_objective_base(), ((1, 4000),))


def _monai() -> Listed:
    importlib.import_module("monai.networks.nets")  # and not again in each process

    def build(name: str, dims: int, options: dict[str, Any]) -> Built:
        module, _, name = name.rpartition(":")
        nets = importlib.import_module(f"monai.networks.nets{module and '.' + module}")
        channels = options.get("in_channels", options.get("n_input_channels", 1))
        side = {1: 256, 2: 128, 3: 64}[dims]
        return getattr(nets, name)(**options), ((1, channels, *[side] * dims),)

    steps: dict[str, Any] = {"channels": (8, 16, 32), "strides": (2, 2)}
    in_out: dict[str, Any] = {"in_channels": 1, "out_channels": 2}
    small: dict[str, Any] = {"channels": (8, 16), "num_res_blocks": (1, 1)}
    several: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
        "UNet": (in_out | steps | {"num_res_units": 1}, (1, 2, 3)),
        "AttentionUnet": (in_out | steps, (1, 2, 3)),
        "AutoEncoder": (in_out | steps | {"strides": (2, 2, 1)}, (1, 2, 3)),
        "BasicUNet": (in_out | {"features": (8, 8, 16, 32, 64, 8)}, (1, 2, 3)),
        "BasicUNetPlusPlus": (in_out | {"features": (8, 8, 16, 32, 64, 8)}, (1, 2, 3)),
        "DenseNet121": (in_out, (1, 2, 3)),
        "SegResNet": (in_out | {"init_filters": 8}, (2, 3)),
        "SegResNetDS": (in_out | {"init_filters": 8}, (2, 3)),
        "HighResNet": (in_out, (1, 2, 3)),
        "VNet": ({"in_channels": 1, "out_channels": 1}, (2, 3)),
        "AHNet": (in_out, (2, 3)),
        "SENet154": ({"in_channels": 3, "num_classes": 10}, (2,)),
        "SEResNet50": ({"in_channels": 3, "num_classes": 10}, (1, 2, 3)),
        "resnet:resnet18": ({"n_input_channels": 3}, (1, 2, 3)),
        "EfficientNetBN": ({"model_name": "efficientnet-b0", "pretrained": False}, (1, 2, 3)),
        "DynUNet": (
            in_out | {"kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]},
            (2, 3),
        ),
        "MedNeXt": ({"in_channels": 1, "out_channels": 2, "init_filters": 8}, (2, 3)),
        "PatchDiscriminator": ({"in_channels": 1, "channels": 8, "num_layers_d": 2}, (1, 2, 3)),
        "VQVAE": (
            {"in_channels": 1, "out_channels": 1, "channels": (8, 8), "num_res_channels": (8, 8)},
            (1, 2, 3),
        ),
        "AutoencoderKL": (
            small
            | {"in_channels": 1, "out_channels": 1, "attention_levels": (False, True)}
            | {"latent_channels": 4, "norm_num_groups": 4},
            (1, 2, 3),
        ),
        "ViT": ({"in_channels": 1, "img_size": 64, "patch_size": 16, "num_layers": 2}, (2, 3)),
        "UNETR": (in_out | {"img_size": 64}, (2, 3)),
        "SwinUNETR": (in_out | {"feature_size": 12}, (2, 3)),
        "RegUNet": (
            {"in_channels": 2, "num_channel_initial": 8, "depth": 2, "out_channels": 2},
            (2, 3),
        ),
        "LocalNet": (
            {"in_channels": 2, "num_channel_initial": 8, "extract_levels": (0, 1)}
            | {"out_kernel_initializer": "zeros", "out_activation": None, "out_channels": 2},
            (2, 3),
        ),
        "VoxelMorphUNet": (
            {"in_channels": 2, "unet_out_channels": 16, "channels": (16, 16, 16, 16, 16, 16)}
            | {"final_conv_channels": (16,)},
            (2, 3),
        ),
        "FlexibleUNet": (
            {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"},
            (2, 3),
        ),
    }
    without: dict[str, tuple[dict[str, Any], int]] = {
        "HoVerNet": ({"mode": "fast", "in_channels": 3}, 2),
        "quicknat:Quicknat": ({"num_class": 4, "num_channels": 1, "num_filters": 8}, 2),
        "DAF3D": (in_out, 3),
    }
    for name, (options, dimensions) in several.items():
        for dims in dimensions:
            more = {"spatial_dims": dims, **options}
            if name in ("ViT", "UNETR"):
                more["img_size"] = (64,) * dims
            yield f"{name.rpartition(':')[2]} {dims}-D", partial(build, name, dims, more)
    for name, (options, dims) in without.items():
        yield f"{name.rpartition(':')[2]} {dims}-D", partial(build, name, dims, options)
