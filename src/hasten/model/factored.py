"""Linear layers that are two thin ones, in the place of those of a trained model.

Letters in shapes: I inputs, O outputs, R rank.
"""

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from hasten.core.errors import CheckpointError


class FactoredLinear(nn.Module):
    """up(down(x)): a linear layer whose weight [O, I] is a product of two of rank R, with R (I + O) numbers.

    The `down` half [R, I] has no bias, the `up` half [O, R] that of the whole.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        """Of the shape, type and device of `linear`; what the halves hold is to be filled in."""
        super().__init__()
        inputs, outputs, weight = linear.in_features, linear.out_features, linear.weight
        self.in_features, self.out_features, self.rank = inputs, outputs, rank
        biased = linear.bias is not None
        self.down = nn.Linear(inputs, rank, bias=False, device=weight.device, dtype=weight.dtype)
        self.up = nn.Linear(rank, outputs, bias=biased, device=weight.device, dtype=weight.dtype)
        if biased:
            self.up.bias = linear.bias
        self.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """The weight [O, I] that the halves make, anew each time."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        """That of the whole, [O]."""
        return cast("Tensor | None", self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> [..., O]."""
        return self.up(self.down(x))


def put_factored(model: nn.Module, ranks: Mapping[str, int]) -> None:
    """Swap the linear layers so named for two thin ones of these ranks, in place, also on the meta device.

    CheckpointError for a name that is no linear layer of the model, or a rank that its layer cannot have.
    """
    layers = dict(model.named_modules())
    for name, rank in ranks.items():
        linear = layers.get(name)
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(
                f"ranks: {name[:80]!r} is no linear layer of this model; take the ranks from the model that"
                " these weights belong to"
            )
        largest = min(linear.in_features, linear.out_features)
        if not 1 <= rank <= largest:
            raise CheckpointError(f"ranks: {name} can have a rank from 1 to {largest}, got {rank}")
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, FactoredLinear(linear, rank))


def factored_layers(model: nn.Module) -> dict[str, FactoredLinear]:
    """The layers of a model that are two thin ones, by name; none in a plain model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FactoredLinear)}
