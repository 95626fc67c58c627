"""What can be counted of an architecture without building it: parameters, FLOPs, bytes.

Letters as in `shape.py`, which has the fields.
"""

from typing import Literal

from hasten.core.errors import ConfigError
from hasten.model.shape import LinearRope, Llama3Rope, Shape

__all__ = ["LinearRope", "Llama3Rope", "ModelConfig"]


class ModelConfig(Shape):
    """A Transformer: a decoder, an encoder, or both.

    `preset: NAME` fills in a published shape; keys given beside it win.  A key set to null takes its default.
    """

    @property
    def vocabulary(self) -> int:
        """`vocab_size`, once it is known."""
        if self.vocab_size is None:
            raise ConfigError("model.vocab_size is not known before there is a tokenizer; write a number")
        return self.vocab_size

    @property
    def source_vocabulary(self) -> int:
        """Rows of the table that the encoder of a seq2seq model reads by."""
        return self.source_vocab_size or self.vocabulary

    @property
    def head_rows(self) -> int:
        """How many things the head scores: tokens or classes, 0 without a head."""
        return self.vocabulary if self.head == "vocabulary" else self.num_classes or 0

    @property
    def attention_shapes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of query, key, value and out."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return [(self.dim, heads), (self.dim, kv_heads), (self.dim, kv_heads), (heads, self.dim)]

    @property
    def ffn_shapes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the feed-forward's matrices."""
        return [*[(self.dim, self.ffn_dim)] * (1 + self.gated), (self.ffn_dim, self.dim)]

    @property
    def block_shapes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each matrix of one block without cross-attention."""
        return [*self.attention_shapes, *self.ffn_shapes]

    @property
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each matrix of every block."""
        crossed = self.attention_shapes * self.decoder_layers if self.kind == "seq2seq" else []
        return self.block_shapes * (self.encoder_layers + self.decoder_layers) + crossed

    @property
    def num_matrix_parameters(self) -> int:
        """Parameters in the blocks' matrices: those that Muon updates."""
        return count(self.matrix_shapes)

    @property
    def norm_parameters(self) -> int:
        """Parameters of one norm over D: a weight, and a bias in a LayerNorm."""
        return self.dim * (2 if self.norm == "layer" else 1)

    @property
    def num_attention_parameters(self) -> int:
        """Parameters of one attention layer, with its biases and the norms of its heads."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        biases = self.attention_bias * (heads + 2 * kv_heads) + self.out_bias * self.dim
        return count(self.attention_shapes) + biases + self.qk_norm * 2 * self.head_dim

    @property
    def num_layer_parameters(self) -> int:
        """Parameters of one block without cross-attention."""
        norms = (4 if self.norm_place == "both" else 2) * self.norm_parameters
        biases = self.ffn_bias * ((1 + self.gated) * self.ffn_dim + self.dim)
        return self.num_attention_parameters + count(self.ffn_shapes) + biases + norms

    @property
    def num_side_parameters(self) -> int:
        """Parameters of one side beside its blocks: positions and norms."""
        positions = {
            "learned": (self.max_positions + self.position_offset) * self.dim,
            "relative": self.relative_buckets * self.num_heads,
        }
        norms = self.final_norm + (self.embedding_norm == "learned")
        return positions.get(self.position, 0) + norms * self.norm_parameters

    @property
    def num_head_parameters(self) -> int:
        """Parameters between the last hidden state and the scores, but for a tied matrix."""
        dense = self.dim * self.dim + self.dim
        transform = self.head_transform * (dense + self.norm_parameters)
        table = 0 if self.tied else self.head_rows * self.dim
        pooler = dense if self.pooler else 0
        return transform + pooler + table + self.head_bias * self.head_rows

    @property
    def num_parameters(self) -> int:
        """All parameters; a tied matrix is counted once."""
        blocks = (self.encoder_layers + self.decoder_layers) * self.num_layer_parameters
        sides = (self.encoder_layers > 0) + (self.decoder_layers > 0)
        tables = (self.vocabulary + self.num_token_types) * self.dim
        if self.kind == "seq2seq":
            blocks += self.decoder_layers * (self.num_attention_parameters + self.norm_parameters)
            tables += 0 if self.shared_embeddings else self.source_vocabulary * self.dim
        return blocks + sides * self.num_side_parameters + tables + self.num_head_parameters

    def forward_flops_per_token(
        self, row_tokens: int, *, source_tokens: int | None = None, head_share: float = 1.0
    ) -> int:
        """Floating-point operations of the forward pass per token, in rows of `row_tokens`.

        A multiply and an add are two.  Of the attention square the half that a decoder sees counts, as in
        Megatron-LM; norms, softmax and activations don't.  A seq2seq model's tokens are its targets: each
        bears its part of the `source_tokens` (by default as many) in a row.  `head_share` of the tokens go
        through the head.
        """
        heads, source = self.num_heads * self.head_dim, source_tokens or row_tokens
        block, cross = 2 * count(self.block_shapes), 2 * count(self.attention_shapes)
        head = head_share * 2 * self.dim * (self.head_rows + self.head_transform * self.dim)
        if self.kind == "encoder":
            return int(self.num_layers * (block + 4 * row_tokens * heads) + head)
        # Two products over the row_tokens / 2 positions that are seen on average.
        flops = self.num_layers * (block + 2 * row_tokens * heads) + head
        if self.kind == "seq2seq":
            # Keys and values of the cross-attention are products over the source.
            into = 2 * count(self.attention_shapes[1:3])
            encoder = self.encoder_layers * (block + 4 * source * heads) + self.num_layers * into
            flops += self.num_layers * (cross - into + 4 * source * heads) + encoder * source / row_tokens
        return int(flops)

    def flops_per_token(
        self, row_tokens: int, *, source_tokens: int | None = None, head_share: float = 1.0
    ) -> int:
        """Model FLOPs of a training step per token: forward once, backward twice, nothing recomputed."""
        return 3 * self.forward_flops_per_token(
            row_tokens, source_tokens=source_tokens, head_share=head_share
        )

    def kv_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        """Bytes that the key/value cache holds for one position."""
        return 2 * self.decoder_layers * self.num_kv_heads * self.head_dim * bytes_per_number

    def state_bytes(self, optimizer: Literal["adamw", "muon"] = "adamw") -> int:
        """Bytes of weights, gradients and optimizer in float32: 16 per parameter, 12 where Muon updates."""
        saved = 4 * self.num_matrix_parameters if optimizer == "muon" else 0
        return 16 * self.num_parameters - saved

    def activation_bytes(
        self, rows: int, row_tokens: int, *, bytes_per_number: int = 2, chunk_tokens: int | None = None
    ) -> int:
        """Bytes kept from forward to backward for one micro-batch of `rows` x `row_tokens`.

        Per layer, in numbers of width D: what each norm and each product keeps of its inputs, with the
        attention scores never stored (Korthikanti et al. 2022, and the same sum for gated layers).  The head
        adds its logits once in `bytes_per_number` and once in float32, for `chunk_tokens` at a time.  A
        source is as long as its targets.
        """
        tokens, layers = rows * row_tokens, self.encoder_layers + self.decoder_layers
        logits = min(chunk_tokens or tokens, tokens) * self.head_rows * (bytes_per_number + 4)
        masks = tokens * self.dim * (1 + 2 * layers) if self.dropout else 0
        kept = layers * self.activation_numbers_per_token
        if self.kind == "seq2seq":
            kept += self.decoder_layers * (2 * self.dim + self.attention_numbers_per_token)
        return tokens * kept * bytes_per_number + masks + logits + 8 * tokens

    @property
    def attention_numbers_per_token(self) -> int:
        """Numbers that one attention layer keeps per token for its backward pass, its input apart."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        copies = 1 + (self.position == "rotary") + self.qk_norm  # of queries and keys
        return copies * (heads + kv_heads) + kv_heads + heads

    @property
    def activation_numbers_per_token(self) -> int:
        """Numbers that one block keeps per token for its backward pass."""
        ffn = (4 if self.gated else 2) * self.ffn_dim
        return 4 * self.dim + self.attention_numbers_per_token + ffn


def count(shapes: list[tuple[int, int]]) -> int:
    """Numbers in matrices of these shapes."""
    return sum(inputs * outputs for inputs, outputs in shapes)
