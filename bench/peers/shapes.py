"""The decoders that are compared, as numbers: what every system is asked to train."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A decoder and the batch of a step."""

    num_layers: int
    num_heads: int
    dim: int
    context: int
    vocab_size: int
    rows: int

    @property
    def batch_tokens(self) -> int:
        """Tokens of one step."""
        return self.rows * self.context

    @property
    def gated_width(self) -> int:
        """Inner width of a gated feed-forward layer: 8/3 dim, down to a multiple of 64; never more work."""
        return 8 * self.dim // 3 // 64 * 64


SHAPES = {
    "S": Shape(num_layers=6, num_heads=6, dim=384, context=256, vocab_size=8192, rows=16),
    "M": Shape(num_layers=8, num_heads=8, dim=512, context=512, vocab_size=50_257, rows=4),
    "tiny": Shape(num_layers=2, num_heads=2, dim=64, context=32, vocab_size=256, rows=2),  # for tests
}
