"""QLoRA's frozen linear layers: four bits a number, made whole for each product and never kept so."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hasten.adapt.config import LowRank
from hasten.adapt.linear import LoraLinear
from hasten.core.errors import CheckpointError
from hasten.ops.nf4 import BLOCK, GROUP, num_blocks, quantize

PARTS = ("nf4_codes", "nf4_scales", "nf4_steps", "nf4_mean")
"""The parameters that take the place of `weight`; the last two where scales are quantised too."""


class PackedLoraLinear(LoraLinear):
    """A `LoraLinear` that holds its weight in NF4 (Dettmers et al. 2023, arXiv:2305.14314).

    Its codes and scales are parameters that are never trained.  `take` packs a weight.
    """

    def __init__(self, linear: nn.Linear, low_rank: LowRank, *, double: bool) -> None:
        super().__init__(linear, low_rank)
        device, self.doubly = self.weight.device, double
        self.register_parameter("weight", None)
        blocks = num_blocks(self.in_features * self.out_features)
        places = {"nf4_codes": torch.empty(blocks * BLOCK // 2, dtype=torch.uint8, device=device)}
        if double:
            places["nf4_scales"] = torch.empty(blocks, dtype=torch.int8, device=device)
            places["nf4_steps"] = torch.empty(-(-blocks // GROUP), device=device)
            places["nf4_mean"] = torch.empty(1, device=device)
        else:
            places["nf4_scales"] = torch.empty(blocks, device=device)
        for name, place in places.items():
            self.register_parameter(name, nn.Parameter(place, requires_grad=False))

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Codes, scales and what else there is to unpack them."""
        return tuple(getattr(self, name) for name in (PARTS if self.doubly else PARTS[:2]))

    @torch.no_grad()
    def take(self, weight: Tensor) -> None:
        """Pack a weight [O, I] of any float type; CheckpointError where its shape is another."""
        shape = (self.out_features, self.in_features)
        if tuple(weight.shape) != shape:
            raise CheckpointError(
                f"a weight of {list(weight.shape)} cannot be packed where {list(shape)} is needed; give the"
                " model that the adapter belongs to"
            )
        places = self.stored
        packed = quantize(weight.to(places[0].device), self.doubly)
        for place, part in zip(places, packed, strict=True):
            place.copy_(part)


def packed_weights(model: nn.Module) -> Iterator[tuple[str, PackedLoraLinear]]:
    """The names of the weights that `model` holds packed, as a plain model has them, and who `take`s each.

    Whoever copies a base's weights by name into an adapted model hands these over:

        for name, layer in packed_weights(model):
            layer.take(weights[name])
    """
    for name, module in model.named_modules():
        if isinstance(module, PackedLoraLinear):
            yield f"{name}.weight", module
