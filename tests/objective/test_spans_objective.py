"""The loss of answers in texts: that of `transformers` unpacked, and the same packed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError
from hasten.data.examples import Places
from hasten.model.config import ModelConfig
from hasten.model.interop import load_hugging_face
from hasten.model.transformer import Transformer, build
from hasten.objective.spans import Spans

OBJECTIVE = Spans()
VOCAB = 40
SHAPE: dict[str, Any] = {
    "kind": "encoder",
    "vocab_size": VOCAB,
    "dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "max_positions": 32,
    "position": "learned",
    "num_token_types": 2,
    "head": "token_classes",
    "num_classes": 2,
    "class_names": ("start", "end"),
    "head_bias": True,
}
Example = tuple[np.ndarray, np.ndarray, int, int]


@pytest.fixture(scope="module")
def model() -> Transformer:
    """In float64, every parameter off its first value."""
    model = build(ModelConfig.model_validate(SHAPE), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).double())
    return model.train()


def examples(count: int) -> list[Example]:
    """Tokens and types [n], and where an answer begins and ends."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(count):
        n = int(draw.integers(4, 14))
        start = int(draw.integers(0, n))
        types = (np.arange(n) > n // 2).astype(np.int64)
        found.append((draw.integers(2, VOCAB, n), types, start, int(draw.integers(start, n))))
    return found


def alone(example: Example) -> Batch:
    """One text without padding or segments."""
    tokens, types, start, end = example
    extra = {"token_types": torch.from_numpy(types)[None], "start": torch.tensor([[start]])}
    return Batch(
        torch.from_numpy(tokens)[None],
        torch.full((1, len(tokens)), IGNORE),
        extra={**extra, "end": torch.tensor([[end]])},
    )


def packed(rows: list[list[Example]], width: int, most: int) -> Batch:
    """Rows of several texts, with room for `most` of them."""
    places, types = Places(len(rows), width, 0), np.zeros((len(rows), width), np.int64)
    ends = {name: torch.full((len(rows), most), -1) for name in ("start", "end")}
    for b, row in enumerate(rows):
        for segment, (tokens, kinds, start, end) in enumerate(row, 1):
            span = places.put(b, segment, tokens)
            types[b, span] = kinds
            ends["start"][b, segment - 1], ends["end"][b, segment - 1] = span.start + start, span.start + end
    tensors = [torch.from_numpy(x) for x in (places.tokens, places.segments, places.positions)]
    ignored = torch.full((len(rows), width), IGNORE)
    return Batch(
        tensors[0], ignored, tensors[1], tensors[2], extra={**ends, "token_types": torch.from_numpy(types)}
    )


def gradients(model: Transformer, batches: list[Batch]) -> tuple[float, dict[str, Tensor]]:
    """The summed loss, and its gradient."""
    model.zero_grad()
    losses = [OBJECTIVE.loss(model, model(**OBJECTIVE.inputs(batch)), batch) for batch in batches]
    total = torch.stack(losses).sum()
    total.backward()
    return float(total.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_packed_texts_give_the_losses_and_gradients_of_each_alone(model):
    some = examples(7)
    loss, expected = gradients(model, [alone(example) for example in some])
    batch = packed([some[:3], some[3:4], some[4:], []], 48, most=5)
    found, packed_gradients = gradients(model, [batch])
    assert OBJECTIVE.count(batch) == 7
    assert found == pytest.approx(loss, rel=1e-9)
    torch.testing.assert_close(packed_gradients, expected, rtol=1e-8, atol=1e-10)


def test_the_loss_is_that_of_a_float64_softmax_written_out(model):
    some = examples(5)
    expected = 0.0
    with torch.no_grad():
        for tokens, types, start, end in some:
            hidden = model(torch.from_numpy(tokens)[None], token_types=torch.from_numpy(types)[None])
            logits = model.logits(hidden)[0].numpy()
            for place, column in ((start, 0), (end, 1)):
                scores = logits[:, column]
                expected += (np.log(np.exp(scores).sum()) - scores[place]) / 2
    assert gradients(model, [packed([some], 70, most=9)])[0] == pytest.approx(expected, rel=1e-9)


def test_loss_and_gradients_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )  # fmt: skip
    theirs = transformers.BertForQuestionAnswering(config)
    theirs.save_pretrained(tmp_path)
    ours = load_hugging_face(tmp_path).train()
    tokens = torch.randint(2, VOCAB, (3, 20), generator=torch.Generator().manual_seed(1))
    types = (torch.arange(20) > 7).long().expand(3, 20)
    start, end = torch.tensor([3, 0, 18]), torch.tensor([5, 0, 19])
    theirs.train()
    out = theirs(
        tokens,
        attention_mask=torch.ones_like(tokens),
        token_type_ids=types,
        start_positions=start,
        end_positions=end,
    )
    out.loss.backward()
    extra = {"token_types": types, "start": start[:, None], "end": end[:, None]}
    batch = Batch(tokens, torch.full_like(tokens, IGNORE), extra=extra)
    loss = OBJECTIVE.loss(ours, ours(**OBJECTIVE.inputs(batch)), batch) / OBJECTIVE.count(batch)
    loss.backward()
    torch.testing.assert_close(loss, out.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.head.weight.grad, theirs.qa_outputs.weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.head_bias.grad, theirs.qa_outputs.bias.grad, rtol=1e-4, atol=1e-6)
    table = theirs.bert.embeddings.word_embeddings.weight.grad
    torch.testing.assert_close(ours.embedding.weight.grad, table, rtol=1e-4, atol=1e-6)


def test_places_beyond_a_text_and_examples_that_do_not_exist_do_not_count(model):
    some = examples(3)
    narrow, wide = packed([some], 40, most=3), packed([some], 60, most=8)
    loss, expected = gradients(model, [narrow])
    found, same = gradients(model, [wide])
    assert found == pytest.approx(loss, rel=1e-9)
    torch.testing.assert_close(same, expected, rtol=1e-8, atol=1e-10)
    nothing, none = gradients(model, [packed([[], []], 20, most=4)])
    assert nothing == 0 and OBJECTIVE.count(packed([[]], 20, most=4)) == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in none.values())


@torch.no_grad()
def test_an_answer_is_correct_where_both_places_are_the_likeliest(model):
    batch = packed([examples(4), examples(2)], 60, most=4)
    hidden = model(**OBJECTIVE.inputs(batch))
    logits, right = model.logits(hidden), 0
    for b, row in enumerate(batch.segments.tolist()):
        for segment in range(1, max(row) + 1):
            own = [t for t, number in enumerate(row) if number == segment]
            best = [own[int(logits[b, own, column].argmax())] for column in (0, 1)]
            if segment == 1:  # make these right
                batch.extra["start"][b, 0], batch.extra["end"][b, 0] = best
            right += best == [int(batch.extra[end][b, segment - 1]) for end in ("start", "end")]
    assert right >= 2
    assert OBJECTIVE.correct(model, hidden, batch) == right


def test_the_loss_compiles_to_the_same(model):
    batch = packed([examples(4)], 60, most=6)
    with torch.no_grad():
        hidden = model(**OBJECTIVE.inputs(batch))
        compiled = torch.compile(OBJECTIVE.loss, backend="eager", fullgraph=True)
        assert compiled(model, hidden, batch) == pytest.approx(float(OBJECTIVE.loss(model, hidden, batch)))


def test_half_precision_scores_are_judged_in_float32(model):
    batch = packed([examples(4)], 60, most=6)
    hidden = model(**OBJECTIVE.inputs(batch)).detach()
    loss = OBJECTIVE.loss(model.bfloat16(), hidden.bfloat16(), batch)
    model.double()
    assert loss.dtype == torch.float32


def test_a_divided_context_is_refused_with_the_reason():
    OBJECTIVE.check_degrees({"context": 1, "tensor": 2})
    with pytest.raises(
        ConfigError, match=r"context 2 would spread the places of a text .*parallel.context=1"
    ):
        OBJECTIVE.check_degrees({"context": 2})
