"""What a model asks of devices, reduced to a dozen numbers, so that thousands of layouts can be tried."""

from dataclasses import dataclass
from functools import cached_property

from hasten.model.config import ModelConfig

MASK_BYTES = 1  # of a dropout mask, per number


@dataclass(frozen=True)
class Work:
    """Sizes of a model.  A sequence-to-sequence model counts as a stack of its mean layer."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    gated: bool
    matrix_parameters: float  # of one layer, split over `tensor`
    norm_parameters: float  # of one layer, on every device of a tensor group
    input_parameters: int  # embedding and positions, on the first stage
    head_parameters: int  # on the last stage; a tied matrix is there once more
    head_rows: int
    kept_norms: float  # numbers a layer keeps per token, those that only sequence parallelism splits
    kept_split: float  # and those that tensor parallelism splits
    scores: int  # bytes per token and position of attention that stores its square, all heads
    masks: int  # bytes of dropout masks per token and layer
    causal: bool
    parameters: int
    muon_share: float  # of the parameters, those in the layers' matrices

    @property
    def ends(self) -> float:
        """Parameters beside the layers, a tied matrix counted once."""
        return self.parameters - self.layers * (self.matrix_parameters + self.norm_parameters)

    @cached_property
    def attended(self) -> int:
        """Width of queries, all heads."""
        return self.heads * self.head_dim

    @classmethod
    def of(cls, model: ModelConfig) -> "Work":
        """The numbers of a model whose vocabulary is known."""
        layers = model.encoder_layers + model.decoder_layers
        matrices = model.num_matrix_parameters
        tied_copy = model.dim * model.head_rows if model.tied else 0
        inputs = model.num_parameters - model.num_head_parameters
        norms = model.num_layer_parameters - sum(a * b for a, b in model.block_shapes)
        crossed = (2 * model.dim + model.attention_numbers_per_token) * model.decoder_layers / layers
        extra = crossed if model.kind == "seq2seq" else 0.0
        return cls(
            layers=layers,
            dim=model.dim,
            heads=model.num_heads,
            kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            ffn_dim=model.ffn_dim,
            gated=model.gated,
            matrix_parameters=matrices / layers,
            norm_parameters=norms,
            input_parameters=int(inputs - matrices - layers * norms),
            head_parameters=model.num_head_parameters + tied_copy,
            head_rows=model.head_rows,
            kept_norms=4.0 * model.dim,
            kept_split=model.activation_numbers_per_token - 4 * model.dim + extra,
            scores=5 * model.num_heads,
            masks=2 * MASK_BYTES * model.dim if model.dropout else 0,
            causal=model.kind == "decoder",
            parameters=model.num_parameters,
            muon_share=matrices / model.num_parameters,
        )

    def matrix_flops(self) -> float:
        """Forward FLOPs per token of one layer's matrices."""
        return 2.0 * self.matrix_parameters

    def attention_flops(self, row_tokens: int) -> float:
        """Forward FLOPs per token of one layer's attention square; a decoder sees half of it."""
        return (2.0 if self.causal else 4.0) * row_tokens * self.attended

    def head_flops(self) -> float:
        """Forward FLOPs per token of the head."""
        return 2.0 * self.dim * self.head_rows

    def flops(self, row_tokens: int) -> float:
        """Model FLOPs of a training step per token."""
        layer = self.matrix_flops() + self.attention_flops(row_tokens)
        return 3.0 * (self.layers * layer + self.head_flops())

    def head_layers(self, row_tokens: int) -> float:
        """How many layers the head costs."""
        return self.head_flops() / (self.matrix_flops() + self.attention_flops(row_tokens))
