"""What `hasten plan` is asked, and the question that it makes of a model."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from hasten.core.config import Config, override, parse
from hasten.core.errors import ConfigError, did_you_mean
from hasten.model.config import ModelConfig
from hasten.plan.hardware import parse_hardware
from hasten.plan.memory import OURS, Keeping, muon
from hasten.plan.search import Question
from hasten.plan.work import Work

Degree = Annotated[int, Field(ge=1)] | None
PLAIN = ("hardware", "network", "schedule", "write")  # taken as they are, not as YAML: 4090 is a name
WHOLE_LOGITS = 2**32  # bytes of fp32 logits that are made at once on a GPU; more are made in pieces


class Fixed(Config):
    """Degrees that are given; the others are searched."""

    data: Degree = None
    shard: Degree = None
    tensor: Degree = None
    pipeline: Degree = None
    context: Degree = None
    interleave: Degree = None
    micro_batch: Degree = None
    recompute: Literal["none", "selective", "full"] | None = None

    def given(self) -> dict[str, Any]:
        """Those that are."""
        return self.model_dump(exclude_none=True)


class PlanConfig(Config):
    """The keys of `hasten plan`."""

    hardware: str = Field("", description="DEVICExN or DEVICExNxNODES, such as h100x8x16")
    network: str | None = Field(None, description="between nodes: ib200, ib400, eth100, eth25, eth10, eth1")
    precision: Literal["bf16", "fp16", "fp8"] | None = Field(
        None, description="of products; null: the recipe's, bf16 where that is auto"
    )
    row_tokens: int | None = Field(None, ge=1, description="null: the recipe's data.row_tokens")
    batch_tokens: int | None = Field(
        None, ge=1, description="of a step; null: the recipe's train.batch_tokens"
    )
    tokens: float | None = Field(None, gt=0, description="of the whole run; null: the recipe's, if it says")
    price: float | None = Field(None, ge=0, description="dollars per device-hour; null: an assumption")
    layout: Fixed = Fixed()
    top: int = Field(10, ge=1, le=1000)
    format: Literal["text", "json"] = "text"
    schedule: str | None = Field(None, description="text, or a file.svg for a drawing of the best pipeline")
    ranked: int = Field(1, ge=1, description="which of the layouts is drawn, or written")
    write: str | None = Field(None, description="a file for the recipe with the layout in its parallel:")


def from_words(words: Sequence[str], recipe_keys: Iterable[str]) -> tuple[PlanConfig, list[str]]:
    """The settings in a command's words, and those for the recipe; `--hardware X` is `hardware=X`."""
    pairs = list(joined(words))
    settings, others, plain = list[str](), list[str](), dict[str, Any]()
    known = [*PlanConfig.model_fields, *recipe_keys]
    for word in pairs:
        key = word.partition("=")[0].split(".")[0]
        if "=" not in word or key not in known:
            raise ConfigError(
                f"hasten plan has no key '{key}'.{did_you_mean(key, known)} Write hardware=h100x8x16"
            )
        if word.startswith(tuple(f"{name}=" for name in PLAIN)):
            plain[key] = word.partition("=")[2]
        else:
            (settings if key in PlanConfig.model_fields else others).append(word)
    config = parse(PlanConfig, {**override({}, settings), **plain}, "hasten plan")
    if not config.hardware:
        raise ConfigError("hasten plan needs hardware: hasten plan RECIPE hardware=h100x8x16")
    if config.schedule not in (None, "text") and Path(str(config.schedule)).suffix != ".svg":
        raise ConfigError(f"schedule is '{config.schedule}'; write schedule=text or schedule=FILE.svg")
    return config, others


def joined(words: Sequence[str]) -> Iterable[str]:
    """`--key value` and `--key=value` as `key=value`."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            yield word
            continue
        key = word[2:]
        if "=" in key:
            yield key
            continue
        value = next(rest, None)
        if value is None:
            raise ConfigError(f"{word} lacks a value; write {key}=...")
        yield f"{key}={value}"


def question_of(
    config: PlanConfig,
    model: ModelConfig,
    *,
    row_tokens: int,
    batch_tokens: int,
    precision: str,
    optimizer: Literal["adamw", "muon"],
    tokens: float | None,
) -> Question:
    """The question that a model and a recipe's training ask of hardware."""
    row_tokens = config.row_tokens or row_tokens
    batch_tokens = config.batch_tokens or batch_tokens
    rows, rest = divmod(batch_tokens, row_tokens)
    if rest or not rows:
        nearest = max(round(batch_tokens / row_tokens), 1) * row_tokens
        raise ConfigError(
            f"batch_tokens ({batch_tokens:,}) must be a multiple of row_tokens ({row_tokens:,});"
            f" the nearest is {nearest}"
        )
    cluster = parse_hardware(config.hardware, config.network)
    chosen = config.precision or {"auto": "bf16"}.get(precision, precision)
    cluster.device.peak(chosen)
    work = Work.of(model)
    return Question(
        work=work,
        cluster=cluster,
        row_tokens=row_tokens,
        rows=rows,
        precision=chosen,
        scheme=muon(work) if optimizer == "muon" else OURS,
        keeping=Keeping(logit_chunk=max(WHOLE_LOGITS // (4 * max(work.head_rows, 1)), 1)),
        tokens=config.tokens or tokens,
        price=config.price,
        fixed=config.layout.given(),
    )
