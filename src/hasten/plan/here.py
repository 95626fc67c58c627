"""What a training on this very machine will need and take, said before, to be held against what it did.

On a CPU: kernels by their measured laws (`machine.py`), bytes by `train/footprint.py` and what the C
library's heap loses.  On a GPU: the planner's clockwork, with the device as it is.
"""

from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

import torch

from hasten.core.runtime import Runtime
from hasten.parallel.schedules import bubble_share
from hasten.plan.hardware import DEVICES, LINKS, Cluster, Device
from hasten.plan.layout import Layout
from hasten.plan.machine import Machine, this_machine
from hasten.plan.memory import OURS, muon
from hasten.plan.rates import Software
from hasten.plan.step import accumulation, exchange_calls, pass_calls, update_calls
from hasten.plan.time import Clockwork
from hasten.plan.work import Work
from hasten.train.footprint import Workload, footprint, kept_by_block
from hasten.train.metrics import measure_peak

LIBRARIES = 50e6
"""Bytes that a process on a CPU takes beside tensors in its first step: code that is loaded and made then."""
AGAIN, WIDE, UPDATE = 0.5, 0.25, 1.5
"""What the heap loses between blocks, as shares: of activations where a second micro-batch finds their places
taken by gradients, of activations in float32, of what the update needs, which fits into none of the gaps.
What is made again finds its place taken too: one layer's activations.  Seen with glibc's heap as
`core/allocator.py` sets it, on 28 trainings (docs/plan.md)."""


@dataclass(frozen=True)
class Prediction:
    """What was expected of a run."""

    peak_bytes: float
    step_seconds: float | None  # None: the machine has not been measured
    parts: dict[str, float]  # seconds by kernel

    def state(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def predict(work: Workload, runtime: Runtime, *, base_bytes: float, measure: bool = True) -> Prediction:
    """Bytes at the peak and seconds of a step of one process, of all that train together.

    `base_bytes` are what the process held before the model was there (a CPU's; 0 on a GPU).  All processes
    call this at the same moment: where the machine has not been measured, and is to be, they do it together.
    """
    if runtime.device.type == "cuda":
        return Prediction(footprint(work).total, gpu_seconds(work, runtime), {})
    machine = this_machine(runtime, work.precision, measure=measure)
    parts = {} if machine is None else step_parts(work, machine)
    return Prediction(heap_bytes(work, base_bytes), sum(parts.values()) if parts else None, parts)


def heap_bytes(work: Workload, base_bytes: float) -> float:
    """Resident bytes of a process on a CPU at its peak."""
    plain = footprint(work)
    lost = plain.activations * (AGAIN * (work.micro_batches > 1) + WIDE * (work.precision == "fp32"))
    if work.recompute != "none":
        lost += kept_by_block(work, "none").bytes(work)
    within = replace(plain, update=0.0).total
    return base_bytes + LIBRARIES + within + lost + UPDATE * plain.update


def step_parts(work: Workload, machine: Machine) -> dict[str, float]:
    """Seconds of a step by kernel, on the processors."""
    parts: dict[str, float] = defaultdict(float)
    for call in pass_calls(work):
        parts[call.law] += work.micro_batches * machine.seconds(*call)
    for call in update_calls(work):
        parts[f"update: {call.law}"] += machine.seconds(*call)
    if work.micro_batches > 1:
        parts["accumulation"] += (work.micro_batches - 1) * machine.seconds(*accumulation(work))
    for call in exchange_calls(work):
        parts[f"exchange: {call.law}"] += machine.seconds(*call)
    if work.degree("pipeline") > 1:
        passes = sum(seconds for name, seconds in parts.items() if not name.startswith("update"))
        parallel = work.parallel
        idle = bubble_share(parallel.order, work.degree("pipeline"), work.micro_batches, parallel.interleave)
        parts["bubble"] = passes * float(idle)
    return dict(parts)


def gpu_seconds(work: Workload, runtime: Runtime) -> float:
    """Seconds of a step by the planner's clockwork."""
    cluster = cluster_here(runtime)
    layout = layout_of(work)
    model = Work.of(work.model)
    clock = Clockwork(
        model,
        cluster,
        work.row_tokens,
        precision=work.precision if work.precision in cluster.device.peaks else "bf16",
        software=Software(compiled=work.compiled),
        scheme=muon(model) if work.optimizer == "muon" else OURS,
    )
    return clock.step(layout, work.micro_rows * work.micro_batches * layout.replicas).total


def layout_of(work: Workload) -> Layout:
    """The planner's layout of a run."""
    parallel = work.parallel
    return Layout(
        **{axis: work.degree(axis) for axis in ("data", "shard", "tensor", "pipeline", "context")},
        interleave=parallel.interleave,
        micro_batch=work.micro_rows,
        sequence_parallel=parallel.sequence_parallel and work.degree("tensor") > 1,
        recompute=work.recompute,
        stage=parallel.stage,
        order="interleaved" if parallel.interleave > 1 else parallel.order,
    )


def cluster_here(runtime: Runtime) -> Cluster:
    """The GPUs that train, with the data sheet of the device that is nearest by name, or measured peaks."""
    name = torch.cuda.get_device_name(runtime.device)
    known = next((d for key, d in sorted(DEVICES.items(), reverse=True) if key.upper() in name.upper()), None)
    per_node = max(torch.cuda.device_count(), 1)
    nodes = ceil(runtime.world_size / per_node)
    device = known or unknown_device(runtime, name)
    return Cluster(device, min(per_node, runtime.world_size), nodes, LINKS[device.across])


def unknown_device(runtime: Runtime, name: str) -> Device:
    """A GPU that is in no table: its matrix peak measured, the rest like an L4's."""
    peak = measure_peak(runtime.device, "bf16")
    memory = torch.cuda.get_device_properties(runtime.device).total_memory
    like = DEVICES["l4"]
    return replace(like, name=name, peaks={"bf16": peak, "fp16": peak}, memory=float(memory))
