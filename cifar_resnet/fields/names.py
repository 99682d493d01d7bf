"""Names of operations: how they are listed, and groups of them."""

# Names of operations that users know by another name.
FUNCTION_NAMES = {
    "convolution": "conv",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "_adaptive_avg_pool3d": "adaptive_avg_pool3d",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "addmm": "linear",
    "mm": "linear",
    "bmm": "matmul",
    "baddbmm": "matmul",
    "constant_pad_nd": "pad",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "native_batch_norm": "batch_norm",
}

# Operations that change neither values nor fields, and would only lengthen the table.
UNRECORDED = {
    "view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "expand", "alias", "detach", "clone", "_to_copy", "lift_fresh", "copy",
}  # fmt: skip

ATTENTION = (
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable", "scaled_dot_product_attention",
)  # fmt: skip
