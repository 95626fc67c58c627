"""What is left of each parameter of a narrower model: which of its numbers belong to parts that stay."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor

Axis = Literal["stream", "queries", "keys", "inner", "heads"]
"""What the dimension of a parameter counts: numbers of the stream, of all query heads, of all key heads or
inside a feed-forward layer, or query heads."""
AXES: dict[str, tuple[Axis | None, ...]] = {
    "*.query_norm.weight": (None,),
    "*.key_norm.weight": (None,),
    "*norm.weight": ("stream",),
    "*norm.bias": ("stream",),
    "*relative.weight": (None, "heads"),
    "*embedding.weight": (None, "stream"),
    "*positions.weight": (None, "stream"),
    "token_types.weight": (None, "stream"),
    "head.weight": (None, "stream"),
    "head_bias": (None,),
    "pooler.weight": ("stream", "stream"),
    "transform.dense.weight": ("stream", "stream"),
    "*.query.weight": ("queries", "stream"),
    "*.query.bias": ("queries",),
    "*.key.weight": ("keys", "stream"),
    "*.key.bias": ("keys",),
    "*.value.weight": ("keys", "stream"),
    "*.value.bias": ("keys",),
    "*.out.weight": ("stream", "queries"),
    "*.gate.weight": ("inner", "stream"),
    "*.gate.bias": ("inner",),
    "*.up.weight": ("inner", "stream"),
    "*.up.bias": ("inner",),
    "*.down.weight": ("stream", "inner"),
    "*.bias": ("stream",),
}
"""Of parameters by patterns of their names, the first that fits; None is a dimension that stays whole."""
Kept = Mapping[tuple[str, Axis], Tensor]
"""{(module, axis): numbers that stay, rising}.  The stream is the model's, "", as heads are one side's; the
other axes belong to an attention or a feed-forward layer.  What is missing stays whole."""


def axes(name: str) -> tuple[Axis | None, ...]:
    """What the dimensions of a parameter count."""
    return next(found for pattern, found in AXES.items() if fnmatchcase(name, pattern))


def owner(name: str, axis: Axis) -> str:
    """The module whose axis a parameter has: `owner("layers.0.ffn.up.weight", "inner")` -> `layers.0.ffn`."""
    if axis == "stream":
        return ""
    if axis == "heads":
        return name.removesuffix("relative.weight")
    return name.rsplit(".", 2)[0]


def narrowed(name: str, tensor: Tensor, kept: Kept) -> Tensor:
    """What is left of the parameter `name`."""
    for dim, axis in enumerate(axes(name)):
        if axis is not None and (stay := kept.get((owner(name, axis), axis))) is not None:
            tensor = tensor.index_select(dim, stay.to(tensor.device))
    return tensor


def is_norm_of_stream(name: str) -> bool:
    """Whether a parameter is what a norm over the stream multiplies with."""
    return name.endswith("norm.weight") and axes(name) == ("stream",)
