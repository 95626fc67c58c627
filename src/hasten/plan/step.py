"""How often each kernel runs in a training step of a process, and in what size.

Letters: T tokens of one forward pass, D model width, V vocabulary.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from hasten.model.config import ModelConfig
from hasten.plan.kernels import Features, attention, head_and_loss, orthogonal, product, stream, table
from hasten.train.footprint import FULL, Workload, parameters

SMOOTH = ("relu", "relu_squared")
MUON_PASSES, MUON_TURNS = 5, 4
"""Passes over matrices like adding one to another: of all at each step, and of those whose turn it is."""


class Call(NamedTuple):
    """A kernel that runs `forward` times on the way there and `back` times on the way back."""

    law: str
    features: Features
    forward: float = 1.0
    back: float = 1.0


def block_calls(work: Workload, *, encoder: bool, crossed: bool) -> Iterator[Call]:
    """One block, there and back once."""
    model, tokens, tensor = work.model, work.tokens, work.degree("tensor")
    stream_tokens = tokens / (tensor if work.parallel.sequence_parallel else 1)
    dim, width = model.dim, stream(stream_tokens, model.dim)
    norms = (4 if model.norm_place == "both" else 2) + crossed
    yield Call("norm", width, norms, norms)
    yield from self_attention(work, causal=not encoder)
    if crossed:
        yield from cross_attention(work)
    inner = model.ffn_dim / tensor
    for inputs, outputs in [(dim, inner)] * (1 + model.gated) + [(inner, dim)]:
        yield Call("product", product(tokens, inputs, outputs))
    kind = "gated" if model.gated else "square" if model.activation in SMOOTH else "plain"
    yield Call(kind, stream(tokens, inner))
    # Residuals; and gradients that meet where several read the same: queries, keys and values, gate and up.
    branches = 2 + crossed
    yield Call("sum", width, branches + branches + 2 * (1 + crossed) + model.gated, 0)
    if model.dropout:
        yield Call("dropout", width, branches, branches)


def self_attention(work: Workload, *, causal: bool) -> Iterator[Call]:
    """Products, rotations and the attention of a block."""
    model, tokens, tensor = work.model, work.tokens, work.degree("tensor")
    for inputs, outputs in attention_shapes(model, tensor):
        yield Call("product", product(tokens, inputs, outputs))
    heads = model.num_heads / tensor
    if model.position == "rotary" or model.qk_norm:
        turned = (heads + max(model.num_kv_heads / tensor, 1)) * model.head_dim
        yield Call("rotary", stream(tokens, turned))
    yield Call("attention", attention(tokens, heads, model.head_dim, pairs(work, causal=causal)))


def cross_attention(work: Workload) -> Iterator[Call]:
    """Products and attention of a look at a source."""
    model, tokens, tensor = work.model, work.tokens, work.degree("tensor")
    source = tokens * (work.source_tokens or work.row_tokens) / work.row_tokens
    for number, (inputs, outputs) in enumerate(attention_shapes(model, tensor)):
        yield Call("product", product(source if number in (1, 2) else tokens, inputs, outputs))
    seen = tokens * min(work.source_tokens or work.row_tokens, work.document_tokens or work.row_tokens)
    yield Call("attention", attention(tokens, model.num_heads / tensor, model.head_dim, seen))


def attention_shapes(model: ModelConfig, tensor: int) -> Iterator[tuple[float, float]]:
    """Query, key, value and out, of one of `tensor` parts."""
    for number, (inputs, outputs) in enumerate(model.attention_shapes):
        yield (inputs / tensor, outputs) if number == 3 else (inputs, outputs / tensor)


def pairs(work: Workload, *, causal: bool) -> float:
    """Of a query and a key that it sees, in one head: a document's square, or half of it."""
    row = work.row_tokens
    length = min(work.document_tokens or row, row)
    seen = (length + 1) / 2 if causal else length
    if work.model.sliding_window is not None:
        seen = min(seen, work.model.sliding_window)
    return work.tokens * seen


def pass_calls(work: Workload) -> Iterator[Call]:
    """One forward and backward pass of a process that has all layers, or its part of each."""
    model, tokens = work.model, work.tokens
    layers = model.encoder_layers + model.decoder_layers
    here, again = work.layers / layers, work.recomputed
    kinds = [(True, False, model.encoder_layers), (False, model.kind == "seq2seq", model.decoder_layers)]
    source = replace(work, row_tokens=work.source_tokens or work.row_tokens)
    for encoder, crossed, number in kinds:
        side = source if encoder else work
        for call in block_calls(side, encoder=encoder, crossed=crossed) if number else ():
            repeated = repeats(work, call) * again / work.layers
            times = number * here
            yield call._replace(forward=times * call.forward * (1 + repeated), back=times * call.back)
    sides = (model.encoder_layers > 0) + (model.decoder_layers > 0)
    tensor = work.degree("tensor")
    yield Call("table", table(tokens, model.dim, model.vocabulary / tensor), sides, sides)
    yield Call("norm", stream(tokens, model.dim), sides, sides)
    if model.position in ("learned", "sinusoidal"):
        yield Call("sum", stream(tokens, model.dim), 2 * sides, 0)
    if model.dropout:
        yield Call("dropout", stream(tokens, model.dim), sides, sides)
    if model.head_rows:
        scored = work.head_share * tokens
        yield Call("loss", head_and_loss(scored, model.dim, model.head_rows / tensor))
    if work.teacher is not None:
        yield from reading_calls(replace(work, model=work.teacher, teacher=None, recompute="none"))


def reading_calls(work: Workload) -> Iterator[Call]:
    """A teacher's forward pass over the same tokens, and its logits of those that are scored."""
    for call in pass_calls(work):
        if call.law != "loss":
            yield call._replace(back=0.0)
    yield Call("product", product(work.head_share * work.tokens, work.model.dim, work.model.head_rows), 1, 0)


def repeats(work: Workload, call: Call) -> float:
    """How often a call of a block's forward pass is made again."""
    if work.recompute == "full":
        return 1.0
    cheap = call.law in ("norm", "gated", "plain")
    return float(work.recompute == "selective" and cheap)


def update_calls(work: Workload) -> Iterator[Call]:
    """Clipping and the optimizer, on what of the parameters is this process's."""
    held = parameters(work)
    here, matrices = held["all"] / work.shards, held["matrices"] / work.shards
    yield Call("clip", stream(here), 1, 0)
    if work.optimizer == "adamw":
        yield Call("adam", stream(here), 1, 0)
        return
    yield Call("adam", stream(here - matrices), 1, 0)
    yield Call("addition", stream(matrices), MUON_PASSES + MUON_TURNS / work.turns, 0)
    shapes = Counter(work.model.matrix_shapes)
    for (inputs, outputs), count in shapes.items():
        mine = count / work.turns / work.owners
        yield Call("orthogonal", orthogonal(mine, inputs, outputs), 1, 0)


def accumulation(work: Workload) -> Call:
    """Gradients of one micro-batch added to those before."""
    return Call("addition", stream(parameters(work)["all"]), 1, 0)


def exchange_calls(work: Workload) -> Iterator[Call]:
    """What a process sends in a step, in numbers of float32."""
    layers, half = work.layers, work.width / FULL
    tokens, dim, passes = work.tokens, work.model.dim, work.micro_batches
    held = parameters(work)
    replicas = work.degree("data") * (1 if work.shards > 1 else work.degree("context"))
    if replicas > 1:  # gradients of what is here, in float32
        yield Call("reduce", stream(held["all"] / work.shards), 1, 0)
    if work.shards > 1:
        whole = half * held["all"]
        times = passes * (2 if work.parallel.stage == 3 else 1) if work.degree("pipeline") == 1 else 1
        yield Call("gather", shared(whole, layers + 1), times, 0)
        yield Call("scatter", shared(held["all"], layers + 1), passes if work.parallel.stage > 1 else 1, 0)
    if work.degree("tensor") > 1:
        again = 1 + (work.recomputed / layers if work.recompute == "full" else 0)
        numbers, count = half * tokens * dim, 2 * layers * passes
        if work.parallel.sequence_parallel:
            yield Call("gather", stream(numbers), count * (1 + again), 0)
            yield Call("scatter", stream(numbers), count * (1 + again), 0)
        else:
            yield Call("reduce", stream(numbers), count * (1 + again), 0)
    if work.degree("context") > 1:
        model = work.model
        keys = 2 * half * tokens * model.num_kv_heads * model.head_dim / work.degree("tensor")
        yield Call("send", stream(keys), 3 * (work.degree("context") - 1) * layers * passes, 0)
    if work.degree("pipeline") > 1:
        yield Call("send", stream(half * tokens * dim), 2 * passes * work.parallel.interleave, 0)


def shared(numbers: float, messages: int) -> Features:
    """So many numbers in so many messages."""
    return {"once": messages, "numbers": numbers}
