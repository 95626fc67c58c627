"""An architecture as frozen data, and what can be counted without building it.

Letters: D model width, H query heads, G key/value heads, K head width, F feed-forward width, L layers,
V vocabulary.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hasten.core.config import Config
from hasten.core.errors import ConfigError, did_you_mean
from hasten.model.presets import PRESETS

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
FFN_MULTIPLE = 64
"""A gated feed-forward of width 8/3 D is rounded up to this, a width that matrix units like."""


class LinearRope(Config):
    """Longer contexts by position interpolation: every position is divided by `factor` (Chen et al. 2023)."""

    kind: Literal["linear"] = "linear"
    factor: PositiveFloat


class Llama3Rope(Config):
    """Longer contexts as in Llama 3.1: slow rotations are divided by `factor`, fast ones are kept.

    A rotation is slow when it turns less than `low_frequency` times in the context that the model was
    first trained on, fast when it turns more than `high_frequency` times, and blended in between.
    """

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat = 8.0
    low_frequency: PositiveFloat = 1.0
    high_frequency: PositiveFloat = 4.0
    original_positions: Positive = 8192

    @model_validator(mode="after")
    def check_frequencies(self) -> "Llama3Rope":
        if self.high_frequency <= self.low_frequency:
            raise ValueError(
                f"high_frequency ({self.high_frequency:g}) must be above low_frequency"
                f" ({self.low_frequency:g}); Llama 3.1 has 4 and 1"
            )
        return self


RopeScaling = Annotated[LinearRope | Llama3Rope, Field(discriminator="kind")]


class ModelConfig(Config):
    """A decoder-only Transformer.

    `preset: NAME` fills in a published shape; keys given beside it win.  A key set to null takes its default.
    """

    kind: Literal["decoder"] = "decoder"
    preset: str | None = Field(
        None, description="a published shape to start from", json_schema_extra={"enum": [*PRESETS, None]}
    )
    vocab_size: Positive | None = Field(None, description="null: as many as the tokenizer has")
    dim: Positive = 256
    num_layers: Positive = 4
    num_heads: Positive = 4
    num_kv_heads: Positive = Field(
        default_factory=lambda given: given["num_heads"],
        description="fewer than num_heads share keys and values between query heads (Ainslie et al. 2023)",
    )
    head_dim: Positive = Field(
        default_factory=lambda given: max(given["dim"] // given["num_heads"], 1),
        description="width of one head; dim / num_heads by default",
    )
    activation: Literal["gelu", "gelu_tanh", "relu_squared", "swiglu"] = "gelu"
    ffn_dim: Positive = Field(
        default_factory=lambda given: default_ffn_dim(given["dim"], given["activation"]),
        description="inner width of the feed-forward layer; 4 dim, or 8/3 dim where it is gated (swiglu)",
    )
    max_positions: Positive = Field(1024, description="longest context in tokens")
    position: Literal["rotary", "learned", "none"] = "rotary"
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: PositiveFloat = 1e-6
    embedding_norm: bool = Field(False, description="normalise the embeddings as they enter the first layer")
    qk_norm: bool = Field(False, description="normalise queries and keys per head before they meet")
    attention_bias: bool = Field(False, description="biases on the query, key and value projections")
    out_bias: bool = Field(False, description="bias on the attention's output projection")
    ffn_bias: bool = Field(False, description="biases in the feed-forward layer")
    tied: bool = Field(False, description="the head uses the embedding's matrix")
    logit_soft_cap: PositiveFloat | None = Field(None, description="logits become cap * tanh(logits / cap)")
    dropout: float = Field(0.0, ge=0, lt=1)
    init_std: PositiveFloat | None = Field(None, description="of the matrices; null: 1 / sqrt(inputs)")
    zero_init_outputs: bool = Field(False, description="every layer begins as the identity")

    @model_validator(mode="before")
    @classmethod
    def from_preset(cls, given: Any) -> Any:
        """Put the given keys on top of those of `preset`, and drop nulls: they stand for the default."""
        if not isinstance(given, dict):
            return given
        name, shape = given.get("preset"), {}
        if name is not None:
            if name not in PRESETS:
                near = did_you_mean(str(name), PRESETS)
                raise ValueError(f"there is no preset {name!r}.{near} Choose from {', '.join(PRESETS)}")
            shape = PRESETS[name]
        merged = {**shape, **given}
        return {key: value for key, value in merged.items() if value is not None}

    @model_validator(mode="after")
    def check_shape(self) -> "ModelConfig":
        if "head_dim" not in self.model_fields_set and self.dim % self.num_heads:
            nearest = max(round(self.dim / self.num_heads), 1) * self.num_heads
            raise ValueError(
                f"dim ({self.dim}) must be a multiple of num_heads ({self.num_heads}) unless head_dim is"
                f" given; the nearest is {nearest}"
            )
        if self.num_heads % self.num_kv_heads:
            fitting = [n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads});"
                f" num_kv_heads can be {', '.join(map(str, fitting))}"
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(
                f"rotary positions turn pairs of numbers, so head_dim ({self.head_dim}) must be even;"
                f" write head_dim: {self.head_dim + 1} or position: learned"
            )
        if self.rope_scaling is not None and self.position != "rotary":
            raise ValueError(f"rope_scaling needs position: rotary, and position is {self.position}")
        return self

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a third matrix, the gate."""
        return self.activation == "swiglu"

    @property
    def vocabulary(self) -> int:
        """`vocab_size`, once it is known."""
        if self.vocab_size is None:
            raise ConfigError("model.vocab_size is not known before there is a tokenizer; write a number")
        return self.vocab_size

    @property
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each matrix of a block: query, key, value, out, then the feed-forward's."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = [(self.dim, heads), (self.dim, kv_heads), (self.dim, kv_heads), (heads, self.dim)]
        return [*attention, *[(self.dim, self.ffn_dim)] * (1 + self.gated), (self.ffn_dim, self.dim)]

    @property
    def num_layer_parameters(self) -> int:
        """Parameters of one block."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        matrices = self.num_matrix_parameters // self.num_layers
        norms = 2 * self.norm_parameters + self.qk_norm * 2 * self.head_dim
        biases = self.attention_bias * (heads + 2 * kv_heads) + self.out_bias * self.dim
        return matrices + norms + biases + self.ffn_bias * ((1 + self.gated) * self.ffn_dim + self.dim)

    @property
    def norm_parameters(self) -> int:
        """Parameters of one norm over D: a weight, and a bias in a LayerNorm."""
        return self.dim * (2 if self.norm == "layer" else 1)

    @property
    def num_parameters(self) -> int:
        """All parameters; a tied matrix is counted once."""
        tables = self.vocabulary * self.dim * (1 if self.tied else 2)
        positions = self.max_positions * self.dim if self.position == "learned" else 0
        return self.num_layers * self.num_layer_parameters + tables + positions + self.norm_parameters

    def forward_flops_per_token(self, row_tokens: int) -> int:
        """Floating-point operations of the forward pass per token, in rows of `row_tokens`.

        A multiply and an add are two.  The causal half of the attention square counts, as in Megatron-LM;
        norms, softmax and activations don't.
        """
        heads = self.num_heads * self.head_dim
        attention = 2 * row_tokens * heads  # two products over the row_tokens / 2 positions seen on average
        return 2 * self.num_matrix_parameters + self.num_layers * attention + 2 * self.dim * self.vocabulary

    def flops_per_token(self, row_tokens: int) -> int:
        """Model FLOPs of a training step per token: forward once, backward twice, nothing recomputed."""
        return 3 * self.forward_flops_per_token(row_tokens)

    def kv_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        """Bytes that the key/value cache holds for one position."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_number

    @property
    def num_matrix_parameters(self) -> int:
        """Parameters in the blocks' matrices: those that Muon updates."""
        return self.num_layers * sum(inputs * outputs for inputs, outputs in self.matrix_shapes)

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
        adds its logits once in `bytes_per_number` and once in float32, for `chunk_tokens` at a time.
        """
        tokens = rows * row_tokens
        logits = min(chunk_tokens or tokens, tokens) * self.vocabulary * (bytes_per_number + 4)
        masks = tokens * self.dim * (1 + 2 * self.num_layers) if self.dropout else 0
        layer = tokens * self.activation_numbers_per_token * bytes_per_number
        return self.num_layers * layer + masks + logits + 8 * tokens

    @property
    def activation_numbers_per_token(self) -> int:
        """Numbers that one block keeps per token for its backward pass."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        copies = 1 + (self.position == "rotary") + self.qk_norm  # of queries and keys
        attention = copies * (heads + kv_heads) + kv_heads + heads
        ffn = (4 if self.gated else 2) * self.ffn_dim
        return 4 * self.dim + attention + ffn


def default_ffn_dim(dim: int, activation: str) -> int:
    """4 D for two matrices; for three, 8/3 D rounded up, which has as many parameters (Shazeer 2020)."""
    if activation != "swiglu":
        return 4 * dim
    return -(-8 * dim // (3 * FFN_MULTIPLE)) * FFN_MULTIPLE
