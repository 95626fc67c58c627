"""A compiled training compiles at its beginning, and never again.

The graphs are taken as they are, without a compiler behind them: what is counted is how often the tracer had
to look at the code anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CPU, ROW_TOKENS, VOCAB, make_run, write_corpus
from torch.nn.attention.flex_attention import flex_attention

from hasten.core.batch import IGNORE, Batch
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.train import engine
from hasten.train.engine import Whole, with_segments
from hasten.train.warm import INDUCTOR_FOLDER

GRAPHS = {"block": 2, "loss": 2}
"""Each once for training and once for validation."""
Probe = Callable[[torch.nn.Module, int], Mapping[str, Any]]


def num_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _traced_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`torch.compile` traces, and differentiates what it traced, but generates no code."""
    torch._dynamo.reset()
    monkeypatch.setenv(INDUCTOR_FOLDER, str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    torch._dynamo.reset()


class Count:
    """A probe that looks at nothing but the number of graphs so far."""

    name, every = "count", 1

    def __init__(self) -> None:
        self.graphs: list[int] = []

    def __call__(self, model: torch.nn.Module, step: int) -> Mapping[str, Any]:
        self.graphs.append(num_graphs())
        return {}


@pytest.mark.slow
@pytest.mark.parametrize("micro_rows", [1, 2, 4])
def test_no_step_after_the_twentieth_compiles_anything(tmp_path: Path, micro_rows: int) -> None:
    """Rows of one document and rows of several, and validation whose last batch is short."""
    count, before = Count(), num_graphs()
    run = make_run(
        tmp_path / "run",
        write_corpus(tmp_path / "corpus"),
        probes=[count],
        steps=60,
        micro_batch_tokens=micro_rows * ROW_TOKENS,
        validate_every=7,
        validation_tokens=9 * ROW_TOKENS,
        compile="on",
    )
    kinds = {(batch.segments is None, step < 20) for step in range(60) for batch in run.make_batches(step)}
    run.fit()
    if micro_rows == 1:
        assert {packed for packed, _ in kinds} == {True, False}, "both kinds of batches must be there"
    assert len(count.graphs) == 61
    assert count.graphs[-1] == count.graphs[20], "a step after the twentieth was compiled"
    assert count.graphs[-1] - before == sum(GRAPHS.values())


def mixed_batches(rows: int = 2, length: int = 32) -> list[Batch]:
    """By turns one document a row, several, and one with padding behind."""
    batches = []
    for seed in range(6):
        tokens = torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
        cut = 5 + seed
        segments = torch.tensor([[1] * cut + [2] * (length - cut)] * rows)
        if seed % 3 == 2:
            segments[-1] = 0
        targets = tokens.roll(-1, dims=1).masked_fill(segments == 0, IGNORE)
        plain = Batch(tokens, targets)
        positions = torch.tensor([[*range(cut), *range(length - cut)]] * rows)
        batches.append(plain if seed % 3 == 0 else Batch(tokens, targets, segments, positions))
    return batches


def test_segments_that_are_written_out_change_no_loss() -> None:
    model = tiny_model()
    whole = Whole(model, CrossEntropy(), CPU, precision="fp32", compiled=False)
    plain = mixed_batches()[0]
    (expected, *_), (found, *_) = whole.measure([plain]), whole.measure([with_segments(plain)])
    torch.testing.assert_close(found, expected)
    several = mixed_batches()[1]
    assert with_segments(several) is several


def tiny_model() -> torch.nn.Module:
    shape = {"vocab_size": VOCAB, "dim": 32, "num_layers": 3, "num_heads": 2}
    return build(ModelConfig.model_validate(shape), seed=0)


def losses(whole: Whole, batches: Sequence[Batch]) -> list[float]:
    return [float(whole.measure([batch])[0]) for batch in batches]


@pytest.mark.slow
def test_tiles_of_other_documents_make_no_new_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, on a CPU: one mask a batch in the sockets of compiled blocks, forward only."""
    expected = losses(
        Whole(tiny_model(), CrossEntropy(), CPU, precision="fp32", compiled=False), mixed_batches()
    )
    monkeypatch.setattr(engine, "can_skip_tiles", lambda device: True)
    whole = Whole(tiny_model(), CrossEntropy(), CPU, precision="fp32", compiled=True, packed=True)
    assert whole.documents is not None
    whole.documents.kernel = flex_attention
    before = num_graphs()
    found = losses(whole, mixed_batches())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert num_graphs() - before == 2  # a block, the loss
