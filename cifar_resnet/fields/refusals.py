"""Messages for what the analysis cannot follow: the operation, the layer, the line, the remedy."""

from __future__ import annotations

from cifar_resnet.fields.positions.packing import limit
from cifar_resnet.fields.steps import Call, ValueRead


def where(call: Call) -> str:
    """Return the operation, its layer and the line of the caller's code."""
    layer = call.layers[-1].name or type(call.layers[-1].module).__name__
    return f"the operation {call.op} in layer {layer!r}, called from {call.source}"


def no_rule(call: Call) -> str:
    return f"There is no receptive-field rule for {where(call)}. {_pass_a_rule(call)}"


def not_followed(call: Call, reason: str) -> str:
    return f"Receptive fields cannot follow {where(call)}: {reason} {_pass_a_rule(call)}."


def values_read(step: ValueRead) -> str:
    return f"{step.by} extracts values from a tensor that depends on the input ({step.source})"


def too_large(call: Call, number: int) -> str:
    return (
        f"The position sets of this network would take {_gigabytes(number)} GB, more than the "
        f"limit of {_gigabytes(limit())} GB, at {where(call)}. Analyze a smaller input, whose "
        "fields have the same sizes, or only the layers before this one."
    )


def _gigabytes(number: int) -> str:
    return f"{number / 2**30:.1f}"


def _pass_a_rule(call: Call) -> str:
    return (
        f"Pass one: rules={{{call.op._schema.name!r}: rule}}, where rule is 'pointwise', 'global', "
        "a mapping with kernel_size, stride, padding and dilation, or a function"
    )
