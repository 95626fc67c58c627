"""The architectures that llama.cpp and hasten share: their keys to and from a `ModelConfig`.

One `Architecture` a name of `general.architecture`.  After llama.cpp's `src/models/*.cpp`.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.core.config import parse, shorten
from hasten.core.errors import CheckpointError, ConfigError, did_you_mean
from hasten.model.config import Llama3Rope, ModelConfig
from hasten.model.gguf.gemma import read_gemma, read_gemma2, read_gemma3, write_gemma, write_gemma3
from hasten.model.gguf.keys import Keys
from hasten.model.gguf.names import ROPE_FACTORS, Naming
from hasten.model.gguf.rotary import read_common, read_rotary, rope_factors, write_common, write_rotary

Fields = dict[str, Any]
TRAINING = {"dropout", "attention_dropout", "init_std", "zero_init_outputs", "preset"}
"""Fields that no longer matter to logits."""


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp: `read` and `write` say the shape, `naming` where the weights lie."""

    name: str
    read: Callable[[Keys], Fields]
    write: Callable[[ModelConfig], Fields]
    naming: Naming


def read_qwen2(keys: Keys) -> Fields:
    """Qwen 2, whose heads are as wide as they are usually."""
    shape = read_rotary(keys)
    return {**shape, "head_dim": shape["dim"] // shape["num_heads"], "attention_bias": True}


def read_llama(keys: Keys) -> Fields:
    return {
        **read_rotary(keys, factors=True),
        "out_bias": keys.has("blk.0.attn_output.bias"),
        "ffn_bias": keys.has("blk.0.ffn_up.bias"),
    }


def read_arcee(keys: Keys) -> Fields:
    return {**read_rotary(keys, factors=True), "activation": "relu_squared"}


def read_qwen3(keys: Keys) -> Fields:
    return {**read_rotary(keys), "qk_norm": True}


def read_gpt2(keys: Keys) -> Fields:
    """GPT-2: `gelu` is its approximation by tanh there, whatever the model was trained with."""
    shape = read_common(keys)
    positions, _ = keys.shape("position_embd.weight")
    if shape["max_positions"] != positions:
        keys.fail(
            "context_length", f"is {shape['max_positions']:,}, and 'position_embd.weight' has {positions:,}"
        )
    return {
        **shape,
        "norm_eps": keys.number("attention.layer_norm_epsilon"),
        "activation": "gelu_tanh",
        "position": "learned",
        "norm": "layer",
        "attention_bias": True,
        "out_bias": True,
        "ffn_bias": True,
    }


def write_gpt2(config: ModelConfig) -> Fields:
    return {**write_common(config), "attention.layer_norm_epsilon": config.norm_eps}


NEIGHBOURS, SHIFTED = Naming(neighbours=True), Naming(norm_shift=1.0)
ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture("qwen2", read_qwen2, write_rotary, Naming()),
        Architecture("qwen3", read_qwen3, write_rotary, Naming()),
        Architecture("llama", read_llama, write_rotary, NEIGHBOURS),
        Architecture("arcee", read_arcee, write_rotary, NEIGHBOURS),
        Architecture("gpt2", read_gpt2, write_gpt2, Naming(fused=True)),
        Architecture("gemma", read_gemma, write_gemma, SHIFTED),
        Architecture("gemma2", read_gemma2, write_gemma3, SHIFTED),
        Architecture("gemma3", read_gemma3, write_gemma3, SHIFTED),
    )
}
"""In the order in which they are tried for a model: the narrower before the wider."""


def architecture_named(name: Any, where: object) -> Architecture:
    """The architecture that a file names."""
    if not isinstance(name, str) or name not in ARCHITECTURES:
        near = did_you_mean(shorten(name), ARCHITECTURES)
        raise CheckpointError(
            f"{where}: hasten cannot hold the architecture {shorten(name)}.{near}"
            f" It can hold {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def shape_of(architecture: Architecture, keys: Keys) -> ModelConfig:
    """The shape that a file's keys describe; every one of them has been read."""
    fields = architecture.read(keys)
    keys.finish()
    try:
        return parse(ModelConfig, fields, str(keys.where))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def architecture_of(config: ModelConfig, parameters: Iterable[str]) -> tuple[Architecture, Fields]:
    """The architecture whose keys say everything about `config`, and those keys with their full names."""
    names, nearest = list(parameters), dict[str, list[str]]()
    for architecture in ARCHITECTURES.values():
        keys = {f"{architecture.name}.{key}": value for key, value in architecture.write(config).items()}
        differing = differences(config, read_again(architecture, config, names, keys))
        if not differing:
            return architecture, keys
        nearest[architecture.name] = differing
    name = min(nearest, key=lambda name: len(nearest[name]))
    raise CheckpointError(
        f"no architecture of llama.cpp that hasten knows ({', '.join(ARCHITECTURES)}) holds this model: the"
        f" nearest is {name}, where {', '.join(nearest[name])}; keep it as a hasten checkpoint, or train with"
        " these fields as they are there"
    )


def read_again(
    architecture: Architecture, config: ModelConfig, parameters: list[str], keys: Fields
) -> ModelConfig | None:
    """What would be read from a file of these keys and parameters; None where they make no model."""
    shapes, factors = dict[str, tuple[int, ...]](), np.zeros(0, np.float32)
    for parameter in parameters:
        with suppress(KeyError):  # where one has no place, some field differs
            shapes[architecture.naming.place(config, parameter).name] = (1,)
    shapes["token_embd.weight"] = (config.vocabulary, config.dim)
    shapes["position_embd.weight"] = (config.max_positions, config.dim)
    if isinstance(config.rope_scaling, Llama3Rope):
        factors = rope_factors(config.head_dim, config.rope_theta, config.rope_scaling)
        shapes[ROPE_FACTORS] = factors.shape
    shapes["the largest"] = (2**62,)
    try:
        fields = architecture.read(Keys("", architecture.name, keys, shapes, lambda _: factors))
        return parse(ModelConfig, fields, "")
    except (CheckpointError, ConfigError):
        return None


def differences(config: ModelConfig, again: ModelConfig | None) -> list[str]:
    """The fields in which a file would give another model, in words."""
    if again is None:
        return ["its fields make no model"] * 99
    wanted, found = (each.model_dump(exclude=TRAINING) for each in (config, again))
    if config.sliding_window == again.sliding_window:
        wanted["window_layers"], found["window_layers"] = windowed(config), windowed(again)
    else:
        wanted.pop("window_layers")
    wanted["attention_scale"], found["attention_scale"] = scale_of(config), scale_of(again)
    if config.position != "rotary":
        wanted["rope_theta"] = found["rope_theta"]  # which nobody looks at
    return [
        f"{name} is {show(found[name])} and not {show(value)}"
        for name, value in wanted.items()
        if not equal(found[name], value)
    ]


def windowed(config: ModelConfig) -> list[int]:
    """The layers that see a window."""
    everywhere = tuple(range(config.num_layers)) if config.sliding_window else ()
    return sorted(everywhere if config.window_layers is None else config.window_layers)


def scale_of(config: ModelConfig) -> float:
    """What scores are multiplied with."""
    return config.attention_scale or config.head_dim**-0.5


def equal(found: Any, wanted: Any) -> bool:
    """Whether two values of a field are one, floats to the precision of float32."""
    if isinstance(found, float) and isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=1e-6)
    return bool(found == wanted)


def show(value: Any) -> str:
    """A field's value in few words."""
    return str(value["kind"] if isinstance(value, dict) else value)
