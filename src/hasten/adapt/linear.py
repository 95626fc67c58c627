"""Linear layers that are frozen and have a trainable pair of thin matrices beside them."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from hasten.adapt.config import LowRank
from hasten.ops.dropout import dropout
from hasten.ops.low_rank import dense, low_rank_linear, row_norms

Split = int | None
"""The dimension that processes split a parameter by; None: each has all of it, and part of its gradient."""


class LoraLinear(nn.Linear):
    """A linear layer with `lora_a` [R, I] and `lora_b` [O, R] beside its own `weight` [O, I] and `bias` [O].

    Made out of one, whose parameters it takes over and freezes.  DoRA adds `lora_magnitude` [O], the lengths
    of the rows (Liu et al. 2024, arXiv:2402.09353), which `settle` sets once there are weights; the lengths
    that rows have without it count as constants in the gradient, as in the paper's section 4.3.
    """

    lora_magnitude: nn.Parameter | None

    def __init__(self, linear: nn.Linear, low_rank: LowRank) -> None:
        biased, device = linear.bias is not None, linear.weight.device
        super().__init__(linear.in_features, linear.out_features, bias=biased, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.requires_grad_(False)
        self.low_rank, self.scale, self.dropout = low_rank, low_rank.scale, low_rank.dropout
        self.active = True
        self.wanted: slice | None = None
        self.lora_a = nn.Parameter(torch.empty(low_rank.rank, linear.in_features, device=device))
        self.lora_b = nn.Parameter(torch.empty(linear.out_features, low_rank.rank, device=device))
        length = nn.Parameter(torch.empty(linear.out_features, device=device)) if low_rank.dora else None
        self.register_parameter("lora_magnitude", length)
        self.train(linear.training)

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The frozen weight as it is kept: itself, or what it was packed into."""
        return (self.weight if self.wanted is None else self.weight[self.wanted],)

    def base_weight(self) -> Tensor:
        """The frozen weight [O, I] in the type it is kept in, or float32 where it is packed."""
        stored = self.stored
        return dense(stored, (self.out_features, self.in_features), self.lora_a.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> [..., O]."""
        x, wanted = x.to(product_type(x)), self.wanted
        bias = self.bias if self.bias is None or wanted is None else self.bias[wanted]
        b = self.lora_b if wanted is None else self.lora_b[wanted]
        if not self.active:
            weight = dense(self.stored, (self.out_features, self.in_features), x.dtype)
            return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
        share = self.dropout if self.training else 0.0
        seen = dropout(x, share) if share else None
        out = low_rank_linear(x, self.stored, bias, self.lora_a, b, scale=self.scale, seen=seen)
        return out if self.lora_magnitude is None else self.stretched(out, self.lora_magnitude)

    def stretched(self, out: Tensor, magnitude: Tensor) -> Tensor:
        """The sum [..., O] with each row of the weight, not the bias, brought to its length."""
        with torch.no_grad(), torch.autocast(out.device.type, enabled=False):
            norms = row_norms(self.base_weight(), self.lora_a, self.lora_b, self.scale)
        ratio = magnitude.float() / norms  # float32: bfloat16 moves in steps of 0.4%
        if self.bias is None:
            return (out * ratio).to(out.dtype)
        # Written so that a ratio of one changes no bit.
        return torch.addcmul(self.bias.float() * (1 - ratio), out, ratio).to(out.dtype)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The product of the pair [O, I] in float64: a sum with it is rounded once."""
        return self.scale * (self.lora_b.double() @ self.lora_a.double())

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight [O, I] in float64 of a plain layer that does the same."""
        merged = self.base_weight().double() + self.delta()
        if self.lora_magnitude is None:
            return merged
        return merged * (self.lora_magnitude / merged.norm(dim=1))[:, None]

    def splits(self, word: Literal["columns", "rows"]) -> dict[str, Split]:
        """How processes that split the layer by outputs (columns) or by inputs (rows) split the pair."""
        columns = word == "columns"
        return {"lora_a": None if columns else 1, "lora_b": 0 if columns else None}

    def choose(self, start: int, length: int) -> None:
        """Give `length` outputs from `start` alone: for processes that each hold the whole layer."""
        self.wanted = slice(start, start + length)


def product_type(x: Tensor) -> torch.dtype:
    """The type that products with x are made in here."""
    device = x.device.type
    if is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
