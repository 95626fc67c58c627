"""The residual block.  Letters in shapes as in `transformer.py`."""

from torch import Tensor, nn

from hasten.model.attention import Attention, CrossAttention
from hasten.model.config import ModelConfig
from hasten.model.feed_forward import FeedForward
from hasten.model.norm import make_norm
from hasten.model.position import RelativeBias
from hasten.ops.dropout import dropout


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), norms where `norm_place` says.

    A decoder that reads an encoder looks at its memory in between (`crossed`).
    """

    def __init__(
        self, config: ModelConfig, *, causal: bool, crossed: bool = False, window: int | None = None
    ) -> None:
        super().__init__()
        self.dropout, self.parallel = config.dropout, config.parallel_block
        self.before, self.both = config.norm_place != "after", config.norm_place == "both"
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, causal=causal, window=window)
        self.cross_norm = make_norm(config) if crossed else None
        self.cross = CrossAttention(config) if crossed else None
        self.ffn_norm = make_norm(config)
        self.ffn = FeedForward(config)
        self.attention_out_norm = make_norm(config) if self.both else None
        self.ffn_out_norm = make_norm(config) if self.both else None

    def forward(  # noqa: PLR0917 (checkpointing and compilers hand on positions)
        self,
        x: Tensor,
        angles: Tensor | None,
        segments: Tensor | None,
        bias: RelativeBias | None = None,
        memory: Tensor | None = None,
        memory_segments: Tensor | None = None,
    ) -> Tensor:
        """x [B, T, D], memory [B, S, D] -> [B, T, D]."""
        if self.parallel:
            attended = self.attention(self.attention_norm(x), angles, segments, bias)
            return x + self.drop(attended) + self.drop(self.ffn(self.ffn_norm(x)))
        attended = self.attention(self.enter(x, self.attention_norm), angles, segments, bias)
        x = self.leave(x, attended, self.attention_norm, self.attention_out_norm)
        if self.cross is not None and self.cross_norm is not None:
            found = self.cross(self.enter(x, self.cross_norm), memory, segments, memory_segments)
            x = self.leave(x, found, self.cross_norm, None)
        return self.leave(x, self.ffn(self.enter(x, self.ffn_norm)), self.ffn_norm, self.ffn_out_norm)

    def enter(self, x: Tensor, norm: nn.Module) -> Tensor:
        """What a branch reads."""
        return norm(x) if self.before else x

    def leave(self, x: Tensor, branch: Tensor, norm: nn.Module, out_norm: nn.Module | None) -> Tensor:
        """The stream with what a branch gave."""
        if out_norm is not None:
            branch = out_norm(branch)
        x = x + self.drop(branch)
        return x if self.before else norm(x)

    def drop(self, x: Tensor) -> Tensor:
        """Residual dropout, in training only."""
        return dropout(x, self.dropout if self.training else 0.0)
