"""Self-attention and cross-attention.  Letters in shapes as in `transformer.py`."""

from typing import Any

from torch import Tensor, cat, nn

from hasten.model.config import ModelConfig
from hasten.model.norm import RMSNorm, make_norm
from hasten.model.position import RelativeBias
from hasten.ops.attention import attend
from hasten.ops.rope import norm_and_rotate, rotate


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads (Vaswani et al. 2017; Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig, *, causal: bool, window: int | None = None) -> None:
        super().__init__()
        self.head_dim, self.dropout, self.causal, self.window = (
            config.head_dim,
            config.attention_dropout,
            causal,
            window,
        )
        self.attend = attend  # a socket: a cache or a ring of devices may take its place
        self.options = options(config, window)
        heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.dim, heads, bias=config.attention_bias)
        self.key = nn.Linear(config.dim, kv_heads, bias=config.attention_bias)
        self.value = nn.Linear(config.dim, kv_heads, bias=config.attention_bias)
        self.query_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.key_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(heads, config.dim, bias=config.out_bias)

    def forward(
        self, x: Tensor, angles: Tensor | None, segments: Tensor | None, bias: RelativeBias | None = None
    ) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        query = placed(self.heads(self.query(x)), self.query_norm, angles)  # [B, T, H, K]
        key = placed(self.heads(self.key(x)), self.key_norm, angles)  # [B, T, G, K]
        value = self.heads(self.value(x))  # [B, T, G, K]
        given = self.options if bias is None else {**self.options, "bias": bias}
        mixed = self.attend(
            query, key, value, causal=self.causal, segments=segments, dropout=self.drop, **given
        )
        return self.out(mixed.flatten(-2))

    def heads(self, x: Tensor) -> Tensor:
        """[B, T, heads x K] -> [B, T, heads, K]; under tensor parallelism a rank has its share of them."""
        return x.view(*x.shape[:-1], -1, self.head_dim)

    @property
    def drop(self) -> float:
        """The share of probabilities to drop, in training only."""
        return self.dropout if self.training else 0.0


class CrossAttention(Attention):
    """A decoder's look at what the encoder read, its `memory` [B, S, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, causal=False)
        self.read = self.keys_and_values  # a socket: a cache reads a memory once

    def forward(  # type: ignore[override]
        self, x: Tensor, memory: Tensor, segments: Tensor | None, memory_segments: Tensor | None
    ) -> Tensor:
        """x [B, T, D], segments [B, T] and memory_segments [B, S] -> [B, T, D]."""
        query = self.query_norm(self.heads(self.query(x)))  # [B, T, H, K]
        key, value = self.read(memory)
        segments = numbered(x, segments, memory_segments)
        mixed = self.attend(
            query, key, value, causal=False, segments=segments, key_segments=memory_segments,
            dropout=self.drop, **self.options,
        )  # fmt: skip
        return self.out(mixed.flatten(-2))

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory [B, S, D] -> two of [B, S, G, K]."""
        return self.key_norm(self.heads(self.key(memory))), self.heads(self.value(memory))


def numbered(x: Tensor, segments: Tensor | None, memory_segments: Tensor | None) -> Tensor | None:
    """The numbers [B, T] of the queries: where they have none, they look at what is 1 in the memory.

    A cache numbers earlier positions too, which ask for nothing any more.
    """
    if memory_segments is None or segments is None:
        return None if memory_segments is None else memory_segments.new_ones(x.shape[:2])
    return segments[:, -x.shape[1] :]


def options(config: ModelConfig, window: int | None) -> dict[str, Any]:
    """What `attend` is told besides its heads, where it differs from the plain case."""
    asked = {"scale": config.attention_scale, "soft_cap": config.attention_soft_cap, "window": window}
    return {name: value for name, value in asked.items() if value is not None}


def placed(heads: Tensor, norm: nn.Module, angles: Tensor | None) -> Tensor:
    """Queries or keys normalised and turned to their positions, of which there may be neither."""
    if angles is None:
        return norm(heads)
    turned = 2 * angles.shape[-1]
    if turned < heads.shape[-1]:
        return rotate_first(norm(heads), angles, turned)
    if isinstance(norm, RMSNorm):
        return norm_and_rotate(heads, norm.scale, angles, norm.eps)
    return rotate(norm(heads), angles)


def rotate_first(heads: Tensor, angles: Tensor, turned: int) -> Tensor:
    """Turn the first numbers of each head, and leave the others."""
    first, rest = heads.split([turned, heads.shape[-1] - turned], dim=-1)
    return cat((rotate(first, angles), rest), dim=-1)
