"""Muon and AdamW on parts and copies of a model, against the same steps on the whole model in one process."""

from collections.abc import Callable
from functools import partial
from math import prod

import pytest
import torch
from processes import together
from torch import Tensor, nn

from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.layout import role
from hasten.model.transformer import Decoder, build
from hasten.ops import orthogonalize as precision
from hasten.parallel.arrangement import Arrangement, Piece, Split
from hasten.parallel.config import ParallelConfig
from hasten.parallel.exchange import Parcel, deal, from_owners, to_owners, whole_everywhere
from hasten.parallel.fsdp import shard
from hasten.parallel.gradients import clip_gradients
from hasten.parallel.grid import Grid, coordinates, degrees_of
from hasten.train import muon
from hasten.train.muon import Muon, dear, to_share
from hasten.train.optim import MuonConfig, Optimizer, Rates

CPU = torch.device("cpu")
STEPS, POISONED = 4, 1
CONFIG = MuonConfig(weight_decay=0.1, eps=1e-2)

Cut = Callable[[str, Tensor, int], Split | None]
"""What tensor parallelism leaves of a parameter on one of two processes."""


def tiny() -> Decoder:
    """Square, wide and tall matrices, those of the feed-forward with an odd number of rows or columns."""
    shape = {"vocab_size": 13, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 47}
    return build(ModelConfig.model_validate(shape), seed=0)


def gradient(name: str, whole: tuple[int, ...], step: int) -> Tensor:
    """A parameter's gradient, of singular values far from zero: rounding is not what is compared here."""
    seed = int.from_bytes(f"{name} {step}".encode(), "little") % 2**63
    return torch.randn(whole, generator=torch.Generator().manual_seed(seed))


def rates(turns: int) -> Rates:
    """Outputs slower than the other matrices, so that they are a group of their own."""
    each = Rates.written(CONFIG).each
    return Rates({**each, "output": each["output"] / 2}, turns)


def steps(
    model: nn.Module, arrangement: Arrangement, turns: int, bad_rank: bool = True
) -> tuple[Optimizer, Tensor]:
    """Steps on given gradients; one of them is not finite, which shows on one process alone."""
    optimizer = Optimizer(model, CONFIG, rates(turns), arrangement)
    held = arrangement.held(model)
    for step in range(STEPS):
        for name, parameter in optimizer.parameters.items():
            piece = held[name][0]
            parameter.grad = gradient(name, piece.whole, step)[piece.slices].clone()
            if step == POISONED and bad_rank:
                parameter.grad *= float("nan")
        before = everything(optimizer)
        finite = torch.tensor(step != POISONED)
        if finite:  # scales by 1, and gives the norm
            norm = clip_gradients(optimizer.parameters, 1e9, arrangement)
        optimizer.step(0.9, finite, step)
        assert (everything(optimizer) == before) == (step == POISONED)
        optimizer.zero_grad()
    return optimizer, norm


def everything(optimizer: Optimizer) -> dict[str, bytes]:
    """All that a step may change, to the bit."""
    held = {**optimizer.parameters, **optimizer.state_dict()}
    return {name: tensor.detach().numpy().tobytes() for name, tensor in held.items()}


def boxes(
    arrangement: Arrangement, model: nn.Module, optimizer: Optimizer
) -> dict[str, tuple[Piece, Tensor]]:
    """Weights and moments with the box that is here; a moment has its parameter's."""
    pieces = arrangement.held(model)
    state = {key: (pieces[key.rsplit("/")[0]][0], own) for key, own in optimizer.state_dict().items()}
    return {name: (piece, own.clone()) for name, (piece, own) in (pieces | state).items()}


def halves(name: str, parameter: Tensor, rank: int) -> Split | None:
    """Rows or columns of the matrices, as tensor parallelism splits them; the rest is held by both."""
    if role(name) != "matrix":
        return None
    dim = 1 if name.split(".")[-2] in ("out", "down") else 0
    return part(parameter, dim, parameter.shape[dim] // 2, rank)


def lopsided(name: str, parameter: Tensor, rank: int) -> Split | None:
    """Some of it here and more of it there; of the first layer's vectors and matrices nothing there."""
    return part(parameter, 0, parameter.shape[0] if ".0." in name else 5, rank)


def part(parameter: Tensor, dim: int, first: int, rank: int) -> Split:
    """The first so many of a dimension, or the rest."""
    whole = parameter.shape[dim]
    return Split(dim, 0, first, whole) if rank == 0 else Split(dim, first, whole - first, whole)


def cut(model: nn.Module, arrangement: Arrangement, way: Cut) -> None:
    """Leave one process's slices of a model in the place of its parameters."""
    for name, parameter in list(model.named_parameters()):
        split = way(name, parameter, arrangement.grid.place["tensor"])
        if split is not None:
            arrangement.splits[name] = split
            own = parameter.detach().narrow(split.dim, split.start, split.length).clone()
            module, _, last = name.rpartition(".")
            setattr(model.get_submodule(module), last, nn.Parameter(own))


def arranged(grid: Grid, way: Cut = halves) -> tuple[Decoder, Arrangement]:
    """This process's part of the model, cut for tensor parallelism and then sharded."""
    model, arrangement = tiny(), Arrangement(grid)
    if grid.degrees["tensor"] > 1:
        cut(model, arrangement, way)
    if grid.degrees["shard"] > 1:
        shard(model, grid)
    arrangement.note(model)
    return model, arrangement


def run_on(
    runtime: Runtime, config: ParallelConfig, turns: int, way: Cut = halves, **patches: float
) -> dict[str, object]:
    """The steps on one mesh; how many matrices were orthogonalised here, and whether boxes were sent."""
    grid, counts = Grid.make(runtime, config), list[int]()
    inner = precision.orthogonalize
    muon.orthogonalize = lambda matrices: counts.append(len(matrices)) or inner(matrices)
    muon.WORTH = patches.get("worth", 0)
    model, arrangement = arranged(grid, way)
    optimizer, norm = steps(model, arrangement, turns, runtime.rank == 0)
    state = optimizer.state_dict()
    assert state.keys() == Optimizer(tiny(), CONFIG).state_dict().keys()
    pieces = arrangement.held(model)
    assert all(own.shape in ((), pieces[key.rsplit("/")[0]][0].shape) for key, own in state.items())
    exchanges = next(part for part in optimizer.parts if isinstance(part, Muon)).exchanges
    return {
        "boxes": boxes(arrangement, model, optimizer),
        "norm": norm,
        "orthogonalized": sum(counts) - len(exchanges),  # each makes one to see what comes out
        "sends boxes": [not exchange.inward.silent for exchange in exchanges],
    }


TWO = {
    "data": partial(run_on, config=ParallelConfig(data=2), turns=1),
    "data in turns": partial(run_on, config=ParallelConfig(data=2), turns=2),
    "data, each by itself": partial(run_on, config=ParallelConfig(data=2), turns=2, worth=float("inf")),
    "shard": partial(run_on, config=ParallelConfig(shard=2), turns=1),
    "shard in turns": partial(run_on, config=ParallelConfig(shard=2), turns=2),
    "tensor": partial(run_on, config=ParallelConfig(tensor=2), turns=1),
    "tensor in turns": partial(run_on, config=ParallelConfig(tensor=2), turns=4),
    "lopsided": partial(run_on, config=ParallelConfig(tensor=2), turns=2, way=lopsided),
}
FOUR = {
    "data x shard": partial(run_on, config=ParallelConfig(data=2, shard=2), turns=2),
    "shard x tensor": partial(run_on, config=ParallelConfig(shard=2, tensor=2), turns=2),
}


def run_all(runtime: Runtime, names: list[str]) -> dict[str, dict[str, object]]:
    """Several meshes one after the other, with products in float64; the first once more in bfloat16."""
    precision.PRECISION = torch.float64
    found = {name: (TWO | FOUR)[name](runtime) for name in names}
    precision.PRECISION = torch.bfloat16
    return {**found, "bfloat16": (TWO | FOUR)[names[-1]](runtime)}


def alone(turns: int, monkeypatch: pytest.MonkeyPatch, products: torch.dtype) -> tuple[dict, Tensor]:
    """The same steps in one process."""
    monkeypatch.setattr(precision, "PRECISION", products)
    model = tiny()
    arrangement = Arrangement.of(model, Runtime(CPU))
    optimizer, norm = steps(model, arrangement, turns)
    return boxes(arrangement, model, optimizer), norm


@pytest.fixture(scope="module")
def on_two() -> list[dict[str, dict[str, object]]]:
    """What two processes found, once for all tests."""
    return together(2, run_all, list(TWO))


@pytest.mark.slow
def test_parts_and_copies_move_as_the_whole_does(on_two: list, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(on_two, TWO, monkeypatch)


@pytest.mark.slow
def test_parts_of_copies_move_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    compare(together(4, run_all, list(FOUR)), FOUR, monkeypatch)


def compare(found: list, world: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Momenta are equal to the bit: they are what every process does by itself.

    Owners see the very numbers of the whole matrices, and with products in float64 what they send back is
    equal but for the rounding to float32: weights differ by a few of its 2^-24.  In bfloat16 a batched
    product may round otherwise in batches of another size: by 2^-8 of an entry of at most 1, at each step.
    """
    last = list(world)[-1]
    for name in [*world, "bfloat16"]:
        products = torch.bfloat16 if name == "bfloat16" else torch.float64
        mesh = world[last if name == "bfloat16" else name].keywords
        expected, norm = alone(mesh["turns"], monkeypatch, products)
        loose = CONFIG.learning_rate * STEPS * mesh["turns"] * 2**-8 if name == "bfloat16" else 1e-8
        seen = dict.fromkeys(expected, 0)
        for process in (each[name] for each in found):
            torch.testing.assert_close(process["norm"], norm, rtol=1e-6, atol=0)
            for key, (piece, own) in process["boxes"].items():
                theirs = expected[key][1] if own.dim() == 0 else expected[key][1][piece.slices]
                exact = key.endswith("/momentum")
                torch.testing.assert_close(
                    own,
                    theirs,
                    rtol=0 if exact else 1e-6,
                    atol=0 if exact else loose,
                    msg=lambda text, where=f"{name}: {key}": f"{where}\n{text}",
                )
                seen[key] += own.numel()
        assert all(seen[key] >= own.numel() for key, (_, own) in expected.items()), "a part is nowhere"


@pytest.mark.slow
def test_each_matrix_is_orthogonalised_once_and_sent_only_where_it_has_to_be(on_two: list) -> None:
    """Over both processes as many as in one, except where each does all by itself."""
    matrices = sum(role(name) == "matrix" for name, _ in tiny().named_parameters())
    for name, mesh in TWO.items():
        here, there = (process[name]["orthogonalized"] for process in on_two)
        if name == "data, each by itself":
            assert here == there == matrices * STEPS // 2
            continue
        assert here + there == matrices * STEPS / mesh.keywords["turns"], name
        if not name.startswith("lopsided"):
            assert abs(here - there) <= STEPS, name  # one more at each step, where the number is odd
        assert on_two[0][name]["sends boxes"] == [not name.startswith("data")] * mesh.keywords["turns"], name


def staged(stage: int) -> tuple[Decoder, Arrangement]:
    """One layer of the two, as a stage of a pipeline has it."""
    config, model = ParallelConfig(pipeline=2), tiny()
    degrees = degrees_of(config, 2)
    arrangement = Arrangement(Grid(config, degrees, coordinates(stage, degrees), CPU))
    arrangement.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    del model.layers[str(1 - stage)]
    return model, arrangement


@pytest.mark.parametrize("turns", [1, 2, 4])
def test_stages_of_a_pipeline_take_turns_in_the_order_of_the_whole_model(
    turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "PRECISION", torch.float64)
    whole = tiny()
    steps_without_norm(whole, Arrangement.of(whole, Runtime(CPU)), turns)
    for stage in range(2):
        model, arrangement = staged(stage)
        steps_without_norm(model, arrangement, turns)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter, whole.get_parameter(name), rtol=1e-6, atol=1e-8)


def steps_without_norm(model: nn.Module, arrangement: Arrangement, turns: int) -> None:
    """One step, by which some of the matrices move; a norm would need the other processes."""
    optimizer = Optimizer(model, CONFIG, rates(turns), arrangement)
    for name, parameter in optimizer.parameters.items():
        parameter.grad = gradient(name, tuple(parameter.shape), 0)
    optimizer.step(1.0, torch.tensor(True), turn=3)


def test_matrices_are_dealt_out_so_that_nobody_has_much_more_than_another() -> None:
    costs = {number: float(cost) for number, cost in enumerate([7, 1, 5, 5, 3, 3, 1, 9])}
    owners = deal(costs, 3)
    loads = [sum(costs[n] for n, owner in owners.items() if owner == hand) for hand in range(3)]
    assert list(owners) == list(costs)
    assert max(loads) <= 4 / 3 * sum(costs.values()) / 3  # Graham's bound
    assert deal({5: 1.0, 2: 1.0}, 4) == {2: 0, 5: 1}, "equal ones go out in the order of their numbers"


def quarter(row: int, column: int) -> Piece:
    return Piece((2 * row, 3 * column), (2, 3), (4, 6))


def test_a_box_comes_from_its_owner_itself_or_from_the_nearest_that_holds_it() -> None:
    """Two replicas of four quarters each."""
    held = [{0: quarter(row, column)} for _ in range(2) for row in range(2) for column in range(2)]
    sent = list(to_owners(held, {0: 6}))
    assert [parcel.sender for parcel in sent] == [4, 5, 6, 7]
    assert {parcel.piece for parcel in sent} == {own[0] for own in held}
    back = list(from_owners(held, {0: 6}))
    assert back == [Parcel(0, held[rank][0], 6, rank) for rank in range(8)]


def test_boxes_that_do_not_make_up_a_matrix_are_noticed() -> None:
    held = [{3: quarter(0, 0)}, {3: quarter(1, 1)}]
    with pytest.raises(AssertionError, match="boxes of matrix 3 hold 12 elements, not 24"):
        list(to_owners(held, {3: 0}))


def test_what_is_whole_everywhere_and_cheap_is_not_sent() -> None:
    shapes = {0: (32, 32), 1: (512, 512), 2: (32, 32)}
    whole = {number: Piece((0, 0), shape, shape) for number, shape in shapes.items()}
    held = [whole, {**whole, 2: Piece((0, 0), (16, 32), (32, 32))}]
    assert whole_everywhere(held) == {0, 1}
    assert to_share(held) == {1, 2}
    assert to_share([]) == set()
    assert dear(128, 4096) == dear(4096, 128)


def test_a_parcel_is_as_large_as_its_box() -> None:
    assert Parcel(0, quarter(0, 1), 0, 1).numel == prod((2, 3))
