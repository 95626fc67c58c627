"""How many bytes a compressed model will have on the disk, and which layers are worth more of them.

Letters in shapes: O outputs, I inputs, U units of bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hasten.compress.quantize import Quantize
from hasten.compress.statistics import moments
from hasten.core.batch import Batch
from hasten.model.compressed import CompressionNote, shape_as, tensors_of
from hasten.model.config import ModelConfig
from hasten.model.quantized import Bits, Quantization, chosen
from hasten.model.transformer import Transformer, assemble
from hasten.ops.quantize import dequantize, num_groups, quantize

GROUPS = (128, 64, 32)
"""Neighbours that share a scale, the cheapest first."""
SCALE_BYTES = 2
ENTRY_BYTES = 75
"""About what the header of a file says of a tensor beside its layer's name."""
ALIGNMENT = 8
"""Of the end of a safetensors header."""
NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""Types as a safetensors file has them, in the order of its tensors."""
Choice = Bits | None
"""Bits of a layer's integers, or None: it stays as it is."""
CHOICES: tuple[Choice, ...] = (4, 8, None)
UNITS = 1 << 16
"""Parts that a budget is cut into: what is lost by rounding is a part a layer at most."""
FILLED = 0.985
"""Of a budget that is to be used."""


def file_bytes(config: ModelConfig, quantization: Quantization | None, dtype: torch.dtype) -> int:
    """Bytes of the weights' file of a model of this shape whose numbers are of `dtype` where they stay."""
    with torch.device("meta"):
        model = assemble(config)
        shape_as(model, CompressionNote(quantization=quantization, parent=""))
    kinds = {torch.float32: dtype}
    tensors = {
        name: (tensor, kinds.get(tensor.dtype, tensor.dtype)) for name, tensor in tensors_of(model).items()
    }
    return sum(t.numel() * kind.itemsize for t, kind in tensors.values()) + header_bytes(tensors)


def header_bytes(tensors: Mapping[str, tuple[Tensor, torch.dtype]]) -> int:
    """Bytes of the description that a safetensors file begins with, in its own order of tensors."""
    at, words = 0, dict[str, object](__metadata__={"format": "pt"})
    order = list(NAMES)
    for name in sorted(tensors, key=lambda name: (order.index(tensors[name][1]), name)):
        tensor, kind = tensors[name]
        end = at + tensor.numel() * kind.itemsize
        words[name] = {"dtype": NAMES[kind], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    length = len(json.dumps(words, separators=(",", ":")).encode())
    return 8 + -(-length // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Layer:
    """A layer that may have fewer bits: its size, and how far its outputs are off at each choice.

    An error is ||D X||² / ||W X||², the share of what the layer gives; X as its channels' mean squares.
    """

    name: str
    shape: tuple[int, int]
    number_bytes: int  # of a number where it stays
    errors: Mapping[Choice, float]

    def bytes(self, choice: Choice, group: int | None) -> int:
        """Bytes of the layer's weight at a choice, with the header's words for it."""
        outputs, inputs = self.shape
        if choice is None:
            return outputs * inputs * self.number_bytes + ENTRY_BYTES + len(self.name)
        values = inputs if choice == 8 else -(-inputs // 2)
        both = 2 * (ENTRY_BYTES + len(self.name))
        return outputs * (values + SCALE_BYTES * num_groups(inputs, group)) + both


@torch.no_grad()
def layers_of(
    model: Transformer, batches: Sequence[Batch], group: int | None, number_bytes: int
) -> list[Layer]:
    """Every layer of a model that can be quantised, with its errors on some texts, or on its own."""
    names = chosen(model, Quantization(group_size=None, embedding_bits=8))
    seen = moments(model, batches, gram=False) if batches else {}
    found = []
    for name in names:
        weight = cast(Tensor, model.get_submodule(name).weight)
        squares = seen[name].square if name in seen else torch.ones(weight.shape[1], device=weight.device)
        errors: dict[Choice, float] = {None: 0.0}
        for bits in (4, 8):
            errors[bits] = error_of(weight.detach(), bits, group, squares)
        found.append(Layer(name, (weight.shape[0], weight.shape[1]), number_bytes, errors))
    return found


def error_of(weight: Tensor, bits: int, group: int | None, squares: Tensor) -> float:
    """How far a layer's outputs are off when its weight [O, I] is rounded: a share of their squares."""
    change = dequantize(*quantize(weight, bits, group)) - weight.float()
    return float(
        (change.square() @ squares).sum() / (weight.float().square() @ squares).sum().clamp(min=1e-30)
    )


def groups_of(model: nn.Module) -> list[int | None]:
    """The groups that divide every row of what is quantised; whole rows where none does."""
    rows = [cast(Tensor, model.get_submodule(name).weight).shape[1] for name in chosen(model, Quantization())]
    found: list[int | None] = [group for group in GROUPS if not any(row % group for row in rows)]
    return found or [None]


def coarsest(group: int | None, method: str) -> Quantize:
    """The quantisation with the fewest bytes."""
    kinds = {"method": method, "group_size": group, "eight_bits": ()}
    return Quantize.model_validate({"bits": 4, "embedding_bits": 4, **kinds})


def spent(layers: Sequence[Layer], group: int | None, least: int, budget: int) -> dict[str, Choice]:
    """What each layer becomes when all begin with four bits, `least` bytes in all, and a budget is spent.

    The choices with the smallest sum of errors of all that use FILLED of the budget or more, or else the
    most that can be used: a knapsack of so many classes (Kellerer et al. 2004, 11), each unit of bytes exact.
    """
    unit = max((budget - least) / UNITS, 1.0)
    best, taken = np.full(int((budget - least) / unit) + 1, np.inf), []
    best[0] = 0.0
    for layer in layers:
        costs = [layer.bytes(choice, group) - layer.bytes(4, group) for choice in CHOICES]
        sums = np.stack(
            [
                shifted(best, -int(-cost // unit)) + layer.errors[choice]
                for choice, cost in zip(CHOICES, costs, strict=True)
            ]
        )  # [3, U]
        taken.append(sums.argmin(axis=0))
        best = sums.min(axis=0)
    at = chosen_sum(best, int((FILLED * budget - least) / unit))
    choices: dict[str, Choice] = {}
    for layer, choice in zip(reversed(layers), reversed(taken), strict=True):
        choices[layer.name] = picked = CHOICES[choice[at]]
        at -= -int(-(layer.bytes(picked, group) - layer.bytes(4, group)) // unit)
    return choices


def shifted(best: NDArray[np.float64], units: int) -> NDArray[np.float64]:
    """The sums [U] once so many units more are used; infinite where they are not there."""
    result = np.full_like(best, np.inf)
    if units < len(best):
        result[units:] = best[: len(best) - units]
    return result


def chosen_sum(best: NDArray[np.float64], fewest: int) -> int:
    """The best of the sums [U] from `fewest` units on; where none is there, the last that is."""
    fewest = max(fewest, 0)
    if np.isfinite(best[fewest:]).any():
        return fewest + int(best[fewest:].argmin())
    return int(np.flatnonzero(np.isfinite(best))[-1])


def mixed(choices: Mapping[str, Choice], group: int | None, method: str) -> Quantize:
    """The step that makes these choices."""
    eight = tuple(name for name, choice in choices.items() if choice == 8)
    whole = tuple(name for name, choice in choices.items() if choice is None)
    return coarsest(group, method).model_copy(update={"eight_bits": eight, "skip": whole})


def within(
    config: ModelConfig, layers: Sequence[Layer], group: int | None, budget: int, method: str
) -> tuple[Quantize, int, float]:
    """The step that spends a budget of bytes on a model of this shape; its bytes, and the sum of its errors.

    Four bits everywhere must fit.
    """
    dtype = {4: torch.float32, 2: torch.bfloat16}[layers[0].number_bytes]
    least = file_bytes(config, coarsest(group, method).quantization, dtype)
    whole, room = {layer.name: cast(Choice, 4) for layer in layers}, budget
    while True:
        choices = spent(layers, group, least, room) if room > least else whole
        step = mixed(choices, group, method)
        size = file_bytes(config, step.quantization, dtype)
        if size <= budget or choices == whole:
            return step, size, sum(layer.errors[choices[layer.name]] for layer in layers)
        room -= size - budget  # names in the header have taken more than expected
