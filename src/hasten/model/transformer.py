"""The Transformer in three assemblies of the same blocks, single-device.

Letters in shapes: B rows, T tokens, S tokens of a source, D model width, H query heads, G key/value heads,
K head width, F feed-forward width, V vocabulary or classes.  No line here knows about devices, compilation
or parallelism: those are arranged around a model by module name, from the table in `layout.py`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.model.block import Block
from hasten.model.config import ModelConfig
from hasten.model.feed_forward import ACTIVATIONS
from hasten.model.initial import init_weights
from hasten.model.norm import make_norm
from hasten.model.quantized import QuantizedEmbedding
from hasten.model.stack import Stack
from hasten.ops.loss import Head, linear_cross_entropy, soft_cap


class Transform(nn.Module):
    """norm(activation(dense(x))), which BERT puts before its head (Devlin et al. 2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = make_norm(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> [..., D]."""
        return self.norm(self.activation(self.dense(hidden)))


def directly(head: Head, x: Tensor) -> Tensor:
    """head(x)."""
    return head(x)


class Transformer(nn.Module):
    """What all assemblies share: a table that tokens are read by, and a head that scores."""

    config: ModelConfig
    embedding: nn.Embedding | QuantizedEmbedding

    def add_tables(self, config: ModelConfig) -> None:
        """Give the model its embedding and its head."""
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        self.transform = Transform(config) if config.head_transform else None
        self.pooler = nn.Linear(config.dim, config.dim) if config.pooler else None
        headless = config.tied or config.head == "none"
        self.head = None if headless else nn.Linear(config.dim, config.head_rows, bias=False)
        self.head_bias = nn.Parameter(torch.empty(config.head_rows)) if config.head_bias else None
        # Two sockets, for devices that each hold some rows of the head's matrix.
        self.apply_head: Callable[[Head, Tensor], Tensor] = directly
        self.cross_entropy: Callable[..., Tensor] = linear_cross_entropy

    @property
    def head_weight(self) -> Tensor:
        """The matrix of `logits`, [V, D]."""
        return self.embedding.weight if self.head is None else self.head.weight

    def pooled(self, hidden: Tensor) -> Tensor:
        """The state of a whole text from that of one token: hidden [..., D] -> [..., D].

        That is an encoder's first token and a decoder's last.
        """
        if self.pooler is None:
            return hidden
        return (
            torch.tanh(self.pooler(hidden)) if self.config.pooler == "tanh" else F.relu(self.pooler(hidden))
        )

    def head_input(self, hidden: Tensor) -> Tensor:
        """What the head's matrix is applied to: hidden [..., D] -> [..., D].

        With a head of pooled classes, `hidden` are the states of an encoder's first tokens, a decoder's last.
        """
        if self.config.head == "pooled_classes":
            hidden = self.pooled(hidden)
        if self.transform is not None:
            hidden = self.transform(hidden)
        return hidden if self.config.logit_scale == 1 else hidden * self.config.logit_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of tokens or classes: hidden [..., D] -> [..., V]."""
        assert self.config.head != "none", "this model has no head: its hidden states are what it gives"
        return self.apply_head(self.scores, self.head_input(hidden))

    def scores(self, x: Tensor) -> Tensor:
        """The head applied to its input: x [..., D] -> [..., V]."""
        scores = self.tied_scores(x) if self.head is None else self.head(x)
        if self.head_bias is not None:
            scores = scores + self.head_bias.to(scores.dtype)
        cap = self.config.logit_soft_cap
        return scores if cap is None else soft_cap(scores, cap)

    def tied_scores(self, x: Tensor) -> Tensor:
        """x [..., D] times the table: [..., V]."""
        if isinstance(self.embedding, QuantizedEmbedding):
            return self.embedding.product(x)
        return F.linear(x, self.embedding.weight)

    @property
    def device(self) -> torch.device:
        """Where the table is, and all else of a model that one device holds."""
        return self.numbers.device

    @property
    def dtype(self) -> torch.dtype:
        """The type that the table's rows come in."""
        return self.numbers.dtype

    @property
    def numbers(self) -> Tensor:
        """A tensor that is where the table is, and of the type of its rows."""
        table = self.embedding
        return table.like if isinstance(table, QuantizedEmbedding) else table.weight

    def words(self, tokens: Tensor) -> Tensor:
        """The embeddings of tokens: [B, T] -> [B, T, D]."""
        return self.embedding(tokens)

    def blocks(self) -> list[Block]:
        """All blocks in the order in which they run."""
        return [module for module in self.modules() if isinstance(module, Block)]


class Decoder(Stack, Transformer):
    """Tokens to hidden states, each from the tokens before it; `logits` scores what comes next."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, num_layers=config.num_layers, causal=True)
        self.add_tables(config)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Hidden states after the final norm: tokens [B, T] -> [B, T, D].

        `positions` [T] or [B, T] count from 0 by default.  Attention stays within equal `segments` [B, T],
        or [B, S] where a cache holds earlier positions.
        """
        return self.read(self.words(tokens), positions, segments)


class Encoder(Stack, Transformer):
    """Tokens to hidden states, each from all tokens of its text (Devlin et al. 2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, num_layers=config.num_layers, causal=False)
        self.add_tables(config)
        kinds = config.num_token_types
        self.token_types = nn.Embedding(kinds, config.dim) if kinds else None

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """tokens [B, T] -> [B, T, D]; `token_types` [B, T] are 0 by default."""
        return self.read(self.words(tokens, token_types), positions, segments)

    def words(self, tokens: Tensor, token_types: Tensor | None = None) -> Tensor:
        """The embeddings of tokens, with those of their types: [B, T] -> [B, T, D]."""
        words = self.embedding(tokens)
        if self.token_types is not None:
            words = words + self.token_types(torch.zeros_like(tokens) if token_types is None else token_types)
        return words


class Seq2Seq(Transformer):
    """A source read by an encoder, and a decoder that looks at it (Vaswani et al. 2017)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.add_tables(config)
        own = None if config.shared_embeddings else nn.Embedding(config.source_vocabulary, config.dim)
        self.source_embedding = own
        self.encoder = Stack(config, num_layers=config.encoder_layers, causal=False)
        self.decoder = Stack(config, num_layers=config.decoder_layers, causal=True, crossed=True)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        source: Tensor,
        source_positions: Tensor | None = None,
        source_segments: Tensor | None = None,
    ) -> Tensor:
        """tokens [B, T], source [B, S] -> [B, T, D]; tokens see the source of their own segment."""
        memory = self.encode(source, source_positions, source_segments)
        return self.decode(tokens, memory, positions, segments, source_segments)

    def encode(
        self, source: Tensor, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """The memory: source [B, S] -> [B, S, D]."""
        return self.encoder.read(self.source_words(source), positions, segments)

    def source_words(self, source: Tensor) -> Tensor:
        """The embeddings of a source: [B, S] -> [B, S, D]."""
        table = self.embedding if self.source_embedding is None else self.source_embedding
        return table(source)

    def decode(
        self,
        tokens: Tensor,
        memory: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        memory_segments: Tensor | None = None,
    ) -> Tensor:
        """tokens [B, T], memory [B, S, D] -> [B, T, D].

        Without `segments`, tokens see what is 1 in `memory_segments` [B, S].
        """
        return self.decoder.read(self.words(tokens), positions, segments, memory, memory_segments)


ASSEMBLIES: dict[str, type[Decoder] | type[Encoder] | type[Seq2Seq]] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "seq2seq": Seq2Seq,
}


def assemble(config: ModelConfig) -> Decoder | Encoder | Seq2Seq:
    """The model that `config.kind` names, its weights as PyTorch leaves them."""
    return ASSEMBLIES[config.kind](config)


def build(config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> Decoder | Encoder | Seq2Seq:
    """The model on `device`, its weights given by the configuration and the seed alone."""
    with torch.device("meta"):
        model = assemble(config)
    model.to_empty(device=device)
    init_weights(model, seed)
    return model
