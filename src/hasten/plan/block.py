"""A layout as the keys of a recipe that make a training so, and back."""

from typing import Any, TypeVar

from hasten.core import config
from hasten.core.config import Config
from hasten.core.errors import ConfigError
from hasten.parallel.config import ParallelConfig
from hasten.plan.layout import Layout
from hasten.plan.search import Choice

C = TypeVar("C", bound=Config)
DEGREES = ("data", "shard", "tensor", "pipeline", "context", "interleave")
FIELDS = (*DEGREES, "order", "sequence_parallel", "stage", "recompute")
"""What a layout and a recipe's `parallel:` call by the same names."""


def parallel_of(layout: Layout) -> ParallelConfig:
    """The `parallel:` of a recipe whose training is laid out so."""
    return ParallelConfig(**{name: getattr(layout, name) for name in FIELDS})


def layout_of(parallel: ParallelConfig, micro_batch: int = 1) -> Layout:
    """The layout that a recipe's `parallel:` asks for; raises ConfigError where it leaves something open."""
    for name in ("data", "recompute"):
        if getattr(parallel, name) == "auto":
            raise ConfigError(f"parallel.{name} is auto; write what it is to be")
    return Layout(**{name: getattr(parallel, name) for name in FIELDS}, micro_batch=micro_batch)


def keys(choice: Choice) -> dict[str, Any]:
    """What a recipe must say for a choice: `parallel`, and the tokens of a step and of a forward pass."""
    question, layout = choice.question, choice.layout
    said = parallel_of(layout).model_dump()
    plain = ParallelConfig().model_dump()
    said = {name: value for name, value in said.items() if value != plain[name]}
    tokens = {
        "batch_tokens": question.rows * question.row_tokens,
        "micro_batch_tokens": layout.micro_batch * question.row_tokens,
    }
    return {"parallel": said, "train": tokens}


def block(choice: Choice) -> str:
    """The same as YAML, to be put into a recipe."""
    lines = list[str]()
    for section, values in keys(choice).items():
        lines += [f"{section}:", *(f"  {name}: {yaml(value)}" for name, value in values.items())]
    return "\n".join(lines)


def yaml(value: Any) -> str:
    """A word or a number as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def recipe_for(recipe: C, choice: Choice) -> C:
    """A recipe whose training is laid out as chosen, with the rows and steps that were asked about."""
    data = recipe.model_dump(mode="json")
    said = keys(choice)
    data["parallel"] = parallel_of(choice.layout).model_dump()
    data["train"] |= said["train"]
    if data.get("data"):
        data["data"]["row_tokens"] = choice.question.row_tokens
    return config.parse(type(recipe), data, "hasten plan")
