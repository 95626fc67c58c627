"""Self-attention.  Letters in shapes as in `transformer.py`."""

from torch import Tensor, nn

from hasten.model.config import ModelConfig
from hasten.model.norm import RMSNorm
from hasten.ops.attention import attend
from hasten.ops.rope import norm_and_rotate, rotate


class Attention(nn.Module):
    """Causal multi-head attention with grouped key/value heads (Vaswani et al. 2017; Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim, self.dropout = config.head_dim, config.dropout
        self.attend = attend  # a socket: a cache or a ring of devices may take its place
        heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.dim, heads, bias=config.attention_bias)
        self.key = nn.Linear(config.dim, kv_heads, bias=config.attention_bias)
        self.value = nn.Linear(config.dim, kv_heads, bias=config.attention_bias)
        self.query_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(heads, config.dim, bias=config.out_bias)

    def forward(self, x: Tensor, angles: Tensor | None, segments: Tensor | None) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        # -1 counts the heads: under tensor parallelism a rank holds only its share of them.
        heads = (*x.shape[:-1], -1, self.head_dim)
        query = placed(self.query(x).view(heads), self.query_norm, angles)  # [B, T, H, K]
        key = placed(self.key(x).view(heads), self.key_norm, angles)  # [B, T, G, K]
        value = self.value(x).view(heads)  # [B, T, G, K]
        dropout = self.dropout if self.training else 0.0
        mixed = self.attend(query, key, value, causal=True, segments=segments, dropout=dropout)
        return self.out(mixed.flatten(-2))


def placed(heads: Tensor, norm: nn.Module, angles: Tensor | None) -> Tensor:
    """Queries or keys normalised and turned to their positions, of which there may be neither."""
    if angles is None:
        return norm(heads)
    if isinstance(norm, RMSNorm):
        return norm_and_rotate(heads, norm.weight, angles, norm.eps)
    return rotate(norm(heads), angles)
