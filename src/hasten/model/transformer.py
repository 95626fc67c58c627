"""The decoder-only Transformer, single-device.

Letters in shapes: B rows, T tokens, D model width, H query heads, G key/value heads, K head width,
F feed-forward width, V vocabulary.  No line here knows about devices, compilation or parallelism: those are
arranged around a model by module name, from the table in `layout.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from hasten.model.block import Block
from hasten.model.config import ModelConfig
from hasten.model.initial import init_weights
from hasten.model.norm import make_norm
from hasten.model.position import rotary_frequencies
from hasten.ops.loss import soft_cap
from hasten.ops.norm import rms_norm
from hasten.ops.rope import rotary_angles


class Decoder(nn.Module):
    """Tokens to hidden states, each from the tokens before it; `logits` scores what comes next."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        learned = config.position == "learned"
        self.positions = nn.Embedding(config.max_positions, config.dim) if learned else None
        # A dict, not a list: names survive when a pipeline stage keeps some of the layers.
        self.layers = nn.ModuleDict({str(i): Block(config) for i in range(config.num_layers)})
        self.norm = make_norm(config)
        self.head = None if config.tied else nn.Linear(config.dim, config.vocabulary, bias=False)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Hidden states after the final norm: tokens [B, T] -> [B, T, D].

        `positions` [T] or [B, T] count from 0 by default.  Attention stays within equal `segments` [B, T],
        or [B, S] where a cache holds earlier positions.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embed(tokens, positions)  # [B, T, D]
        angles = self.angles(positions)
        for layer in self.layers.values():
            x = layer(x, angles, segments)
        return self.norm(x)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What enters the first layer: [B, T] -> [B, T, D]."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(positions)
        if self.config.embedding_norm:
            x = rms_norm(x, None, self.config.norm_eps)
        device = x.device.type
        if is_autocast_available(device) and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))  # the stream is what memory bandwidth goes to
        return F.dropout(x, self.config.dropout, self.training)

    def angles(self, positions: Tensor) -> Tensor | None:
        """Rotary cosines and sines, once for all layers."""
        if self.config.position != "rotary":
            return None
        return rotary_angles(positions, rotary_frequencies(self.config, positions.device))

    @property
    def head_weight(self) -> Tensor:
        """The matrix of `logits`, [V, D]."""
        return self.embedding.weight if self.head is None else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: hidden [..., D] -> [..., V]."""
        scores = F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)
        cap = self.config.logit_soft_cap
        return scores if cap is None else soft_cap(scores, cap)


def build(config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> Decoder:
    """A `Decoder` on `device` whose weights depend on the configuration and the seed alone."""
    with torch.device("meta"):
        model = Decoder(config)
    model.to_empty(device=device)
    init_weights(model, seed)
    return model
