"""A training that begins with a model that is there: what it takes over, what is new, how it is adapted."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hasten.adapt.config import LoraConfig
from hasten.adapt.lora import adapt, adapted_layers, settle
from hasten.adapt.nf4 import packed_weights
from hasten.core.config import dump, load
from hasten.core.console import say
from hasten.core.errors import CheckpointError
from hasten.data.corpus import Corpus
from hasten.model.compressed import COMPRESSION, CompressionNote
from hasten.model.config import ModelConfig
from hasten.model.factored import factored_layers, put_factored
from hasten.model.fewer import renumbered
from hasten.model.transformer import Transformer, assemble
from hasten.parallel.apply import Beginning
from hasten.train.first_head import HEAD, first_head, head_of_words
from hasten.train.footprint import FULL
from hasten.train.load import AdapterNote, digest_of, load_trainable
from hasten.train.restore import checkpoint_in
from hasten.train.snapshot import ADAPTER

READ_OUT = ("head", "head_bias", "pooler", "transform")
"""The parts that a new task may replace: all else has to be in the model that a training begins with."""


def beginning(
    config: ModelConfig,
    base: Path | None = None,
    adaptation: LoraConfig | None = None,
    rank: int | None = None,
    *,
    half: bool = False,
    stay: Mapping[str, list[int]] | None = None,
    corpus: Corpus | None = None,
    words: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> tuple[Beginning, dict[str, str]]:
    """What a model of `config` begins with: weights in the folder `base`, pairs of this rank, or neither.

    With it, what a checkpoint has to say of a model that holds only what was trained (`adapter.yaml`), or
    whose matrices are of low rank (`compression.yaml`).
    `half`: products are made in bf16, and frozen matrices may be kept so.  `stay`: the layers of the base
    that a smaller model begins with, on each side (`train/layers.py`); None is all.  A new head of classes
    (`train/first_head.py`) begins with `words`, the ids of each class, or is drawn by `seed` to the measure
    of the `corpus`.
    """
    if base is None:
        return Beginning(), {}
    model = load_trainable(base)
    there = {name: tensor.detach() for name, tensor in model.named_parameters()}
    ranks = {name: layer.rank for name, layer in factored_layers(model).items()}
    if ranks and (stay is not None or adaptation is not None):
        raise CheckpointError(
            f"{base}: has matrices of low rank, which are trained on as they are; leave out `adapt` and"
            " `layers`"
        )
    if stay is not None:
        there = renumbered(there, stay)
    weights = weights_to_begin_with(config, there, base, ranks)
    if words is not None and HEAD not in weights:
        weights |= head_of_words(config, there, words)
    if corpus is not None:
        weights |= first_head(config, weights, corpus, seed=seed, ranks=ranks)
    if ranks:
        said = dump(load(CompressionNote, checkpoint_in(base) / COMPRESSION))
        return Beginning(adapt=partial(put_factored, ranks=ranks), weights=weights), {COMPRESSION: said}
    if adaptation is None:
        return Beginning(weights=weights), {}
    assert rank is not None
    note = AdapterNote(base=base.resolve(), digest=digest_of(there), adaptation=adaptation, rank=rank)
    adapted = Beginning(
        adapt=partial(put_beside, config=adaptation, rank=rank, half=half),
        weights=weights,
        settle=partial(settled, weights=weights),
    )
    return adapted, {ADAPTER: dump(note)}


def put_beside(model: Transformer, config: LoraConfig, rank: int, half: bool) -> None:
    """Adapt a model; with `half` its frozen matrices are kept as products read them, in bf16."""
    adapt(model, config, rank)
    for layer in adapted_layers(model).values() if half and config.base == "model" else ():
        layer.weight = nn.Parameter(layer.weight.to(torch.bfloat16), requires_grad=False)


def adaptation_of(model: nn.Module) -> tuple[int | None, float]:
    """The largest rank of a model's pairs, None for none, and the bytes of a number in frozen matrices."""
    layers = list(adapted_layers(model).values())
    if not layers:
        return None, FULL
    stored = sum(part.nbytes for layer in layers for part in layer.stored)
    numbers = sum(layer.lora_b.shape[0] * layer.lora_a.shape[1] for layer in layers)
    return max(layer.low_rank.rank for layer in layers), stored / numbers


def settled(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Pack what an adapted model holds packed, and set what depends on the weights."""
    for name, layer in packed_weights(model):
        layer.take(weights[name])
    settle(model)


def weights_to_begin_with(
    config: ModelConfig, there: Mapping[str, Tensor], folder: Path, ranks: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """Those of a folder's parameters that a model of `config` has too; what it reads out with may be another.

    `ranks` are those of the model's layers that are two thin ones.
    Raises CheckpointError for any other parameter that is missing, has another shape, or would be left over.
    """
    with torch.device("meta"):
        model = assemble(config)
        put_factored(model, ranks or {})
        here = dict(model.named_parameters())
    taken = {name: tensor for name, tensor in there.items() if fits(name, tensor, here)}
    new, left = sorted(here.keys() - taken.keys()), sorted(there.keys() - taken.keys())
    for name in (*new, *left):
        if name.partition(".")[0] not in READ_OUT:
            raise CheckpointError(
                f"{folder}: '{name}' is {shape_of(there, name)} there and {shape_of(here, name)} in the model"
                " to be trained; leave out of the recipe's `model:` what the base has in another way"
            )
    if new or left:
        told = [f"new: {', '.join(new)}"] * bool(new) + [f"left behind: {', '.join(left)}"] * bool(left)
        say(f"{folder}: {'; '.join(told)}")
    return taken


def fits(name: str, tensor: Tensor, here: Mapping[str, nn.Parameter]) -> bool:
    """Whether a tensor can be taken over."""
    return name in here and here[name].shape == tensor.shape


def shape_of(tensors: Mapping[str, Tensor], name: str) -> str:
    """A tensor's shape in words."""
    return str(list(tensors[name].shape)) if name in tensors else "missing"
