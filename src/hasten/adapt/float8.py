"""Training with the blocks' matrix products in eight bits (`ops.float8`)."""

from typing import cast

from torch import Tensor, device, nn

from hasten.adapt.linear import LoraLinear
from hasten.core.errors import ConfigError
from hasten.model.transformer import Transformer
from hasten.ops.float8 import fits_float8, float8_linear


class Float8Linear(nn.Linear):
    """A linear layer that trains in eight bits and is measured and used in the precision around it."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        if self.training and fits_float8(x.shape[:-1].numel()):
            return float8_linear(x, self.weight, self.bias)
        return super().forward(x)


def use_float8(model: nn.Module) -> None:
    """Let the linear layers of `model`'s blocks train in eight bits; parameters stay what and where they are.

    The first and the last block, embedding and head keep their precision, for they bear the rounding worst
    (as Megatron-LM's --first-last-layers-bf16).  So does a layer whose sizes are not multiples
    of 16.  Raises ConfigError where nothing is left, and for an adapted model, whose matrices are frozen.
    """
    if any(isinstance(module, LoraLinear) for module in model.modules()):
        raise ConfigError(
            "train.precision: fp8 is for matrices that are trained, and those beside an adapter are frozen;"
            " write bf16"
        )
    places = [
        (parent, name, child)
        for block in cast(Transformer, model).blocks()[1:-1]
        for parent in block.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and fits_float8(child.in_features, child.out_features)
    ]
    if not places:
        raise ConfigError(
            "train.precision: fp8 finds no matrix whose sizes are multiples of 16 between the first block and"
            " the last; write bf16, or a larger model"
        )
    for parent, name, child in places:
        setattr(parent, name, in_float8(child))


def in_float8(linear: nn.Linear) -> Float8Linear:
    """A `Float8Linear` with the same parameters."""
    biased = linear.bias is not None
    twin = Float8Linear(linear.in_features, linear.out_features, bias=biased, device=device("meta"))
    twin.weight, twin.bias = linear.weight, linear.bias
    return twin.train(linear.training)
