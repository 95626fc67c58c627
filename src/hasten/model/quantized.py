"""Layers whose weights are small integers (`ops/quantize.py`), in the place of those of a trained model.

Matrices in blocks have `bits`; the table of tokens and the head that scores them `embedding_bits`.  All else,
poolers, heads of classes, positions, norms and biases, stays as it is.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from hasten.core.config import Config
from hasten.core.errors import CheckpointError, ConfigError
from hasten.ops.quantize import RANGE, num_groups, pack4, quantize
from hasten.ops.quantized_linear import Integers, dense, quantized_linear

Bits = Literal[8, 4]
TABLES = ("embedding", "source_embedding", "head")
"""What `embedding_bits` speaks of."""


class Quantization(Config):
    """Which weights of a model are small integers, and of what kind."""

    bits: Bits = Field(4, description="of a weight in the blocks")
    group_size: PositiveInt | None = Field(
        128,
        description="neighbours of a row that share a scale, 32 as in GGUF's Q4_0; null: whole rows",
    )
    activations: Literal["none", "int8"] = Field(
        "none",
        description="int8: what matrices of the blocks read is rounded to eight bits too, token by token",
    )
    embedding_bits: Bits | None = Field(
        8, description="of the table of tokens and the head over them; null: they stay as they are"
    )
    eight_bits: tuple[str, ...] = Field(
        (), description="patterns of names of layers that have eight bits where others have four: ['*.down']"
    )
    skip: tuple[str, ...] = Field((), description="patterns of names of layers that stay as they are")

    def bits_of(self, name: str, vocabulary: bool = True) -> Bits | None:
        """Bits of the layer `name`, None for one that stays; a head counts where it is of a `vocabulary`."""
        if any(fnmatchcase(name, pattern) for pattern in self.skip):
            return None
        table = name in TABLES
        if not table and "layers" not in name.split("."):
            return None
        bits = self.embedding_bits if table else self.bits
        if bits is None or (name == "head" and not vocabulary):
            return None
        return 8 if any(fnmatchcase(name, pattern) for pattern in self.eight_bits) else bits


class QuantizedWeight(nn.Module):
    """A weight [O, I] as integers and scales, which are buffers and never trained.

    `values` is int8 [O, I], or of four bits uint8 [O, ceil(I / 2)], two a byte; `scales` is float16 [O, G].
    Whatever type the model is brought to, they keep theirs: it is the type of what comes out.
    """

    values: Tensor
    scales: Tensor
    like: Tensor

    def __init__(
        self, shape: tuple[int, int], bits: Bits, group: int | None, *, device: torch.device | None = None
    ) -> None:
        super().__init__()
        (outputs, inputs), self.bits, self.group = shape, bits, group
        self.shape, self.integers = shape, False
        width, kind = (inputs, torch.int8) if bits == 8 else (-(-inputs // 2), torch.uint8)
        self.register_buffer("values", torch.zeros(outputs, width, dtype=kind, device=device))
        scales = torch.zeros(outputs, num_groups(inputs, group), dtype=torch.float16, device=device)
        self.register_buffer("scales", scales)
        self.register_buffer("like", torch.zeros(0, device=device), persistent=False)

    @property
    def stored(self) -> Integers:
        """The weight as it is kept."""
        return Integers(self.values, self.scales, self.bits, self.shape[1])

    @property
    def weight(self) -> Tensor:
        """The weight [O, I] that the integers stand for, made anew each time."""
        return dense(self.stored, self.like.dtype)

    def take(self, values: Tensor, scales: Tensor) -> None:
        """Hold these: int8 [O, I] as `ops.quantize.quantize` makes them, and scales [O, G].

        CheckpointError where a shape is another, an integer has too many bits, or a scale is not finite.
        """
        shapes = tuple(values.shape), tuple(scales.shape)
        wanted = self.shape, tuple(self.scales.shape)
        if shapes != wanted:
            raise CheckpointError(
                f"integers {list(shapes[0])} with scales {list(shapes[1])} do not fit where {list(wanted[0])}"
                f" and {list(wanted[1])} are needed; quantise with the same group_size"
            )
        smallest, largest = RANGE[self.bits]
        if values.numel() and not smallest <= int(values.min()) <= int(values.max()) <= largest:
            raise CheckpointError(
                f"an integer is not within {smallest} to {largest}; quantise to {self.bits} bits"
            )
        self.values.copy_(values if self.bits == 8 else pack4(values))
        self.scales.copy_(scales)
        check_scales(self.scales, "these weights")

    def fill(self, weight: Tensor) -> Self:
        """Hold a weight [O, I] rounded to nearest."""
        self.take(*quantize(weight.detach(), self.bits, self.group))
        return self

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + bias: x [..., I] -> [..., O]; ConfigError in training."""
        if self.training and torch.is_grad_enabled():
            raise ConfigError(
                "a quantised model cannot be trained, for integers have no gradient; train the model that it"
                " was made from, and quantise it again"
            )
        return quantized_linear(x.to(product_type(x)), self.stored, bias, integers=self.integers)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        return self


class QuantizedLinear(QuantizedWeight):
    """`nn.Linear` with a weight of small integers; the `bias` [O] is a buffer.

    With `integers` what it reads is rounded to eight bits too, each token by its largest magnitude.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, bits: Bits, group: int | None, *, integers: bool = False) -> None:
        weight = linear.weight
        super().__init__((linear.out_features, linear.in_features), bits, group, device=weight.device)
        self.in_features, self.out_features, self.integers = linear.in_features, linear.out_features, integers
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> [..., O]."""
        return self.product(x, self.bias)

    def extra_repr(self) -> str:
        """What `print` says."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group={self.group}"


class QuantizedEmbedding(QuantizedWeight):
    """`nn.Embedding` with a table of small integers, which a tied head multiplies with (`product`)."""

    def __init__(self, table: nn.Embedding, bits: Bits, group: int | None) -> None:
        super().__init__((table.num_embeddings, table.embedding_dim), bits, group, device=table.weight.device)
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.train(table.training)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [...] -> [..., I]."""
        rows = dense(self.stored.chosen(tokens.flatten()), self.like.dtype)
        return rows.view(*tokens.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """What `print` says."""
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}, group={self.group}"


def chosen(model: nn.Module, quantization: Quantization) -> dict[str, Bits]:
    """Bits of every layer of `model` that will be quantised, by name, in the order of the model."""
    vocabulary = getattr(model, "config", None) is None or model.config.head == "vocabulary"  # type: ignore[union-attr]
    return {
        name: bits
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
        and (bits := quantization.bits_of(name, vocabulary)) is not None
    }


@torch.no_grad()
def put_quantized(model: nn.Module, quantization: Quantization) -> None:
    """Swap the chosen layers for quantised ones, in place: weights that are there are rounded to nearest.

    On the meta device they stay to be filled, by `take` or from a checkpoint.  ConfigError where no layer is
    chosen, or one is quantised already.
    """
    if next(quantized_weights(model), None):
        raise ConfigError("the model is quantised already; quantise the one that it was made from")
    found = chosen(model, quantization)
    if not found:
        raise ConfigError(
            f"skip: {list(quantization.skip)} leaves no layer to quantise; write fewer patterns, or none"
        )
    for name, bits in found.items():
        parent, _, last = name.rpartition(".")
        layer = model.get_submodule(name)
        setattr(model.get_submodule(parent), last, in_integers(name, layer, bits, quantization))


def in_integers(name: str, layer: nn.Module, bits: Bits, quantization: Quantization) -> QuantizedWeight:
    """The quantised twin of a layer."""
    group, weight = quantization.group_size, cast(Tensor, layer.weight)
    integers = quantization.activations == "int8" and name not in TABLES
    try:
        twin: QuantizedWeight = (
            QuantizedEmbedding(layer, bits, group)
            if isinstance(layer, nn.Embedding)
            else QuantizedLinear(cast(nn.Linear, layer), bits, group, integers=integers)
        )
        return twin if weight.is_meta else twin.to(weight.dtype).fill(weight)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def quantized_weights(model: nn.Module) -> Iterator[tuple[str, QuantizedWeight]]:
    """The quantised layers of a model by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedWeight))


def product_type(x: Tensor) -> torch.dtype:
    """The type that products with x are made in here."""
    device = x.device.type
    if is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def check_scales(scales: Tensor, what: str) -> None:
    """Refuse scales that are no numbers to multiply with."""
    if not bool(scales.isfinite().all()):
        raise CheckpointError(f"a scale of {what} is not finite; take a copy of the file that is whole")
