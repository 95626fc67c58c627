"""The bytes that a process holds during a training step, by what takes them, from what is known beforehand.

Activations are counted as in Korthikanti et al. 2022 (arXiv:2205.05198): the inputs of products and norms.
Letters: T tokens of one forward pass, D model width, F feed-forward width, V vocabulary.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil, prod
from typing import Literal

from hasten.model.config import ModelConfig
from hasten.ops.loss import SLICE_NUMBERS
from hasten.parallel.config import Axis, Order, ParallelConfig, Recompute

FULL = 4  # bytes of a number in float32
SLICE_COPIES = 7  # of some of a student's logits, in float32, while they are compared with a teacher's
MUON_COPIES = 4  # of the gradients of matrices of one shape, in float32, while they are made orthogonal
BY_OUTPUT = ("relu", "relu_squared")


@dataclass(frozen=True)
class Workload:
    """What one process of a training does in a step.

    `micro_rows` rows of `row_tokens` tokens go through at once, `micro_batches` times.  With `kernels`, the
    operations are our own for CPUs, which keep less than PyTorch's.
    """

    model: ModelConfig
    micro_rows: int
    row_tokens: int
    micro_batches: int = 1
    precision: str = "bf16"
    optimizer: Literal["adamw", "muon"] = "adamw"
    turns: int = 1
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    degrees: Mapping[Axis, int] = field(default_factory=dict)
    recompute: Recompute = "none"
    recompute_layers: int | None = None  # the first of a process; None: all
    head_share: float = 1.0  # of the tokens that go through the head
    chunk_tokens: int | None = None  # of which there are logits at a time; None: of all
    source_tokens: int | None = None  # of a row of pairs; None: as many as row_tokens
    document_tokens: float | None = None  # mean length of what attends to itself; None: whole rows
    kernels: bool = False
    compiled: bool = False
    adapter_rank: int | None = None  # of thin pairs beside frozen matrices; None: all is trained
    matrix_bytes: float = FULL  # of a number in the blocks' matrices as they are kept, where they are frozen
    teacher: ModelConfig | None = None  # of a whole frozen model that reads along

    def degree(self, axis: Axis) -> int:
        """Of one axis, 1 where it is not given."""
        return self.degrees.get(axis, 1)

    @property
    def tokens(self) -> float:
        """T, of one forward pass in this process."""
        return self.micro_rows * self.row_tokens / self.degree("context")

    @property
    def width(self) -> int:
        """Bytes of a number in the stream."""
        return FULL if self.precision == "fp32" else 2

    @property
    def shards(self) -> int:
        """Processes that share one copy of the states."""
        return self.degree("shard") * self.degree("context") if self.degree("shard") > 1 else 1

    @property
    def owners(self) -> int:
        """Processes among which Muon's matrices are dealt out."""
        return prod(self.degree(axis) for axis in ("data", "shard", "context", "tensor"))

    @property
    def layers(self) -> int:
        """Blocks of the fullest stage, on both sides of a sequence-to-sequence model."""
        whole = self.model.encoder_layers + self.model.decoder_layers
        return ceil(whole / (self.degree("pipeline") * self.parallel.interleave)) * self.parallel.interleave

    @property
    def source_share(self) -> float:
        """Tokens of a source per token of its target; 1 where there is no source."""
        if self.model.kind != "seq2seq" or self.source_tokens is None:
            return 1.0
        return self.source_tokens / self.row_tokens

    @property
    def recomputed(self) -> int:
        """Blocks here that make something again."""
        if self.recompute == "none":
            return 0
        return self.layers if self.recompute_layers is None else min(self.recompute_layers, self.layers)

    @cached_property
    def logit_tokens(self) -> int:
        """Tokens whose logits there are at a time."""
        scored = ceil(self.head_share * self.tokens)
        return min(self.chunk_tokens or scored, scored)


@dataclass(frozen=True)
class Numbers:
    """Numbers that a block keeps per token: along the whole width, and in parts under tensor parallelism."""

    whole: float
    split: float

    def bytes(self, work: Workload) -> float:
        """Of T tokens."""
        tensor = work.degree("tensor")
        whole = self.whole / (tensor if work.parallel.sequence_parallel else 1)
        return work.tokens * work.width * (whole + self.split / tensor)


def kept_by_block(work: Workload, mode: Recompute) -> Numbers:
    """What a block of the mean kind keeps from its forward to its backward pass."""
    model = work.model
    crossed = model.decoder_layers / (model.encoder_layers + model.decoder_layers)
    crossed = crossed if model.kind == "seq2seq" else 0.0
    source = work.source_share
    length = 1 if not crossed else crossed + (1 - crossed) * source  # of the mean block's tokens, per target
    attended, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    if mode == "full":
        return Numbers(length * model.dim, 0)
    # Of each norm its input and its output; two in one place share their input, out-norms keep theirs.
    stream = float(4 - model.parallel_block + 2 * (model.norm_place == "both")) * model.dim
    copies = 1 + model.qk_norm + (model.position == "rotary" and not work.kernels)
    split = copies * (attended + keys) + keys + attended + feed_forward(work)
    stream, split = length * stream, length * split
    # A look at the memory: norm and its output, queries and what they found; keys and values of the source.
    stream += crossed * 2 * model.dim
    split += crossed * 2 * (attended + keys * source)
    if mode == "selective":
        stream -= (length * (1 if model.norm_place == "after" else 2) + crossed) * model.dim
        split -= length * model.ffn_dim * (model.activation not in BY_OUTPUT)
    if model.dropout and not work.kernels:
        stream += (2 * length + crossed) * model.dim / work.width  # masks, a byte each
    return Numbers(stream, split)


def feed_forward(work: Workload) -> float:
    """Numbers that the feed-forward keeps per token beside its input."""
    model = work.model
    if work.kernels:
        return model.ffn_dim * (3 if model.gated else 1 if model.activation in BY_OUTPUT else 2)
    return model.ffn_dim * (4 if model.gated else 1 if model.activation == "relu" else 2)


def passing(work: Workload) -> float:
    """Bytes of the gradients that are alive in the dearest place of a block's backward pass."""
    model = work.model
    inner = (2 + model.gated) * model.ffn_dim / work.degree("tensor")
    return work.tokens * work.width * (3 * model.dim + inner)


def in_flight(order: Order, stages: int, interleave: int, stage: int, micro_batches: int) -> float:
    """Micro-batches of all of a stage's layers that wait for their backward at once."""
    if stages == 1:
        return 1
    if interleave == 1:
        return micro_batches if order == "gpipe" else min(micro_batches, stages - stage)
    chunks = 2 * (stages - 1 - stage) + (interleave - 1) * stages + 1
    return min(chunks / interleave, micro_batches)


@dataclass(frozen=True)
class Footprint:
    """Bytes of the fullest process, those of a CPU's other memory apart."""

    weights: float
    optimizer: float
    teacher: float  # a frozen model's weights
    gradients: float
    gathered: float  # of what is sharded, whole for a while
    casts: float  # weights in the precision of the products
    activations: float
    passing: float  # gradients on their way through a block
    reading: float  # what a block of the teacher makes
    head: float  # logits and the gradients of head and hidden states
    update: float  # what the exchange of gradients and the optimizer need for a moment
    gradients_before: bool  # whether there are gradients already when activations are at their most

    @property
    def states(self) -> float:
        """What is there all the time."""
        return self.weights + self.optimizer + self.teacher

    @property
    def total(self) -> float:
        """The most at a time: as the teacher reads, at the head, on the way back, or in the update."""
        there = self.states + self.gathered
        before = there + self.gradients * self.gradients_before
        going = before + self.casts + self.activations + max(self.head, self.passing)
        back = there + self.casts + self.gradients + self.passing
        return max(before + self.reading, going, back, self.states + self.gradients + self.update)


def footprint(work: Workload) -> Footprint:
    """The bytes of a step."""
    held = parameters(work)
    shared, stage = work.shards, work.parallel.stage
    optimizer = 8 * held["trained"] - (4 * held["matrices"] if work.optimizer == "muon" else 0)
    gathered = gathered_bytes(work, held) if shared > 1 else 0.0
    once, kept = FULL * held["trained"], FULL * held["all"] - (FULL - work.matrix_bytes) * held["matrices"]
    layers, made_again = work.layers, work.recomputed
    waiting = in_flight(
        work.parallel.order, work.degree("pipeline"), work.parallel.interleave, 0, work.micro_batches
    )
    plain, less = kept_by_block(work, "none").bytes(work), kept_by_block(work, work.recompute).bytes(work)
    activations = waiting * ((layers - made_again) * plain + made_again * less)
    if work.recompute == "full" and made_again == layers:
        activations += plain  # of the block on its way back; else those that keep everything are gone by then
    told = work.teacher.dim if work.teacher else 0
    several = work.degree("data") * work.degree("context") > 1 or work.degree("shard") > 1
    return Footprint(
        weights=(kept + (once if work.adapter_rank else 0)) / (shared if stage == 3 else 1),
        optimizer=optimizer / shared,
        teacher=FULL * work.teacher.num_parameters if work.teacher else 0.0,
        gradients=once / (shared if stage > 1 else 1),
        gathered=gathered,
        casts=2.0 * held["matrices"] if work.width == 2 and shared == 1 and not work.adapter_rank else 0.0,
        activations=activations + work.tokens * (work.width * (2 * work.model.dim + told) + 16),
        passing=passing(work),
        reading=passing(replace(work, model=work.teacher)) if work.teacher else 0.0,
        head=head_bytes(work) + told_bytes(work),
        update=max(muon_bytes(work, held) / shared, once / shared if several and shared == 1 else 0.0),
        gradients_before=work.micro_batches > 1,
    )


def parameters(work: Workload) -> dict[str, float]:
    """Parameters of the fullest process, not yet shared by FSDP: all, trained, of matrices, the ends'."""
    model, tensor, pipeline = work.model, work.degree("tensor"), work.degree("pipeline")
    layers = model.encoder_layers + model.decoder_layers
    matrices = model.num_matrix_parameters * work.layers / layers / tensor
    inside = float(layers * (model.num_layer_parameters - sum(a * b for a, b in model.block_shapes)))
    head = model.num_head_parameters + (model.dim * model.head_rows if model.tied else 0)
    ends = model.num_parameters - model.num_matrix_parameters - inside
    if pipeline > 1:  # the first stage has the tables, the last the head
        ends = max(ends - model.num_head_parameters, head)
    inside *= work.layers / layers
    found = {"all": matrices + inside + ends / tensor, "matrices": matrices, "ends": ends / tensor,
             "block": (matrices + inside) / work.layers}  # fmt: skip
    return {**found, "trained": found["all"] if work.adapter_rank is None else pairs(work) / tensor}


def pairs(work: Workload) -> float:
    """Parameters of the thin pairs beside the matrices of the fullest process."""
    whole = work.model.encoder_layers + work.model.decoder_layers
    return (work.adapter_rank or 0) * sum(a + b for a, b in work.model.matrix_shapes) * work.layers / whole


def gathered_bytes(work: Workload, held: Mapping[str, float]) -> float:
    """Of FSDP: what is in no block is whole for the whole step, of blocks one and the next, with buffers.

    On the way back their gradients are whole too, and once more in float32 to be summed.
    """
    going, back = 2.0 * work.width, work.width + FULL
    if work.parallel.stage < 3 or work.degree("pipeline") > 1:
        return (going + back) * held["all"]
    return going * (held["ends"] + 2 * held["block"]) + back * (held["ends"] + held["block"])


def head_bytes(work: Workload) -> float:
    """Logits, the head's matrix as it is multiplied with, and the gradients of both its sides."""
    model, tensor = work.model, work.degree("tensor")
    if not model.head_rows:
        return 0.0
    matrix, several = model.dim * model.head_rows / tensor, work.logit_tokens < work.head_share * work.tokens
    logits = work.logit_tokens * model.head_rows / tensor * (work.width + (0 if work.kernels else FULL))
    copies = work.width + (FULL if several else 0) + (work.width if work.width < FULL else 0)
    return logits + copies * matrix + work.head_share * work.tokens * model.dim * work.width


def told_bytes(work: Workload) -> float:
    """A teacher's logits of the same tokens, the matrix that makes them, and how far they are from ours."""
    if work.teacher is None:
        return 0.0
    rows, slices = work.teacher.head_rows, SLICE_NUMBERS["cpu" if work.kernels else "cuda"]
    logits = work.width * rows * (work.logit_tokens + (work.teacher.dim if work.width < FULL else 0))
    return logits + SLICE_COPIES * FULL * min(work.logit_tokens * rows, slices)


def muon_bytes(work: Workload, held: Mapping[str, float]) -> float:
    """What Muon needs beside its momenta for the matrices of the most frequent shape."""
    if work.optimizer != "muon":
        return 0.0
    numbers = Counter[tuple[int, int]]()
    for inputs, outputs in work.model.matrix_shapes:
        numbers[inputs, outputs] += inputs * outputs
    share = max(numbers.values()) / work.model.num_matrix_parameters
    return FULL * held["matrices"] * share * (2 + MUON_COPIES / work.turns)


def with_recompute(work: Workload, mode: Recompute, layers: int | None = None) -> Workload:
    """The same with something else made again."""
    return replace(work, recompute=mode, recompute_layers=layers)
