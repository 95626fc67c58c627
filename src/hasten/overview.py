"""What can be said of a recipe before anything is started."""

from typing import Any

from rich.console import Console
from rich.table import Table

from hasten.core import config
from hasten.core.errors import ConfigError, HastenError
from hasten.lookup import load, shipped
from hasten.model.config import ModelConfig
from hasten.recipe import Recipe
from hasten.train.optim import Rates


def describe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, then what it will cost."""
    return config.dump(recipe) + "\n" + "\n".join(f"# {line}" for line in costs(recipe))


def costs(recipe: Recipe) -> list[str]:
    """Parameters, FLOPs per token and memory, as far as they are known before the tokenizer is."""
    try:
        model = known_vocabulary(recipe)
    except HastenError as error:
        return [f"sizes: {error}"]
    row_tokens = recipe.data.row_tokens if recipe.data else model.max_positions
    row = model.activation_bytes(1, row_tokens)
    flops = model.flops_per_token(row_tokens, **shares(recipe))
    return [
        f"parameters            {model.num_parameters:,}",
        f"FLOPs per token       {flops:,} in a training step, {row_of(recipe, row_tokens)}",
        held(recipe, model),
        f"activations           {megabytes(row)} for one row of a micro-batch",
        *cache(model),
        f"batch                 {recipe.train.batch_tokens:,} tokens a step",
        *speed(recipe, model),
    ]


def held(recipe: Recipe, model: ModelConfig) -> str:
    """What is there all the time, in words."""
    optimizer, adapt = recipe.train.optimizer.kind, recipe.adapt
    if adapt is None:
        states = megabytes(model.state_bytes(optimizer))
        return f"weights and {optimizer:<9} {states}: weights, gradients and moments in float32"
    rank = "of a rank that the data decide" if adapt.rank == "auto" else f"of rank {adapt.rank}"
    frozen = "in four bits" if adapt.base == "nf4" else "in float32, or as products read them"
    return f"frozen weights        {frozen}; beside them pairs {rank}, with gradients and moments"


def cache(model: ModelConfig) -> list[str]:
    """The key/value cache, of a model that writes."""
    if model.kind == "encoder":
        return []
    return [f"key/value cache       {model.kv_bytes_per_token():,} bytes per token of context"]


def shares(recipe: Recipe) -> dict[str, Any]:
    """What the data say about a token's cost: sources beside it, and how many go through the head."""
    kind, data = recipe.shape.kind, recipe.data
    if data is None or kind == "decoder" or data.task is not None:
        return {}
    if kind == "encoder":
        return {"head_share": data.masking.share}
    return {"source_tokens": data.source_row_tokens}


def row_of(recipe: Recipe, row_tokens: int) -> str:
    """What a row holds, in words."""
    if recipe.shape.kind == "seq2seq":
        source = (recipe.data.source_row_tokens if recipe.data else None) or row_tokens
        return f"rows of {source:,} source and {row_tokens:,} target tokens, per target token"
    if recipe.shape.kind == "encoder" and recipe.data and recipe.data.task is None:
        return f"rows of {row_tokens:,} tokens, {recipe.data.masking.share:.0%} of them through the head"
    return f"rows of {row_tokens:,} tokens"


def speed(recipe: Recipe, model: ModelConfig) -> list[str]:
    """The rate of each kind of parameter at this size, and how often a matrix is updated."""
    rates = Rates.at(recipe.train.optimizer, model, recipe.train.batch_tokens)
    moving = {kind: rate for kind, rate in rates.each.items() if recipe.adapt or kind != "adapter"}
    each = ", ".join(f"{kind} {rate:.2g}" for kind, rate in moving.items())
    pace = f"every {rates.turns} steps, in turns: orthogonalising is dear here"
    return [
        f"learning rates        {each}",
        f"matrices are updated  {'at every step' if rates.turns == 1 else pace}",
    ]


def known_vocabulary(recipe: Recipe) -> ModelConfig:
    """The model with a vocabulary: its own, or that of the tokenizer that will be trained."""
    if recipe.shape.vocab_size is not None:
        return recipe.shape
    size = getattr(recipe.data.tokenizer, "vocab_size", None) if recipe.data else None
    if size is None:
        raise ConfigError("not known before the tokenizer is; write model.vocab_size to see them")
    return recipe.model.model_copy(update={"vocab_size": size})


def megabytes(count: int) -> str:
    """`megabytes(1500000)` -> `1.5 MB`."""
    return f"{count / 1e6:,.1f} MB"


def list_recipes() -> None:
    """A table of the recipes that ship."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("recipe", "what for", "hardware", "time"):
        table.add_column(heading)
    for name, path in shipped().items():
        about = load(path).about
        table.add_row(name, about.purpose, about.hardware, about.time)
    Console().print(table)
