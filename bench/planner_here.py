"""Predicted against measured on this machine: peak memory and step time of trainings, one JSON object.

    python bench/planner_here.py --save bench/results/planner-here.json
    python bench/planner_here.py --only data=2 --repeats 1       those whose name has it in it, once each

Each of EXAMINED trains for some steps in processes of its own, `--repeats` times; the medians count.  What
the prediction knows of the machine are kernels and collectives timed by themselves (`hasten/plan/kernels.py`,
`machine.py`): once for each number of processes, of threads and precision, in processes that do nothing
else.  What it knows of the C library's heap was seen on other models than these (docs/plan.md).  Leave the
machine alone meanwhile.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from hasten.core.allocator import settle_allocator

if __name__ == "__main__":
    settle_allocator()  # as `hasten` does, before anything large is loaded

import torch

from hasten.core.batch import Batch
from hasten.core.files import write_json
from hasten.core.runtime import environment, start
from hasten.ledger.machine import busy_seconds
from hasten.model.config import ModelConfig
from hasten.objective.cross_entropy import CrossEntropy
from hasten.ops.kernels.library import library
from hasten.parallel.apply import parallelize
from hasten.parallel.config import ParallelConfig
from hasten.parallel.grid import Grid
from hasten.parallel.recompute import recompute
from hasten.plan.here import predict
from hasten.plan.machine import this_machine
from hasten.train.engines import make_engine
from hasten.train.footprint import Workload
from hasten.train.memory import peak_memory, resident_memory
from hasten.train.optim import AdamWConfig, MuonConfig, Optimizer, Rates
from hasten.train.step import train_step

Case = dict[str, Any]
WARM_UP, STEPS = 2, 7
OPTIMIZERS = {"adamw": AdamWConfig, "muon": MuonConfig}
LIMIT = 900  # seconds that one of them may take
CALM = 0.1  # cores that others may use meanwhile


def case(  # noqa: PLR0917 (one line of a table)
    name: str,
    model: dict[str, Any],
    precision: str,
    optimizer: str,
    rows: tuple[int, int],
    row_tokens: int,
    parallel: dict[str, Any] | None = None,
    threads: int | None = None,
) -> Case:
    """A training: rows of a step and of one forward pass of a replica, over processes as `parallel` says."""
    parallel = parallel or {}
    processes = prod(value for value in parallel.values() if isinstance(value, int))
    shape = {"max_positions": max(row_tokens, 128), **model}
    return {
        "name": name, "model": shape, "precision": precision, "optimizer": optimizer, "rows": rows[0],
        "micro_rows": rows[1], "row_tokens": row_tokens, "parallel": parallel, "processes": processes,
        "threads": threads or max((os.cpu_count() or 1) // processes, 1),
    }  # fmt: skip


def decoder(vocab: int, dim: int, layers: int, heads: int, activation: str = "swiglu", **more: Any) -> Case:
    """A decoder."""
    shape = {"vocab_size": vocab, "dim": dim, "num_layers": layers, "num_heads": heads}
    return {**shape, "activation": activation, **more}


GPT = {"position": "learned", "norm": "layer", "tied": True}
BERT = {"kind": "encoder", "norm_place": "after", "position": "learned", "norm": "layer", "dropout": 0.1}
TEN = decoder(8192, 320, 6, 5)
EXAMINED = [
    case("1M gelu, fp32, adamw", decoder(1024, 128, 4, 4, "gelu"), "fp32", "adamw", (16, 16), 128),
    case("3M swiglu, bf16, muon", decoder(2048, 192, 6, 6), "bf16", "muon", (16, 16), 256),
    case("5M swiglu, fp32, muon", decoder(4096, 224, 6, 7), "fp32", "muon", (8, 4), 256),
    case("10M relu squared, bf16, muon", decoder(8192, 320, 6, 5, "relu_squared", qk_norm=True), "bf16",
         "muon", (8, 8), 256),
    case("14M GPT, bf16, adamw", decoder(12_288, 384, 5, 6, "gelu", **GPT), "bf16", "adamw", (8, 4), 512),
    case("20M fewer keys, bf16, adamw", decoder(6144, 512, 6, 8, num_kv_heads=2), "bf16", "adamw",
         (4, 4), 512),
    case("30M swiglu, bf16, muon", decoder(8192, 576, 6, 9), "bf16", "muon", (4, 2), 512),
    case("9M BERT, bf16, adamw", decoder(6000, 320, 5, 5, "gelu", **BERT), "bf16", "adamw", (16, 8), 128),
    case("8M seq2seq, bf16, adamw", decoder(6000, 256, 3, 4, "gelu", kind="seq2seq"), "bf16", "adamw",
         (16, 8), 128),
    case("8M selective, bf16, adamw", decoder(4096, 288, 6, 6), "bf16", "adamw", (8, 8), 512,
         {"recompute": "selective"}),
    case("8M full, bf16, adamw", decoder(4096, 288, 6, 6), "bf16", "adamw", (8, 8), 512,
         {"recompute": "full"}),
    case("10M one thread, bf16, adamw", TEN, "bf16", "adamw", (8, 8), 256, threads=1),
    case("10M data=2, bf16, adamw", TEN, "bf16", "adamw", (16, 8), 256, {"data": 2}),
    case("10M data=2, bf16, muon", TEN, "bf16", "muon", (16, 8), 256, {"data": 2}),
    case("10M shard=2, bf16, adamw", TEN, "bf16", "adamw", (16, 8), 256, {"shard": 2}),
    case("10M tensor=2, bf16, adamw", decoder(8192, 320, 6, 4), "bf16", "adamw", (8, 8), 256, {"tensor": 2}),
    case("10M context=2, bf16, adamw", TEN, "bf16", "adamw", (8, 8), 512, {"context": 2}),
    case("10M pipeline=2, bf16, adamw", TEN, "bf16", "adamw", (16, 4), 256, {"pipeline": 2}),
]  # fmt: skip

TRIED = [
    case("tried: 5M swiglu, bf16, adamw", decoder(4096, 256, 4, 4), "bf16", "adamw", (16, 8), 256),
    case("tried: 27M gelu, bf16, adamw", decoder(8192, 512, 6, 8, "gelu"), "bf16", "adamw", (4, 4), 512),
    case("tried: 7M swiglu, fp32, muon", decoder(4096, 256, 6, 4), "fp32", "muon", (4, 4), 512),
    case("tried: 17M swiglu, bf16, muon", decoder(8192, 384, 6, 6), "bf16", "muon", (4, 4), 512),
    case("tried: 7M full, bf16, adamw", decoder(4096, 256, 6, 4), "bf16", "adamw", (8, 8), 512,
         {"recompute": "full"}),
    case("tried: 5M data=2, bf16, adamw", decoder(4096, 256, 4, 4), "bf16", "adamw", (16, 8), 256,
         {"data": 2}),
    case("tried: 5M shard=2, bf16, adamw", decoder(4096, 256, 4, 4), "bf16", "adamw", (16, 8), 256,
         {"shard": 2}),
    case("tried: 5M tensor=2, bf16, adamw", decoder(4096, 256, 4, 4), "bf16", "adamw", (8, 8), 256,
         {"tensor": 2}),
]  # fmt: skip
"""What the predictions were made with: none of it counts."""


def train(given: Case) -> dict[str, Any]:
    """Take the steps of one training in this process and its fellows; what was predicted and measured."""
    runtime = start("cpu")
    grid = Grid.make(runtime, ParallelConfig(**given["parallel"]))
    model_config, optimizer_config = ModelConfig(**given["model"]), OPTIMIZERS[given["optimizer"]]()
    rates = Rates.at(optimizer_config, model_config, given["rows"] * given["row_tokens"])
    library()
    base = resident_memory(runtime.device)
    model, arrangement = parallelize(model_config, 0, grid, given["precision"])
    mode = given["parallel"].get("recompute", "none")
    recompute(model, mode)
    engine = make_engine(
        model, CrossEntropy(), runtime, arrangement, precision=given["precision"], compiled=False
    )
    updater = Optimizer(model, optimizer_config, rates, arrangement)
    seconds = []
    for step in range(WARM_UP + STEPS):
        batches = batches_of(given, model_config, grid, step)
        begun = time.perf_counter()
        outcome = train_step(engine, updater, batches, max_norm=1.0, turn=step)
        bool(outcome.finite)
        seconds.append(time.perf_counter() - begun)
    peak = peak_memory(runtime.device)
    work = Workload(
        model=model_config,
        micro_rows=given["micro_rows"],
        row_tokens=given["row_tokens"],
        micro_batches=given["rows"] // (grid.replicas * given["micro_rows"]),
        precision=given["precision"],
        optimizer=given["optimizer"],
        turns=rates.turns,
        parallel=grid.config,
        degrees=grid.degrees,
        recompute=mode,
        kernels=library() is not None,
    )
    said = predict(work, runtime, base_bytes=base, measure=False)
    return {
        "parameters": model_config.num_parameters,
        "predicted_bytes": said.peak_bytes,
        "measured_bytes": peak,
        "predicted_seconds": said.step_seconds,
        "measured_seconds": median(seconds[WARM_UP:]),
        "parts": said.parts,
    }


def batches_of(given: Case, model: ModelConfig, grid: Grid, step: int) -> list[Batch]:
    """This replica's micro-batches of a step."""
    rows, draw = given["rows"] // grid.replicas, torch.Generator().manual_seed(1000 * step + grid.replica)
    ids = torch.randint(model.vocabulary, (rows, given["row_tokens"] + 1), generator=draw)
    source = {"source": ids.flip(1)[:, 1:]} if model.kind == "seq2seq" else {}
    whole = {"tokens": ids[:, :-1], "targets": ids[:, 1:], **source}
    cuts = {name: tensor.split(given["micro_rows"]) for name, tensor in whole.items()}
    return [
        Batch(
            cuts["tokens"][n].contiguous(),
            cuts["targets"][n].contiguous(),
            extra={"source": cuts["source"][n].contiguous()} if source else {},
        )
        for n in range(rows // given["micro_rows"])
    ]


def calibrate(given: Case) -> dict[str, Any]:
    """Measure the machine as the processes of a training find it."""
    runtime = start("cpu")
    begun = time.perf_counter()
    machine = this_machine(runtime, given["precision"], again=True)
    return {
        "machine": None if machine is None else machine.description,
        "seconds": time.perf_counter() - begun,
    }


def run(job: str, given: Case) -> dict[str, Any]:
    """A job in as many fresh processes as a case has; what the first of them says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = given["processes"]
    common = {"OMP_NUM_THREADS": str(given["threads"]), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
              "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}  # fmt: skip
    words = [sys.executable, __file__, "--job", job, "--case", json.dumps(given)]
    started = [
        subprocess.Popen(
            words,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    before, used, begun = busy_seconds(), cpu_of_children(), time.perf_counter()
    said = [process.communicate(timeout=LIMIT)[0] for process in started]
    own = cpu_of_children() - used
    if any(process.returncode for process in started):
        raise SystemExit(f"{given['name']}: a process ended with an error")
    answer: dict[str, Any] = json.loads(said[0].strip().splitlines()[-1])
    others = (busy_seconds() or 0.0) - (before or 0.0) - own
    return {**answer, "others": max(others, 0.0) / (time.perf_counter() - begun)}


def cpu_of_children() -> float:
    """Seconds of processors that ended children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def calmest(job: str, given: Case, repeats: int, tries: int) -> list[dict[str, Any]]:
    """The `repeats` runs during which others used least of the processors, of up to `tries`."""
    found = list[dict[str, Any]]()
    while len(found) < tries and sum(one["others"] <= CALM for one in found) < repeats:
        found.append(run(job, given))
    return sorted(found, key=lambda one: one["others"])[:repeats]


def examine(given: Case, repeats: int, tries: int) -> dict[str, Any]:
    """One case: what was predicted, the medians of what was measured, and the errors."""
    found = calmest("train", given, repeats, tries)
    first = found[0]
    measured = {name: median(one[name] for one in found) for name in ("measured_bytes", "measured_seconds")}
    predicted = {
        name: median(one[name] for one in found) for name in ("predicted_bytes", "predicted_seconds")
    }
    return {
        "name": given["name"],
        "processes": given["processes"],
        "threads": given["threads"],
        "parameters": first["parameters"],
        **predicted,
        **measured,
        "memory_error": predicted["predicted_bytes"] / measured["measured_bytes"] - 1,
        "time_error": predicted["predicted_seconds"] / measured["measured_seconds"] - 1,
        "each_measured_seconds": [one["measured_seconds"] for one in found],
        "cores_used_by_others": [one["others"] for one in found],
        "parts": first["parts"],
    }


def exam(cases: Sequence[Case], repeats: int, tries: int) -> dict[str, Any]:
    """Every case, and how many of them were met."""
    machines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for given in cases:
        key = given["processes"], given["threads"], given["precision"]
        if key not in machines:
            machines[key] = calmest("calibrate", given, 1, tries)[0]
    found = []
    for given in cases:
        found.append(examine(given, repeats, tries))
        one = found[-1]
        print(f"{one['name']:<32} memory {one['memory_error']:+.1%}  time {one['time_error']:+.1%}",
              file=sys.stderr, flush=True)  # fmt: skip
    memory, seconds = ([abs(one[f"{what}_error"]) for one in found] for what in ("memory", "time"))
    return {
        "memory_max_error": max(memory),
        "memory_within_10_percent": sum(error <= 0.10 for error in memory),
        "time_max_error": max(seconds),
        "time_within_15_percent": sum(error <= 0.15 for error in seconds),
        "cases": len(found),
        "repeats": repeats,
        "examined": found,
        "machines": list(machines.values()),
        "environment": environment(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--tried", action="store_true", help="those that the predictions were made with")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tries", type=int, default=6, help="runs to choose the calm ones from")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--job", choices=("train", "calibrate"), help=argparse.SUPPRESS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        said = train(options.case) if options.job == "train" else calibrate(options.case)
        print(json.dumps(said))
        return 0
    cases = TRIED if options.tried else EXAMINED
    chosen = [each for each in cases if options.only in each["name"]]
    result = exam(chosen, options.repeats, max(options.tries, options.repeats))
    if options.save:
        write_json(options.save, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
