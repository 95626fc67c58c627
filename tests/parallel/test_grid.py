"""Coordinates and groups of a grid of processes."""

import pytest
import torch
from processes import together
from torch import distributed

from hasten.core.errors import ConfigError
from hasten.core.runtime import Runtime
from hasten.parallel.config import AXES, ParallelConfig
from hasten.parallel.grid import PLANES, Grid, coordinates, degrees_of, lines, rank_of


def test_ranks_and_coordinates_are_inverse_and_tensor_varies_fastest() -> None:
    degrees = degrees_of(ParallelConfig(tensor=2, context=3, pipeline=2), 24)
    assert degrees["data"] == 2
    for rank in range(24):
        assert rank_of(coordinates(rank, degrees), degrees) == rank
    assert coordinates(1, degrees) == {"pipeline": 0, "data": 0, "shard": 0, "context": 0, "tensor": 1}


@pytest.mark.parametrize("axes", PLANES)
def test_lines_part_the_ranks(axes) -> None:
    degrees = degrees_of(ParallelConfig(tensor=2, context=2, shard=2, pipeline=2), 32)
    found = lines(axes, degrees)
    assert sorted(rank for line in found for rank in line) == list(range(32))
    for line in found:
        places = [coordinates(rank, degrees) for rank in line]
        assert all(len({place[axis] for place in places}) == 1 for axis in AXES if axis not in axes)


@pytest.mark.parametrize(
    ("config", "processes", "words"),
    [
        (ParallelConfig(tensor=2), 3, "tensor 2.*a multiple of 2 processes and there are 3"),
        (ParallelConfig(data=2, shard=2), 8, "takes 4 processes and there are 8"),
        (ParallelConfig(shard=2), 1, "there is 1"),
    ],
)
def test_degrees_that_do_not_make_up_the_processes_are_refused(config, processes, words) -> None:
    with pytest.raises(ConfigError, match=words):
        degrees_of(config, processes)


def test_a_grid_of_one_has_no_groups() -> None:
    grid = Grid.make(Runtime(torch.device("cpu")))
    assert grid.alone and grid.replica == 0 and grid.replicas == 1
    assert all(grid.group(*axes) is None for axes in PLANES)


def sums(runtime: Runtime) -> dict[str, float]:
    grid = Grid.make(runtime, ParallelConfig(tensor=2, shard=2))
    found = {}
    for axes in PLANES:
        if (group := grid.group(*axes)) is not None:
            number = torch.tensor(float(2**runtime.rank))
            distributed.all_reduce(number, group=group)
            found["+".join(axes)] = number.item()
    return found


def test_a_group_joins_the_processes_of_its_line() -> None:
    first, *_, last = together(4, sums)
    shard = dict.fromkeys(("shard", "data+shard+context", "shard+context"), 5.0)
    assert first == {"tensor": 3.0, **shard, "data+shard+context+tensor": 15.0}
    assert last["tensor"] == 12.0 and last["shard"] == 10.0
