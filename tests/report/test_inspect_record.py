"""What is recorded is what the model uses: equal to `transformers`, and the model's output stays the same."""

from pathlib import Path

import pytest
import torch
from inspected import KINDS, model_of, word_tokenizer
from torch import Tensor, nn

from hasten.model.interop import load_hugging_face
from hasten.model.transformer import Transformer
from hasten.ops.attention import attend
from hasten.report.inspect.record import Record, recording

transformers = pytest.importorskip("transformers")

COMMON = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
THEIRS = {
    "GPT2LMHeadModel": {"vocab_size": 60, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40},
    "LlamaForCausalLM": {**COMMON, "num_attention_heads": 4, "num_key_value_heads": 2},
    "BertForMaskedLM": {**COMMON, "num_attention_heads": 4, "max_position_embeddings": 40},
    "T5ForConditionalGeneration": {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
                                   "num_heads": 4, "decoder_start_token_id": 0},
}  # fmt: skip


def make_theirs(name: str) -> nn.Module:
    """A tiny model of `transformers` in which no parameter is at its trivial start."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**THEIRS[name], attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def texts(length: int, seed: int = 0) -> Tensor:
    return torch.randint(5, 60, (1, length), generator=torch.Generator().manual_seed(seed))


def record(model: Transformer, tokens: Tensor, **source: Tensor) -> tuple[list[Tensor], Tensor]:
    """All attention of one pass, self-attention first, and the hidden states."""
    blocks = model.blocks()
    sockets = [b.attention for b in blocks] + [b.cross for b in blocks if b.cross is not None]
    with recording(sockets) as records:
        hidden = model(tokens, **source)
    return [r.weights for r in records if r.weights is not None], hidden


@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_probabilities_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = make_theirs(name)
    theirs.save_pretrained(tmp_path)
    ours = load_hugging_face(tmp_path).eval()
    tokens, source = texts(24), texts(17, seed=1)
    if name.startswith("T5"):
        seen = theirs(input_ids=source, decoder_input_ids=tokens, output_attentions=True)
        expected = [*seen.encoder_attentions, *seen.decoder_attentions, *seen.cross_attentions]
        found, _ = record(ours, tokens, source=source)
    else:
        expected = theirs(tokens, output_attentions=True).attentions
        found, _ = record(ours, tokens)
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_recording_changes_no_output_and_leaves_no_trace(kind: str) -> None:
    model = model_of(kind, word_tokenizer(*map(str, range(60))))
    given = {"source": texts(17, seed=1)} if kind == "seq2seq" else {}
    before = model(texts(24), **given)
    found, hidden = record(model, texts(24), **given)
    torch.testing.assert_close(hidden, before, rtol=1e-5, atol=1e-5)
    for weights in found:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    assert all(b.attention.attend is attend for b in model.blocks())


@torch.no_grad()
def test_sockets_get_their_own_function_back_after_an_error() -> None:
    model = model_of("decoder", word_tokenizer(*map(str, range(60))))
    with (
        pytest.raises(IndexError),
        recording([b.attention for b in model.blocks()]),
    ):
        model(torch.tensor([[10_000]]))
    assert all(b.attention.attend is attend for b in model.blocks())


OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 3},
    "scale and cap": {"scale": 0.7, "soft_cap": 1.5},
    "bias": {"bias": torch.linspace(-2, 2, 4 * 6 * 9).view(4, 6, 9)},
    "segments": {"segments": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]]), "causal": True},
    "other segments": {
        "segments": torch.tensor([[0, 0, 1, 1, 2, 2]]),
        "key_segments": torch.tensor([[0, 0, 0, 0, 1, 1, 3, 3, 3]]),
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_record_mixes_as_attend_does(name: str) -> None:
    """6 queries at the end of 9 keys, two heads to a key; a query that finds no key gives 0."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, n, h, 8, generator=generator) for n, h in ((6, 4), (9, 2), (9, 2)))
    options = {"causal": False, **OPTIONS[name]}
    record = Record()
    torch.testing.assert_close(
        record(query, key, value, **options), attend(query, key, value, **options), rtol=1e-5, atol=1e-5
    )
    assert record.weights is not None and record.weights.shape == (4, 6, 9)
