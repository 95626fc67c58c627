"""Quantisation of a trained model: `Quantize` chooses the integers, `model/quantized.py` holds them.

Block after block, each from what the blocks before it give as integers already (Frantar et al. 2023, 4).
"""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from hasten.compress.awq import left_out, scale_block
from hasten.compress.gptq import gptq, inverse_factor, order_of
from hasten.compress.rtn import Rounded, best_scales, nearest, output_error
from hasten.compress.sensitivity import sensitivities
from hasten.compress.statistics import BlockAt, Moments, block_by_block, linear_layers
from hasten.core.batch import Batch
from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.model.plain import put_integers
from hasten.model.quantized import TABLES, Bits, Quantization, QuantizedWeight, chosen, quantized_weights
from hasten.model.transformer import Transformer
from hasten.ops.quantize import num_groups

Grids = dict[str, tuple[Bits, int | None]]
"""Bits and group of every layer that is to be quantised, by name."""


class Quantize(Quantization):
    """Small integers in the place of a trained model's weights, without training.

    rtn rounds to nearest and reads no text.  awq scales channels by what they carry before it rounds (Lin et
    al. 2024), gptq makes up for each rounding with the weights that are left (Frantar et al. 2023); both look
    at texts of the kind that the model will read.
    """

    kind: Literal["quantize"] = "quantize"
    method: Literal["rtn", "awq", "gptq"] = "gptq"
    eight_bits: tuple[str, ...] = Field(
        ("*.value",),
        description="patterns of names of layers that have eight bits where others have four; values are few"
        " and do a third of the damage",
    )
    mean_bits: float | None = Field(
        None,
        ge=4,
        le=8,
        description="of the blocks' weights on average: layers that lose most for their size have eight too",
    )
    search: bool = Field(
        True, description="scales under which rounding costs least; false: those that hold the largest weight"
    )
    scale_channels: bool = Field(False, description="gptq: scale channels first, as awq does")
    act_order: bool = Field(True, description="gptq: round the inputs that carry most first")
    damping: PositiveFloat = Field(
        0.1,
        description="gptq: share of the mean diagonal that is added to the sums of squares; with some ten"
        " thousand tokens 0.1 does better than the paper's 0.01",
    )

    @model_validator(mode="after")
    def check_mean(self) -> "Quantize":
        if self.mean_bits is not None and self.bits == 8:
            raise ValueError(
                "mean_bits is how many layers have eight bits where others have four; write bits: 4"
            )
        return self

    @property
    def quantization(self) -> Quantization:
        """Which weights become what, as a checkpoint keeps it."""
        kept = set(Quantization.model_fields)
        return Quantization.model_validate(self.model_dump(include=kept))

    @property
    def reads(self) -> bool:
        """Whether the method looks at texts."""
        return self.method != "rtn" or self.mean_bits is not None

    def apply(self, model: Transformer, batches: Sequence[Batch] = ()) -> Transformer:
        """Quantise `model` in place and return it; rtn needs no `batches`.

        ConfigError where the model is quantised already, no layer is chosen, a scale is beyond float16, or
        there are no texts for a method that reads; DataError where these have no token.
        """
        grids = self.grids(model)
        if self.reads and not batches:
            raise ConfigError(
                f"quantize: {self.method} looks at texts that the model reads, and there are none; give some"
                " as calibration, or take method: rtn without mean_bits"
            )
        if self.mean_bits is not None:
            grids |= self.finer(model, grids, batches)
        scales = self.method == "awq" or (self.method == "gptq" and self.scale_channels)
        if scales and (missed := left_out(model.blocks()[0])):
            say(f"channels stay as they are before {' and '.join(missed)}")
        before = size_of(model)
        if self.method != "rtn":
            for at in block_by_block(model, batches):
                self.block(at, {name: grids[name] for name in grids if name.startswith(f"{at.name}.")})
        for name, grid in grids.items():
            layer = model.get_submodule(name)
            if not isinstance(layer, QuantizedWeight):
                self.put(model, name, self.nearest(name, cast(Tensor, layer.weight), grid))
        after = size_of(model)
        say(f"{len(grids)} layers by {self.method}: {before / 1e6:,.1f} MB became {after / 1e6:,.1f} MB")
        return model

    def grids(self, model: Transformer) -> Grids:
        """What is to be quantised, and how finely."""
        if next(quantized_weights(model), None):
            raise ConfigError("the model is quantised already; quantise the one that it was made from")
        found = chosen(model, self.quantization)
        if not found:
            raise ConfigError(
                f"quantize.skip: {list(self.skip)} leaves no layer to quantise; write fewer patterns, or none"
            )
        for name in found:
            try:
                num_groups(cast(Tensor, model.get_submodule(name).weight).shape[1], self.group_size)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from None
        return {name: (bits, self.group_size) for name, bits in found.items()}

    def finer(self, model: Transformer, grids: Grids, batches: Sequence[Batch]) -> Grids:
        """Those layers in eight bits that lose most by four for their size, until `mean_bits` are spent."""
        weights = {
            name: layer.weight.detach() for name, layer in linear_layers(model).items() if name in grids
        }
        changes = {
            name: self.nearest(name, weight, grids[name]).weight - weight
            for name, weight in weights.items()
            if grids[name][0] == 4
        }
        total = sum(weight.numel() for weight in weights.values())
        kept = sum(weights[name].numel() for name in changes)
        room = (cast(float, self.mean_bits) - 4) / 4 * total - (total - kept)
        lost, found = sensitivities(model, changes, batches), Grids()
        for name in sorted(lost, key=lambda name: -lost[name] / weights[name].numel()):
            if weights[name].numel() <= room:
                found[name] = (8, self.group_size)
                room -= weights[name].numel()
        return found

    def block(self, at: BlockAt, grids: Grids) -> None:
        """Quantise the layers of one block, all from what they read before any of them was rounded."""
        if not grids:
            return
        moments: Mapping[str, Moments] = at.moments()
        if self.method == "awq" or self.scale_channels:
            moments = scale_block(at.block, at.name, moments, grids)
        factors: dict[int, tuple[Tensor, Tensor]] = {}
        for name, grid in grids.items():
            inside = name.removeprefix(f"{at.name}.")
            weight = cast(nn.Linear, at.block.get_submodule(inside)).weight
            best = self.nearest(name, weight, grid, moments[name])
            if self.method == "gptq":
                best = self.less_far(weight, best, moments[name], factors)
            self.put(at.block, inside, best)

    def nearest(
        self, name: str, weight: Tensor, grid: tuple[Bits, int | None], moments: Moments | None = None
    ) -> Rounded:
        """A weight rounded to nearest."""
        importance = None if moments is None else moments.square
        try:
            usual = nearest(weight.detach(), *grid)
            if not self.search:
                return usual
            found = nearest(weight.detach(), *grid, best_scales(weight.detach(), *grid, importance))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        if moments is None or moments.gram is None:
            return found
        return min(usual, found, key=lambda each: output_error(each.weight - weight, moments.gram))  # type: ignore[arg-type]

    def less_far(
        self, weight: Tensor, rounded: Rounded, moments: Moments, factors: dict[int, tuple[Tensor, Tensor]]
    ) -> Rounded:
        """GPTQ's integers over the scales of `rounded`, or those where they are nearer all the same.

        `factors` are of sums that several layers share.
        """
        gram = cast(Tensor, moments.gram)
        if id(gram) not in factors:
            order = order_of(gram, self.act_order)
            factors[id(gram)] = order, inverse_factor(gram, order, self.damping)
        grid = rounded.bits, rounded.group
        found = gptq(weight.detach(), rounded.scales, grid, *factors[id(gram)])
        return min(found, rounded, key=lambda each: output_error(each.weight - weight, gram))

    def put(self, parent: nn.Module, name: str, integers: Rounded) -> None:
        """Put integers in the place of a layer."""
        values, scales, bits, group = integers
        rounds = self.activations == "int8" and name not in TABLES
        put_integers(parent, name, (values, scales), (cast(Bits, bits), group), activations=rounds)


def size_of(model: nn.Module) -> int:
    """Bytes of all tensors that a checkpoint of the model holds."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
