"""Every layout of a model on a cluster: those that fit, the fastest first; why the others do not."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from hasten.plan.hardware import Cluster
from hasten.plan.layout import Layout, Order, misfit
from hasten.plan.memory import MINIMAL, OURS, Keeping, Memory, Scheme, bound, peak_memory
from hasten.plan.rates import OWN, Software
from hasten.plan.time import Clockwork, StepTime
from hasten.plan.work import Work

CONTEXT_FROM = 8192  # tokens of a row, below which splitting it is not worth trying
INTERLEAVES = (1, 2, 4)
MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
AXIS_HANDICAP = (
    0.02  # of the time, for each axis: a smaller gain is less than what the planner can tell apart
)
ROOMY = 0.9  # of the memory: above that a larger micro-batch is not preferred among equals
KEPT_REPLICAS = 2  # the most replicas that divide the batch, and the next fewer
SECONDS_PER_HOUR, SECONDS_PER_DAY = 3600.0, 86_400.0
Reason = Literal["memory", "shape"]


@dataclass(frozen=True)
class Question:
    """What is to be trained on what."""

    work: Work
    cluster: Cluster
    row_tokens: int
    rows: int  # of a step, over all devices
    precision: str = "bf16"
    scheme: Scheme = OURS
    keeping: Keeping = MINIMAL
    software: Software = OWN
    tokens: float | None = None  # of the whole run, None where nobody knows
    price: float | None = None  # per device-hour, None: the device's
    fixed: dict[str, Any] = field(default_factory=dict)  # degrees that are given

    @cached_property
    def clockwork(self) -> Clockwork:
        """Times of layouts of this question."""
        return Clockwork(
            self.work,
            self.cluster,
            self.row_tokens,
            precision=self.precision,
            software=self.software,
            scheme=self.scheme,
        )


@dataclass(frozen=True)
class Choice:
    """A layout that fits, with what it needs and gives."""

    layout: Layout
    memory: Memory
    time: StepTime
    question: Question

    @property
    def rank(self) -> tuple[float, float, float]:
        """What sorts: time with a handicap for each axis, then larger micro-batches while there is room."""
        time = self.time.total * (1 + AXIS_HANDICAP * self.layout.axes)
        roomy = self.memory.total <= ROOMY * self.question.cluster.device.memory
        return float(f"{time:.3e}"), -self.layout.micro_batch if roomy else 0, self.memory.total

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.question.rows * self.question.row_tokens / self.time.total

    @property
    def mfu(self) -> float:
        """Model FLOPs over the peak of the precision, recomputation not counted, over the devices in use."""
        peak = self.question.cluster.device.peak(self.question.precision) * self.layout.devices
        return self.question.work.flops(self.question.row_tokens) * self.tokens_per_second / peak

    @property
    def days(self) -> float | None:
        """Of the whole run, without failures and validation."""
        tokens = self.question.tokens
        return None if tokens is None else tokens / self.tokens_per_second / SECONDS_PER_DAY

    @property
    def device_hours(self) -> float | None:
        """Of all devices of the cluster, idle ones too: they are paid for."""
        return None if self.days is None else self.days * 24 * self.question.cluster.devices

    @property
    def cost(self) -> float | None:
        """Dollars."""
        price = self.question.price
        rate = self.question.cluster.device.price if price is None else price
        return None if self.device_hours is None else self.device_hours * rate


@dataclass(frozen=True)
class Refusal:
    """Layouts refused for one reason, and the one that came nearest."""

    reason: str
    count: int
    example: Layout
    missing: float = 0.0  # bytes


@dataclass(frozen=True)
class Plan:
    """The answer."""

    question: Question
    ranked: list[Choice]  # the best of each way to split the model, the fastest first
    refused: list[Refusal]
    tried: int
    fitting: int
    too_large: list[tuple[Layout, Memory]]  # refused for memory, the smallest first

    @property
    def best(self) -> Choice | None:
        """The fastest layout that fits."""
        return self.ranked[0] if self.ranked else None


def search(question: Question) -> Plan:
    """Try every layout."""
    ranked: list[Choice] = []
    shapes: dict[str, list[Layout]] = {}
    large: list[tuple[Layout, Memory]] = []
    tried = 0
    for layout in candidates(question):
        tried += 1
        reason = misfit(layout, question.work, question.row_tokens, question.rows)
        if reason is not None:
            shapes.setdefault(reason, []).append(layout)
            continue
        memory = memory_of(question, layout)
        if memory.total > question.cluster.device.memory:
            large.append((layout, memory))
            continue
        ranked.append(Choice(layout, memory, question.clockwork.step(layout, question.rows), question))
    ranked.sort(key=lambda choice: choice.rank)
    large.sort(key=lambda pair: pair[1].total)
    refused = [*too_large(question, large), *misfits(shapes)]
    return Plan(question, distinct(ranked), refused, tried, len(ranked), large)


def distinct(ranked: list[Choice]) -> list[Choice]:
    """The best of each split of the model: what it shares, recomputes and takes at a time are its details."""
    best: dict[tuple[int, ...], Choice] = {}
    for choice in ranked:
        layout = choice.layout
        best.setdefault((layout.tensor, layout.context, layout.pipeline, layout.interleave), choice)
    return list(best.values())


def memory_of(question: Question, layout: Layout) -> Memory:
    """Bytes of a layout's fullest device."""
    return peak_memory(
        question.work,
        layout,
        question.row_tokens,
        question.rows,
        scheme=question.scheme,
        keeping=question.keeping,
    )


def candidates(question: Question) -> Iterator[Layout]:
    """Layouts worth a look: those of the given degrees, on as many devices as divide the batch."""
    fixed = question.fixed
    for tensor, context, pipeline in degrees(question):
        for replicas in replica_counts(question, tensor * context * pipeline):
            for data, shard, stage in sharings(question, replicas, tensor * context, pipeline):
                for micro_batch, interleave, recompute in details(question, replicas, pipeline):
                    order: Order = "interleaved" if interleave > 1 else "1f1b"
                    layout = Layout(
                        data, shard, tensor, pipeline, context, interleave, micro_batch,
                        sequence_parallel=tensor > 1 and question.row_tokens // context % tensor == 0,
                        recompute=recompute, stage=stage, order=order,
                    )  # fmt: skip
                    if all(getattr(layout, name) == value for name, value in fixed.items()):
                        yield layout


def degrees(question: Question) -> Iterator[tuple[int, int, int]]:
    """Tensor (within a node), context and pipeline degrees that the cluster has devices for."""
    work, cluster, fixed = question.work, question.cluster, question.fixed
    longest = max(question.row_tokens // CONTEXT_FROM, 1) * 2 if question.row_tokens >= CONTEXT_FROM else 1
    for tensor in given(fixed, "tensor", divisors(cluster.per_node)):
        for context in given(fixed, "context", [c for c in powers(cluster.devices) if c <= longest]):
            room = cluster.devices // (tensor * context)
            stages = [p for p in stage_counts(work.layers) if p <= room]
            for pipeline in given(fixed, "pipeline", stages):
                if tensor * context * pipeline <= cluster.devices:
                    yield tensor, context, pipeline


def stage_counts(layers: int) -> list[int]:
    """Stages worth trying: powers of two, and what divides the layers."""
    return sorted({*[p for p in powers(layers) if p <= layers], *divisors(layers)})


def replica_counts(question: Question, model_parallel: int) -> list[int]:
    """The largest numbers of replicas that divide the batch and that there are devices for."""
    most = question.cluster.devices // model_parallel
    found = [count for count in divisors(question.rows) if count <= most]
    if {"data", "shard"} & question.fixed.keys():
        return found[::-1]
    return found[: -KEPT_REPLICAS - 1 : -1]


def sharings(
    question: Question, replicas: int, apart: int, pipeline: int
) -> Iterator[tuple[int, int, Literal[1, 2, 3]]]:
    """How replicas share a model's states: not, all of them, those of a node; and what they share."""
    if replicas == 1:
        yield 1, 1, 3
        return
    near = max(question.cluster.per_node // apart, 1)
    yield replicas, 1, 3
    shards = {replicas, near} if replicas % near == 0 and 1 < near < replicas else {replicas}
    if "shard" in question.fixed:
        shards = {question.fixed["shard"]} if replicas % question.fixed["shard"] == 0 else set()
    for shard in sorted(shards - {1}):
        yield replicas // shard, shard, 3
        if pipeline > 1:
            yield replicas // shard, shard, 1


def details(
    question: Question, replicas: int, pipeline: int
) -> Iterator[tuple[int, int, Literal["none", "selective", "full"]]]:
    """Micro-batch, interleaving and recomputation."""
    each = question.rows // replicas
    sizes = [size for size in MICRO_BATCHES if size <= each and each % size == 0]
    chunks = INTERLEAVES if pipeline > 1 else (1,)
    modes: list[Literal["none", "selective", "full"]] = ["none", "full"]
    if question.keeping.scores:
        modes.insert(1, "selective")
    for size in given(question.fixed, "micro_batch", sizes):
        for chunk in given(question.fixed, "interleave", list(chunks)):
            if chunk == 1 or pipeline > 1:
                for mode in modes:
                    yield size, chunk, mode


def given(fixed: dict[str, Any], name: str, found: list[int]) -> list[int]:
    """The one that is given, or all that were found."""
    return [fixed[name]] if name in fixed else found


def divisors(number: int) -> list[int]:
    """In order."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def powers(limit: int) -> list[int]:
    """Powers of two up to a limit."""
    return [2**n for n in range(limit.bit_length()) if 2**n <= limit]


def too_large(question: Question, large: list[tuple[Layout, Memory]]) -> list[Refusal]:
    """Memory refusals, by what takes most of it; the nearest of each as an example."""
    grouped: dict[str, list[tuple[Layout, Memory]]] = {}
    for layout, memory in large:
        grouped.setdefault(bound(memory), []).append((layout, memory))
    limit = question.cluster.device.memory
    return [
        Refusal(
            f"needs {pairs[0][1].total / 1e9:,.1f} GB or more of {limit / 1e9:,.1f} GB, most of it {what}",
            len(pairs),
            pairs[0][0],
            pairs[0][1].total - limit,
        )
        for what, pairs in grouped.items()
    ]


def misfits(shapes: dict[str, list[Layout]]) -> list[Refusal]:
    """Refusals for what does not divide, the most frequent first; those alike but for numbers are one."""
    alike: dict[str, list[tuple[str, list[Layout]]]] = {}
    for reason, layouts in shapes.items():
        alike.setdefault(re.sub(r"[\d,]+", "#", reason), []).append((reason, layouts))
    found = [
        Refusal(group[0][0], sum(len(layouts) for _, layouts in group), group[0][1][0])
        for group in alike.values()
    ]
    return sorted(found, key=lambda refusal: -refusal.count)
