"""A decoder as `ops/kernels/cpu/decode.cpp` reads it: one call a token for the whole model.

The classes named like C structures are those of that file, field by field.
"""

from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor, nn

from hasten.generate.half import half_weights
from hasten.model.attention import Attention
from hasten.model.block import Block
from hasten.model.feed_forward import FeedForward
from hasten.model.norm import LayerNorm, RMSNorm
from hasten.model.transformer import Decoder
from hasten.ops.kernels.library import kernels, on_cpu

KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu_squared": 2, "swiglu": 3}
KNOWN = {
    Decoder,
    Block,
    Attention,
    FeedForward,
    RMSNorm,
    *(nn.Embedding, nn.ModuleDict, nn.Linear, LayerNorm, nn.Identity),
}
"""What the C++ computes; a model with anything else in it decodes in PyTorch."""
THREADED_BYTES = 2**20
"""Weights of fewer bytes are read by one thread before another would have begun."""


class Matrix(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("outputs", c_int64), ("inputs", c_int64)]


class Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class Layer(Structure):
    _fields_ = [
        *((name, Norm) for name in ("attention_norm", "ffn_norm", "query_norm", "key_norm")),
        *((name, Matrix) for name in ("query", "key", "value", "out", "gate", "up", "down")),
    ]


class Model(Structure):
    _fields_ = [
        ("layers", POINTER(Layer)),
        ("embedding", c_void_p),
        ("positions", c_void_p),
        ("norm", Norm),
        ("head", Matrix),
        *((name, c_int64) for name in ("num_layers", "dim", "heads", "kv_heads", "head_dim", "ffn_dim")),
        *((name, c_int64) for name in ("activation", "layer_norm", "embedding_norm", "qk_norm")),
        *((name, c_int64) for name in ("weight_kind", "table_kind", "cache_kind")),
        ("norm_eps", c_float),
        ("soft_cap", c_float),
    ]


class Cache(Structure):
    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("starts", c_void_p),
        ("rows", c_int64),
        ("filled", c_int64),
        ("capacity", c_int64),
    ]


class NativeDecoder:
    """The weights of a `Decoder`, as they are or as float16, ready for `step`.

    It points into the model's parameters: where they change, make another.
    """

    def __init__(self, model: Decoder, half: bool = False) -> None:
        """Raises nothing: where float16 cannot hold the weights, they stay as they are."""
        self.decode_step = kernels().decode_step
        self.held: list[Tensor] = []  # what the structures point to
        stored = model.embedding.weight.dtype
        matrices = matrices_of(model)
        copies = half_weights(list(matrices.values())) if half else None
        self.matrices = matrices if copies is None else dict(zip(matrices, copies, strict=True))
        self.cache_dtype = stored if copies is None else torch.float16
        self.layers = (Layer * len(model.layers))(*map(self.layer, model.layers.values()))
        self.model = self.describe(model, KINDS[stored if copies is None else torch.float16])
        self.num_bytes = sum(matrix.nbytes for matrix in self.matrices.values())

    def describe(self, model: Decoder, kind: int) -> Model:
        """The structure for the whole model."""
        c = model.config
        tables = model.embedding.weight, None if model.positions is None else model.positions.weight
        return Model(
            layers=self.layers,
            embedding=pointer_to(tables[0]),
            positions=pointer_to(tables[1]),
            norm=self.norm(model.norm),
            head=self.matrix(model.embedding if model.head is None else model.head),
            num_layers=c.num_layers, dim=c.dim, heads=c.num_heads, kv_heads=c.num_kv_heads,
            head_dim=c.head_dim, ffn_dim=c.ffn_dim,
            activation=ACTIVATIONS[c.activation], layer_norm=c.norm == "layer",
            embedding_norm=c.embedding_norm, qk_norm=c.qk_norm,
            weight_kind=kind, table_kind=KINDS[tables[0].dtype], cache_kind=KINDS[self.cache_dtype],
            norm_eps=c.norm_eps, soft_cap=c.logit_soft_cap or 0.0,
        )  # fmt: skip

    def layer(self, block: Any) -> Layer:
        """The structure for a block."""
        attention, ffn = block.attention, block.ffn
        return Layer(
            **{name: self.norm(getattr(block, name)) for name in ("attention_norm", "ffn_norm")},
            **{name: self.norm(getattr(attention, name)) for name in ("query_norm", "key_norm")},
            **{name: self.matrix(getattr(attention, name)) for name in ("query", "key", "value", "out")},
            **{name: self.matrix(getattr(ffn, name)) for name in ("gate", "up", "down")},
        )

    def norm(self, module: nn.Module) -> Norm:
        """The structure for a norm; empty for the identity."""
        return Norm(
            self.float32(getattr(module, "weight", None)), self.float32(getattr(module, "bias", None))
        )

    def matrix(self, module: nn.Module | None) -> Matrix:
        """The structure for a linear layer, or for an embedding that serves as one; empty for None."""
        if module is None:
            return Matrix()
        weight = self.matrices[module]
        return Matrix(weight.data_ptr(), self.float32(getattr(module, "bias", None)), *weight.shape)

    def float32(self, vector: Tensor | None) -> int | None:
        """Where a vector lies in float32."""
        if vector is None:
            return None
        self.held.append(vector.detach().float())
        return self.held[-1].data_ptr()

    def step(self, cache: Cache, tokens: Tensor, logits: Tensor) -> None:
        """Read one more token of every row: tokens [B] -> logits [B, V], float32, written in place."""
        threads = torch.get_num_threads() if self.num_bytes >= THREADED_BYTES else 1
        self.decode_step(
            byref(self.model), byref(cache), c_void_p(tokens.data_ptr()), c_void_p(logits.data_ptr()),
            c_int64(threads),
        )  # fmt: skip


def pointer_to(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin."""
    return None if tensor is None else tensor.data_ptr()


def matrices_of(model: Decoder) -> dict[nn.Module, Tensor]:
    """The weight of every linear layer, the head among them even where it is the embedding."""
    found: dict[nn.Module, Tensor] = {
        module: module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)
    }
    return found if model.head is not None else {**found, model.embedding: model.embedding.weight.detach()}


def can_decode(model: Decoder) -> bool:
    """Whether the C++ is here and computes what this model does: plain layers, whole, one precision."""
    parameters = list(model.parameters())
    return (
        on_cpu(*parameters)
        and len({p.dtype for p in parameters}) == 1
        and parameters[0].dtype in KINDS
        and all(type(module) in KNOWN for module in model.modules())
        and all(p.is_contiguous() for p in parameters)
        and len(model.layers) == model.config.num_layers
    )
