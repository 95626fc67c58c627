"""Half-precision weights for decoding on a CPU.

One token a row multiplies each matrix with a vector or few, and the time that takes is the time to read the
matrix.  FBGEMM, which PyTorch brings along on x86, keeps matrices packed as float16 and computes in float32:
half the bytes of float32, read faster than PyTorch's own products read bfloat16 and rounded eight times finer
(bench/generation.py).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.model.transformer import Decoder

LARGEST = torch.finfo(torch.float16).max
WORTHWHILE_TOKENS, WORTHWHILE_PARAMETERS = 64, 10_000_000
"""Packing costs as much as about forty tokens win; what fits into a processor's cache is read fast anyway."""


class HalfLinear(nn.Module):
    """A linear layer that reads float16 weights for one token a row, and its own for whole prompts.

    A prompt is bound by arithmetic, not by reading, so there the packed weights would win nothing.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, outputs]."""
        if x.shape[-2] > 1:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


def worth_halving(model: Decoder, new_tokens: int) -> bool:
    """Whether `half_weights` works here and saves time: float32 on an x86 CPU, and enough to read.

    Only the settings of one text count, not how many there are: it is to be the same alone and in company.
    """
    weights = list(model.parameters())
    large = new_tokens >= WORTHWHILE_TOKENS and sum(w.numel() for w in weights) >= WORTHWHILE_PARAMETERS
    return large and can_be_halved(weights)


def can_be_halved(weights: list[nn.Parameter]) -> bool:
    """Whether FBGEMM is here for these weights, and none is too large for float16."""
    here = torch.backends.quantized.engine in {"x86", "fbgemm"}
    plain = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
    return here and plain and all(bool(w.detach().abs().amax() <= LARGEST) for w in weights)


@contextmanager
def half_weights(model: Decoder) -> Iterator[None]:
    """Within it, `model` decodes with float16 weights; its parameters stay as and where they are."""
    places: list[tuple[nn.Module, str, nn.Module | None]] = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    if model.head is None:  # tied: the embedding is the head
        places.append((model, "head", None))
    with ThreadPoolExecutor() as pool:  # packing is one thread's work a matrix
        halves = list(pool.map(lambda place: halved(place[2] or model.embedding), places))
    try:
        for (parent, name, _), half in zip(places, halves, strict=True):
            setattr(parent, name, half)
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


@torch.no_grad()
def halved(layer: nn.Module) -> HalfLinear:
    """The packed twin of a linear layer, or of an embedding that serves as one."""
    bias = getattr(layer, "bias", None)
    assert isinstance(layer.weight, Tensor)
    return HalfLinear(layer.weight.detach(), None if bias is None else bias.detach())
