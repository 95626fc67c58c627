"""Matrices divided over processes (Shoeybi et al. 2019), and tokens in between (Korthikanti et al. 2022).

What is left here of a model are plain modules with smaller weights: heads, inner widths and words are divided
as `LAYOUT` says.  What processes tell each other is told where a branch of a block begins and where it ends,
by hooks on attention and feed-forward, and where the vocabulary is read, by its sockets.

With `sequence` what is outside of branches has a share of the tokens too, from the first block to the last
one.  A pipeline's stage holds runs of blocks: each run begins and ends with all tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from hasten.core.errors import ConfigError
from hasten.model.attention import Attention
from hasten.model.config import ModelConfig
from hasten.model.factored import factored_layers
from hasten.model.layout import word
from hasten.model.stack import Stack
from hasten.model.transformer import Transformer
from hasten.parallel.arrangement import Arrangement, Split
from hasten.parallel.sequence import gathered, joined, parted, scattered, shared, summed
from hasten.parallel.stream import OwnStream
from hasten.parallel.vocabulary import Share, VocabularyEmbedding, whole_cross_entropy, whole_scores

BRANCHES = ("attention", "cross", "ffn")


def split_tensor(model: Transformer, arrangement: Arrangement, *, sequence: bool) -> None:
    """Leave this process's part of each matrix in `model`, and connect it with the others' of its group.

    The bias behind a matrix that is split by rows stays with the first process alone: so it is added once.
    Raises ConfigError where something does not divide.
    """
    group = arrangement.grid.group("tensor")
    if group is None:
        return
    check(model.config, arrangement.grid.degrees["tensor"])
    Knife(model, arrangement, group).cut_all()
    arrangement.partial |= partly_seen(model, sequence)
    connect_branches(model, group, sequence)
    if sequence:
        part_tokens(model, group)
    own = OwnStream(arrangement.grid.place["tensor"], arrangement.grid.device)
    for first, last in divided(model, sequence):
        draw_alone(first, last, own)


def check(config: ModelConfig, parts: int) -> None:
    """Refuse what cannot be divided over so many processes.

    Fewer heads of keys and values than processes are had by several each, where that comes out even.
    """
    sizes = {"num_heads": config.num_heads, "num_kv_heads": config.num_kv_heads, "ffn_dim": config.ffn_dim}
    for name, size in sizes.items():
        if size % parts and not (name == "num_kv_heads" and parts % size == 0):
            common = gcd(*sizes.values())
            fitting = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            raise ConfigError(
                f"parallel.tensor is {parts}, which does not divide model.{name} ({size:,}); tensor can be"
                f" {fitting}"
            )
    if parts > min(config.vocabulary, config.source_vocabulary):
        raise ConfigError(f"parallel.tensor is {parts}, more than the vocabulary has words; write tensor: 1")


class SomeOutputs(nn.Module):
    """A linear that several processes hold whole, each of which wants `length` outputs from `start`."""

    def __init__(self, linear: nn.Linear, start: int, length: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.wanted = slice(start, start + length)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., length]."""
        bias = None if self.bias is None else self.bias[self.wanted]
        return F.linear(x, self.weight[self.wanted], bias)


@dataclass(frozen=True)
class Knife:
    """Cuts parameters, and notes what is left."""

    model: Transformer
    arrangement: Arrangement
    group: ProcessGroup

    def cut_all(self) -> None:
        """Leave a part of every module that `LAYOUT` names."""
        if factored_layers(self.model):
            raise ConfigError(
                "parallel.tensor splits whole matrices, and this model has some of low rank; write"
                " parallel.tensor: 1 and more shard"
            )
        for name, module in list(self.model.named_modules()):
            kind = word(name)
            if isinstance(module, Attention) and self.few_keys:
                self.choose_keys(module)
            elif kind == "columns" and not (self.few_keys and name.endswith((".key", ".value"))):
                self.cut_outputs(name, module)
                self.cut_added(name, module, "columns")
            elif kind == "rows" and isinstance(module, nn.Linear):
                self.cut_inputs(name, module)
                self.cut_added(name, module, "rows")
            elif kind == "vocab" and isinstance(module, nn.Embedding):
                self.cut_table(name, module)
        if self.model.config.head == "vocabulary":
            self.cut_head()

    @property
    def few_keys(self) -> bool:
        """Whether there are fewer heads of keys and values than processes."""
        return self.model.config.num_kv_heads < self.arrangement.grid.degrees["tensor"]

    def choose_keys(self, attention: Attention) -> None:
        """The one head of keys and values that this process's queries ask."""
        config, grid = self.model.config, self.arrangement.grid
        head = grid.place["tensor"] * config.num_kv_heads // grid.degrees["tensor"]
        start, length = head * config.head_dim, config.head_dim
        for name in ("key", "value"):
            whole = getattr(attention, name)
            if hasattr(whole, "choose"):
                whole.choose(start, length)
            else:
                setattr(attention, name, SomeOutputs(whole, start, length))

    def cut_outputs(self, name: str, module: nn.Module) -> None:
        """Heads of a projection or of a table of biases, or inner numbers of a feed-forward."""
        if isinstance(module, nn.Embedding):
            module.embedding_dim = self.cut(f"{name}.weight", 1)
        elif isinstance(module, nn.Linear):
            module.out_features = self.cut(f"{name}.weight", 0)
            if module.bias is not None:
                self.cut(f"{name}.bias", 0)

    def cut_inputs(self, name: str, linear: nn.Linear) -> None:
        """The same on the other side, behind which results are added up: one bias is enough."""
        linear.in_features = self.cut(f"{name}.weight", 1)
        if self.arrangement.grid.place["tensor"] > 0:
            linear.register_parameter("bias", None)

    def cut_added(self, name: str, module: nn.Module, by: Literal["columns", "rows"]) -> None:
        """What an adaptation has put beside a matrix, as its `splits` says: along a dimension, or whole."""
        splits = getattr(module, "splits", None)
        for key, dim in splits(by).items() if splits else ():
            if dim is None:
                self.arrangement.partial.add(f"{name}.{key}")
            else:
                self.cut(f"{name}.{key}", dim)

    def cut_table(self, name: str, table: nn.Embedding) -> None:
        """Words that tokens are read by."""
        share = Share(table.num_embeddings, self.group)
        self.cut(f"{name}.weight", 0)
        setattr(self.model, name, VocabularyEmbedding(table, share))

    def cut_head(self) -> None:
        """Words that are scored.  A head of classes is small, and stays whole."""
        model = self.model
        share = Share(model.config.vocabulary, self.group)
        if model.head is not None:
            model.head.out_features = self.cut("head.weight", 0)
        if model.head_bias is not None:
            self.cut("head_bias", 0)
        model.apply_head = partial(whole_scores, share=share)
        model.cross_entropy = partial(whole_cross_entropy, share=share)

    def cut(self, name: str, dim: int) -> int:
        """Leave a part of a parameter; how long it is along `dim`."""
        module, _, key = name.rpartition(".")
        owner, whole = self.model.get_submodule(module), self.model.get_parameter(name)
        share = Share(whole.shape[dim], self.group)
        part = whole.detach().narrow(dim, share.start, share.length).clone()
        setattr(owner, key, nn.Parameter(part, requires_grad=whole.requires_grad))
        self.arrangement.splits[name] = Split(dim, share.start, share.length, share.size)
        return share.length


def partly_seen(model: Transformer, sequence: bool) -> set[str]:
    """Whole parameters here that see a part of the heads, or of the tokens."""
    found = set[str]()
    for name, _ in model.named_parameters():
        words = name.split(".")
        by_heads = "query_norm" in words or "key_norm" in words
        few_keys = getattr(model.get_submodule(name.rpartition(".")[0]), "wanted", None) is not None
        by_tokens = sequence and "layers" in words and not set(BRANCHES) & set(words)
        if by_heads or few_keys or by_tokens:
            found.add(name)
    return found


def connect_branches(model: Transformer, group: ProcessGroup, sequence: bool) -> None:
    """Give each branch all tokens, and add up what the parts of its matrices make of them."""
    enter, leave = (gathered, scattered) if sequence else (shared, summed)

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return enter(args[0], group), *args[1:]

    def before_cross(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, memory, *rest = args  # a memory has all tokens
        return enter(x, group), shared(memory, group), *rest

    def after(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        del args
        return leave(out, group)

    for block in model.blocks():
        for name in BRANCHES:
            if (branch := getattr(block, name)) is not None:
                branch.register_forward_pre_hook(before_cross if name == "cross" else before)
                branch.register_forward_hook(after)


def part_tokens(model: Transformer, group: ProcessGroup) -> None:
    """Divide the tokens from the first to the last block of each run."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return parted(args[0], group), *args[1:]

    def after(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        del args
        return joined(out, group)

    for first, last in runs(model):
        first.register_forward_pre_hook(before)
        last.register_forward_hook(after)


def runs(model: Transformer) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The first and last block of each run of consecutive blocks that is here."""
    for stack in (module for module in model.modules() if isinstance(module, Stack)):
        held = {int(number): block for number, block in stack.layers.items()}
        firsts = [block for number, block in held.items() if number - 1 not in held]
        lasts = [block for number, block in held.items() if number + 1 not in held]
        yield from zip(firsts, lasts, strict=True)


def divided(model: Transformer, sequence: bool) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The modules where dropout begins and ends to fall on heads or tokens that are here alone."""
    if sequence and (model.config.dropout or model.config.attention_dropout):
        yield from runs(model)
    elif model.config.attention_dropout:
        for attention in (module for module in model.modules() if isinstance(module, Attention)):
            yield attention, attention


def draw_alone(first: nn.Module, last: nn.Module, own: OwnStream) -> None:
    """Draw random numbers in training from a stream of this process's own, from one module to another."""

    def before(module: nn.Module, _: tuple[Any, ...]) -> None:
        if module.training:
            own.begin()

    def after(module: nn.Module, *_: Any) -> None:
        if module.training:
            own.end()

    first.register_forward_pre_hook(before)
    last.register_forward_hook(after)
