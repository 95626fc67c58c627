"""What layers read while a model reads texts: second moments, of all layers at once or block by block.

Quantisation, pruning and factoring of a layer ask how much its output changes: for a change D of its weight
[O, I] and inputs X [I, N], ||D X||^2 = tr(D X X^T D^T), so that the sum X X^T, the layer's `gram`, is all
that is to be known of the texts (Frantar & Alistarh 2022, 3).

Letters in shapes: N tokens, I inputs, O outputs.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from hasten.core.batch import SOURCE, TYPES, Batch
from hasten.core.errors import DataError
from hasten.model.block import Block
from hasten.model.evaluating import evaluating
from hasten.model.position import counted
from hasten.model.stack import Stack
from hasten.model.transformer import Encoder, Seq2Seq, Transformer
from hasten.objective.cross_entropy import CrossEntropy

READS_MEMORY = (".cross.key", ".cross.value")
"""Layers of a decoder that read what its encoder gave."""


@dataclass(frozen=True)
class Moments:
    """Sums over the tokens that a layer read, in float32; padding is not among them."""

    square: Tensor  # [I], of x^2
    absolute: Tensor  # [I], of |x|
    count: int  # tokens
    gram: Tensor | None = None  # [I, I], of x x^T

    def plus(self, x: Tensor) -> "Moments":
        """With further tokens x [N, I]."""
        x = x.float()
        gram = None if self.gram is None else torch.addmm(self.gram, x.t(), x)
        square, absolute = self.square + x.square().sum(0), self.absolute + x.abs().sum(0)
        return Moments(square, absolute, self.count + len(x), gram)


def none_yet(inputs: int, gram: bool, device: torch.device) -> Moments:
    """The moments of no tokens."""
    zeros = torch.zeros(inputs, device=device)
    return Moments(zeros, zeros, 0, torch.zeros(inputs, inputs, device=device) if gram else None)


@dataclass
class Collector:
    """Moments by name of layer; layers that read one tensor share theirs, which is summed once."""

    gram: bool
    kept: Tensor | None = None  # [B, T], which tokens of the batch now read are no padding
    kept_source: Tensor | None = None  # [B, S], of its sources
    found: dict[str, Moments] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)  # the layer whose moments a layer shares
    last: tuple[str, Tensor] | None = None

    def begin(self, batch: Batch) -> None:
        """Turn to another batch."""
        source = batch.extra.get(SOURCE[-1])
        self.last, self.kept = None, None if batch.segments is None else batch.segments > 0
        self.kept_source = None if source is None else source > 0

    def see(self, name: str, x: Tensor) -> None:
        """The layer `name` reads x [B, T, I]."""
        if self.last is not None and self.last[1] is x:
            self.holder[name] = self.last[0]
            return
        self.holder[name], self.last = name, (name, x)
        of_source = name.startswith("encoder.") or name.endswith(READS_MEMORY)
        kept = self.kept_source if of_source else self.kept
        tokens = x.detach().flatten(0, -2) if kept is None else x.detach()[kept]
        before = self.found.get(name) or none_yet(x.shape[-1], self.gram, x.device)
        self.found[name] = before.plus(tokens)

    def moments(self) -> dict[str, Moments]:
        """By name of layer, in the order in which they first read something."""
        return {name: self.found[holder] for name, holder in self.holder.items()}


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The matrices in the blocks of a model, by name."""
    inside = {name for name, module in model.named_modules() if isinstance(module, Block)}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(name.startswith(f"{block}.") for block in inside)
    }


def moments(
    model: Transformer, batches: Sequence[Batch], names: Collection[str] | None = None, gram: bool = True
) -> dict[str, Moments]:
    """What each matrix in the blocks reads, or each of `names`, while `model` reads `batches`.

    Without `gram`, I numbers a layer are kept instead of I^2.  DataError where there is no token to read.
    """
    check_batches(batches)
    layers = linear_layers(model)
    chosen = layers if names is None else {name: layers[name] for name in names}
    collector = Collector(gram)
    with evaluating(model), watched(chosen, collector):
        for batch in moved(batches, model):
            collector.begin(batch)
            model(**CrossEntropy().inputs(batch))
    return collector.moments()


def check_batches(batches: Sequence[Batch]) -> None:
    """Refuse to learn from nothing."""
    if not any(batch.segments is None or bool((batch.segments > 0).any()) for batch in batches):
        raise DataError(
            "there is no token to calibrate with; give a text of the kind that the model will read"
        )


def moved(batches: Sequence[Batch], model: nn.Module) -> Iterator[Batch]:
    """The batches, each on the model's device."""
    device = next(chain(model.parameters(), model.buffers())).device
    return (batch.to(device) for batch in batches)


@contextmanager
def watched(layers: Mapping[str, nn.Module], collector: Collector) -> Iterator[None]:
    """Within this, `collector` sees what `layers` read."""

    def hook(name: str) -> Any:
        return lambda module, args: collector.see(name, args[0])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Stream:
    """One batch on its way through a stack: all arguments of `Stack.through`."""

    batch: Batch
    x: Tensor  # [B, T, D]
    positions: Tensor
    segments: Tensor | None
    memory: Tensor | None = None
    memory_segments: Tensor | None = None

    def past(self, stack: Stack, layer: str) -> "Stream":
        """After the block `layer` as it is now."""
        x = stack.through(
            self.x, self.positions, self.segments, self.memory, self.memory_segments, layers=[layer]
        )
        return replace(self, x=x)


@dataclass(frozen=True)
class BlockAt:
    """A block of a model and what it reads of each batch, through the blocks before it as they are now."""

    name: str  # "layers.0", "encoder.layers.0"
    block: Block
    stack: Stack
    streams: Sequence[Stream]

    @property
    def layer(self) -> str:
        """The block's name within its stack."""
        return self.name.rpartition(".")[-1]

    def moments(self, gram: bool = True) -> dict[str, Moments]:
        """What each matrix of the block reads, by its name in the model."""
        layers = {
            f"{self.name}.{name}": module
            for name, module in self.block.named_modules()
            if isinstance(module, nn.Linear)
        }
        collector = Collector(gram)
        with evaluating(self.stack), watched(layers, collector):
            for stream in self.streams:
                collector.begin(stream.batch)
                stream.past(self.stack, self.layer)
        return collector.moments()

    def outputs(self) -> list[Stream]:
        """What comes out of the block as it is now."""
        with evaluating(self.stack):
            return [stream.past(self.stack, self.layer) for stream in self.streams]


def block_by_block(model: Transformer, batches: Sequence[Batch]) -> Iterator[BlockAt]:
    """The blocks in the order in which they run; each reads what the former give when their turn is over.

    Whoever changes a block while it is here so changes what the later ones read.  All batches are held, one
    [B, T, D] each.  DataError where there is no token to read.
    """
    check_batches(batches)
    batches = list(moved(batches, model))
    if isinstance(model, Seq2Seq):
        sources = yield from through_stack(model.encoder, "encoder.", source_streams(model, batches))
        with evaluating(model.encoder):
            memories = [model.encoder.norm(stream.x) for stream in sources]
        yield from through_stack(model.decoder, "decoder.", target_streams(model, batches, memories))
    else:
        yield from through_stack(cast(Stack, model), "", streams(model, batches))


def through_stack(stack: Stack, prefix: str, streams: list[Stream]) -> Any:
    """The blocks of one stack; returns what comes out of the last."""
    for layer, block in stack.layers.items():
        here = BlockAt(f"{prefix}layers.{layer}", cast(Block, block), stack, streams)
        yield here
        streams = here.outputs()
    return streams


def streams(model: Transformer, batches: Sequence[Batch]) -> list[Stream]:
    """What the first block of a decoder or an encoder reads."""
    with evaluating(model):
        types = [
            {TYPES: b.extra[TYPES]} if TYPES in b.extra and isinstance(model, Encoder) else {}
            for b in batches
        ]
        words = [model.words(b.tokens, **kind) for b, kind in zip(batches, types, strict=True)]
        pairs = zip(batches, words, strict=True)
        return [entered(cast(Stack, model), b, word, b.positions, b.segments) for b, word in pairs]


def source_streams(model: Seq2Seq, batches: Sequence[Batch]) -> list[Stream]:
    """What the first block of an encoder beside a decoder reads."""
    source, positions, segments = SOURCE
    with evaluating(model):
        return [
            entered(
                model.encoder,
                batch,
                model.source_words(batch.extra[source]),
                batch.extra.get(positions),
                batch.extra.get(segments),
            )
            for batch in batches
        ]


def target_streams(model: Seq2Seq, batches: Sequence[Batch], memories: Sequence[Tensor]) -> list[Stream]:
    """What the first block of a decoder beside an encoder reads."""
    with evaluating(model):
        return [
            replace(
                entered(model.decoder, b, model.words(b.tokens), b.positions, b.segments),
                memory=memory,
                memory_segments=b.extra.get(SOURCE[-1]),
            )
            for b, memory in zip(batches, memories, strict=True)
        ]


def entered(
    stack: Stack, batch: Batch, words: Tensor, positions: Tensor | None, segments: Tensor | None
) -> Stream:
    """A batch before the first block of a stack."""
    positions = counted(positions, words)
    return Stream(batch, stack.enter(words, positions), positions, segments)
