"""Bytes on one device: weights, gradients, optimizer, activations, buffers.

Activations follow Korthikanti et al. 2022 (arXiv:2205.05198) and the same sum for gated blocks with rotary
positions: of every product and norm its inputs, in two bytes a number.  States: Rajbhandari et al. 2020.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from hasten.parallel.schedules import split_layers
from hasten.plan.layout import Layout
from hasten.plan.work import Work
from hasten.train import footprint

HALF, FULL = 2, 4  # bytes of a number in bf16, in fp32
LOGIT_BYTES = HALF + FULL  # a score and its softmax
IDS_BYTES = 8  # of a token and of its target
FRAGMENTS = 0.05  # of what is allocated, lost between blocks: 3 to 8% is usual
CONTEXT_BYTES = 0.75e9  # of the driver's context and the libraries' kernels: 0.5 to 1 GB
BUFFER_BYTES = 0.5e9  # of each kind of group's communication buffers: 0.5 to 2 GB of a set of communicators


@dataclass(frozen=True)
class Scheme:
    """Bytes per parameter: weights as they are computed with, gradients, and what the optimizer holds."""

    weights: float
    gradients: float
    optimizer: float
    name: str

    @property
    def total(self) -> float:
        """All of it, without sharding."""
        return self.weights + self.gradients + self.optimizer


MASTER = Scheme(2, 4, 12, "bf16 weights, fp32 gradients, fp32 master copy and Adam's two moments")
OURS = Scheme(4, 4, 8, "fp32 weights and gradients, Adam's two moments")
HALF_GRADIENTS = Scheme(2, 2, 12, "fp16 weights and gradients, fp32 master copy and Adam's two moments")


def muon(work: Work) -> Scheme:
    """Ours, where the layers' matrices have one moment only."""
    return Scheme(4, 4, 8 - 4 * work.muon_share, "fp32 weights and gradients, Muon's moment in the matrices")


@dataclass(frozen=True)
class Keeping:
    """What a system keeps beside the formulas' minimum."""

    scores: bool = False  # the attention's square: without a fused kernel
    gathered: bool = False  # the two gathered inputs of a layer under sequence parallelism, unsharded
    logit_chunk: int | None = None  # tokens whose logits exist at a time, None: all


MINIMAL = Keeping()


@dataclass(frozen=True)
class Memory:
    """Bytes of the fullest device, by what takes them."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float  # weights of FSDP units that are whole for a moment
    activations: float
    logits: float
    overhead: float  # context, communication buffers, fragments
    stage: int  # of the pipeline, the fullest

    @property
    def tensors(self) -> float:
        """What an allocator's peak shows."""
        return self.total - self.overhead

    @property
    def states(self) -> float:
        """Weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """What the device must have."""
        return self.states + self.gathered + self.activations + self.logits + self.overhead


def layer_activations(work: Work, layout: Layout, row_tokens: int, keeping: Keeping = MINIMAL) -> float:
    """Bytes that one layer keeps of one micro-batch, nothing recomputed in full."""
    tokens, tensor = layout.micro_batch * row_tokens / layout.context, layout.tensor
    norms = HALF * work.kept_norms + work.masks
    split = HALF * work.kept_split
    if keeping.scores and layout.recompute != "selective":
        split += work.scores * row_tokens
    kept = (norms if not layout.sequence_parallel else norms / tensor) + split / tensor
    if keeping.gathered and tensor > 1:
        kept += 2 * HALF * work.dim
    return tokens * kept


def chunk_activations(
    work: Work, layout: Layout, row_tokens: int, layers: float, keeping: Keeping = MINIMAL
) -> tuple[float, float]:
    """Bytes a chunk of layers keeps of each micro-batch in flight, and of the one in its backward pass."""
    whole = layer_activations(work, layout, row_tokens, keeping)
    if layout.recompute != "full":
        return layers * whole, 0.0
    tokens = layout.micro_batch * row_tokens / layout.context
    inputs = HALF * tokens * work.dim / (layout.tensor if layout.sequence_parallel else 1)
    return layers * inputs, whole


def in_flight(layout: Layout, stage: int, micro_batches: int) -> float:
    """Micro-batches of all of a stage's layers that wait for their backward at once."""
    return footprint.in_flight(layout.order, layout.pipeline, layout.interleave, stage, micro_batches)


@lru_cache(maxsize=4096)
def parameters_on(work: Work, tensor: int, stage: int, pipeline: int, layers: float) -> float:
    """Parameters of a stage with so many layers that one device of its tensor group computes with."""
    held = layers * (work.matrix_parameters / tensor + work.norm_parameters)
    if stage == 0:
        held += work.input_parameters / tensor
    if stage == pipeline - 1:
        held += work.head_parameters / tensor
        if pipeline == 1:  # a tied matrix is one, where both its ends are on one device
            held -= (work.input_parameters + work.head_parameters - work.ends) / tensor
    return held


def stage_layers(work: Work, layout: Layout, row_tokens: int) -> list[int]:
    """Layers of each stage, its chunks together."""
    split = split_layers(work.layers, layout.chunks, work.head_layers(row_tokens))
    return [sum(split[stage :: layout.pipeline]) for stage in range(layout.pipeline)]


def peak_memory(
    work: Work,
    layout: Layout,
    row_tokens: int,
    rows: int,
    *,
    scheme: Scheme = OURS,
    keeping: Keeping = MINIMAL,
) -> Memory:
    """The bytes of the fullest stage; only the first, the second and the last can be that."""
    layers = stage_layers(work, layout, row_tokens)
    stages = sorted({0, min(1, layout.pipeline - 1), layout.pipeline - 1})
    held = {s: parameters_on(work, layout.tensor, s, layout.pipeline, layers[s]) for s in stages}
    micro = layout.micro_batches(rows)
    each = [
        stage_memory(
            work,
            layout,
            row_tokens,
            stage=stage,
            held=held[stage],
            layers=layers[stage] * in_flight(layout, stage, micro),
            scheme=scheme,
            keeping=keeping,
        )
        for stage in stages
    ]
    return max(each, key=lambda memory: memory.total)


def stage_memory(
    work: Work,
    layout: Layout,
    row_tokens: int,
    *,
    stage: int,
    held: float,
    layers: float,
    scheme: Scheme,
    keeping: Keeping,
) -> Memory:
    """The bytes of one device of a stage that holds `held` parameters and activations of `layers` layers."""
    tokens = layout.micro_batch * row_tokens / layout.context
    kept, live = chunk_activations(work, layout, row_tokens, layers, keeping)
    activations = kept + live
    if stage == 0:
        activations += tokens * (HALF * work.dim + IDS_BYTES)
    logits = 0.0
    if stage == layout.pipeline - 1:
        logits = LOGIT_BYTES * min(keeping.logit_chunk or tokens, tokens) * work.head_rows / layout.tensor
    sharded, stage_kind = layout.shard, layout.stage
    weights = scheme.weights * held / (sharded if stage_kind == 3 else 1)
    gradients = scheme.gradients * held / (sharded if stage_kind >= 2 else 1)
    optimizer = scheme.optimizer * held / sharded
    gathered = 0.0
    if sharded > 1 and stage_kind == 3:
        gathered = 2 * HALF * largest_unit(work, layout.tensor, stage, layout.pipeline)
        if layout.pipeline > 1:  # weights stay whole for all micro-batches, and so do their gradients
            gathered = 2 * HALF * held
    tensors = weights + gradients + optimizer + gathered + activations + logits
    return Memory(
        weights, gradients, optimizer, gathered, activations, logits, overhead(tensors, layout), stage
    )


def largest_unit(work: Work, tensor: int, stage: int, pipeline: int) -> float:
    """Parameters of the largest part that FSDP gathers at a time: a layer, the embedding or the head."""
    units = [work.matrix_parameters + work.norm_parameters]
    units += [float(work.input_parameters)] if stage == 0 else []
    units += [float(work.head_parameters)] if stage == pipeline - 1 else []
    return max(units) / tensor


def overhead(tensors: float, layout: Layout) -> float:
    """Bytes beside tensors: context, communication buffers, fragments."""
    groups = sum(n > 1 for n in (layout.replicas, layout.tensor, layout.pipeline, layout.context))
    return CONTEXT_BYTES + BUFFER_BYTES * groups + FRAGMENTS * tensors


def bound(memory: Memory) -> Literal["states", "activations"]:
    """Which of the two takes more."""
    return "states" if memory.states + memory.gathered > memory.activations + memory.logits else "activations"
