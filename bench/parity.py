"""Train the same few steps on every mesh and on one process, and compare: loss, gradient norm, weights.

    python bench/parity.py --save bench/results/parity.json
    python bench/parity.py --meshes 'tensor=2' 'pipeline=2 tensor=2' --cases decoder

The last line is one JSON object: for each mesh and case the largest relative difference of each.  The
processes run on this machine, joined by gloo, in float32.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from processes import together
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.core.config import override, parse
from hasten.core.files import write_json
from hasten.core.runtime import Runtime, environment
from hasten.model.config import ModelConfig
from hasten.objective.cross_entropy import CrossEntropy
from hasten.ops import orthogonalize
from hasten.parallel.apply import parallelize
from hasten.parallel.arrangement import Piece
from hasten.parallel.config import ParallelConfig
from hasten.parallel.grid import Grid
from hasten.train.engine import Engine
from hasten.train.engines import make_engine
from hasten.train.optim import AdamWConfig, MuonConfig, Optimizer
from hasten.train.step import train_step

VOCAB, ROWS, TOKENS, SOURCE_TOKENS, STEPS = 61, 8, 16, 24, 2
SHAPE = {"vocab_size": VOCAB, "dim": 32, "num_heads": 4, "num_layers": 4, "ffn_dim": 64, "max_positions": 64}
CASES: dict[str, dict[str, Any]] = {
    "decoder": {**SHAPE, "num_kv_heads": 2},
    "tied": {**SHAPE, "preset": "gpt2", "vocab_size": VOCAB},
    "masked": {**SHAPE, "kind": "encoder", "activation": "swiglu"},
    "seq2seq": {**SHAPE, "kind": "seq2seq", "num_layers": 2, "num_encoder_layers": 2, "tied": True},
}
OPTIMIZERS = {"adamw": AdamWConfig(eps=1e-2, learning_rate=1e-2), "muon": MuonConfig(eps=1e-2)}
"""Adam divides by the size of a gradient: a large eps keeps rounding of small ones from growing.  Muon rounds
to bfloat16 inside, where a rounding more or less shows: `train` has its products in float64."""
MESHES = {
    2: ("data=2", "shard=2", "shard=2 stage=1", "tensor=2", "tensor=2 sequence_parallel=false",
        "pipeline=2", "pipeline=2 order=gpipe", "pipeline=2 interleave=2", "context=2"),
    4: ("data=2 shard=2", "shard=2 tensor=2", "pipeline=2 tensor=2", "pipeline=2 shard=2",
        "context=2 tensor=2", "context=2 shard=2", "pipeline=2 context=2", "tensor=4", "pipeline=4"),
}  # fmt: skip


def mesh_of(words: str) -> ParallelConfig:
    """`shard=2 tensor=2` as a configuration."""
    return parse(ParallelConfig, override({}, words.split()), "parity")


def rows_of(case: str, step: int) -> Batch:
    """A step's rows [B, T]; the first have far fewer targets than the last, and rows hold two documents."""
    random = torch.Generator().manual_seed(step)
    tokens, targets = torch.randint(VOCAB, (2, ROWS, TOKENS), generator=random)
    targets[: ROWS // 2, 3:] = IGNORE
    segments = torch.ones(ROWS, TOKENS, dtype=torch.long)
    segments[:, 7:] = 2
    positions = torch.arange(TOKENS).repeat(ROWS, 1)
    positions[:, 7:] -= 7
    extra = dict[str, Tensor]()
    if case == "seq2seq":
        source_segments = torch.ones(ROWS, SOURCE_TOKENS, dtype=torch.long)
        source_segments[:, 9:] = 2
        source_positions = torch.arange(SOURCE_TOKENS).repeat(ROWS, 1)
        source_positions[:, 9:] -= 9
        extra = {
            "source": torch.randint(VOCAB, (ROWS, SOURCE_TOKENS), generator=random),
            "source_segments": source_segments,
            "source_positions": source_positions,
        }
    return Batch(tokens, targets, segments, positions, extra=extra)


def micro_batches(case: str, rows: Batch, grid: Grid, micro_rows: int) -> list[Batch]:
    """This process's share of a step's rows, `micro_rows` at a time."""
    share = ROWS // grid.replicas
    starts = range(grid.replica * share, (grid.replica + 1) * share, micro_rows)
    return [part_of(case, rows, slice(start, start + micro_rows)) for start in starts]


def part_of(case: str, rows: Batch, part: slice) -> Batch:
    """Some rows of a batch; where tokens are hidden, the places that are asked."""
    cut = {name: getattr(rows, name)[part] for name in ("tokens", "targets", "segments", "positions")}
    extra = {name: tensor[part] for name, tensor in rows.extra.items()}
    if case == "masked":
        asked = (cut["targets"] != IGNORE).flatten().nonzero().flatten()
        spare = (cut["targets"] == IGNORE).flatten().nonzero().flatten()[:2]
        extra["scored"] = torch.cat((asked, spare))
    return replace(rows, **cut, extra=extra)


@contextmanager
def finer_products() -> Iterator[None]:
    """Muon's products in float64."""
    usual, orthogonalize.PRECISION = orthogonalize.PRECISION, torch.float64
    try:
        yield
    finally:
        orthogonalize.PRECISION = usual


@finer_products()
def train(
    runtime: Runtime, mesh: str, case: str, optimizer: str = "adamw", micro_rows: int = 1
) -> dict[str, Any]:
    """A few steps on this process of a mesh: losses, norms, and what it holds of the weights."""
    grid = Grid.make(runtime, mesh_of(mesh))
    config = ModelConfig.model_validate(CASES[case])
    model, arrangement = parallelize(config, 0, grid)
    first = arrangement.held(model)
    first = {name: (piece, tensor.clone()) for name, (piece, tensor) in first.items()}
    engine = make_engine(model, CrossEntropy(), runtime, arrangement, precision="fp32", compiled=False)
    updater = Optimizer(model, OPTIMIZERS[optimizer], arrangement=arrangement)
    figures = steps_taken(engine, updater, case, grid, micro_rows)
    return {**figures, "first": first, "weights": arrangement.held(model)}


def steps_taken(
    engine: Engine, updater: Optimizer, case: str, grid: Grid, micro_rows: int = 1
) -> dict[str, list[float]]:
    """Losses and norms of a few steps, and what is measured after them."""
    outcomes = []
    for step in range(STEPS):
        batches = micro_batches(case, rows_of(case, step), grid, micro_rows)
        outcomes.append(train_step(engine, updater, batches, max_norm=0.5, turn=step))
    return {
        "loss": [outcome.loss.item() for outcome in outcomes],
        "norm": [outcome.norm.item() for outcome in outcomes],
        "measured": [figure.item() for figure in engine.measure(batches)],
    }


def train_all(runtime: Runtime, runs: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Several runs one after the other in the same processes."""
    return [train(runtime, *run) for run in runs]


def whole(parts: Sequence[Mapping[str, tuple[Piece, Tensor]]]) -> dict[str, Tensor]:
    """Whole parameters out of what all processes hold; where two hold the same, they have to be equal."""
    made, seen = dict[str, Tensor](), dict[str, Tensor]()
    for part in parts:
        for name, (piece, tensor) in part.items():
            target = made.setdefault(name, torch.full(piece.whole, float("nan")))
            before = target[piece.slices]
            known = ~before.isnan()
            assert torch.equal(before[known], tensor[known]), f"copies of {name} differ"
            target[piece.slices] = tensor
            seen[name] = target
    assert not any(tensor.isnan().any() for tensor in seen.values()), "a part of a parameter is nowhere"
    return made


def differences(here: Sequence[dict[str, Any]], alone: dict[str, Any]) -> dict[str, float | bool]:
    """The largest relative difference of each figure from one process's."""

    def off(name: str) -> float:
        return max(abs(a / b - 1) for run in here for a, b in zip(run[name], alone[name], strict=True))

    first, last = whole([run["first"] for run in here]), whole([run["weights"] for run in here])
    sums = torch.tensor([run["measured"] for run in here], dtype=torch.float64).sum(dim=0)
    return {
        "initial_weights_equal": all(torch.equal(first[n], alone["first"][n][1]) for n in alone["first"]),
        "loss": off("loss"),
        "norm": off("norm"),
        "measured": (sums[:2] / torch.tensor(alone["measured"][:2]) - 1).abs().max().item(),
        "weights": max(
            ((last[n] - w).abs().max() / w.abs().max().clamp(min=1e-3)).item()
            for n, (_, w) in alone["weights"].items()
        ),
    }


def compare(world_size: int, runs: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Each run (mesh, case, optimizer) on `world_size` processes beside one process."""
    cases = sorted({run[1:] for run in runs})
    alone = {key: train(Runtime(torch.device("cpu")), "", *key) for key in cases}
    found = together(world_size, train_all, runs)
    return [
        {
            **dict(zip(("mesh", "case", "optimizer"), run, strict=True)),
            "processes": world_size,
            **differences([process[number] for process in found], alone[run[1:]]),
        }
        for number, run in enumerate(runs)
    ]


def main() -> None:
    """Compare everything that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--meshes", nargs="*", default=["*"], help="patterns; all by default")
    parser.add_argument("--cases", nargs="*", default=["*"], help="patterns; all by default")
    parser.add_argument("--optimizers", nargs="*", default=sorted(OPTIMIZERS))
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    args = parser.parse_args()
    results = []
    for world_size, meshes in MESHES.items():
        runs = [
            (mesh, case, optimizer)
            for mesh in meshes
            if any(fnmatch(mesh, pattern) for pattern in args.meshes)
            for case in CASES
            if any(fnmatch(case, pattern) for pattern in args.cases)
            for optimizer in args.optimizers
        ]
        for result in compare(world_size, runs) if runs else []:
            results.append(result)
            print(json.dumps(result), flush=True)
    figures = {"bench": "parity", "steps": STEPS, "results": results, "environment": environment()}
    if args.save:
        write_json(args.save, figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
