"""Stages of a pipeline against one process: loss, gradients, norm, and what is stored on the way."""

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, cast

import pytest
import torch
import torch.nn.functional as F
from processes import together
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from wire import Wire

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.parallel.apply import parallelize
from hasten.parallel.arrangement import local
from hasten.parallel.config import ParallelConfig
from hasten.parallel.gradients import clip_gradients
from hasten.parallel.grid import Grid
from hasten.parallel.messages import Form, read_forms, written
from hasten.parallel.pipeline import Chain, head_layers, spans
from hasten.parallel.schedules import Op, program, simulate
from hasten.train.engine import Whole
from hasten.train.pipelined import Pipelined

CPU = torch.device("cpu")
VOCAB, TOKENS, SOURCE_TOKENS = 61, 12, 10
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "dim": 32, "num_heads": 4, "num_layers": 4, "ffn_dim": 48, "max_positions": 16,
}  # fmt: skip
BOTH = {**SHAPE, "kind": "seq2seq", "num_layers": 2, "num_encoder_layers": 3}
MORE_DECODER = {"num_layers": 3, "num_encoder_layers": 2}  # in two chunks the first has a part of each side
MODELS: dict[str, dict[str, Any]] = {
    "decoder": {**SHAPE, "num_kv_heads": 2, "sliding_window": 5, "window_layers": (0, 2),
                "local_rope_theta": 100.0},
    "tied": {**SHAPE, "preset": "gpt2", "vocab_size": VOCAB},
    "relative": {**SHAPE, "position": "relative", "relative_buckets": 8, "logit_soft_cap": 5.0},
    "encoder": {**SHAPE, "kind": "encoder", "position": "learned", "norm": "layer", "norm_place": "after",
                "embedding_norm": "learned", "num_token_types": 2, "head_transform": True,
                "head_bias": True, "tied": True},
    "t5": {**BOTH, "position": "relative", "relative_buckets": 8, "tied": True},
    "two tables": {**BOTH, **MORE_DECODER, "shared_embeddings": False, "source_vocab_size": 53,
                   "position": "sinusoidal"},
}  # fmt: skip


class Run(NamedTuple):
    """A training step."""

    model: str
    parallel: dict[str, Any]
    micro_batches: int
    precision: str = "fp32"
    objective: CrossEntropy = CrossEntropy()

    @property
    def stages(self) -> int:
        return int(self.parallel["pipeline"])

    @property
    def interleave(self) -> int:
        return int(self.parallel.get("interleave", 1))


class Written(CrossEntropy):
    """A loss whose logits wait for the backward pass, and with them the head's matrix."""

    def loss(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        logits = cast(Transformer, model).logits(hidden).float()
        return F.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), reduction="sum", ignore_index=IGNORE
        )


def config_of(name: str) -> ModelConfig:
    return ModelConfig.model_validate(MODELS[name])


def micro_batches(name: str, number: int, rows: int = 2) -> list[Batch]:
    """Batches with very different numbers of targets; two documents a row, or pairs."""
    random = torch.Generator().manual_seed(number)
    return [micro_batch(name, random, rows, place) for place in range(number)]


def micro_batch(name: str, random: torch.Generator, rows: int, place: int) -> Batch:
    tokens, targets = torch.randint(VOCAB, (2, rows, TOKENS), generator=random)
    targets[:, 1 + 3 * place % TOKENS :] = IGNORE
    segments = 1 + (torch.arange(TOKENS) >= 7).long().repeat(rows, 1)
    batch = Batch(tokens, targets, segments, torch.arange(TOKENS).repeat(rows, 1) - 7 * (segments - 1))
    kind = config_of(name).kind
    if kind == "encoder":
        return replace(batch, extra={"scored": (targets != IGNORE).flatten().nonzero().flatten()})
    if kind == "decoder":
        return batch if place % 2 else replace(batch, segments=None, positions=None)
    there = 1 + (torch.arange(SOURCE_TOKENS) >= 4).long().repeat(rows, 1)
    source = torch.randint(50, (rows, SOURCE_TOKENS), generator=random)
    return replace(batch, extra={"source": source, "source_segments": there})


class Watched(Pipelined):
    """Counts for how many micro-batches and chunks activations are stored, and tensors alive among them."""

    most_held = most_alive = 0

    def go_forward(self, op: Op, arrived: list[Tensor], batch: Batch, scale: Tensor) -> Tensor:
        with saved_tensors_hooks(lambda tensor: Saved.keep(op, tensor), lambda saved: saved.tensor):
            loss = super().go_forward(op, arrived, batch, scale)
        self.most_held = max(self.most_held, len(self.held))
        self.most_alive = max(self.most_alive, len({saved.op for saved in Saved.alive}))
        return loss


class Saved:
    """A tensor that autograd keeps for an operation's way back."""

    alive: ClassVar["weakref.WeakSet[Saved]"] = weakref.WeakSet()

    def __init__(self, op: Op, tensor: Tensor) -> None:
        self.op, self.tensor = op, tensor

    @classmethod
    def keep(cls, op: Op, tensor: Tensor) -> "Saved":
        saved = cls(op, tensor)
        cls.alive.add(saved)
        return saved


def part(runtime: Runtime, run: Run) -> dict[str, Any]:
    """What one process of a pipeline finds."""
    grid = Grid.make(runtime, ParallelConfig.model_validate(run.parallel))
    model, arrangement = parallelize(config_of(run.model), 0, grid)
    engine = Watched(
        model, run.objective, runtime, precision=run.precision, compiled=False, arrangement=arrangement
    )
    mine = slice(grid.replica, None, grid.replicas)
    found = figures(engine, micro_batches(run.model, run.micro_batches), mine)
    return {**found, "held": engine.most_held, "alive": engine.most_alive, "left": len(Saved.alive)}


def figures(engine: Whole, batches: Sequence[Batch], mine: slice) -> dict[str, Any]:
    """Loss, gradients and norm of a step, and what is measured on up to six batches."""
    scale = torch.tensor(1 / (2 * TOKENS * len(batches)))
    engine.run(batches[mine], scale)
    engine.model.zero_grad()
    with nullcontext(Wire()) if engine.grid.degrees["shard"] > 1 else Wire() as wire:  # shapes are known
        loss = engine.run(batches[mine], scale)
    sent = sum(message.size for message in wire.messages if message.kind == "send")
    parameters = dict(engine.model.named_parameters())
    with torch.no_grad():
        held = {name: local(p) for name, p in parameters.items()}
        for name, p in parameters.items():
            held[name].grad = local(p.grad)
    norm = clip_gradients(held, None, engine.arrangement)
    measured = torch.stack([*engine.measure(batches[:6][mine])])
    pieces = {name: engine.arrangement.piece(name, p) for name, p in parameters.items()}
    gradients = {name: (pieces[name], tensor.grad) for name, tensor in held.items()}
    return {"loss": loss, "norm": norm, "measured": measured, "gradients": gradients, "sent": sent}


def alone(run: Run) -> dict[str, Any]:
    """The same on one process."""
    model = build(config_of(run.model), seed=0)
    engine = Whole(model, run.objective, Runtime(CPU), precision=run.precision, compiled=False)
    return figures(engine, micro_batches(run.model, run.micro_batches), slice(None))


def parts(runtime: Runtime, runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [part(runtime, run) for run in runs]


def whole_gradients(found: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """All gradients out of those of all processes; copies have to be equal, bit for bit."""
    made = dict[str, Tensor]()
    for process in found:
        for name, (piece, tensor) in process["gradients"].items():
            target = made.setdefault(name, torch.full(piece.whole, torch.nan))
            known = ~target[piece.slices].isnan()
            assert torch.equal(target[piece.slices][known], tensor[known]), f"copies of {name} differ"
            target[piece.slices] = tensor
    return made


def check(found: Sequence[dict[str, Any]], run: Run, tolerance: float = 1e-6) -> None:
    """One process's figures, up to rounding."""
    expected = alone(run)
    for name in ("loss", "measured"):
        total = sum(process[name] for process in found)
        torch.testing.assert_close(total, expected[name], rtol=tolerance, atol=0)
    for process in found:
        torch.testing.assert_close(process["norm"], expected["norm"], rtol=tolerance, atol=0)
    gradients = whole_gradients(found)
    assert gradients.keys() == expected["gradients"].keys()
    for name, (_, wanted) in expected["gradients"].items():
        difference = (gradients[name] - wanted).abs().max() / wanted.abs().max()
        assert difference < tolerance, (name, difference)


def peaks(run: Run) -> list[int]:
    """The most forwards of each stage whose backward is still to come, as simulated."""
    order = run.parallel.get("order", "1f1b")
    line = simulate(program(order, run.stages, run.micro_batches, run.interleave), lambda _: 1)
    return [line.peak_in_flight(stage) for stage in range(run.stages)]


def bytes_between(run: Run) -> int:
    """Of the streams and memories of a step, there and back, in float32."""
    config, rows = config_of(run.model), 2
    border = config.encoder_layers if config.kind == "seq2seq" else 0
    starts = [span.start for span in spans(config, run.stages * run.interleave)][1:]
    tokens = [(SOURCE_TOKENS if border else 0) + (TOKENS if start > border else 0) for start in starts]
    return 2 * 4 * run.micro_batches * rows * sum(tokens) * config.dim


def compare(processes: int, runs: Sequence[Run]) -> None:
    found = together(processes, parts, runs)
    for place, run in enumerate(runs):
        here = [process[place] for process in found]
        check(here, run)
        assert not any(process["left"] for process in here), run
        if run.stages == processes:
            assert [process["held"] for process in here] == peaks(run), run
            assert [process["alive"] for process in here] == peaks(run), run
            if run.precision == "fp32":
                assert sum(process["sent"] for process in here) == bytes_between(run), run


TWO = [Run(name, {"pipeline": 2, **order}, 4) for name in MODELS for order in ({}, {"interleave": 2})]
TWO += [Run("tied", {"pipeline": 2, "order": "gpipe"}, m) for m in (2, 8)]
TWO += [Run("decoder", {"pipeline": 2}, m) for m in (1, 3, 7)]
TWO += [Run(name, {"pipeline": 2, "order": "gpipe"}, 3, "bf16") for name in ("t5", "encoder")]
FOUR = [Run("tied", {"pipeline": 4, "order": "gpipe"}, 3), Run("tied", {"pipeline": 4}, 8)]
FOUR += [
    Run("t5", {"pipeline": 4}, 5),
    Run("encoder", {"pipeline": 4}, 4),
    Run("relative", {"pipeline": 4}, 2),
]
FOUR += [
    Run("tied", {"pipeline": 2, "data": 2}, 8),
    Run("tied", {"pipeline": 2, "shard": 2, "stage": 1, "interleave": 2}, 8),
    Run("t5", {"pipeline": 2, "shard": 2, "stage": 2}, 6),
    Run("t5", {"pipeline": 2, "shard": 2, "order": "gpipe"}, 6, objective=Written()),
]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "runs"), [(2, TWO), (4, FOUR)], ids=["2", "4"])
def test_a_pipeline_finds_what_one_process_does(processes: int, runs: list[Run]) -> None:
    compare(processes, runs)


@pytest.mark.parametrize("name", MODELS)
def test_chunks_one_after_the_other_are_the_whole_model(name: str) -> None:
    """Bit for bit, in training mode and without, wherever the chain is cut."""
    model = build(config_of(name), seed=0)
    inputs = CrossEntropy().inputs(micro_batches(name, 1)[0])
    hidden = model(**inputs)
    for chunks in range(1, len(model.blocks()) + 1):
        chain, carried = Chain(model, chunks), tuple[Tensor, ...]()
        for chunk in range(chunks):
            carried = (*chain(chunk, carried, **inputs), *chain.passed_on(chunk, carried))
        assert len(carried) == 1 and torch.equal(carried[0], hidden)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_run_by_some_chunk(name: str) -> None:
    model = build(config_of(name), seed=0)
    users = Chain(model, 4).users()
    for parameter, _ in model.named_parameters():
        assert [user for user in users if f"{parameter}.".startswith(f"{user}.")], parameter
    assert all(users.values())


def test_tables_are_where_they_are_read() -> None:
    def tables(name: str, chunks: int) -> dict[str, list[int]]:
        users = Chain(build(config_of(name), seed=0), chunks).users()
        return {part: chunks for part, chunks in users.items() if "layers" not in part}

    assert tables("decoder", 4) == {"embedding": [0], "norm": [3], "head": [3]}
    assert tables("tied", 2) == {"embedding": [0, 1], "positions": [0], "norm": [1]}
    t5 = {"encoder.norm": [2], "decoder.norm": [4], "encoder.relative": [0, 1, 2], "decoder.relative": [3, 4]}
    assert tables("t5", 5) == {"embedding": [0, 3, 4], **t5}
    split = {"embedding": [0], "source_embedding": [0], "encoder.norm": [0], "decoder.norm": [1], "head": [1]}
    assert tables("two tables", 2) == split


def test_a_large_head_leaves_the_last_chunk_fewer_layers() -> None:
    config = config_of("decoder")
    large = config.model_copy(update={"vocab_size": 20 * VOCAB})
    assert head_layers(large) == pytest.approx(20 * head_layers(config))
    assert [len(span) for span in spans(config, 2)] == [2, 2]
    assert [len(span) for span in spans(large, 2)] == [4, 0]
    model = build(large, seed=0)
    inputs = CrossEntropy().inputs(micro_batches("decoder", 1)[0])
    chain = Chain(model, 2)
    assert torch.equal(chain(1, chain(0, (), **inputs), **inputs)[0], model(**inputs))


def test_more_chunks_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"pipeline x interleave is 8, more than the model's 4 layers"):
        spans(config_of("decoder"), 8)


def test_a_message_says_what_it_looks_like() -> None:
    forms = [Form((2, 3, 4), torch.bfloat16), Form((2, 7, 4), torch.float32)]
    assert read_forms(written(forms)) == forms
    assert read_forms(written(forms[:1])) == forms[:1]
