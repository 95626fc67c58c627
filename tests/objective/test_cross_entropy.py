"""Cross-entropy as an objective: what it counts, what it sums, and that cutting a batch changes nothing."""

from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.objective.cross_entropy import CHUNK_BYTES, WHOLE_BYTES, CrossEntropy
from hasten.train.engine import Whole

CPU = Runtime(torch.device("cpu"))
ROWS, ROW_TOKENS, VOCAB = 6, 8, 19


def tiny(**changes: object) -> Decoder:
    shape = {"vocab_size": VOCAB, "dim": 16, "num_layers": 2, "num_heads": 2, "max_positions": 16}
    return build(ModelConfig.model_validate({**shape, **changes}), seed=0)


def ragged_batch(seed: int) -> Batch:
    """Rows with unequally many targets, from none to all."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (ROWS, ROW_TOKENS), generator=random)
    targets = torch.randint(VOCAB, (ROWS, ROW_TOKENS), generator=random)
    hidden = torch.rand(ROWS, ROW_TOKENS, generator=random) < torch.rand(ROWS, 1, generator=random)
    return Batch(tokens, targets.masked_fill(hidden, IGNORE))


def rows_of(batch: Batch, start: int, end: int) -> Batch:
    return replace(batch, tokens=batch.tokens[start:end], targets=batch.targets[start:end])


def loss_and_gradient(
    model: Decoder, batches: list[Batch], count: int, chunk: int | None
) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    engine = Whole(model, CrossEntropy(chunk_tokens=chunk), CPU, precision="fp32", compiled=False)
    loss = engine.run(batches, torch.tensor(1 / count))
    return loss, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    cuts=st.sets(st.integers(1, ROWS - 1)),
    ranks=st.integers(1, 3),
    chunk=st.none() | st.integers(1, ROWS * ROW_TOKENS + 1),
)
def test_a_batch_cut_any_way_gives_the_same_loss_and_gradient(
    seed: int, cuts: set[int], ranks: int, chunk: int | None
) -> None:
    """Micro-batches of unequal size, dealt to ranks whose gradients are added up, with any chunk of logits.

    fp32 rounding: sums of some hundred terms in another order differ by parts in a million.
    """
    batch, model = ragged_batch(seed), tiny()
    count = max(int(CrossEntropy().count(batch)), 1)
    whole_loss, whole = loss_and_gradient(model, [batch], count, chunk=None)
    bounds = [0, *sorted(cuts), ROWS]
    pieces = [rows_of(batch, a, b) for a, b in pairwise(bounds)]
    shares = [loss_and_gradient(model, pieces[r::ranks], count, chunk) for r in range(ranks)]
    torch.testing.assert_close(torch.stack([s[0] for s in shares]).sum(), whole_loss, rtol=1e-5, atol=1e-6)
    for i, expected in enumerate(whole):
        total = torch.stack([share[1][i] for share in shares]).sum(0)
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_summed_negative_log_likelihood_of_the_counted_targets() -> None:
    batch, model = ragged_batch(3), tiny().double()
    objective = CrossEntropy()
    hidden = model(**objective.inputs(batch))
    expected = -sum(
        model.logits(hidden)[b, t].log_softmax(0)[batch.targets[b, t]]
        for b in range(ROWS)
        for t in range(ROW_TOKENS)
        if batch.targets[b, t] != IGNORE
    )
    torch.testing.assert_close(objective.loss(model, hidden, batch).double(), expected, rtol=1e-6, atol=0)
    assert objective.count(batch) == sum(int(t != IGNORE) for t in batch.targets.flatten())
    assert objective.enrich(batch) is batch


def test_segments_and_positions_reach_the_model() -> None:
    batch = replace(
        ragged_batch(0), segments=torch.ones(ROWS, ROW_TOKENS), positions=torch.zeros(ROWS, ROW_TOKENS)
    )
    inputs = CrossEntropy().inputs(batch)
    assert inputs == {"tokens": batch.tokens, "positions": batch.positions, "segments": batch.segments}


@pytest.mark.parametrize("regulariser", [{"z_loss": 0.1}, {"label_smoothing": 0.2}])
def test_regularisers_change_the_training_loss_and_not_the_measured_one(
    regulariser: dict[str, float],
) -> None:
    batch, model = ragged_batch(1), tiny()
    plain, regular = CrossEntropy(), CrossEntropy(**regulariser)
    hidden = model(batch.tokens)
    assert regular.loss(model.train(), hidden, batch) > plain.loss(model, hidden, batch)
    assert torch.equal(regular.loss(model.eval(), hidden, batch), plain.loss(model, hidden, batch))


def test_the_peak_of_memory_does_not_grow_with_tokens_times_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forward and backward of the loss in chunks chosen by itself: eight times the tokens, no more logits."""
    monkeypatch.setitem(WHOLE_BYTES, "cpu", 2**20)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 2**19)
    model, peaks = tiny(vocab_size=2048), []
    for tokens in (256, 2048):
        targets = torch.randint(2048, (1, tokens))
        hidden = torch.randn(1, tokens, 16, requires_grad=True)
        with torch.profiler.profile(profile_memory=True) as profile:
            CrossEntropy().loss(model, hidden, Batch(targets, targets)).backward()
        events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
        peaks.append(max(accumulate(event.nbytes() for event in events if event.name() == "[memory]")))
    assert peaks[0] > 2**19  # or nothing was counted
    assert peaks[1] - peaks[0] < 2**20  # all logits would take 2**24


def test_logits_are_chunked_by_themselves_only_where_they_would_be_large() -> None:
    objective = CrossEntropy()
    for kind in ("cpu", "cuda"):
        device, fits = torch.device(kind), WHOLE_BYTES[kind] // (4 * 50_000)
        assert objective.chunk(fits, 50_000, device) is None
        chunk = objective.chunk(fits + 1, 50_000, device)
        assert chunk is not None and CHUNK_BYTES[kind] // 2 < chunk * 50_000 * 4 <= CHUNK_BYTES[kind]
        assert objective.chunk(2**30, 2**30, device) == 1
        assert CrossEntropy(chunk_tokens=7).chunk(2**30, 2**30, device) == 7
        assert CrossEntropy(chunk_tokens=None).chunk(2**30, 2**30, device) is None
