"""Every operation that has a receptive-field rule, in a network of its own.

The rule is compared with the NaN probe if NaN reaches everything that depends on it. Otherwise the
rows that a unit sees are written down.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, compare_with_perturbation
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from cifar_resnet import check_receptive_field, receptive_field
from cifar_resnet.fields.mismatch import ReceptiveFieldMismatchError
from cifar_resnet.fields.rules.registry import RULES
from cifar_resnet.fields.steps import Call
from cifar_resnet.fields.trace import trace

aten = torch.ops.aten
SIZE = (1, 4, 8, 6)


WINDOWS = {
    "convolution": lambda x: F.conv2d(x, torch.ones(2, 4, 2, 3), padding=(1, 0)),
    "_convolution": lambda x: aten._convolution(
        x, torch.ones(4, 4, 3, 1), None, [1, 2], [1, 0], [1, 1], False, [0, 0], 1,
        False, False, False, False,
    ),
    "max_pool2d_with_indices": lambda x: F.max_pool2d(x, (3, 2), 1, (1, 0), return_indices=True)[0],
    "max_pool3d_with_indices": lambda x: F.max_pool3d(x[:, None], (2, 3, 1), 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, (3, 2), (1, 2)),
    "avg_pool3d": lambda x: F.avg_pool3d(x[:, None], (2, 3, 1), 2),
    "_adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "_adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(x[:, None], (2, 3, 4)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (3, 4)),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(x[:, None], (2, 3, 4)),
    "upsample_nearest1d": lambda x: F.interpolate(x.flatten(1, 2), 9),
    "upsample_nearest2d": lambda x: F.interpolate(x, (5, 9)),
    "upsample_nearest3d": lambda x: F.interpolate(x[:, None], (4, 5, 9)),
    "_upsample_nearest_exact1d": lambda x: F.interpolate(x.flatten(1, 2), 9, mode="nearest-exact"),
    "_upsample_nearest_exact2d": lambda x: F.interpolate(x, (5, 9), mode="nearest-exact"),
    "_upsample_nearest_exact3d": lambda x: F.interpolate(
        x[:, None], (4, 5, 9), mode="nearest-exact"
    ),
    "upsample_linear1d": lambda x: F.interpolate(x.flatten(1, 2), 9, mode="linear"),
    "upsample_bilinear2d": lambda x: F.interpolate(x, (5, 9), mode="bilinear"),
    "upsample_trilinear3d": lambda x: F.interpolate(x[:, None], (4, 5, 9), mode="trilinear"),
    "upsample_bicubic2d": lambda x: F.interpolate(x, (5, 9), mode="bicubic"),
    "_upsample_bilinear2d_aa": lambda x: F.interpolate(x, (3, 4), mode="bilinear", antialias=True),
    "_upsample_bicubic2d_aa": lambda x: F.interpolate(x, (3, 4), mode="bicubic", antialias=True),
    "constant_pad_nd": lambda x: F.pad(x, (1, 0, -2, 3)),
    "reflection_pad1d": lambda x: F.pad(x.flatten(1, 2), (1, 2), mode="reflect"),
    "reflection_pad2d": lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    "reflection_pad3d": lambda x: F.pad(x[:, None], (1, 2, 3, 0, 1, 1), mode="reflect"),
    "replication_pad1d": lambda x: F.pad(x.flatten(1, 2), (1, 2), mode="replicate"),
    "replication_pad2d": lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"),
    "replication_pad3d": lambda x: F.pad(x[:, None], (1, 2, 3, 0, 1, 1), mode="replicate"),
    "_pad_circular": lambda x: F.pad(x, (1, 2, 3, 0), mode="circular"),
    "unfold": lambda x: x.unfold(-2, 3, 2).amax(-1),
    "im2col": lambda x: F.unfold(x, (3, 2), (1, 2), (0, 1), (2, 1)),
}  # fmt: skip
MOVEMENT = {
    "view": lambda x: x.view(-1, 32, 6).amax(1),
    "_unsafe_view": lambda x: aten._unsafe_view(x, [len(x), 32, 6]).amax(1),
    "_reshape_alias": lambda x: aten._reshape_alias(x, [len(x), 32, 6], [192, 6, 1]).amax(1),
    "as_strided": lambda x: x.as_strided(x.shape, x.stride()),
    "permute": lambda x: x.permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(3, 1),
    "t": lambda x: x.flatten(1).t().t(),
    "squeeze": lambda x: x[:, :1].squeeze(-3),
    "unsqueeze": lambda x: x.unsqueeze(-2),
    "expand": lambda x: x[:, :, :1].expand(-1, 4, 8, 6),
    "copy": lambda x: torch.zeros(len(x), 4, 8, 6).copy_(x[:, :, :1]),
    "slice": lambda x: x[:, :, 1:7:3],
    "select": lambda x: x.select(2, -2),
    "split": lambda x: x.split(3, 2)[2],
    "split_with_sizes": lambda x: x.split([3, 5], 2)[1],
    "unsafe_split": lambda x: torch.unsafe_split(x, 3, 2)[2],
    "unsafe_split_with_sizes": lambda x: torch.unsafe_split_with_sizes(x, [3, 5], 2)[1],
    "unbind": lambda x: x.unbind(2)[3],
    "cat": lambda x: torch.cat([x[:, :, 1:3], x[:, :, :1], torch.ones(len(x), 4, 2, 6)], 2),
    "stack": lambda x: torch.stack([x[:, :, 1], x[:, :, 6]], -2),
    "flip": lambda x: x.flip(2, -1),
    "roll": lambda x: x.roll((1, -2), (2, -1)),
    "repeat": lambda x: x.repeat(1, 2, 1, 2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x.transpose(1, 2), 2),
}
INDEXING = {
    "index": lambda x: x[:, :, [3, 0]],
    "_unsafe_index": lambda x: aten._unsafe_index(x, [None, None, torch.tensor([3, 0])]),
    "index_select": lambda x: x.index_select(2, torch.tensor([7, 1])),
    "gather": lambda x: x.gather(2, torch.tensor([7, 1]).view(1, 1, 2, 1).expand(len(x), 4, 2, 5)),
    "index_put": lambda x: x.index_put(
        (torch.arange(len(x))[:, None], torch.tensor([2, 0])), x[:, :2]
    ),
    "index_copy": lambda x: x.index_copy(2, torch.tensor([5, 1]), x[:, :, :2]),
    "index_fill": lambda x: x.index_fill(-2, torch.tensor([5, -1]), 0.0),
    "_unsafe_index_put": lambda x: aten._unsafe_index_put(
        x, [None, None, torch.tensor([2, 0])], x[:, :, 3:5]
    ),
    "embedding": lambda x: F.embedding(torch.arange(len(x)), x.flatten(1)),
}
POINTWISE = {
    "_conj": lambda x: x.to(torch.complex64).conj().abs(),
    "_prelu_kernel": lambda x: F.prelu(x, torch.tensor([0.2])),
    "_to_copy": lambda x: x.double(),
    "alias": lambda x: aten.alias(x),
    "detach": lambda x: x.detach(),
    "hardswish": lambda x: F.hardswish(x),
    "lift_fresh": lambda x: aten.lift_fresh(x),
    "lift_fresh_copy": lambda x: aten.lift_fresh_copy(x),
    "log_sigmoid_forward": lambda x: F.logsigmoid(x),
    "native_dropout": lambda x: torch.native_dropout(x, 0.5, False)[0],
    "rrelu_with_noise": lambda x: F.rrelu(x),
}
# New and overwritten values do not depend on the old ones, which are those of the row before.
NEW = {
    "empty_like": lambda x: torch.empty_like(x).fill_(1),
    "full_like": lambda x: torch.full_like(x, 2),
    "ones_like": lambda x: torch.ones_like(x),
    "zeros_like": lambda x: torch.zeros_like(x),
    "rand_like": lambda x: torch.rand_like(x),
    "randn_like": lambda x: torch.randn_like(x),
    "randint_like": lambda x: torch.randint_like(x, 3),
    "new_empty": lambda x: x.new_empty(x.shape).fill_(1),
    "new_empty_strided": lambda x: x.new_empty_strided(x.shape, x.stride()).fill_(1),
    "new_full": lambda x: x.new_full(x.shape, 2),
    "new_ones": lambda x: x.new_ones(x.shape),
    "new_zeros": lambda x: x.new_zeros(x.shape),
    "zero": lambda x: x.zero_(),
    "bernoulli": lambda x: x.bernoulli_(),
    "cauchy": lambda x: x.cauchy_(),
    "exponential": lambda x: x.exponential_(),
    "fill": lambda x: x.fill_(2),
    "log_normal": lambda x: x.log_normal_(),
    "normal": lambda x: x.normal_(),
    "uniform": lambda x: x.uniform_(),
}
MATRICES = {
    "addmm": lambda x: torch.addmm(torch.ones(5), x.flatten(1), torch.ones(192, 5)),
    "addmv": lambda x: torch.addmv(x[:, 0, 0, 0], x[:, 0, :, 1], torch.ones(8)),
    "baddbmm": lambda x: torch.baddbmm(x[:, 2, :, :1], x[:, 0], torch.ones(len(x), 6, 3)),
    "bmm": lambda x: x[:, 0] @ x[:, 1].transpose(1, 2),
    "mm": lambda x: x[:, 0, :, 2] @ torch.ones(8, 3),
    "mv": lambda x: x[:, 0, :, 2] @ torch.ones(8),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(
        x[:, :, :2], x[:, :, 2:5], x[:, :, 5:]
    ),
}
NORMALIZATION = {
    "glu": lambda x: F.glu(x.transpose(1, 2), 1),
    "native_group_norm": lambda x: F.group_norm(x, 2),
    "native_layer_norm": lambda x: F.layer_norm(x, (6,)),
    "native_batch_norm": lambda x: aten.native_batch_norm(
        x, None, None, torch.zeros(4), torch.ones(4), False, 0.1, 1e-5
    )[0],
    "_native_batch_norm_legit_no_training": lambda x: aten._native_batch_norm_legit_no_training(
        x, None, None, torch.zeros(4), torch.ones(4), 0.1, 1e-5
    )[0],
}
PROBED = (
    WINDOWS | MOVEMENT | INDEXING | POINTWISE | MATRICES | NORMALIZATION
    | {name: lambda x, run=run: x + run(x.roll(1, 2)) for name, run in NEW.items()}
)  # fmt: skip

OVER_ROWS = {
    name: lambda x, name=name: getattr(x, name)(2)
    for name in (
        "all", "amax", "amin", "any", "argmax", "argmin", "logsumexp", "max", "mean", "median",
        "min", "mode", "nanmedian", "nansum", "prod", "sort", "std", "sum", "var",
    )
} | {
    "aminmax": lambda x: x.aminmax(dim=2)[1],
    "count_nonzero": lambda x: x.count_nonzero(2),
    "kthvalue": lambda x: x.kthvalue(3, 2)[0],
    "linalg_vector_norm": lambda x: torch.linalg.vector_norm(x, dim=2),
    "norm": lambda x: aten.norm.ScalarOpt_dim(x, 2, [2]),
    "std_mean": lambda x: torch.std_mean(x, 2)[0],
    "var_mean": lambda x: torch.var_mean(x, 2)[1],
    "_fft_c2c": lambda x: torch.fft.fft(x.to(torch.complex64), dim=2).abs(),
    "_fft_c2r": lambda x: torch.fft.irfft(x.to(torch.complex64), dim=2),
    "_fft_r2c": lambda x: torch.fft.rfft(x, dim=2).abs(),
    "_log_softmax": lambda x: x.log_softmax(2),
    "_softmax": lambda x: x.softmax(2),
    "_safe_softmax": lambda x: aten._safe_softmax(x, 2),
    "topk": lambda x: x.topk(3, 2)[1],
}  # fmt: skip
UP_TO_ROW = {
    name: lambda x, name=name: getattr(torch, name)(x, 2)
    for name in ("cummax", "cummin", "cumprod", "cumsum", "logcumsumexp")
}
EVERYWHERE = (
    {
        name: lambda x, name=name, more=more: getattr(aten, name)(x, x, x, *more)[0]
        for name, more in {
            "_scaled_dot_product_flash_attention_for_cpu": (),
            # operations of other devices; analyzing them does not need the device
            "_scaled_dot_product_cudnn_attention": (None, False),
            "_scaled_dot_product_efficient_attention": (None, False),
            "_scaled_dot_product_flash_attention": (),
            "_scaled_dot_product_fused_attention_overrideable": (),
        }.items()
    }
    | {
        name: lambda x, name=name: getattr(aten, name)(
            x, torch.ones(4), torch.ones(4), torch.zeros(4), torch.ones(4), True, 0.1, 1e-5
        )[0]
        for name in ("_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm")
    }
    | {
        "dot": lambda x: torch.dot(x.flatten(), torch.ones(192)),
        "arange": lambda x: torch.arange(x.mean(), 2.0),
        "full": lambda x: torch.full((2, 2), x.mean()),
        "linspace": lambda x: torch.linspace(0, x.mean(), 5),
        "logspace": lambda x: torch.logspace(0, x.mean(), 5),
        "scalar_tensor": lambda x: torch.scalar_tensor(x.mean()),
    }
)

# Other forms of an operation, with the same rule, which the tests reach through one of them: in
# training, on quantized tensors, or with results of another type.
MORE_NAMES = {
    **dict.fromkeys(("_linalg_eigvals", "geqrf", "linalg_eig", "linalg_lu_solve"), "linalg_qr"),
    **dict.fromkeys(
        (
            "_fake_quantize_learnable_per_channel_affine",
            "_fake_quantize_learnable_per_tensor_affine",
            "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
            "fake_quantize_per_channel_affine_cachemask",
            "quantize_per_channel",
        ),
        "fake_quantize_per_tensor_affine_cachemask",
    ),
    "_embedding_bag": "_embedding_bag_forward_only",
    **dict.fromkeys(("dequantize", "quantize_per_tensor"), "complex"),
}
ROWS = torch.tensor([3, 0, 5])
MASK = torch.arange(48).view(8, 6) % 5 < 3
GRID = torch.rand(1, 3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2.6
GRID = GRID - 1.3
LABELS = torch.tensor([1, 0, 2, 3, 1, 2, 0, 1])
TABLE = torch.arange(18.0, dtype=torch.float64).view(3, 6).cos()
OFFSETS = torch.randn(1, 24, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
COMPLEX = torch.complex(*torch.ones(2, 3, 4, 3, 3, dtype=torch.float64))


def ones(*size: int) -> Tensor:
    return torch.ones(*size, dtype=torch.float64)


# Compared with changes of the input in float64: NaN does not pass through masks, or passes too far.
PERTURBED = {
    "masked_fill": lambda x: x.masked_fill(MASK, 0.0),
    "where": lambda x: torch.where(MASK, x, x.flip(2)),
    "masked_select": lambda x: x.masked_select(MASK),
    "tril": lambda x: x.tril(1),
    "triu": lambda x: x.triu(-1),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "diag_embed": lambda x: torch.diag_embed(x[:, 0], 1),
    "scatter": lambda x: x.scatter(2, ROWS.view(1, 1, 3, 1).expand(1, 4, 3, 6), x[:, :, 4:]),
    "scatter_add": lambda x: x.scatter_add(2, ROWS.view(1, 1, 3, 1).expand(1, 2, 3, 5), x.flip(2)),
    "scatter_reduce": lambda x: (x.exp() + 9).scatter_reduce(
        3, ROWS.view(1, 1, 1, 3).expand(1, 4, 8, 3), x.exp(), "prod"
    ),
    "index_add": lambda x: x.index_add(2, ROWS, x[:, :, 5:]),
    "index_reduce": lambda x: (x.exp() + 9).index_reduce(2, ROWS, x[:, :, 5:], "prod"),
    "take": lambda x: x.take(torch.tensor([[0, -1], [50, 7]])),
    "col2im": lambda x: F.fold(
        F.unfold(x, (3, 2), (2, 1), (0, 1), (1, 2)), x.shape[2:], (3, 2), (2, 1), (0, 1), (1, 2)
    ),
    "max_unpool2d": lambda x: F.max_unpool2d(
        x[..., :3, :3], torch.tensor([0, 2, 4, 12, 14, 16, 24, 26, 28]).view(1, 1, 3, 3).expand(
            1, 4, 3, 3), 2, output_size=(6, 6)
    ),
    "max_unpool3d": lambda x: F.max_unpool3d(
        x[:, None, :, :2, :1], torch.tensor([5, 3]).view(1, 1, 1, 2, 1).expand(1, 1, 4, 2, 1)
        + 8 * torch.arange(4).view(1, 1, 4, 1, 1), (1, 2, 2), output_size=(4, 4, 2),
    ),
    "grid_sampler_2d": lambda x: F.grid_sample(x, GRID, align_corners=False),
    "grid_sampler_3d": lambda x: F.grid_sample(
        x[:, :, None], torch.cat([GRID, GRID[..., :1] * 0], -1)[:, None], align_corners=True
    ),
    "mse_loss": lambda x: F.mse_loss(x, x.flip(2) * 2, reduction="none"),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, x.flip(2) * 2, reduction="none"),
    "huber_loss": lambda x: F.huber_loss(x, x.flip(2) * 2),
    "soft_margin_loss": lambda x: F.soft_margin_loss(x, x.flip(2) * 2),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy(x.sigmoid(), x.flip(2).sigmoid()),
    "floor_divide": lambda x: (x * 1e4).floor_divide(3),
    "linalg_cross": lambda x: torch.linalg.cross(x[:, :, :3], x[:, :, 3:6], dim=2),
    "_cdist_forward": lambda x: torch.cdist(x[:, 0], x[:, 1, :3]),
    "nonzero": lambda x: ((x > 0.1).nonzero() * 1.0).std() + torch.zeros(2),
    "bincount": lambda x: torch.bincount((x.flatten() * 997).abs().long() % 50).double().var(),
    "histc": lambda x: torch.histc(x.flatten() * 1e4 % 100, 100).var(),
    "_unique2": lambda x: torch.unique((x * 1e3).round()).double().sum(),
    "unique_consecutive": lambda x: torch.unique_consecutive(x).sum(),
    "unique_dim": lambda x: torch.unique(x, dim=2).sum(),
    "_upsample_lanczos2d_aa": lambda x: aten._upsample_lanczos2d_aa(x, [3, 4], False),
    "complex": lambda x: F.conv2d(torch.complex(x, x), COMPLEX, padding=1).imag,
    "polar": lambda x: torch.polar(x.flip(2), x).real,
    "addbmm": lambda x: torch.addbmm(x[0, 0, :, :1], x[0, 1:3], ones(2, 6, 8)),
    "addr": lambda x: torch.addr(x[0, 0], x[0, 1, :, 2], x[0, 2, 3]),
    "vdot": lambda x: torch.vdot(x[0, 0, 0], x[0, 1, 2]),
    "trace": lambda x: torch.trace(x[0, 0, :6]),
    "_trilinear": lambda x: F.bilinear(x, x.flip(2)[..., :5], TABLE[:3, :, None] * ones(5)),
    "_euclidean_dist": lambda x: torch.cdist(x[:, 0].repeat(1, 5, 1), x[:, 1].repeat(1, 5, 1)),
    "_pdist_forward": lambda x: torch.pdist(x[0, 0]),
    "renorm": lambda x: (x * 9).renorm(2, 2, 1.0),
    "histogram": lambda x: torch.histogram(x.flatten() * 1e4 % 100, 100)[0].var(),
    "binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(
        x, x.flip(2), reduction="none"
    ),
    "multi_margin_loss": lambda x: F.multi_margin_loss(x[0, 0], LABELS, margin=99.0),
    "multilabel_margin_loss_forward": lambda x: F.multilabel_margin_loss(
        x[0, 0] * 1e-3, LABELS[:, None].expand(8, 6)
    ),
    "nll_loss_forward": lambda x: F.nll_loss(x[0, 0].log_softmax(-1), LABELS),
    "nll_loss2d_forward": lambda x: F.cross_entropy(x, MASK[None].long(), reduction="none"),
    "_ctc_loss": lambda x: F.ctc_loss(
        x[0].log_softmax(-1), ones(8, 2).long(), LABELS * 0 + 4, LABELS * 0 + 2
    ),
    "bucketize": lambda x: torch.bucketize(x * 1e4, torch.arange(-5e4, 5e4)) * 1.0,
    "searchsorted": lambda x: torch.searchsorted(torch.arange(-5e4, 5e4).double(), x * 1e4) * 1.0,
    "isin": lambda x: torch.isin((x * 1e4).long() % 2, LABELS[:1]) * 1.0,
    "fake_quantize_per_tensor_affine_cachemask": lambda x: torch.fake_quantize_per_tensor_affine(
        x.float(), 1e-6, 0, -(2**30), 2**30
    ),
    "put": lambda x: x.put(LABELS[:2] + 7, x[0, 0, 5, :2], accumulate=True),
    "masked_scatter": lambda x: x.masked_scatter(MASK, x.flip(2)),
    "slice_scatter": lambda x: x.slice_scatter(x[:, :, 3:5], 2, 1, 3),
    "select_scatter": lambda x: x.select_scatter(x[:, :, 0], 2, 3),
    "diagonal_scatter": lambda x: x.diagonal_scatter(x[:, :, 0], 0, 2, 3),
    "as_strided_scatter": lambda x: x.as_strided_scatter(x[0, 0, 0, :4], (4,), (2,), 5),
    "block_diag": lambda x: torch.block_diag(x[0, 0], x[0, 1, :2]),
    "unfold_backward": lambda x: aten.unfold_backward(x[0, 0], [13], 0, 6, 1),
    "_embedding_bag_forward_only": lambda x: F.embedding_bag(
        torch.tensor([1, 2, 0, 7, 3]), x[0, 0], torch.tensor([0, 2, 4]), mode="sum",
        per_sample_weights=x[0, 1, 2, :5],
    ),
    "torchvision::deform_conv2d": lambda x: deform_conv2d(
        x, OFFSETS, ones(4, 2, 3, 2), padding=1, stride=2
    ),
    "_linalg_det": lambda x: torch.linalg.det(x[:, :, :6]),
    "_linalg_eigh": lambda x: torch.linalg.eigvalsh(x @ x.mT),
    "_linalg_slogdet": lambda x: torch.linalg.slogdet(x[:, :, :6])[1],
    "_linalg_solve_ex": lambda x: torch.linalg.solve(x[:, :, :6], ones(6)),
    "_linalg_svd": lambda x: torch.linalg.svdvals(x),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(x[:, :, :6]),
    "linalg_cholesky_ex": lambda x: torch.linalg.cholesky(x.mT @ x)[..., -1, -1],
    "linalg_householder_product": lambda x: torch.linalg.householder_product(x, x[:, :, 0]).sum(),
    "linalg_inv_ex": lambda x: torch.linalg.inv(x[:, :, :6]),
    "linalg_lstsq": lambda x: torch.linalg.lstsq(x, ones(1, 4, 8, 1)).solution,
    "linalg_lu": lambda x: torch.linalg.lu(x)[2][..., -1, -1] + torch.linalg.lu(x)[1].sum((-2, -1)),
    "linalg_lu_factor_ex": lambda x: torch.linalg.lu_factor(x)[0].sum((-2, -1)),
    "linalg_matrix_exp": lambda x: torch.linalg.matrix_exp(x[:, :, :6]),
    "linalg_pinv": lambda x: torch.linalg.pinv(x),
    "linalg_qr": lambda x: torch.linalg.qr(x)[1][..., -1, -1],
    "linalg_solve_triangular": lambda x: torch.linalg.solve_triangular(
        x[:, :, :6].exp(), ones(1, 4, 6, 1), upper=True
    )[..., 0, :],
}  # fmt: skip


def network_of(name: str, run: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a network, after checking that PyTorch runs the operation of this name."""
    network = Function(run)
    steps = trace(network, (torch.zeros(SIZE),)).steps
    assert name in [step.name for step in steps if isinstance(step, Call)]
    return network


@pytest.mark.parametrize("name", PROBED)
def test_a_rule_agrees_with_the_probe(name: str) -> None:
    check_receptive_field(network_of(name, PROBED[name]), SIZE)


@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta")
@pytest.mark.parametrize("name", PERTURBED)
def test_a_rule_agrees_with_changes_of_the_input(name: str) -> None:
    x = torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    network = Function(PERTURBED[name])
    steps = trace(network, (x,)).steps
    assert name in [step.name for step in steps if isinstance(step, Call)]
    assert compare_with_perturbation(network, x) == (True, True)


@pytest.mark.parametrize("name", OVER_ROWS)
def test_an_operation_over_the_rows_sees_all_rows_of_its_column(name: str) -> None:
    output = receptive_field(network_of(name, OVER_ROWS[name]), SIZE).output
    unit = (3,) if len(output.unit_shape) == 1 else (0, 3)
    assert output.region(unit) == ((0, 7), (3, 3))


@pytest.mark.parametrize("name", UP_TO_ROW)
def test_an_accumulation_sees_the_rows_up_to_its_own(name: str) -> None:
    output = receptive_field(network_of(name, UP_TO_ROW[name]), SIZE).output
    assert output.region((2, 3)) == ((0, 2), (3, 3))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_an_operation_over_the_map_sees_it_all(name: str) -> None:
    output = receptive_field(network_of(name, EVERYWHERE[name]), SIZE).output
    for unit in {tuple(0 for _ in output.unit_shape), output.middle}:
        assert output.region(unit) == ((0, 7), (0, 5))


def test_every_rule_is_tested() -> None:
    tested = {*PROBED, *OVER_ROWS, *UP_TO_ROW, *EVERYWHERE, *PERTURBED}
    assert set(RULES) - set(MORE_NAMES) == tested
    assert all(RULES[name] is RULES[other] for name, other in MORE_NAMES.items())


# -- variants of an operation -------------------------------------------------------------------


def each(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Apply a function of one sample (4, 8, 6) to each sample of a batch."""
    return lambda x: torch.stack([run(sample) for sample in x])


def written(view: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Write to a view of a tensor: add the row before."""

    def run(x: Tensor) -> Tensor:
        y = x * 2
        view(y).add_(view(x.roll(1, 2)))
        return y

    return run


def written_with_constants(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :, 1] = 1.0
    y[:, :, 2:5] = x[:, :, 3:6]
    y[:, :, 3] = 1.0
    return y


def read_from_a_view_of_what_was_cleared(x: Tensor) -> Tensor:
    y = x * 2
    rows = y[:, :, 1:]
    y.zero_()
    return torch.cat([rows, x[:, :, :1]], 2)


def turned_in_place(x: Tensor) -> Tensor:
    y = x[:, :, 1:7] * 2  # 6 rows, 6 columns
    rows = y[:, :, 1:3]
    y.transpose_(2, 3)  # `rows` still shows the rows that y had
    return torch.cat([rows, y], 2)


def written_after_it_was_turned(x: Tensor) -> Tensor:
    y = x * 2
    columns = y[..., 1:3]
    columns.transpose_(2, 3)
    columns += x[:, :, 5:7].roll(1, 2).sum(3, keepdim=True)
    return y


def written_with_another_dimension(x: Tensor) -> Tensor:
    y = x * 2
    row = y[:, :, 3]
    row.unsqueeze_(2).add_(x[:, :, 4:5])
    row.squeeze_(2).add_(x[:, :, 6])
    return y


FIXED = torch.ones(1, 4, 5, 6)
VARIANTS = {
    "roll of the flattened tensor": each(lambda x: x.roll(7)),
    "squeeze of all dimensions": each(lambda x: x[:, :1].squeeze()),
    "squeeze of several": lambda x: x[:, :1, 2:3].squeeze((1, 2, 3)),
    "t of a vector": each(lambda x: x[0, :, 0].t()),
    "select from behind": lambda x: x.select(-1, -2),
    "slice with a step": lambda x: x[:, :, -7:-1:2],
    "stack in front": each(lambda x: torch.stack([x[0, 2], x[1, 5]])),
    "cat with nothing": lambda x: torch.cat([torch.ones(0), x[:, :, 3:]], 2),
    "cat around constants": lambda x: torch.cat(
        [x[:, :, :2], torch.ones(len(x), 4, 2, 6), x[:, :, 5:]], 2
    ),
    "a boolean mask": lambda x: x[:, :, torch.tensor([True, False, False, True] * 2)],
    "a mask of two dimensions": lambda x: x[:, :, torch.arange(48).view(8, 6) % 5 == 0],
    "indices from behind": lambda x: x[:, :, torch.tensor([-1, 2]), torch.tensor([0, -2])],
    "indices apart": each(lambda x: x[torch.tensor([0, 2]), :, torch.tensor([3, 1])]),
    "index_copy over all": lambda x: torch.ones_like(x).index_copy(2, torch.arange(8), x),
    "align_corners": lambda x: F.interpolate(x, (5, 9), mode="bilinear", align_corners=True),
    "align_corners to one": lambda x: F.interpolate(x, (1, 9), mode="bicubic", align_corners=True),
    "nearest with a scale": lambda x: F.interpolate(x, scale_factor=(0.7, 1.3)),
    "circular by name": lambda x: F.pad(input=x, pad=(1, 0, 0, 2), mode="circular"),
    "reflection of one row": lambda x: F.pad(x[:, :, :1], (1, 2, 0, 0), mode="reflect"),
    "queries alone": lambda x: F.scaled_dot_product_attention(
        x, *[FIXED.expand(len(x), -1, -1, -1)] * 2
    ),
    "values alone": lambda x: F.scaled_dot_product_attention(
        *[FIXED.expand(len(x), -1, -1, -1)] * 2, x[:, :, :5]
    ),
    "heads that share keys": lambda x: F.scaled_dot_product_attention(
        x, x[:, :2], x[:, :2], enable_gqa=True
    ),
    "a mask from the input": lambda x: F.scaled_dot_product_attention(
        *[torch.ones(len(x), 4, 8, 3)] * 2, torch.ones(len(x), 4, 8, 3), attn_mask=x[..., :1]
    ),
    "vector times matrix": lambda x: x[:, 0, :, :2].transpose(1, 2) @ torch.ones(8, 3),
    "a product of two": lambda x: x[:, 0].transpose(1, 2) @ x[:, 1],
    "products of heads that differ": lambda x: (
        torch.cat([x[:, :1], x[:, 1:].roll(2, 2)], 1)
        @ torch.cat([x[:, :2].roll(1, 2), x[:, 2:]], 1).transpose(2, 3)
    ),
    # PyTorch tags only another overload as pointwise
    "masked_fill": lambda x: x.masked_fill(torch.zeros(6, dtype=torch.bool), 0.0),
    "abs in place": lambda x: (x * 2).abs_(),
    "mish in place": lambda x: F.mish(x * 2, inplace=True),
    "view written to": written(lambda y: y.view(len(y), -1)),
    "transpose written to": written(lambda y: y.transpose(1, 3)),
    "permute written to": written(lambda y: y.permute(0, 2, 3, 1)),
    "t written to": written(lambda y: y.view(len(y), -1).t()),
    "unsqueeze written to": written(lambda y: y.unsqueeze(2)),
    "squeeze written to": written(lambda y: y[:, :, 2:3].squeeze(2)),
    "detach written to": written(lambda y: y.detach()),
    "slice written to": written(lambda y: y[:, :, 2:7:2]),
    "slice from behind written to": written(lambda y: y[..., -3:-1]),
    "select written to": written(lambda y: y.select(-2, -3)),
    "split written to": written(lambda y: y.split(3, 2)[1]),
    "split_with_sizes written to": written(lambda y: y.split([1, 5, 2], 2)[1]),
    "unbind written to": written(lambda y: y.unbind(2)[5]),
    "view of a view written to": written(lambda y: y[:, :, 1:][:, 1:3, 2].unsqueeze(1)),
    "transposed in place with a view": turned_in_place,
    "transposed in place and written to": written_after_it_was_turned,
    "squeezed and unsqueezed in place": written_with_another_dimension,
    "t_ of what is written to": lambda x: (x * 2).flatten(1).t_().add_(1).t_(),
    "constants written": written_with_constants,
    "cleared behind a view": read_from_a_view_of_what_was_cleared,
    "unfolded twice": lambda x: x.unfold(2, 3, 2).unfold(3, 2, 1).amax((-1, -2)),
    "split and merged": lambda x: (x.unflatten(2, (4, 2)) * 2).flatten(2, 3),
    "alike rows merged with channels": lambda x: (
        x.mean(2, keepdim=True).expand(-1, -1, 8, -1)[..., 0].flatten(1)
    ),
    "merged and split": lambda x: (x.flatten(2) * 2).unflatten(2, (8, 6)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_agrees_with_the_probe(name: str) -> None:
    check_receptive_field(Function(VARIANTS[name]), SIZE)


def test_a_dimension_split_and_merged_again_keeps_its_jump() -> None:
    network = Function(lambda x: F.avg_pool1d((x.unflatten(2, (4, 2)) * 2).flatten(2, 3), 3))
    output = receptive_field(network, (1, 2, 8)).output
    assert (output.size, output.jump, output.start) == ((3,), (3,), (1.0,))


def test_branches_of_one_jump_and_different_periods_have_that_jump() -> None:
    def run(x: Tensor) -> Tensor:
        half = F.interpolate(x, scale_factor=2)  # a pattern of 2 units
        same = F.interpolate(half[..., ::3], scale_factor=3)  # 3 / 2 / 3, a pattern of 6
        return half + same[..., :32]

    network = Function(run)
    check_receptive_field(network, (1, 2, 16))
    fields = receptive_field(network, (1, 2, 16))
    assert fields.output.jump == (Fraction(1, 2),)
    # unit 2 reads pixel 1 in one branch; in the other it repeats unit 0, which reads pixel 0
    assert fields.output.region((2,)) == ((0, 1),)
    assert fields.output.axes[0].merged_at == ("add",)


def test_centers_are_compared_unit_by_unit() -> None:
    def run(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2) + F.interpolate(x, scale_factor=2, mode="linear")

    output = receptive_field(Function(run), (1, 2, 16)).output
    # unit 2 is centered at pixel 1 in the first branch, between the pixels 0 and 1 in the second
    assert output.axes[0].merged_at == ("add",)
    assert output.jump == (Fraction(1, 2),)


def test_one_pixel_twice_has_no_jump() -> None:
    network = Function(lambda x: torch.cat([x, x], 2))
    check_receptive_field(network, (1, 2, 1))
    output = receptive_field(network, (1, 2, 1)).output
    assert (output.size, output.jump, output.unit_shape) == ((1,), (None,), (2,))


def test_a_concatenation_with_a_tensor_that_sees_all_rows_sees_them() -> None:
    network = Function(lambda x: torch.cat([x, x.mean(2, keepdim=True).expand(-1, 4, 8, 6)], 1))
    output = receptive_field(network, SIZE).output
    assert output.is_global == (True, False)
    assert output.region((3, 3)) == ((0, 7), (3, 3))


def test_a_layer_of_padding_only_sees_nothing() -> None:
    # unit u is element (u + padding) / stride, where that is a whole number
    network = nn.ConvTranspose1d(1, 1, 1, stride=3, padding=1)
    check_receptive_field(network, (1, 1, 2))
    fields = receptive_field(network, (1, 1, 2))
    output = fields.output
    assert output.unit_shape == (2,)
    assert (output.size, output.padding, output.coverage) == ((0,), (0,), (None,))
    assert math.isnan(output.start[0])
    assert not output.uniform
    assert not output.sees_all
    assert fields.to_dict()["conv"]["start"] == [None]
    with pytest.raises(ValueError, match=r"Unit \(1,\) of 'output' depends on no pixel"):
        output.center((1,))


def test_a_single_unit_has_no_jump() -> None:
    to_one = Function(lambda x: F.interpolate(x, (1, 3), mode="bilinear", align_corners=True))
    output = receptive_field(to_one, SIZE).output
    assert output.jump == (None, Fraction(6 - 1, 3 - 1))  # from corner to corner


# rows and columns of x (1, 4, 8, 6) that are seen if indices or weights come from x itself
FROM_THE_INPUT = {
    "index of its shape": (lambda x: x[:, :, x[0, 0, :, 0].long()], (8, 1)),
    "index": (lambda x: x[:, :, x[0, 0, :3, 0].long()], (8, 1)),
    "index_select": (lambda x: x.index_select(2, x[0, 0, :3, 0].long()), (8, 1)),
    "index_fill": (lambda x: x.index_fill(2, x[0, 0, :3, 0].long(), 0.0), (8, 6)),
    "index_put": (
        lambda x: torch.zeros(5).index_put((x[0, 0, :, 0].long(),), x[0, 0, :, 1]),
        (8, 2),
    ),
    "index_put of a constant": (
        lambda x: torch.zeros(5).index_put((x[0, 0, :, 0].long(),), torch.ones(8)),
        (8, 1),
    ),
    "embedding": (lambda x: F.embedding(x[0, 0, :3, 0].long(), x[0, 1]), (8, 6)),
    "gather": (lambda x: x.gather(2, x[:, :, :3].long()), (8, 1)),
    "gather of a constant": (
        lambda x: torch.ones(8, 3).gather(0, x[0, 0, :, :3].long()),
        (1, 1),
    ),
    "boolean mask": (lambda x: x[x > -1], (8, 6)),
}


@pytest.mark.parametrize("name", FROM_THE_INPUT)
def test_an_index_from_the_input_may_select_any_element(name: str) -> None:
    run, (rows, columns) = FROM_THE_INPUT[name]
    output = receptive_field(Function(run), SIZE).output
    assert output.region(tuple(0 for _ in output.unit_shape)) == ((0, rows - 1), (0, columns - 1))


def test_of_two_writes_to_one_element_either_may_be_the_last() -> None:
    network = Function(lambda x: x.index_copy(2, torch.tensor([3, 3]), x[:, :, 5:7]))
    output = receptive_field(network, SIZE).output
    assert output.pixels((3, 0))[0].tolist() == [5, 6]
    assert output.pixels((4, 0))[0].tolist() == [4]


def test_a_weight_from_the_input_is_seen_by_every_unit() -> None:
    output = receptive_field(Function(lambda x: F.conv2d(x, x[:, :, :3, :2])), SIZE).output
    rows, columns = output.pixels((5, 3))
    assert rows.tolist() == [0, 1, 2, 5, 6, 7]  # of the weight, and of the window
    assert columns.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(
    "run",
    [
        lambda x, own: F.batch_norm(x, torch.zeros(4), torch.ones(4), own),
        lambda x, own: F.batch_norm(x, torch.zeros(4), torch.ones(4), None, own),
        lambda x, own: F.batch_norm(x, own, torch.ones(4)),
        lambda x, own: F.batch_norm(x, torch.zeros(4), own),
        lambda x, own: F.conv2d(x, torch.ones(4, 4, 1, 1), own),
    ],
)
def test_each_channel_sees_its_own_weight(run: Callable[[Tensor, Tensor], Tensor]) -> None:
    network = Function(lambda x: run(x, x[0, 0, :4, 0]))  # channel c has row c, column 0
    output = receptive_field(network, SIZE).output
    assert [seen.tolist() for seen in output.pixels((2, 5, 3))] == [[2, 5], [0, 3]]


def test_each_column_sees_its_own_weight() -> None:
    network = Function(lambda x: F.layer_norm(x, (6,), x[0, 0, :6, 0]))  # column c has row c
    output = receptive_field(network, SIZE).output
    assert [seen.tolist() for seen in output.pixels((7, 3))] == [[3, 7], [0, 1, 2, 3, 4, 5]]


def test_writing_into_overlapping_windows_and_reading_other_memory_are_refused() -> None:
    def write(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :, :1].expand(-1, -1, 8, -1).copy_(x)
        return y

    with pytest.raises(NotImplementedError, match=r"into a view made by aten\.expand.*rules\.py:"):
        receptive_field(Function(write), SIZE)
    part = torch.zeros(1, 4, 16, 6)[:, :, 8:]
    network = Function(lambda x: x.as_strided(x.shape, x.stride(), 0))
    with pytest.raises(NotImplementedError, match="reads memory outside the tensor"):
        receptive_field(network, inputs=(part,))


def test_a_tensor_too_large_for_its_sets_is_refused_before_it_is_made() -> None:
    network = Function(lambda x: F.interpolate(x, 4096 * 200, mode="linear"))
    gigabytes = 4096 * 4096 * 200 / 2**30  # a byte for each position and element
    message = rf"{gigabytes:.1f} GB, .* 2.0 GB, at .*upsample_linear1d.*rules\.py:.*smaller input"
    with pytest.raises(MemoryError, match=message):
        receptive_field(network, (1, 1, 4096))


def test_all_sets_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(*(nn.Conv1d(1, 1, 2) for _ in range(50)))
    receptive_field(network, (1, 1, 1000))
    each = 1000 * (1000 + 16)  # a byte for each position and element, and two bounds
    monkeypatch.setattr("cifar_resnet.fields.positions.packing.MAX_BYTES", 20 * each)
    with pytest.raises(
        MemoryError, match=r"the limit of 0\.0 GB, at .*convolution.*layer '(19|20)'"
    ):
        receptive_field(network, (1, 1, 1000))


def test_asking_for_the_device_needs_no_values() -> None:
    run = trace(nn.BatchNorm2d(4), (torch.zeros(SIZE),))  # which asks for it
    assert not run.on_values
    assert {step.op.namespace for step in run.steps if isinstance(step, Call)} == {"aten"}


def test_a_rule_may_be_a_function() -> None:
    rules = {"aten::relu": lambda op: op.first[1].blend([2])}
    output = receptive_field(nn.ReLU(), SIZE, rules=rules).output
    assert output.size == (8, 1)


def test_the_probe_reports_a_unit_that_depends_on_nothing() -> None:
    network = Function(lambda x: (0 * x).nan_to_num())  # neither NaN nor a change passes
    with pytest.raises(ReceptiveFieldMismatchError, match="according to the experiment on nothing"):
        check_receptive_field(network, SIZE)


def test_the_probe_compares_every_output_of_several() -> None:
    network = Function(lambda x: (x.amax(2), F.avg_pool2d(x, 3)))
    assert check_receptive_field(network, SIZE).compared[-2:] == ("0", "1")


def test_all_rows_of_a_long_axis_can_be_probed() -> None:
    report = check_receptive_field(nn.AvgPool1d(128, 64), (1, 1, 4097), batch_size=512)
    assert report.positions == report.lengths == (4097,)


# -- names --------------------------------------------------------------------------------------

CALLED = {
    "conv": lambda x: F.conv2d(x, torch.ones(2, 4, 3, 3)),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "max_pool3d": lambda x: F.max_pool3d(x, 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 2),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(x, 2),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "linear": lambda x: F.linear(x[:, :, 0, 0], torch.ones(3, 4), torch.ones(3)),
    "linear#2": lambda x: x[:, :, 0, 0] @ torch.ones(4, 3) @ torch.ones(3, 3),
    "matmul": lambda x: x[:, 0] @ x[:, 1].transpose(1, 2),
    "matmul#2": lambda x: (x[:, 0] @ x[:, 1].mT).baddbmm(x[:, 1], x[:, 2].mT),
    "pad": lambda x: F.pad(x, (1, 1)),
    "layer_norm": lambda x: F.layer_norm(x, (6,)),
    "group_norm": lambda x: F.group_norm(x, 2),
    "batch_norm": lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
    "add": lambda x: x + 1,
    "relu": lambda x: F.relu_(x.clone()),
}


@pytest.mark.parametrize("name", CALLED)
def test_a_function_is_listed_by_the_name_that_users_know(name: str) -> None:
    assert list(receptive_field(Function(CALLED[name]), SIZE))[-1] == name


@pytest.mark.parametrize(
    "name",
    [
        *("view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "t", "squeeze"),
        *("unsqueeze", "expand", "alias", "detach", "_to_copy", "lift_fresh", "copy"),
    ],
)
def test_operations_that_change_neither_values_nor_fields_are_not_listed(name: str) -> None:
    network = network_of(name, PROBED[name])
    assert name not in [record.kind for record in receptive_field(network, SIZE).values()]


@pytest.mark.parametrize(
    "name", ["convolution", "unfold", "im2col", "cat", "bmm", "native_group_norm", "cumsum"]
)
def test_equal_sets_stored_once_are_the_same_sets(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Function((PROBED | UP_TO_ROW)[name])
    one_by_one = receptive_field(network, SIZE).output
    monkeypatch.setattr("cifar_resnet.fields.positions.terms.MAX_DIRECT", 0)
    monkeypatch.setattr("cifar_resnet.fields.positions.terms.MAX_DIRECT_BYTES", 0)
    packed = receptive_field(network, SIZE).output
    assert packed.axes == one_by_one.axes
    assert all(packed.seen(axis).equal(one_by_one.seen(axis)) for axis in range(2))
