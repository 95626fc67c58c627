"""One side of a Transformer: embeddings to hidden states.  Letters in shapes as in `transformer.py`."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from hasten.model.block import Block
from hasten.model.config import ModelConfig
from hasten.model.norm import make_norm
from hasten.model.position import RelativeBias, counted, rotary_frequencies, sinusoids
from hasten.ops.dropout import dropout
from hasten.ops.norm import rms_norm
from hasten.ops.rope import frequencies, rotary_angles


class Stack(nn.Module):
    """Positions, blocks and final norm; `crossed` blocks also read a memory."""

    def __init__(self, config: ModelConfig, *, num_layers: int, causal: bool, crossed: bool = False) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        learned, relative = config.position == "learned", config.position == "relative"
        rows = config.max_positions + config.position_offset
        self.positions = nn.Embedding(rows, config.dim) if learned else None
        self.relative = nn.Embedding(config.relative_buckets, config.num_heads) if relative else None
        self.embedding_norm = make_norm(config) if config.embedding_norm == "learned" else None
        # A dict, not a list: names survive when a pipeline stage keeps some of the layers.
        self.layers = nn.ModuleDict(
            {
                str(i): Block(config, causal=causal, crossed=crossed, window=config.window_of(i))
                for i in range(num_layers)
            }
        )
        self.norm = make_norm(config) if config.final_norm else nn.Identity()

    def read(
        self,
        words: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        memory: Tensor | None = None,
        memory_segments: Tensor | None = None,
    ) -> Tensor:
        """Word embeddings [B, T, D], or the sum of embeddings, to hidden states [B, T, D]."""
        positions = counted(positions, words)
        x = self.enter(words, positions)
        return self.norm(self.through(x, positions, segments, memory, memory_segments))

    def through(
        self,
        x: Tensor,
        positions: Tensor,
        segments: Tensor | None = None,
        memory: Tensor | None = None,
        memory_segments: Tensor | None = None,
        *,
        layers: Iterable[str] | None = None,
    ) -> Tensor:
        """All blocks, or those named in `layers`: [B, T, D] -> [B, T, D], `positions` [T] or [B, T]."""
        angles, local, bias = self.angles(positions), self.local_angles(positions), self.bias()
        if bias is not None:
            # Made before the first layer, so that to a compiler all layers look alike.
            bias(positions.shape[-1], positions.shape[-1])
        chosen = self.layers.values() if layers is None else (self.layers[name] for name in layers)
        for layer in cast(Iterable[Block], chosen):
            turned = angles if local is None or layer.attention.window is None else local
            x = layer(x, turned, segments, bias, memory, memory_segments)
        return x

    def enter(self, words: Tensor, positions: Tensor) -> Tensor:
        """What the first layer reads: [B, T, D] -> [B, T, D]."""
        config, x = self.config, words
        if config.embedding_scale != 1:
            x = x * config.embedding_scale
        if self.positions is not None:
            x = x + self.positions(positions + config.position_offset)
        if config.position == "sinusoidal":
            x = x + sinusoids(positions, config.dim).to(x.dtype)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        elif config.embedding_norm:
            x = rms_norm(x, None, config.norm_eps)
        device = x.device.type
        if is_autocast_available(device) and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))  # the stream is what memory bandwidth goes to
        return dropout(x, config.dropout if self.training else 0.0)

    def angles(self, positions: Tensor) -> Tensor | None:
        """Rotary cosines and sines, once for all layers."""
        if self.config.position != "rotary":
            return None
        return rotary_angles(positions, rotary_frequencies(self.config, positions.device))

    def local_angles(self, positions: Tensor) -> Tensor | None:
        """Those of layers with a window, where they turn at a rate of their own."""
        if self.config.local_rope_theta is None:
            return None
        frequency = frequencies(self.config.rotary_dim, self.config.local_rope_theta, positions.device)
        return rotary_angles(positions, frequency)

    def bias(self) -> RelativeBias | None:
        """What all layers add to their scores."""
        if self.relative is None:
            return None
        return RelativeBias(self.relative, self.config.relative_distance, causal=self.causal)
