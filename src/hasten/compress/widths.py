"""The arithmetic of narrower models: which widths go together, and which take a share of the parameters away.

Letters: D model width, H query heads, G key/value heads, K head width.
"""

from typing import Any

from hasten.core.errors import CheckpointError, ConfigError
from hasten.model.config import ModelConfig
from hasten.model.families.registry import family_of


def units(config: ModelConfig) -> int:
    """How many groups of heads can go by themselves: with each head of keys its queries, or queries alone
    where all of them share one head of keys.
    """
    return config.num_heads if config.num_kv_heads == 1 else config.num_kv_heads


def narrower(config: ModelConfig, **widths: int) -> ModelConfig:
    """`config` with other num_heads, ffn_dim or dim; ConfigError where they are not below its own."""
    for name, width in widths.items():
        if width > getattr(config, name):
            raise ConfigError(f"width.{name} is {width:,}, more than the model's {getattr(config, name):,}")
    values: dict[str, Any] = config.model_dump() | widths | {"preset": None}
    if "num_heads" in widths:
        values["num_kv_heads"] = kv_heads(config, widths["num_heads"])
    if values["dim"] != config.dim:
        values |= stream(config, values["dim"])
    return ModelConfig.model_validate(values)


def kv_heads(config: ModelConfig, num_heads: int) -> int:
    """Heads of keys for fewer query heads: their ratio stays, unless there is but one."""
    if config.num_kv_heads == 1:
        return 1
    each = config.num_heads // config.num_kv_heads
    if num_heads % each:
        fitting = ", ".join(str(n * each) for n in range(1, config.num_kv_heads))
        raise ConfigError(
            f"width.num_heads is {num_heads}, and {each} query heads share each head of keys; it can be"
            f" {fitting}"
        )
    return num_heads // each


def stream(config: ModelConfig, dim: int) -> dict[str, Any]:
    """What else changes with the width of the stream: an RMSNorm's eps, and a norm that has no weight.

    A mean over D' numbers in the place of D, the others zero, is D / D' times as large: with eps as much
    larger, and sqrt(D / D') in the weights, an RMSNorm gives what it gave.
    """
    if config.position == "sinusoidal":
        raise ConfigError("width.dim: sinusoidal positions are made for a whole stream; leave dim out")
    if config.norm == "layer":
        return {}
    learned = "learned" if config.embedding_norm else False
    return {"norm_eps": config.norm_eps * config.dim / dim, "embedding_norm": learned}


def of_share(config: ModelConfig, share: float, multiple: int) -> ModelConfig:
    """`config` without a share of the blocks' matrices: inner channels alone where half of them can stay.

    Else as large a share of heads goes first, unless the model's architecture ties heads to the stream.
    Without a fifth of the blocks SmolLM2-135M had a perplexity of 56 by channels alone and of 79 by both.
    ConfigError where no channel would go, or all of them.
    """
    ffn_dim = channels_left(config, config, share, multiple)
    if 2 * ffn_dim < config.ffn_dim:
        most = units(config)
        heads = max(round((1 - share) * most), 1) * (config.num_heads // most)
        fewer = narrower(config, num_heads=heads)
        if is_holdable(fewer) or not is_holdable(config):
            ffn_dim = channels_left(config, fewer, share, multiple)
            return narrower(fewer, ffn_dim=checked(config, ffn_dim, share))
    return narrower(config, ffn_dim=checked(config, ffn_dim, share))


def channels_left(config: ModelConfig, fewer: ModelConfig, share: float, multiple: int) -> int:
    """Inner channels, a `multiple`, that make `fewer` as large as `config` without a share of its blocks."""
    layers = config.encoder_layers + config.decoder_layers
    channel = (2 + config.gated) * config.dim * layers  # parameters of one in all layers
    others = fewer.num_matrix_parameters - channel * fewer.ffn_dim
    room = (1 - share) * config.num_matrix_parameters - others
    return max(round(room / channel / multiple), 0) * multiple


def checked(config: ModelConfig, ffn_dim: int, share: float) -> int:
    """`ffn_dim`, unless it is none of the model's inner channels, or all."""
    if not 0 < ffn_dim < config.ffn_dim:
        raise ConfigError(
            f"width.share {share:g} would leave {ffn_dim:,} of {config.ffn_dim:,} inner channels; write"
            " another share, or a smaller multiple"
        )
    return ffn_dim


def is_holdable(config: ModelConfig) -> bool:
    """Whether an architecture of Hugging Face can hold a model."""
    try:
        family_of(config)
    except CheckpointError:
        return False
    return True


def check_family(before: ModelConfig, after: ModelConfig) -> None:
    """Refuse a shape that `transformers` could not hold where it held the original."""
    if not is_holdable(before) or is_holdable(after):
        return
    heads, tied = after.num_heads * after.head_dim, before.dim == before.num_heads * before.head_dim
    if tied and heads != after.dim:
        raise ConfigError(
            "width: the architecture of this model has a stream as wide as its heads together; write"
            f" num_heads: {after.num_heads} with dim: {heads}, or leave out both"
        )
    raise ConfigError(
        f"width.dim: no Hugging Face architecture holds this model with a stream of {after.dim}, for it has a"
        " factor that follows from its width; leave dim out"
    )
