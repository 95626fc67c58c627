"""The processes as a grid: one coordinate an axis, and the groups along its lines and planes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from itertools import product
from math import prod

import torch
from torch import distributed
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hasten.core.errors import ConfigError
from hasten.core.runtime import Runtime
from hasten.parallel.config import AXES, Axis, ParallelConfig

PLANES: tuple[tuple[Axis, ...], ...] = (
    *((axis,) for axis in AXES),
    ("data", "shard", "context"),  # what sums gradients: every process that saw other tokens
    ("shard", "context"),  # what FSDP shards over
    ("data", "shard", "context", "tensor"),  # what holds parts and copies of the same layers
)
"""The sets of axes that have a group, along which they vary."""


@dataclass(frozen=True)
class Grid:
    """Where this process stands.  A grid of one has no groups."""

    config: ParallelConfig
    degrees: dict[Axis, int]
    place: dict[Axis, int]
    device: torch.device
    groups: dict[tuple[Axis, ...], ProcessGroup] = field(default_factory=dict)
    patience: timedelta | None = None  # of a group's messages; None: torch's own

    @classmethod
    def make(cls, runtime: Runtime, config: ParallelConfig | None = None) -> "Grid":
        """The grid of all processes, by default replicas; every one of them calls this at the same moment.

        Raises ConfigError where the degrees do not make up the number of processes.
        """
        config = config or ParallelConfig()
        degrees = degrees_of(config, runtime.world_size)
        place = coordinates(runtime.rank, degrees)
        groups = make_groups(degrees, runtime.rank, runtime.patience)
        return cls(config, degrees, place, runtime.device, groups, runtime.patience)

    def group(self, *axes: Axis) -> ProcessGroup | None:
        """The processes that differ from this one along `axes` alone; None where that is this one alone."""
        return None if prod(self.degrees[axis] for axis in axes) == 1 else self.groups[axes]

    @property
    def replicas(self) -> int:
        """How many parts the rows of a step are divided in."""
        return self.degrees["data"] * self.degrees["shard"]

    @property
    def replica(self) -> int:
        """Which of those parts is this process's."""
        return self.place["data"] * self.degrees["shard"] + self.place["shard"]

    @property
    def speaks_for_rows(self) -> bool:
        """Whether, of the processes that have the same rows, it is this one that counts them."""
        return not any(self.place[axis] for axis in ("pipeline", "context", "tensor"))

    @property
    def seed_place(self) -> int:
        """What random numbers inside a step depend on: rows, tokens and layers, not parts of a matrix."""
        part = self.replica * self.degrees["context"] + self.place["context"]
        return part * self.degrees["pipeline"] + self.place["pipeline"]

    @property
    def alone(self) -> bool:
        """Whether there is one process."""
        return all(degree == 1 for degree in self.degrees.values())

    @cached_property
    def fsdp_mesh(self) -> DeviceMesh:
        """[data, shard x context] for FSDP2, or [shard x context] where there is one replica."""
        d = self.degrees
        names = ("pipeline", "data", "shard", "tensor")
        sizes = (d["pipeline"], d["data"], d["shard"] * d["context"], d["tensor"])
        mesh = init_device_mesh(self.device.type, sizes, mesh_dim_names=names)
        return mesh["data", "shard"] if d["data"] > 1 else mesh["shard"]


def degrees_of(config: ParallelConfig, world_size: int) -> dict[Axis, int]:
    """Each axis's degree, `data: auto` resolved."""
    taken, rest = divmod(world_size, config.model_devices)
    data = taken if config.data == "auto" else config.data
    if rest or data * config.model_devices != world_size:
        parts = " x ".join(
            f"{axis} {getattr(config, axis)}" for axis in AXES if getattr(config, axis) not in (1, "auto")
        )
        wanted = (
            f"a multiple of {config.model_devices}" if config.data == "auto" else data * config.model_devices
        )
        raise ConfigError(
            f"parallel: {parts or 'one process'} takes {wanted} processes and there"
            f" {'is' if world_size == 1 else 'are'} {world_size:,}; change the degrees, or start as many"
        )
    return {axis: data if axis == "data" else getattr(config, axis) for axis in AXES}


def coordinates(rank: int, degrees: dict[Axis, int]) -> dict[Axis, int]:
    """A rank's place on each axis; the last axis varies fastest."""
    place = dict[Axis, int]()
    for axis in reversed(AXES):
        rank, place[axis] = divmod(rank, degrees[axis])
    return {axis: place[axis] for axis in AXES}


def rank_of(place: dict[Axis, int], degrees: dict[Axis, int]) -> int:
    """The rank at a place."""
    rank = 0
    for axis in AXES:
        rank = rank * degrees[axis] + place[axis]
    return rank


def lines(axes: Iterable[Axis], degrees: dict[Axis, int]) -> list[list[int]]:
    """All sets of ranks that differ along `axes` alone, each in order of rank."""
    axes = set(axes)
    outer = [axis for axis in AXES if axis not in axes]
    inner = [axis for axis in AXES if axis in axes]
    return [
        [
            rank_of({**dict(zip(outer, fixed, strict=True)), **dict(zip(inner, free, strict=True))}, degrees)
            for free in product(*(range(degrees[axis]) for axis in inner))
        ]
        for fixed in product(*(range(degrees[axis]) for axis in outer))
    ]


def make_groups(
    degrees: dict[Axis, int], rank: int, patience: timedelta
) -> dict[tuple[Axis, ...], ProcessGroup]:
    """This process's group for each of PLANES; every process makes all of them, in one order."""
    mine, made = dict[tuple[Axis, ...], ProcessGroup](), dict[tuple[int, ...], ProcessGroup]()
    for axes in PLANES:
        if prod(degrees[axis] for axis in axes) == 1:
            continue
        for ranks in lines(axes, degrees):
            key = tuple(ranks)
            if key not in made:
                made[key] = distributed.new_group(ranks, timeout=patience)
            if rank in ranks:
                mine[axes] = made[key]
    return mine
