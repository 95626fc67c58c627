"""What Hugging Face calls the fields and tensors of the architectures that hasten can hold.

One `Family` an architecture: its fields to and from a `ModelConfig`, and where each of our parameters lies
among its tensors.  A new architecture is a new entry in `FAMILIES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import CheckpointError, did_you_mean
from hasten.model.config import LinearRope, Llama3Rope, ModelConfig

HARMLESS = frozenset(
    {
        "_name_or_path", "architectures", "attention_dropout", "attn_pdrop", "bos_token_id", "dtype",
        "embd_pdrop", "eos_token_id", "id2label", "initializer_range", "label2id", "model_type", "n_ctx",
        "output_attentions", "output_hidden_states", "output_past", "pad_token_id", "pretraining_tp",
        "problem_type", "resid_pdrop", "return_dict", "summary_activation", "summary_first_dropout",
        "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "torch_dtype",
        "transformers_version", "use_cache",
    }
)  # fmt: skip
"""Fields that change no logit: bookkeeping, and settings of training, dropout among them."""
NOTHING = object()


class Fields:
    """A `config.json` that knows which of its fields have been read."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = dict(values), where

    def take(self, name: str, default: Any = NOTHING) -> Any:
        """The field `name`, which is read now; without a default it must be there."""
        value = self.values.pop(name, None)
        if value is not None:
            return value
        if default is NOTHING:
            raise CheckpointError(
                f"{self.where}: has no field '{name}'; take the file that came with the weights"
            )
        return default

    def choose(self, name: str, default: str, choices: dict[str, Any]) -> Any:
        """The field `name` translated by `choices`."""
        value = self.take(name, default)
        if value not in choices:
            raise CheckpointError(
                f"{self.where}: hasten cannot hold {name} {value!r}, only {', '.join(map(repr, choices))}"
            )
        return choices[value]

    def require(self, name: str, value: Any) -> None:
        """Refuse any other `value` of the field `name`; it may be absent."""
        found = self.take(name, value)
        if found != value:
            raise CheckpointError(f"{self.where}: hasten cannot hold {name} {found!r}, only {value!r}")

    def finish(self) -> None:
        """Refuse what nobody has read: it could change the model."""
        for name, value in self.values.items():
            if name not in HARMLESS and value is not None:
                raise CheckpointError(
                    f"{self.where}: hasten does not know the field '{name}' ({value!r}) and leaves none out:"
                    " take a checkpoint without it, or remove it if it cannot matter"
                )


@dataclass(frozen=True)
class Source:
    """Where a parameter of ours lies: a tensor, maybe transposed, maybe one of `parts` equal row blocks."""

    name: str
    transposed: bool = False
    part: int = 0
    parts: int = 1

    def extract(self, tensor: Tensor) -> Tensor:
        """Our parameter out of their tensor."""
        whole = tensor.mT if self.transposed else tensor
        return whole.tensor_split(self.parts)[self.part].contiguous()


@dataclass(frozen=True)
class Family:
    """One architecture's names."""

    prefix: str  # may stand before every name but the head's
    head: str
    read: Callable[[Fields], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    sources: Callable[[ModelConfig], dict[str, Source]]  # by parameter of ours, without the head
    leftovers: tuple[str, ...]  # endings of tensors that carry nothing


def read_gpt2(fields: Fields) -> dict[str, Any]:
    """The shape of a GPT-2."""
    fields.require("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        fields.require(name, False)
    dim = fields.take("n_embd")
    gelus = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
    return {
        "vocab_size": fields.take("vocab_size"),
        "dim": dim,
        "num_layers": fields.take("n_layer"),
        "num_heads": fields.take("n_head"),
        "ffn_dim": fields.take("n_inner", None),
        "max_positions": fields.take("n_positions"),
        "activation": fields.choose("activation_function", "gelu_new", gelus),
        "norm_eps": fields.take("layer_norm_epsilon", 1e-5),
        "tied": fields.take("tie_word_embeddings", True),
        "position": "learned",
        "norm": "layer",
        "attention_bias": True,
        "out_bias": True,
        "ffn_bias": True,
        "init_std": 0.02,
    }


def write_gpt2(config: ModelConfig) -> dict[str, Any]:
    """The fields of a GPT-2 of this shape."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocabulary,
        "n_embd": config.dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ffn_dim,
        "n_positions": config.max_positions,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }


def gpt2_sources(config: ModelConfig) -> dict[str, Source]:
    """GPT-2 keeps its matrices as [inputs, outputs], and queries, keys and values in one."""
    sources = {"embedding.weight": Source("wte.weight"), "positions.weight": Source("wpe.weight")}
    modules = {"norm": "ln_f"}
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}.", f"h.{i}."
        modules |= {f"{ours}attention_norm": f"{theirs}ln_1", f"{ours}ffn_norm": f"{theirs}ln_2"}
        matrices = {"attention.out": "attn.c_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}
        for our, their in matrices.items():
            sources[f"{ours}{our}.weight"] = Source(f"{theirs}{their}.weight", transposed=True)
            sources[f"{ours}{our}.bias"] = Source(f"{theirs}{their}.bias")
        for part, our in enumerate(("query", "key", "value")):
            fused = f"{theirs}attn.c_attn"
            sources[f"{ours}attention.{our}.weight"] = Source(f"{fused}.weight", True, part, 3)
            sources[f"{ours}attention.{our}.bias"] = Source(f"{fused}.bias", False, part, 3)
    for our, their in modules.items():
        sources |= {f"{our}.{kind}": Source(f"{their}.{kind}") for kind in ("weight", "bias")}
    return sources


def read_llama(fields: Fields) -> dict[str, Any]:
    """The shape of a Llama."""
    fields.choose("hidden_act", "silu", {"silu": "swiglu"})
    bias = fields.take("attention_bias", False)
    heads = fields.take("num_attention_heads")
    theta, scaling = read_rope(fields)
    return {
        "vocab_size": fields.take("vocab_size"),
        "dim": fields.take("hidden_size"),
        "num_layers": fields.take("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": fields.take("num_key_value_heads", heads),
        "head_dim": fields.take("head_dim", None),
        "ffn_dim": fields.take("intermediate_size"),
        "max_positions": fields.take("max_position_embeddings"),
        "norm_eps": fields.take("rms_norm_eps", 1e-6),
        "tied": fields.take("tie_word_embeddings", False),
        "rope_theta": float(theta),
        "rope_scaling": scaling,
        "attention_bias": bias,
        "out_bias": bias,
        "ffn_bias": fields.take("mlp_bias", False),
        "activation": "swiglu",
        "init_std": 0.02,
    }


def read_rope(fields: Fields) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of rotary positions, from `rope_parameters` (transformers 5) or two older fields."""
    theta = fields.take("rope_theta", 10_000.0)
    values = fields.take("rope_scaling", {})
    rope = Fields(fields.take("rope_parameters", values), f"{fields.where}: rope")
    theta = rope.take("rope_theta", theta)
    kind = rope.choose("type", "default", {k: k for k in ("default", "linear", "llama3")})
    kind = rope.choose("rope_type", kind, {k: k for k in ("default", "linear", "llama3")})
    scaling = None
    if kind == "linear":
        scaling = {"kind": "linear", "factor": rope.take("factor")}
    elif kind == "llama3":
        scaling = {
            "kind": "llama3",
            "factor": rope.take("factor"),
            "low_frequency": rope.take("low_freq_factor"),
            "high_frequency": rope.take("high_freq_factor"),
            "original_positions": rope.take("original_max_position_embeddings"),
        }
    rope.finish()
    return theta, scaling


def write_llama(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Llama of this shape, with both spellings of the rotary positions."""
    rope: dict[str, Any] = {"rope_type": "default"}
    match config.rope_scaling:
        case LinearRope(factor=factor):
            rope = {"rope_type": "linear", "factor": factor}
        case Llama3Rope() as s:
            rope = {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_frequency,
                "high_freq_factor": s.high_frequency,
                "original_max_position_embeddings": s.original_positions,
            }
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocabulary,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.ffn_bias,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
    }


LLAMA_MODULES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


def llama_sources(config: ModelConfig) -> dict[str, Source]:
    """Llama's tensors are ours under other names."""
    modules = {"embedding": "embed_tokens", "norm": "norm"}
    for i in range(config.num_layers):
        modules |= {f"layers.{i}.{our}": f"layers.{i}.{their}" for our, their in LLAMA_MODULES.items()}
    sources = {f"{our}.weight": Source(f"{their}.weight") for our, their in modules.items()}
    for our, their in modules.items():
        part = our.split(".")[-2:]
        if (part[0] == "attention" and config.attention_bias) or (part[0] == "ffn" and config.ffn_bias):
            sources[f"{our}.bias"] = Source(f"{their}.bias")
    return sources


FAMILIES = {
    "gpt2": Family(
        "transformer.",
        "lm_head.weight",
        read_gpt2,
        write_gpt2,
        gpt2_sources,
        (".attn.bias", ".attn.masked_bias"),
    ),
    "llama": Family(
        "model.", "lm_head.weight", read_llama, write_llama, llama_sources, (".rotary_emb.inv_freq",)
    ),
}


def family_named(name: Any, where: str) -> Family:
    """The family that a `model_type` names."""
    if name not in FAMILIES:
        near = did_you_mean(str(name), FAMILIES)
        raise CheckpointError(
            f"{where}: hasten cannot hold model_type {name!r}.{near} It can hold {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def family_of(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family whose fields say everything about `config`, and those fields."""
    for family in FAMILIES.values():
        fields = family.write(config)
        try:
            shape = family.read(Fields(fields, "config.json"))
        except CheckpointError:
            continue
        again = ModelConfig.model_validate(shape)
        trained = {"dropout", "init_std", "zero_init_outputs", "preset"}  # what no longer matters to logits
        if again.model_dump(exclude=trained) == config.model_dump(exclude=trained):
            return family, fields
    raise CheckpointError(
        f"no Hugging Face architecture that hasten knows ({', '.join(FAMILIES)}) can hold this model: it has"
        f" activation {config.activation}, norm {config.norm}, position {config.position},"
        f" qk_norm {config.qk_norm}; keep it as a hasten checkpoint"
    )


def combine(parts: dict[int, Tensor], source: Source) -> Tensor:
    """Their tensor out of our parameters: the inverse of `Source.extract` over all parts."""
    whole = torch.cat([parts[i] for i in range(source.parts)])
    return (whole.mT if source.transposed else whole).contiguous()
