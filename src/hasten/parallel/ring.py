"""Attention of tokens that are divided over processes: a ring in the `attend` socket.

Keys and values go round the processes of `context`, each of which looks at them with its own queries while
they travel on (Liu et al. 2023, arXiv:2310.01889).  What the parts give is joined by log-sum-exp, in float32.
In the backward pass keys and values go round again, and the sum of their gradients, in float32, travels
behind them until it is home.  No process ever holds more than its own tokens and those of its neighbours.

Letters in shapes as in `ops/attention.py`, T and S being a process's own tokens, N those of a whole row.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.distributed import P2POp, ProcessGroup, Work

from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.position import RelativeBias, bucket
from hasten.model.transformer import Transformer
from hasten.ops.flex import LAST
from hasten.ops.partial import Part, Result, attend_part, join, part_gradients
from hasten.ops.sight import Sight
from hasten.parallel.grid import Grid
from hasten.parallel.zigzag import WHOLE, Tile, pieces, places, tiles

RECOMPILE_LIMIT = 64
"""Kinds of tiles that a GPU's attention may be compiled for; after 8, PyTorch would give up."""


def fill_sockets(model: Transformer, grid: Grid) -> None:
    """Let all layers attend over the processes of `context`, of whose batches `split_batch` leaves the parts.

    Raises ConfigError for a model that cannot.
    """
    if grid.degrees["context"] == 1:
        return
    refuse(model.config)
    ring = Ring(grid.group("context"), grid.place["context"], grid.degrees["context"])
    # A compiler makes graphs of what lies between two attentions: it cannot look into messages.
    attend = torch.compiler.disable(ring)
    if grid.device.type == "cuda":
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for block in model.blocks():
        block.attention.attend = attend
        if block.cross is not None:
            block.cross.attend = attend


def refuse(config: ModelConfig) -> None:
    """Say what a ring cannot do."""
    if config.attention_dropout:
        raise ConfigError(
            f"model.attention_dropout is {config.attention_dropout} and parallel.context more than 1: a ring"
            " makes attention's weights again in the backward pass, where other ones would be dropped; write"
            " model.attention_dropout=0 (model.dropout is free), or parallel.context=1"
        )


class Look(NamedTuple):
    """Who sees whom over the whole row, and how scores are made."""

    causal: bool
    window: int | None
    scale: float
    soft_cap: float | None
    segments: Tensor | None  # [B, T]
    key_segments: Tensor | None  # [B, S]


@dataclass(frozen=True)
class Ring:
    """A place in the `attend` sockets of all layers: process `place` of `degree`, alone without a group."""

    group: ProcessGroup | None
    place: int
    degree: int

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        causal: bool,
        segments: Tensor | None = None,
        key_segments: Tensor | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        bias: Any = None,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:
        """As `ops.attend`: query [B, T, H, K], key and value [B, S, G, K] -> [B, T, H, K].

        All are this process's two pieces of each row, with their segments [B, T]; `key_segments` [B, S] are
        there where the keys are another sequence's, which is divided in the same way.  `bias` is a
        `RelativeBias` or nothing.
        """
        assert not dropout, "a ring drops no weights"
        device = query.device.type
        if torch.is_autocast_enabled(device):
            query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
        scale = query.shape[3] ** -0.5 if scale is None else scale
        key_segments = segments if key_segments is None else key_segments
        look = Look(causal, window, scale, soft_cap, segments, key_segments)
        by_distance = None if bias is None else distances(bias, self.degree * key.shape[1])
        with torch.autocast(device, enabled=False):
            out: Tensor = RingAttention.apply(query, key, value, by_distance, look, self)
        return out

    def tiles(self, owner: int, num_keys: int, look: Look) -> list[Tile]:
        """What this process's queries see of another's keys."""
        if not look.causal and look.window is None:
            return [WHOLE]
        mine, theirs = pieces(self.place, self.degree), pieces(owner, self.degree)
        return tiles(mine, theirs, num_keys // 2, causal=look.causal, window=look.window)

    def visits(self) -> Iterator[int]:
        """Whose keys are here, step by step: first the own."""
        return ((self.place - step) % self.degree for step in range(self.degree))

    def pass_on(self, tensors: Sequence[Tensor]) -> "Transfer":
        """Begin to send contiguous tensors to the next process, and to receive what the one before sends."""
        assert self.group is not None
        ahead, behind = (
            distributed.get_global_rank(self.group, (self.place + step) % self.degree) for step in (1, -1)
        )
        received = [torch.empty_like(x) for x in tensors]
        out = [P2POp(distributed.isend, x, ahead, self.group) for x in tensors]
        back = [P2POp(distributed.irecv, x, behind, self.group) for x in received]
        return Transfer(list(tensors), received, distributed.batch_isend_irecv(out + back))


class Transfer(NamedTuple):
    """What is under way."""

    sent: list[Tensor]  # kept until it has gone
    received: list[Tensor]
    works: list[Work]

    def wait(self) -> list[Tensor]:
        """What has come."""
        for work in self.works:
            work.wait()
        return self.received


class RingAttention(torch.autograd.Function):
    """Keeps query, key, value, output and the log-sum-exp [B, H, T] of this process's tokens."""

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd has no keywords)
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        by_distance: Tensor | None,
        look: Look,
        ring: Ring,
    ) -> Tensor:
        own = Own(query, by_distance, look, ring)
        out = torch.zeros(query.shape, dtype=wide(query), device=query.device)
        lse = out.new_full((query.shape[0], query.shape[2], query.shape[1]), -math.inf)
        held = travelling(key, value, look)
        for step, owner in enumerate(ring.visits(), 1):
            transfer = ring.pass_on(held) if step < ring.degree else None
            own.attend(owner, held, out, lse)
            held = held if transfer is None else transfer.wait()
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, by_distance, out, lse)
        ctx.look, ctx.ring = look, ring
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, by_distance, out, lse = ctx.saved_tensors
        ring, own = ctx.ring, Own(query, by_distance, ctx.look, ctx.ring)
        sums = Sums(torch.zeros_like(query, dtype=wide(query)), like(by_distance))
        held, mine, coming = travelling(key, value, ctx.look), None, None
        for step, owner in enumerate(ring.visits(), 1):
            transfer = ring.pass_on(held) if step < ring.degree else None
            found = own.gradients(owner, held, Result(out, lse, grad), sums)
            if mine is None:
                mine = found  # the own keys' gradients wait here for what the others find
            else:
                coming = ring.pass_on([found if coming is None else found.add_(coming.wait()[0])])
            held = held if transfer is None else transfer.wait()
        assert mine is not None
        d_key, d_value = (mine if coming is None else mine.add_(coming.wait()[0])).to(key.dtype)
        return sums.query.to(query.dtype), d_key, d_value, sums.by_distance, None, None


class Sums(NamedTuple):
    """Gradients that stay here: of the queries [B, T, H, K], and of the bias by distance [H, 2 N - 1]."""

    query: Tensor
    by_distance: Tensor | None


class Own(NamedTuple):
    """A process's queries [B, T, H, K], looking at whatever keys are here."""

    query: Tensor
    by_distance: Tensor | None
    look: Look
    ring: Ring

    def attend(self, owner: int, held: list[Tensor], out: Tensor, lse: Tensor) -> None:
        """Join what the keys of `owner` give to `out` [B, T, H, K] and `lse` [B, H, T]."""
        for tile, part in self.parts(owner, held):
            key, value = held[0][:, :, tile.key]
            bias, _ = self.bias(owner, tile)
            more = attend_part(self.query[:, tile.query], key, value, part, bias)
            join(out[:, tile.query], lse[..., tile.query], *more)

    def gradients(self, owner: int, held: list[Tensor], result: Result, sums: Sums) -> Tensor:
        """Those of keys and values of `owner`, [2, B, S, G, K], and of what stays here into `sums`."""
        found = torch.zeros_like(held[0], dtype=wide(self.query))
        for tile, part in self.parts(owner, held):
            rows, (key, value) = tile.query, held[0][:, :, tile.key]
            bias, ahead = self.bias(owner, tile)
            there = Result(result.out[:, rows], result.lse[..., rows], result.grad[:, rows])
            heads = self.query[:, rows], key, value
            (d_query, d_key, d_value), d_bias = part_gradients(heads, part, there, bias)
            sums.query[:, rows] += d_query
            found[0, :, tile.key] += d_key
            found[1, :, tile.key] += d_value
            if sums.by_distance is not None and d_bias is not None and ahead is not None:
                sums.by_distance.index_add_(1, ahead.flatten(), d_bias.flatten(1).to(sums.by_distance.dtype))
        return found

    def parts(self, owner: int, held: list[Tensor]) -> Iterator[tuple[Tile, Part]]:
        """The tiles with the keys of `owner` that hold a visible pair, and how their queries look."""
        look = self.look
        for tile in self.ring.tiles(owner, held[0].shape[2], look):
            mine = theirs = None
            if look.segments is not None:
                mine, theirs = look.segments[:, tile.query], held[1][:, tile.key]
                if strangers(mine, theirs):
                    continue
            yield tile, Part(Sight(tile.causal, mine, theirs, tile.window), look.scale, look.soft_cap)

    def bias(self, owner: int, tile: Tile) -> tuple[Tensor | None, Tensor | None]:
        """The bias of a tile [H, t, s], and the distances [t, s] by which it is looked up."""
        if self.by_distance is None:
            return None, None
        degree, length, device = self.ring.degree, self.query.shape[1] // 2, self.query.device
        query, key = (places(p, degree, length, device) for p in (self.ring.place, owner))
        ahead = key[tile.key] - query[tile.query, None] + self.by_distance.shape[1] // 2
        return self.by_distance[:, ahead], ahead


def travelling(key: Tensor, value: Tensor, look: Look) -> list[Tensor]:
    """What goes round: keys and values, [2, B, S, G, K], and their segments [B, S]."""
    heads = torch.stack((key, value))
    return [heads] if look.key_segments is None else [heads, look.key_segments.contiguous()]


def distances(bias: RelativeBias, length: int) -> Tensor:
    """What a bias adds where the key is so far ahead of the query: [H, 2 N - 1], from 1 - N to N - 1."""
    ahead = torch.arange(1 - length, length, device=bias.table.weight.device)
    buckets = bucket(ahead, bias.table.num_embeddings, bias.distance, causal=bias.causal)
    return bias.table(buckets).T.float()


def strangers(segments: Tensor, key_segments: Tensor) -> bool:
    """Whether in no row a document may be on both sides: [B, t] and [B, s]; on a GPU that is not asked.

    There the answer would have to wait for all work in the queue; the kernel skips such tiles itself.
    """
    if segments.device.type != "cpu":
        return False
    (low, high), (key_low, key_high) = (spread(x) for x in (segments, key_segments))
    return not ((low <= key_high) & (key_low <= high)).any()


def spread(segments: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest number of each row, padding being the last document: [B] each."""
    numbers = segments.masked_fill(segments == 0, LAST)
    return numbers.amin(dim=1), numbers.amax(dim=1)


def wide(x: Tensor) -> torch.dtype:
    """What sums are in."""
    return torch.promote_types(x.dtype, torch.float32)


def like(x: Tensor | None) -> Tensor | None:
    """Zeros, where there is something."""
    return None if x is None else torch.zeros_like(x)
