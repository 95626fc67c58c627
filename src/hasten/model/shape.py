"""An architecture as frozen data: every choice that a Transformer of ours can make, and which go together.

Letters: D model width, H query heads, G key/value heads, K head width, F feed-forward width, L layers,
V vocabulary.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from hasten.core.config import Config
from hasten.core.errors import did_you_mean
from hasten.model.presets import PRESETS

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu_squared", "silu", "swiglu", "geglu", "geglu_tanh"]
GATED = ("swiglu", "geglu", "geglu_tanh")
SPAN_CLASSES = ("start", "end")
"""The classes of tokens that tell where an answer begins and ends."""
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


class Shape(Config):
    """The fields of `ModelConfig`.

    `preset: NAME` fills in a published shape; keys given beside it win.  A key set to null takes its default.
    """

    kind: Literal["decoder", "encoder", "seq2seq"] = Field(
        "decoder", description="GPT's kind, BERT's, or an encoder with a decoder that reads it"
    )
    preset: str | None = Field(
        None, description="a published shape to start from", json_schema_extra={"enum": [*PRESETS, None]}
    )
    vocab_size: Positive | None = Field(None, description="null: as many as the tokenizer has")
    dim: Positive = 256
    num_layers: Positive = Field(4, description="of the decoder, where there is an encoder beside it")
    num_encoder_layers: Positive | None = Field(None, description="seq2seq; null: as many as num_layers")
    num_heads: Positive = 4
    num_kv_heads: Positive = Field(
        default_factory=lambda given: given["num_heads"],
        description="fewer than num_heads share keys and values between query heads (Ainslie et al. 2023)",
    )
    head_dim: Positive = Field(
        default_factory=lambda given: max(given["dim"] // given["num_heads"], 1),
        description="width of one head; dim / num_heads by default",
    )
    activation: Activation = "gelu"
    ffn_dim: Positive = Field(
        default_factory=lambda given: default_ffn_dim(given["dim"], given["activation"]),
        description="inner width of the feed-forward layer; 4 dim, or 8/3 dim where it is gated",
    )
    max_positions: Positive = Field(1024, description="longest context in tokens")
    position: Literal["rotary", "learned", "sinusoidal", "relative", "none"] = Field(
        "rotary", description="relative: T5's bucketed distances, one table for all layers of a side"
    )
    position_offset: NonNegativeInt = Field(
        0, description="learned positions begin at this row of their table (OPT and RoBERTa: 2)"
    )
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_share: float = Field(1.0, gt=0, le=1, description="of each head that is turned (GPT-NeoX: 0.25)")
    local_rope_theta: PositiveFloat | None = Field(None, description="of the layers that have a window")
    relative_buckets: Positive = 32
    relative_distance: Positive = Field(128, description="distances above share the last bucket")
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: PositiveFloat = 1e-6
    norm_place: Literal["before", "after", "both"] = Field(
        "before", description="after: norm(x + f(x)), as in 2017; both: x + norm(f(norm(x))), as in Gemma 2"
    )
    norm_offset: bool = Field(False, description="norms multiply by 1 + weight (Gemma)")
    final_norm: bool = Field(
        default_factory=lambda given: given["norm_place"] != "after",
        description="normalise what the last layer gives; by default unless it has been",
    )
    parallel_block: bool = Field(
        False, description="x + attention(norm(x)) + feed_forward(norm(x)), as in GPT-NeoX"
    )
    embedding_norm: bool | Literal["learned"] = Field(
        False, description="normalise what enters the first layer; learned: by the model's norm (BERT)"
    )
    embedding_scale: PositiveFloat = Field(1.0, description="of word embeddings; sqrt(dim) in 2017")
    num_token_types: NonNegativeInt = Field(0, description="BERT's marks for first and second sentence")
    qk_norm: bool = Field(False, description="normalise queries and keys per head before they meet")
    attention_bias: bool = Field(False, description="biases on the query, key and value projections")
    attention_scale: PositiveFloat | None = Field(None, description="null: 1 / sqrt(head_dim)")
    attention_soft_cap: PositiveFloat | None = Field(None, description="scores become cap * tanh(s / cap)")
    sliding_window: Positive | None = Field(
        None, description="a position sees so many, itself and those before it"
    )
    window_layers: tuple[NonNegativeInt, ...] | None = Field(
        None, description="the layers, from 0, that have the window; null: all"
    )
    out_bias: bool = Field(False, description="bias on the attention's output projection")
    ffn_bias: bool = Field(False, description="biases in the feed-forward layer")
    head: Literal["vocabulary", "pooled_classes", "token_classes", "none"] = Field(
        "vocabulary", description="what is read out: tokens, a class of each text or token, hidden states"
    )
    num_classes: Positive | None = Field(None, description="of a head of classes")
    class_names: tuple[str, ...] | None = Field(
        None, description="of each class, in order; start and end: where an answer begins and ends"
    )
    pooler: Literal["tanh", "relu"] | None = Field(
        None, description="a dense layer over the first token's state, and what follows it"
    )
    head_transform: bool = Field(False, description="dense, activation and norm before the head (BERT)")
    head_bias: bool = Field(False, description="a bias on the head")
    tied: bool = Field(False, description="the head uses the embedding's matrix")
    logit_scale: PositiveFloat = Field(1.0, description="of hidden states as they enter the head (T5)")
    logit_soft_cap: PositiveFloat | None = Field(None, description="logits become cap * tanh(logits / cap)")
    shared_embeddings: bool = Field(True, description="seq2seq: both sides read by one table")
    source_vocab_size: Positive | None = Field(None, description="of the encoder's own table")
    start_id: NonNegativeInt | None = Field(None, description="seq2seq: the token that decoding begins with")
    dropout: float = Field(0.0, ge=0, lt=1)
    attention_dropout: float = Field(
        default_factory=lambda given: given["dropout"],
        ge=0,
        lt=1,
        description="of attention's probabilities, by default as `dropout`; above 0 is slower on GPUs",
    )
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
        # What this gives counts as Python's values, of which a list is no tuple to a strict model.
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in merged.items()}
        return {key: value for key, value in values.items() if value is not None}

    @model_validator(mode="after")
    def check(self) -> "Shape":
        """Refuse what does not go together."""
        troubles = (self.heads_trouble, self.position_trouble, self.norm_trouble, self.kind_trouble)
        for trouble in (*troubles, self.class_trouble):
            if found := trouble():
                raise ValueError(found)
        return self

    def heads_trouble(self) -> str | None:
        """What is wrong with the widths of heads."""
        if "head_dim" not in self.model_fields_set and self.dim % self.num_heads:
            nearest = max(round(self.dim / self.num_heads), 1) * self.num_heads
            return (
                f"dim ({self.dim}) must be a multiple of num_heads ({self.num_heads}) unless head_dim is"
                f" given; the nearest is {nearest}"
            )
        if self.num_heads % self.num_kv_heads:
            fitting = [n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            return (
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads});"
                f" num_kv_heads can be {', '.join(map(str, fitting))}"
            )
        return None

    def position_trouble(self) -> str | None:
        """What is wrong with the way positions are told."""
        rotary = self.position == "rotary"
        if rotary and self.rotary_dim % 2:
            return (
                f"rotary positions turn pairs of numbers, so head_dim ({self.head_dim}) must be even;"
                f" write head_dim: {self.head_dim + 1} or position: learned"
            )
        for name in ("rope_scaling", "local_rope_theta"):
            if getattr(self, name) is not None and not rotary:
                return f"{name} needs position: rotary, and position is {self.position}"
        if self.position_offset and self.position != "learned":
            return f"position_offset needs position: learned, and position is {self.position}"
        if self.position == "sinusoidal" and self.dim % 2:
            return f"sinusoidal positions are pairs of numbers, so dim ({self.dim}) must be even"
        if self.sliding_window is None and (self.window_layers is not None or self.local_rope_theta):
            return "window_layers and local_rope_theta are for layers with a window; write sliding_window too"
        beyond = [layer for layer in self.window_layers or () if layer >= self.num_layers]
        if beyond:
            return f"window_layers names layer {beyond[0]}, and there are {self.num_layers}, counted from 0"
        return None

    def norm_trouble(self) -> str | None:
        """What is wrong with the norms."""
        if self.norm_offset and self.norm != "rms":
            return "norm_offset is for norm: rms; leave it out"
        if self.parallel_block and (self.norm_place != "before" or self.kind == "seq2seq"):
            return "parallel_block needs norm_place: before, and a decoder or an encoder"
        if self.head_transform and self.activation in GATED:
            return f"head_transform needs a plain activation, and {self.activation} is gated"
        return None

    def kind_trouble(self) -> str | None:
        """What is wrong with the parts that only some kinds have."""
        only = {
            "seq2seq": ("num_encoder_layers", "source_vocab_size", "start_id"),
            "encoder": ("num_token_types", "pooler", "head_transform"),
        }
        for kind, names in only.items():
            for name in names:
                if getattr(self, name) and self.kind != kind:
                    return f"{name} is for kind: {kind}, and kind is {self.kind}; leave it out"
        if self.kind != "decoder" and self.sliding_window is not None:
            return f"sliding_window is for kind: decoder, and kind is {self.kind}; leave it out"
        if self.shared_embeddings and self.source_vocab_size is not None:
            return "source_vocab_size is for the encoder's own table; write shared_embeddings: false too"
        if self.kind == "seq2seq" and self.head != "vocabulary":
            return f"head: {self.head} is for encoders and decoders; a seq2seq model has head: vocabulary"
        if self.tied and self.head != "vocabulary":
            return f"tied is for head: vocabulary, and head is {self.head}; leave it out"
        return None

    def class_trouble(self) -> str | None:
        """What is wrong with classes and their names."""
        classes = self.head in ("pooled_classes", "token_classes")
        if classes != (self.num_classes is not None):
            return f"head: {self.head} {'needs' if classes else 'has no'} num_classes"
        names = self.class_names
        if names is None:
            return None
        if not classes:
            return f"class_names is for a head of classes, and head is {self.head}; leave it out"
        if len(names) != self.num_classes:
            return (
                f"class_names has {len(names)} names, and num_classes is {self.num_classes}; name each once"
            )
        if len(set(names)) < len(names) or not all(names):
            return "class_names has a name twice or an empty one; give each class a name of its own"
        return None

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a third matrix, the gate."""
        return self.activation in GATED

    @property
    def rotary_dim(self) -> int:
        """How many numbers of each head are turned."""
        return int(self.head_dim * self.rotary_share)

    @property
    def encoder_layers(self) -> int:
        """Blocks on the encoder's side, 0 in a decoder."""
        if self.kind == "decoder":
            return 0
        return (self.num_encoder_layers or self.num_layers) if self.kind == "seq2seq" else self.num_layers

    @property
    def decoder_layers(self) -> int:
        """Blocks on the decoder's side, 0 in an encoder."""
        return 0 if self.kind == "encoder" else self.num_layers

    def window_of(self, layer: int) -> int | None:
        """The sliding window of a layer."""
        with_window = self.window_layers is None or layer in self.window_layers
        return self.sliding_window if with_window else None


def default_ffn_dim(dim: int, activation: str) -> int:
    """4 D for two matrices; for three, 8/3 D rounded up, which has as many parameters (Shazeer 2020)."""
    if activation not in GATED:
        return 4 * dim
    return -(-8 * dim // (3 * FFN_MULTIPLE)) * FFN_MULTIPLE
