"""Seconds of a training step: products, memory-bound passes, collectives, what of them hides, bubbles.

A layer's time is its matrix products at a share of the peak, its attention, and its memory-bound passes at
the memory's bandwidth; the last are why small models reach less of the peak.  Constants are in `rates.py`.
"""

from dataclasses import dataclass, replace

from hasten.parallel.schedules import split_layers
from hasten.plan.hardware import Cluster, Link
from hasten.plan.layout import Layout
from hasten.plan.memory import HALF, LOGIT_BYTES, OURS, Scheme, parameters_on
from hasten.plan.rates import (
    ATTENTION,
    BACKWARD,
    CAST_BYTES,
    COPY_BYTES,
    FIT,
    FUSED_BACKWARD,
    FUSED_PASSES,
    HBM_SHARE,
    KERNELS,
    KERNELS_BACK,
    LAUNCH,
    LOGIT_PASSES,
    NARROW,
    OWN,
    PLAIN_BACKWARD,
    PLAIN_PASSES,
    RING_PASSES,
    RING_PASSES_BACK,
    SCORE_BYTES,
    UNCUT,
    Fit,
    Software,
)
from hasten.plan.work import Work


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the slowest stage, and what they are spent on."""

    compute: float
    tensor: float  # exposed exchange of tensor parallelism
    context: float  # and of the ring
    gather: float  # and of FSDP
    exchange: float  # between stages
    bubble: float  # idle in the pipeline
    gradients: float  # exchange of gradients after the last backward
    optimizer: float
    micro_batches: int

    @property
    def total(self) -> float:
        """All of it."""
        spent = self.compute + self.tensor + self.context + self.gather + self.exchange
        return spent + self.bubble + self.gradients + self.optimizer

    def largest(self) -> str:
        """What beside compute costs most."""
        names = ("tensor", "context", "gather", "exchange", "bubble", "gradients", "optimizer")
        return max(names, key=lambda name: getattr(self, name))


class Clockwork:
    """One model on one cluster: times of layouts."""

    def __init__(
        self,
        work: Work,
        cluster: Cluster,
        row_tokens: int,
        *,
        precision: str = "bf16",
        software: Software = OWN,
        scheme: Scheme = OURS,
        fit: Fit = FIT,
    ) -> None:
        self.work, self.cluster, self.row_tokens = work, cluster, row_tokens
        self.precision, self.software, self.scheme, self.fit = precision, software, scheme, fit
        device, power = cluster.device, software.power
        half = "fp16" if precision == "fp16" else "bf16"
        self.half_peak = device.peak(half) * power
        self.attention_rate = self.half_peak * ATTENTION[device.family][software.best_attention]
        self.half_rate = self.half_peak * fit.products(device.family, narrow=False)
        narrow = precision in NARROW and device.peak(precision) > device.peak("bf16")
        self.narrow = narrow
        self.rate = device.peak(precision) * power * fit.products(device.family, narrow)
        self.stream = device.bandwidth * HBM_SHARE

    def layer(self, layout: Layout) -> tuple[float, float]:
        """Seconds of one layer's forward and backward for one micro-batch, exchange apart."""
        work, software, tensor = self.work, self.software, layout.tensor
        tokens = layout.micro_batch * self.row_tokens / layout.context
        forward = tokens * work.matrix_flops() / tensor / self.rate
        attention, attention_back = self.attention(tokens / tensor, layout.context)
        stream = self.passes(tokens, layout)
        backward = BACKWARD * forward + attention_back + 2 * stream + self.weight_passes(layout)
        launches = LAUNCH * (1 if software.compiled else PLAIN_PASSES)
        once = max(forward + attention + stream, KERNELS * launches)
        backward = max(backward, KERNELS_BACK * launches)
        if layout.recompute == "full":
            backward += once
        elif layout.recompute == "selective":
            again = software.products_again * forward + (stream if software.products_again else 0.0)
            backward += again if software.fused_attention else attention
        return once, backward

    def attention(self, tokens: float, context: int = 1) -> tuple[float, float]:
        """Seconds of one layer's attention, forward and backward; a ring's blocks are mostly whole."""
        work = self.work
        flops = tokens * work.attention_flops(self.row_tokens)
        if self.software.fused_attention:
            once = flops / self.attention_rate * (1 / context + (1 - 1 / context) / UNCUT)
            return once, FUSED_BACKWARD * once
        whole = flops * (2 if work.causal else 1)
        scores = tokens * SCORE_BYTES * work.heads * self.row_tokens / self.stream
        return whole / self.half_rate + scores, PLAIN_BACKWARD * (whole / self.half_rate + scores)

    def passes(self, tokens: float, layout: Layout) -> float:
        """Seconds of one layer's memory-bound passes, forward."""
        work, tensor = self.work, layout.tensor
        factor = FUSED_PASSES if self.software.compiled else PLAIN_PASSES
        norms = HALF * work.kept_norms + work.masks
        kept = norms / (tensor if layout.sequence_parallel else 1) + HALF * work.kept_split / tensor
        total = factor * kept
        if self.narrow:
            total += CAST_BYTES * (2 * work.dim + (work.attended + work.ffn_dim) / tensor)
        return tokens * total / self.stream

    def weight_passes(self, layout: Layout) -> float:
        """Seconds of passes over one layer's weights and gradients for one micro-batch."""
        if not self.software.copies:
            return 0.0
        each = CAST_BYTES * self.narrow * (2 if layout.recompute == "full" else 1)
        if layout.shard > 1 and not gathers_once(layout):
            each += COPY_BYTES
        return each * self.work.matrix_parameters / layout.tensor / self.stream

    def head(self, layout: Layout) -> float:
        """Seconds of the head's forward and backward for one micro-batch."""
        work = self.work
        tokens = layout.micro_batch * self.row_tokens / layout.context / layout.tensor
        flops = (1 + BACKWARD) * tokens * work.head_flops()
        logits = LOGIT_PASSES * LOGIT_BYTES * tokens * work.head_rows / self.stream
        return flops / self.half_rate + logits

    def tensor_exchange(self, layout: Layout) -> float:
        """Seconds of one layer's all-reduces (or their halves) for one micro-batch, both ways."""
        t = layout.tensor
        if t == 1:
            return 0.0
        link = self.link(t)
        tokens = layout.micro_batch * self.row_tokens / layout.context
        reduces = 6 if layout.recompute == "full" else 4
        wire = reduces * 2 * (t - 1) / t * HALF * tokens * self.work.dim
        seconds = wire / link.bandwidth + reduces * 2 * (t - 1) * link.latency
        return seconds * (1 - self.software.hidden_tensor)

    def ring(self, layout: Layout) -> float:
        """Seconds of one layer's ring beside its attention for one micro-batch, both ways.

        What goes round is hidden behind attention, of which the last part has nothing to hide; gradients of
        keys and values travel in float32.  Joining the parts is passes over memory.
        """
        c, work = layout.context, self.work
        if c == 1:
            return 0.0
        link = self.link(c, layout.tensor)
        tokens = layout.micro_batch * self.row_tokens / c
        heads = work.heads if self.software.ring_repeats else work.kv_heads
        wire = (c - 1) * 2 * HALF * tokens * max(heads / layout.tensor, 1) * work.head_dim
        once, back = (seconds * (c - 1) / c for seconds in self.attention(tokens / layout.tensor, c))
        plain = self.software.plain_ring
        byte = plain * tokens * work.attended / layout.tensor / self.stream  # of every number of the queries
        joining, adding = (c - 1) * RING_PASSES * byte, c * RING_PASSES_BACK * byte
        forward = max(0.0, wire / link.bandwidth - once) + (c - 1) * link.latency + joining
        backward = max(0.0, (2 + plain) * wire / link.bandwidth - back) + 2 * (c - 1) * link.latency
        again = forward if layout.recompute == "full" else 0.0
        return forward + backward + adding + again

    def replica_link(self, layout: Layout, size: int, stride: int = 1) -> Link:
        """What replicas exchange through: they are `tensor` x `context` ranks apart, stages farther."""
        return self.link(size, stride * layout.tensor * layout.context)

    def link(self, size: int, stride: int = 1) -> Link:
        """What a group exchanges through, at what of the sheet is reached."""
        link = self.cluster.link(size, stride, rails=self.software.rails)
        if size * stride <= self.cluster.per_node:
            return link
        return replace(link, bandwidth=link.bandwidth * self.fit.network)

    def gather(self, layout: Layout, once: float, back: float) -> float:
        """Exposed seconds of gathering and reducing one layer's weights for one micro-batch (FSDP)."""
        if layout.shard == 1 or gathers_once(layout):
            return 0.0
        link = self.replica_link(layout, layout.shard)
        size = self.work.matrix_parameters / layout.tensor * (layout.shard - 1) / layout.shard
        wire = self.software.split_bytes * size / link.bandwidth + (layout.shard - 1) * link.latency / 8
        reduce = self.software.gradient_bytes * size / link.bandwidth
        return max(0.0, wire - once) + max(0.0, wire + reduce - back)

    def gradients(self, layout: Layout, held: float, once: float, back: float) -> float:
        """Exposed seconds of exchanging gradients (and sharded weights) once a step.

        With overlap they hide behind the last backward (`back` seconds), sharded weights behind the first
        forward (`once`).
        """
        hidden = self.software.overlap_data
        reduce = share = 0.0
        size = held
        if layout.shard > 1 and gathers_once(layout):
            part, link = (layout.shard - 1) / layout.shard, self.replica_link(layout, layout.shard)
            reduce += self.software.gradient_bytes * held * part / link.bandwidth
            share = HALF * held * part / link.bandwidth
        if layout.shard > 1:
            size = held / layout.shard
        if layout.data > 1:
            link = self.replica_link(layout, layout.data, layout.shard)
            wire = 2 * (layout.data - 1) / layout.data * self.software.gradient_bytes * size
            reduce += wire / link.bandwidth + 2 * layout.data.bit_length() * link.latency
        return max(0.0, reduce - back * hidden) + max(0.0, share - once * hidden)

    def stage_exchange(self, layout: Layout) -> float:
        """Seconds between stages for one micro-batch, both ways, all chunks."""
        if layout.pipeline == 1 or (self.software.hide_exchange and layout.interleave > 1):
            return 0.0
        inside = layout.devices <= self.cluster.per_node
        link = self.cluster.inside if inside else self.cluster.across
        tokens = layout.micro_batch * self.row_tokens / layout.context
        wire = 2 * layout.interleave * HALF * tokens * self.work.dim / layout.tensor
        return wire / (link.bandwidth * self.software.exchange) + 2 * layout.interleave * link.latency

    def step(self, layout: Layout, rows: int) -> StepTime:
        """Seconds of a step of `rows` rows."""
        micro = layout.micro_batches(rows)
        once, back = self.layer(layout)
        head = self.head(layout)
        split = split_layers(self.work.layers, layout.chunks, head / (once + back))
        layers, has_head = slowest(split, layout.pipeline, head / (once + back))
        gather = layers * self.gather(layout, once, back)
        exchange, ring = self.tensor_exchange(layout), self.ring(layout)
        compute = layers * (once + back) + has_head * head
        slot = compute + layers * (exchange + ring) + gather + self.stage_exchange(layout)
        held = parameters_on(self.work, layout.tensor, 0, layout.pipeline, split[0] * layout.interleave)
        states = self.scheme.total * held / (layout.shard if layout.shard > 1 else 1)
        return StepTime(
            compute=micro * compute,
            tensor=micro * layers * exchange,
            context=micro * layers * ring,
            gather=micro * gather,
            exchange=micro * self.stage_exchange(layout),
            bubble=slot * (layout.pipeline - 1) / layout.interleave,
            gradients=self.gradients(layout, held, layers * once, layers * back),
            optimizer=2 * states / self.stream,
            micro_batches=micro,
        )


def gathers_once(layout: Layout) -> bool:
    """Whether weights are gathered once a step: stages 1 and 2, and FSDP under a pipeline."""
    return layout.stage != 3 or layout.pipeline > 1


def slowest(split: tuple[int, ...], pipeline: int, head: float) -> tuple[int, int]:
    """Layers of the dearest stage, and whether it has the head."""
    layers = [sum(split[stage::pipeline]) for stage in range(pipeline)]
    others = max(layers[:-1], default=0)
    return (layers[-1], 1) if layers[-1] + head >= others else (others, 0)
