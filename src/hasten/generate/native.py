"""A decoder as `ops/kernels/cpu/decode.cpp` reads it: one call a token for the whole model.

The classes named like C structures are those of that file, field by field.
"""

from collections.abc import Mapping
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from typing import Any, cast

import torch
from torch import Tensor, nn

from hasten.generate.half import half_weights
from hasten.generate.twelve import Packed, twelve_bits
from hasten.model.attention import Attention
from hasten.model.block import Block
from hasten.model.config import ModelConfig
from hasten.model.feed_forward import FeedForward
from hasten.model.norm import LayerNorm, RMSNorm
from hasten.model.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedWeight, quantized_weights
from hasten.model.transformer import Decoder
from hasten.ops.kernels.library import kernels, on_cpu
from hasten.ops.kernels.matrix import KINDS, MIXED, PANELS, TWELVE, Matrix, integer_matrix, packed

ACTIVATIONS = {
    "gelu": 0, "gelu_tanh": 1, "relu_squared": 2, "silu": 3, "relu": 4,
    "geglu": 0, "geglu_tanh": 1, "swiglu": 3,
}  # fmt: skip
PLACES = {"before": 0, "after": 1, "both": 2}
KNOWN = {
    Decoder,
    Block,
    Attention,
    FeedForward,
    RMSNorm,
    *(nn.Embedding, nn.ModuleDict, nn.Linear, LayerNorm, nn.Identity),
    *(QuantizedEmbedding, QuantizedLinear),
}
"""What the C++ computes; a model with anything else in it decodes in PyTorch."""
COMPUTED = {
    "vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "activation", "ffn_dim",
    "max_positions", "position", "rope_theta", "rope_scaling", "norm", "norm_eps", "embedding_norm",
    "qk_norm", "attention_bias", "out_bias", "ffn_bias", "tied", "logit_soft_cap", "position_offset",
    "rotary_share", "local_rope_theta", "norm_place", "norm_offset", "final_norm", "parallel_block",
    "embedding_scale", "attention_scale", "attention_soft_cap", "sliding_window", "window_layers",
    "head_bias",
}  # fmt: skip
"""Choices that the C++ follows, `ACTIVATIONS` and positions as in `follows`."""
ELSEWHERE = {
    "kind",
    "preset",
    "dropout",
    "attention_dropout",
    "init_std",
    "zero_init_outputs",
    "shared_embeddings",
}
"""Choices that a step of a decoder does not ask about."""
THREADED_BYTES = 2**20
"""Weights of fewer bytes are read by one thread before another would have begun."""


class Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class Layer(Structure):
    _fields_ = [
        *((name, Norm) for name in ("attention_norm", "ffn_norm", "query_norm", "key_norm")),
        *((name, Norm) for name in ("attention_out_norm", "ffn_out_norm")),
        *((name, Matrix) for name in ("query", "key", "value", "out", "gate", "up", "down")),
        ("window", c_int64),
        ("local", c_int64),
    ]


class Model(Structure):
    _fields_ = [
        ("layers", POINTER(Layer)),
        ("embedding", Matrix),
        ("positions", c_void_p),
        ("norm", Norm),
        ("head", Matrix),
        *((name, c_int64) for name in ("num_layers", "dim", "heads", "kv_heads", "head_dim", "ffn_dim")),
        *((name, c_int64) for name in ("activation", "layer_norm", "embedding_norm", "qk_norm")),
        *((name, c_int64) for name in ("norm_place", "parallel", "final_norm", "turned")),
        *((name, c_int64) for name in ("weight_kind", "position_kind", "cache_kind")),
        *((name, c_float) for name in ("norm_eps", "soft_cap", "attention_cap")),
        *((name, c_float) for name in ("embedding_scale", "attention_scale")),
    ]


class Cache(Structure):
    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("local_cosines", c_void_p),
        ("local_sines", c_void_p),
        ("starts", c_void_p),
        ("rows", c_int64),
        ("filled", c_int64),
        ("capacity", c_int64),
        ("joined", c_int64),
    ]


class NativeDecoder:
    """The weights of a `Decoder`, as they are or as a smaller copy, ready for `step`.

    It points into the model's parameters: where they change, make another.  `twelve` allows bfloat16 in
    twelve bits, which changes no number; `half` allows float32 to be rounded to float16, keys and values too.
    Where neither can hold the weights, they stay as they are.  Small integers are laid out anew.
    """

    def __init__(self, model: Decoder, *, half: bool = False, twelve: bool = False) -> None:
        self.decode_step = kernels().decode_step
        self.held: list[Tensor] = []  # what the structures point to
        stored = model.dtype
        matrices = matrices_of(model)
        copies = smaller(matrices, half=half, twelve=twelve)
        self.matrices: Mapping[nn.Module, Tensor | Packed] = copies[0] if copies else matrices
        self.kind = copies[1] if copies else KINDS[stored]
        self.integers = {
            layer: packed(integer_matrix(*layer.stored))
            for _, layer in quantized_weights(model)
            if isinstance(layer, QuantizedLinear) or model.head is None
        }
        self.shapes = {module: matrix.shape for module, matrix in matrices.items()}
        shorter = self.kind != KINDS[stored] or bool(self.integers)
        self.cache_dtype = torch.float16 if half and shorter else stored
        self.local = model.config.local_rope_theta is not None
        self.layers = (Layer * len(model.layers))(*map(self.layer, model.layers.values()))
        self.model = self.describe(model)
        self.num_bytes = sum(matrix.nbytes for matrix in self.matrices.values())
        self.num_bytes += sum(panels.nbytes for panels in self.integers.values())

    def describe(self, model: Decoder) -> Model:
        """The structure for the whole model."""
        c, positions = model.config, None if model.positions is None else model.positions.weight
        head = self.matrix(model.embedding if model.head is None else model.head)
        head.bias = self.float32(model.head_bias)
        return Model(
            layers=self.layers,
            embedding=self.table(model.embedding),
            positions=pointer_to(positions, c.position_offset),
            norm=self.norm(model.norm),
            head=head,
            num_layers=c.num_layers, dim=c.dim, heads=c.num_heads, kv_heads=c.num_kv_heads,
            head_dim=c.head_dim, ffn_dim=c.ffn_dim,
            activation=ACTIVATIONS[c.activation], layer_norm=c.norm == "layer",
            embedding_norm=c.embedding_norm, qk_norm=c.qk_norm,
            norm_place=PLACES[c.norm_place], parallel=c.parallel_block, final_norm=c.final_norm,
            turned=c.rotary_dim // 2,
            weight_kind=MIXED if self.integers else self.kind,
            position_kind=0 if positions is None else KINDS[positions.dtype],
            cache_kind=KINDS[self.cache_dtype],
            norm_eps=c.norm_eps, soft_cap=c.logit_soft_cap or 0.0, attention_cap=c.attention_soft_cap or 0.0,
            embedding_scale=c.embedding_scale, attention_scale=c.attention_scale or c.head_dim**-0.5,
        )  # fmt: skip

    def layer(self, block: Any) -> Layer:
        """The structure for a block."""
        attention, ffn, window = block.attention, block.ffn, block.attention.window
        norms = ("attention_norm", "ffn_norm", "attention_out_norm", "ffn_out_norm")
        return Layer(
            window=window or 0,
            local=self.local and window is not None,
            **{name: self.norm(getattr(block, name)) for name in norms},
            **{name: self.norm(getattr(attention, name)) for name in ("query_norm", "key_norm")},
            **{name: self.matrix(getattr(attention, name)) for name in ("query", "key", "value", "out")},
            **{name: self.matrix(getattr(ffn, name)) for name in ("gate", "up", "down")},
        )

    def norm(self, module: nn.Module | None) -> Norm:
        """The structure for a norm; empty for the identity, and for none."""
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, RMSNorm) and module.offset:
            weight = module.weight.detach().float() + 1
        return Norm(self.float32(weight), self.float32(bias))

    def matrix(self, module: nn.Module | None) -> Matrix:
        """The structure for a linear layer, or for an embedding that serves as one; empty for None."""
        if module is None:
            return Matrix()
        bias = self.float32(getattr(module, "bias", None))
        if isinstance(module, QuantizedWeight):
            matrix = integer_matrix(*module.stored)
            matrix.weight, matrix.kind = self.integers[module].data_ptr(), PANELS[module.bits]
            matrix.bias, matrix.planes = bias, 1 if module.integers else 3
            return matrix
        weight, shape = self.matrices[module], self.shapes[module]
        if not isinstance(weight, Packed):
            return Matrix(weight.data_ptr(), bias, *shape, kind=self.kind)
        beside = weight.exponents.data_ptr(), weight.odd.data_ptr(), len(weight.odd), weight.whole.data_ptr()
        return Matrix(weight.blocks.data_ptr(), bias, *shape, *beside, kind=self.kind)

    def table(self, module: nn.Module) -> Matrix:
        """The structure for the rows that tokens are read by."""
        if isinstance(module, QuantizedWeight):
            return integer_matrix(*module.stored)
        weight = cast(Tensor, module.weight)
        return Matrix(weight.data_ptr(), None, *weight.shape, kind=KINDS[weight.dtype])

    def float32(self, vector: Tensor | None) -> int | None:
        """Where a vector lies in float32."""
        if vector is None:
            return None
        self.held.append(vector.detach().float())
        return self.held[-1].data_ptr()

    def step(self, cache: Cache, tokens: Tensor, logits: Tensor) -> None:
        """Read one more token of every row: tokens [B] -> logits [B, V], float32, written in place.

        Where the cache says that rows are joined: B more tokens of its one text.
        """
        threads = torch.get_num_threads() if self.num_bytes >= THREADED_BYTES else 1
        self.decode_step(
            byref(self.model), byref(cache), c_void_p(tokens.data_ptr()), c_void_p(logits.data_ptr()),
            c_int64(threads),
        )  # fmt: skip


def pointer_to(tensor: Tensor | None, row: int = 0) -> int | None:
    """Where the numbers of a tensor's row begin."""
    return None if tensor is None else tensor[row:].data_ptr()


def matrices_of(model: Decoder) -> dict[nn.Module, Tensor]:
    """The weight of every linear layer but integers, the head among them even where it is the embedding."""
    found: dict[nn.Module, Tensor] = {
        module: module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)
    }
    if model.head is None and isinstance(model.embedding, nn.Embedding):
        found[model.embedding] = model.embedding.weight.detach()
    return found


def smaller(
    matrices: dict[nn.Module, Tensor], *, half: bool, twelve: bool
) -> tuple[dict[nn.Module, Tensor | Packed], int] | None:
    """Copies of the matrices that are read faster, and their kind; None where nothing allowed holds them."""
    weights = list(matrices.values())
    if not weights:
        return None
    if twelve and (packed := twelve_bits(weights)):
        return dict(zip(matrices, packed, strict=True)), TWELVE
    if half and (halved := half_weights(weights)):
        return dict(zip(matrices, halved, strict=True)), KINDS[torch.float16]
    return None


def follows(config: ModelConfig) -> bool:
    """Whether the C++ makes every choice as this model does; those that it does not know stay at defaults."""
    plain = ModelConfig()
    others = ModelConfig.model_fields.keys() - COMPUTED - ELSEWHERE
    return (
        config.kind == "decoder"
        and config.activation in ACTIVATIONS
        and config.position in ("rotary", "learned", "none")
        and config.embedding_norm in (False, True)
        and all(getattr(config, name) == getattr(plain, name) for name in others)
    )


def can_decode(model: Decoder) -> bool:
    """Whether the C++ is here and computes what this model does: plain layers, whole, one precision."""
    tensors = [*model.parameters(), *model.buffers()]
    return (
        on_cpu(*tensors)
        and follows(model.config)
        and {p.dtype for p in model.parameters()} <= {model.dtype}
        and model.dtype in KINDS
        and all(type(module) in KNOWN for module in model.modules())
        and all(tensor.is_contiguous() for tensor in tensors)
        and len(model.layers) == model.config.num_layers
    )
