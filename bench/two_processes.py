"""The same training by one process with all threads, and by several that share the cores, in turn.

    python bench/two_processes.py --save bench/results/two-processes.json
    python bench/two_processes.py --meshes data=2 shard=2 --rounds 7 --optimizer adamw

Every turn begins fresh processes, takes a few steps to warm up, and times the others.  All train the
10M-parameter decoder of `compare.py --shape S` on the same rows.  The last line is one JSON object: for each
mesh its tokens per second over one process's, the median of the rounds.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median

import torch
from parity import mesh_of
from peers.shapes import SHAPES, Shape
from peers.turns import random_rows
from peers.with_hasten import OPTIMIZERS, batch_of, decoder
from processes import together

from hasten.core.allocator import allocator_environment
from hasten.core.batch import Batch
from hasten.core.files import write_json
from hasten.core.runtime import Runtime, environment
from hasten.objective.cross_entropy import CrossEntropy
from hasten.parallel.apply import parallelize
from hasten.parallel.grid import Grid
from hasten.train.engine import choose_precision
from hasten.train.engines import make_engine
from hasten.train.optim import Optimizer, Rates
from hasten.train.step import train_step

WARM_UP = 3


def own_rows(batch: Batch, grid: Grid) -> Batch:
    """This process's share of a step's rows."""
    share = len(batch.tokens) // grid.replicas
    rows = slice(grid.replica * share, (grid.replica + 1) * share)
    return Batch(batch.tokens[rows], batch.targets[rows])


def seconds_per_step(runtime: Runtime, mesh: str, shape: Shape, optimizer: str, steps: int) -> float:
    """The median step of a turn, on this process."""
    torch.set_num_threads(max(len(os.sched_getaffinity(0)) // runtime.world_size, 1))
    grid, table = Grid.make(runtime, mesh_of(mesh)), random_rows(shape)
    precision = choose_precision("auto", runtime.device)
    model, arrangement = parallelize(decoder(shape), 0, grid, precision)
    engine = make_engine(model, CrossEntropy(), runtime, arrangement, precision=precision, compiled=False)
    config = OPTIMIZERS[optimizer]()
    rates = Rates.at(config, model.config, shape.batch_tokens)
    updater = Optimizer(model, config, rates, arrangement)
    taken = []
    for step in range(WARM_UP + steps):
        rows = own_rows(batch_of(table, shape, step), grid)
        began = time.perf_counter()
        outcome = train_step(engine, updater, [rows], max_norm=1.0, turn=step)
        assert outcome.finite, f"step {step} is not finite"
        taken.append(time.perf_counter() - began)
    return median(taken[WARM_UP:])


def main() -> None:
    """Take turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--meshes", nargs="*", default=["data=2", "shard=2"])
    parser.add_argument(
        "--optimizer", choices=OPTIMIZERS, default="muon", help="muon is the default recipe's"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="timed ones of a turn")
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    args = parser.parse_args()
    os.environ.update(allocator_environment(os.environ))  # of the processes to come
    shape, meshes = SHAPES[args.shape], ["", *args.meshes]
    seconds: dict[str, list[float]] = {mesh: [] for mesh in meshes}
    for number in range(args.rounds):
        for mesh in meshes:
            count = mesh_of(mesh).model_devices * (int(mesh_of(mesh).data) if "data=" in mesh else 1)
            turn = together(count, seconds_per_step, mesh, shape, args.optimizer, args.steps)
            seconds[mesh].append(max(turn))
            print(f"round {number + 1}   {mesh or 'one process':<20} {max(turn):.3f} s", flush=True)
    ratios = {
        mesh: [one / many for one, many in zip(seconds[""], seconds[mesh], strict=True)]
        for mesh in args.meshes
    }
    figures = {
        "bench": "two_processes",
        "shape": {"name": args.shape, **vars(shape)},
        "optimizer": args.optimizer,
        "ratio": {mesh: median(found) for mesh, found in ratios.items()},
        "by_round": ratios,
        "seconds_per_step": {mesh or "one process": found for mesh, found in seconds.items()},
        "environment": environment(),
    }
    if args.save:
        write_json(args.save, figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
