"""What a stage of a pipeline holds, and how it runs its part (Huang et al. 2019, arXiv:1811.06965).

All blocks of a model are one chain, an encoder's before those of its decoder.  The chain is cut into p x v
chunks of neighbours; of p stages number i has the chunks i, p + i, 2p + i, ... (Narayanan et al. 2021,
arXiv:2104.04473).  Letters in shapes as in `model/transformer.py`.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig, count
from hasten.model.position import counted
from hasten.model.stack import Stack
from hasten.model.transformer import Seq2Seq, Transformer
from hasten.parallel.arrangement import Arrangement
from hasten.parallel.grid import Grid, lines
from hasten.parallel.schedules import split_layers


def cut(model: Transformer, arrangement: Arrangement) -> None:
    """Leave this stage's part of a whole model, whose forward pass then is that of one chunk (`Chain`).

    Names stay those of the whole model.  What several stages run, such as a tied table, each of them holds;
    the first one's copy counts.  All processes call this at the same moment.  Raises ConfigError where there
    are fewer layers than chunks.
    """
    grid = arrangement.grid
    stages = grid.degrees["pipeline"]
    if stages == 1:
        return
    chain = Chain(model, stages * grid.config.interleave)
    held_by = {name: sorted({chunk % stages for chunk in chunks}) for name, chunks in chain.users().items()}
    groups = groups_of(grid, {tuple(holders) for holders in held_by.values() if len(holders) > 1})
    for name, holders in held_by.items():
        if grid.place["pipeline"] not in holders:
            remove(model, name)
        elif len(holders) > 1:
            for parameter in names_within(model, name):
                arrangement.stages[parameter] = groups[tuple(holders)]
                arrangement.counted[parameter] = grid.place["pipeline"] == holders[0]
    model.forward = chain


def groups_of(grid: Grid, sets: set[tuple[int, ...]]) -> dict[tuple[int, ...], ProcessGroup]:
    """A group for each set of stages of this process's pipeline; every process makes all of everyone's."""
    mine, made = distributed.get_rank(), dict[tuple[int, ...], ProcessGroup]()
    for stages in sorted(sets):
        for line in lines(("pipeline",), grid.degrees):
            group = distributed.new_group([line[stage] for stage in stages], timeout=grid.patience)
            if mine in line:
                made[stages] = group
    return made


def remove(model: nn.Module, name: str) -> None:
    """Take a module or a parameter out of the model."""
    owner, _, key = name.rpartition(".")
    parent = model.get_submodule(owner)
    if isinstance(parent, nn.ModuleDict):
        del parent[key]
    else:
        setattr(parent, key, None)


def names_within(model: nn.Module, name: str) -> list[str]:
    """The parameters of a module, or the parameter itself."""
    return [each for each, _ in model.named_parameters() if f"{each}.".startswith(f"{name}.")]


def head_layers(config: ModelConfig) -> float:
    """How many layers the head costs: matrix products of both, without attention's square."""
    layers = config.encoder_layers + config.decoder_layers
    head = config.dim * (config.head_rows + config.head_transform * config.dim)
    return head * layers / count(config.matrix_shapes)


def spans(config: ModelConfig, chunks: int) -> list[range]:
    """The blocks of each chunk, numbered along the chain."""
    layers = config.encoder_layers + config.decoder_layers
    if chunks > layers:
        raise ConfigError(
            f"parallel: pipeline x interleave is {chunks}, more than the model's {layers} layers; write"
            f" degrees whose product is {layers} at most"
        )
    ends = accumulate(split_layers(layers, chunks, head_layers(config)), initial=0)
    return [range(start, end) for start, end in pairwise(ends)]


class Chain:
    """A model's forward pass in pieces.

    Chunk 0 reads tokens; each later one takes over what the chunk before it gave: the stream [B, T, D] (of an
    encoder [B, S, D]), and in a decoder that reads a memory also that [B, S, D].  At the border between
    encoder and decoder the memory is all.  The last chunk gives the hidden states, after the final norm.
    """

    def __init__(self, model: Transformer, chunks: int) -> None:
        config = model.config
        encoder, layers = config.encoder_layers, config.encoder_layers + config.decoder_layers
        self.model, self.spans = model, spans(config, chunks)
        self.sides = {"": range(layers)}
        if isinstance(model, Seq2Seq):
            self.sides = {"encoder": range(encoder), "decoder": range(encoder, layers)}

    def users(self) -> dict[str, list[int]]:
        """The chunks that run each part of the model, by its name; every parameter is in one of them."""
        found = dict[str, list[int]]()
        for side, blocks in self.sides.items():
            prefix = f"{side}." if side else ""
            chunks = self.chunks_with(blocks)
            found |= {f"{prefix}layers.{block - blocks.start}": self.chunks_with([block]) for block in blocks}
            found |= {f"{prefix}{name}": chunks[:1] for name in ("positions", "embedding_norm")}
            found |= {f"{prefix}relative": chunks, f"{prefix}norm": [self.end(side)]}
        found |= self.users_of_tables()
        present = {name for name, _ in [*self.model.named_modules(), *self.model.named_parameters()]}
        return {name: chunks for name, chunks in found.items() if name in present}

    def users_of_tables(self) -> dict[str, list[int]]:
        """The same for embeddings and head."""
        config, last = self.model.config, len(self.spans) - 1
        *_, target = self.sides.values()
        embedding = {self.chunks_with(target)[0]}
        embedding |= {0} if config.kind == "seq2seq" and config.shared_embeddings else set()
        embedding |= {last} if config.tied else set()
        begins = {name: [0] for name in ("token_types", "source_embedding")}
        ends = {name: [last] for name in ("transform", "pooler", "head", "head_bias")}
        return {"embedding": sorted(embedding), **begins, **ends}

    def chunks_with(self, blocks: Sequence[int]) -> list[int]:
        """The chunks that have some of these blocks."""
        return [chunk for chunk, span in enumerate(self.spans) if set(span) & set(blocks)]

    def end(self, side: str) -> int:
        """The chunk in which a side's norm is: the last one may have no layer but the head."""
        *_, target = self.sides
        return len(self.spans) - 1 if side == target else self.chunks_with(self.sides[side])[-1]

    def __call__(
        self, chunk: int, carried: Sequence[Tensor], *, tokens: Tensor, **read: Any
    ) -> tuple[Tensor, ...]:
        """What this chunk makes for the next, from what the one before gave and from the model's inputs."""
        if isinstance(self.model, Seq2Seq):
            return self.run_both_sides(self.model, chunk, carried, tokens, **read)
        positions, segments = counted(read.pop("positions", None), tokens), read.pop("segments", None)
        x = carried[0] if carried else self.stack("").enter(self.model.words(tokens, **read), positions)
        return (self.run(chunk, "", x, positions, segments),)

    def run_both_sides(
        self,
        model: Seq2Seq,
        chunk: int,
        carried: Sequence[Tensor],
        tokens: Tensor,
        *,
        source: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        source_positions: Tensor | None = None,
        source_segments: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """`__call__` of a model with an encoder: its part of either side, or of both."""
        span, border = self.spans[chunk], self.sides["encoder"].stop
        if span.start < border:
            places = counted(source_positions, source)
            x = carried[0] if carried else model.encoder.enter(model.source_words(source), places)
            carried = (self.run(chunk, "encoder", x, places, source_segments),)
            if span.stop <= border:
                return carried
        *stream, memory = carried
        places = counted(positions, tokens)
        x = stream[0] if stream else model.decoder.enter(model.words(tokens), places)
        x = self.run(chunk, "decoder", x, places, segments, memory, source_segments)
        return (x, memory) if span.start < border and chunk != self.end("decoder") else (x,)

    def passed_on(self, chunk: int, carried: Sequence[Tensor]) -> Sequence[Tensor]:
        """What of it the next chunk reads too, after what this one makes: a memory."""
        reads_memory = "decoder" in self.sides and self.spans[chunk].start >= self.sides["decoder"].start
        return carried[-1:] if reads_memory and chunk != self.end("decoder") else ()

    def run(self, chunk: int, side: str, x: Tensor, positions: Tensor, *read: Tensor | None) -> Tensor:
        """A chunk's part of one side: the stream through its blocks, and where the side ends its norm."""
        stack, blocks = self.stack(side), self.sides[side]
        here = [str(block - blocks.start) for block in self.spans[chunk] if block in blocks]
        if here:
            x = stack.through(x, positions, *read, layers=here)
        return stack.norm(x) if chunk == self.end(side) else x

    def stack(self, side: str) -> Stack:
        """A side of the model, which may be all of it."""
        found = self.model.get_submodule(side)
        assert isinstance(found, Stack)
        return found
