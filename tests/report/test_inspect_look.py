"""What a look holds: each view's sizes, each head's figures, and what was expected where."""

import math

import pytest
import torch
from inspected import model_of, word_tokenizer

from hasten.core.errors import ConfigError, DataError
from hasten.report.inspect import look as looks
from hasten.report.inspect import read
from hasten.report.inspect.config import InspectConfig, from_words
from hasten.report.inspect.heads import figures, repeats
from hasten.report.inspect.look import look

WORDS = [f"w{n}" for n in range(40)]
TOKENIZER = word_tokenizer(*WORDS)
CLS, SEP, MASK = (TOKENIZER.inner.token_to_id(mark) for mark in ("[CLS]", "[SEP]", "[MASK]"))
TEXT = "w1 w2 w3 w1 w2 w9"


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


@torch.no_grad()
def test_a_decoders_expectations_are_its_log_probabilities():
    model = model_of("decoder", TOKENIZER)
    seen = look(model, TOKENIZER, InspectConfig(text=TEXT, top=3))
    tokens = [CLS, *ids(TEXT)]
    logs = model.logits(model(torch.tensor([tokens]))[0]).log_softmax(-1)
    assert [entry.place for entry in seen.expected] == [1, 2, 3, 4, 5, 6, 7]
    for place, entry in enumerate(seen.expected):
        best = logs[place].topk(3)
        assert [c.piece.id for c in entry.candidates] == best.indices.tolist()
        assert [c.probability for c in entry.candidates] == pytest.approx(
            best.values.exp().tolist(), rel=1e-4
        )
        if place < 6:
            own = logs[place, tokens[place + 1]].item()
            assert entry.came is not None and entry.came.id == tokens[place + 1]
            assert entry.bits == pytest.approx(-own / math.log(2), rel=1e-4)
            assert entry.rank == 1 + sum(value > own for value in logs[place].tolist())
    assert seen.expected[-1].came is None and seen.expected[-1].bits is None
    (view,) = seen.views
    assert view.weights.shape == (2, 4, 7, 7) and [p.id for p in view.queries] == tokens


def test_padded_rows_of_the_vocabulary_are_no_candidates():
    model = model_of("decoder", TOKENIZER, vocab_size=TOKENIZER.vocab_size + 20)
    seen = look(model, TOKENIZER, InspectConfig(text=TEXT, top=20))
    assert all(c.piece.id < TOKENIZER.vocab_size for entry in seen.expected for c in entry.candidates)


@torch.no_grad()
def test_an_encoder_fills_each_mask_of_the_text():
    model = model_of("encoder", TOKENIZER)
    seen = look(model, TOKENIZER, InspectConfig(text="w1 [MASK] w3 <mask>", top=1))
    tokens = [CLS, *ids("w1"), MASK, *ids("w3"), MASK, SEP]
    best = model.logits(model(torch.tensor([tokens]))[0]).argmax(-1)
    assert [entry.place for entry in seen.expected] == [2, 4]
    assert [entry.candidates[0].piece.id for entry in seen.expected] == [best[2], best[4]]
    assert seen.views[0].weights.shape == (2, 4, 6, 6) and seen.views[0].kind == "encoder"


@torch.no_grad()
def test_each_token_masked_in_turn_is_a_pass_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(looks, "ROWS", 4)
    model = model_of("encoder", TOKENIZER)
    seen = look(model, TOKENIZER, InspectConfig(text=TEXT, mask="each"))
    for place, entry in zip(range(1, 7), seen.expected, strict=True):
        tokens = [CLS, *ids(TEXT), SEP]
        hidden = [*tokens[:place], MASK, *tokens[place + 1 :]]
        logs = model.logits(model(torch.tensor([hidden]))[0, place]).log_softmax(-1)
        assert entry.place == place and entry.came is not None and entry.came.id == tokens[place]
        assert entry.probability == pytest.approx(logs[tokens[place]].exp().item(), rel=1e-4)


def test_an_encoder_without_a_mask_or_without_words_expects_nothing():
    assert look(model_of("encoder", TOKENIZER), TOKENIZER, InspectConfig(text=TEXT)).note == "no_expectation"
    for head in ({"head": "none"}, {"head": "pooled_classes", "num_classes": 3}):
        seen = look(model_of("encoder", TOKENIZER, **head), TOKENIZER, InspectConfig(text=TEXT))
        assert seen.note == "no_words" and not seen.expected and seen.views[0].weights.shape == (2, 4, 8, 8)


@torch.no_grad()
def test_an_encoder_decoder_shows_three_views_of_a_pair():
    model = model_of("seq2seq", TOKENIZER, start_id=4)
    seen = look(model, TOKENIZER, InspectConfig(source="w1 w2", target="w5 w6 w7"))
    kinds = {view.kind: tuple(view.weights.shape) for view in seen.views}
    assert kinds == {"encoder": (3, 4, 3, 3), "decoder": (2, 4, 4, 4), "cross": (2, 4, 4, 3)}
    assert [p.id for p in seen.views[2].queries] == [4, *ids("w5 w6 w7")]
    assert [p.id for p in seen.views[2].keys] == [*ids("w1 w2"), SEP]
    assert [entry.came.id for entry in seen.expected if entry.came] == [*ids("w5 w6 w7"), SEP]
    source, target = torch.tensor([[*ids("w1 w2"), SEP]]), torch.tensor([[4, *ids("w5 w6 w7")]])
    logs = model.logits(model(target, source=source)[0]).log_softmax(-1)
    expected = [-logs[i, id].item() / math.log(2) for i, id in enumerate([*ids("w5 w6 w7"), SEP])]
    assert [entry.bits for entry in seen.expected] == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_a_target_that_is_not_given_is_the_models_likeliest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(looks, "MOST_WRITTEN", 8)
    model = model_of("seq2seq", TOKENIZER)
    for given in ({"source": "w1 w2"}, {"text": "w1 w2"}):
        seen = look(model, TOKENIZER, InspectConfig(**given))
        written = [p.id for p in seen.views[1].queries]
        assert seen.written and written[0] == CLS and len(written) <= 9
        ranks = [entry.rank for entry in seen.expected]
        assert ranks[: len(written) - 1] == [1] * (len(written) - 1), "each token was its favourite"


def test_only_the_layers_asked_for_are_kept():
    model = model_of("seq2seq", TOKENIZER)
    seen = look(model, TOKENIZER, InspectConfig(source=TEXT, target=TEXT, layers=(1,)))
    assert [view.layers for view in seen.views] == [[1]] * 3
    full = look(model, TOKENIZER, InspectConfig(source=TEXT, target=TEXT))
    assert torch.equal(full.views[2].weights[1:], seen.views[2].weights)


def test_the_model_is_left_as_it_was():
    model = model_of("decoder", TOKENIZER, dropout=0.5).train()
    first, second = (look(model, TOKENIZER, InspectConfig(text=TEXT)) for _ in range(2))
    assert model.training and torch.equal(first.views[0].weights, second.views[0].weights), "without dropout"


BAD = {
    "no text for a decoder": ("decoder", {"source": TEXT}, ConfigError, "kind decoder and has no `source`"),
    "a target for an encoder": ("encoder", {"text": "w1", "target": "w"}, ConfigError, "has no `target`"),
    "two sources": ("seq2seq", {"text": "w1", "source": "w1"}, ConfigError, "mean the same; leave one out"),
    "masks in a decoder": ("decoder", {"text": TEXT, "mask": "each"}, ConfigError, "is for encoders"),
    "masks without words": ("headless", {"text": TEXT, "mask": "each"}, ConfigError, "is for encoders"),
    "no such layer": ("decoder", {"text": TEXT, "layers": (0, 7)}, ConfigError, "no layer 7; they are 0"),
    "no layers": ("decoder", {"text": TEXT, "layers": ()}, ConfigError, "layers is empty"),
    "no such layer here": ("seq2seq", {"text": "w1", "layers": (2,)}, ConfigError, "no layer 2; they"),
    "an empty text": ("decoder", {"text": "  "}, DataError, "text: holds no token"),
    "an empty text to fill": ("encoder", {"text": ""}, DataError, "text: is empty"),
    "an empty source": ("seq2seq", {"source": " "}, DataError, "source: holds no token"),
    "beyond the positions": ("decoder", {"text": "w1 " * 64}, DataError, "has 65 tokens, .* is shown 64"),
    "far too long": ("seq2seq", {"text": "w1 " * 1100}, DataError, "1,101 tokens, .* shown 1,024"),
    "absurdly long": ("decoder", {"text": "w" * 100_001}, DataError, "100,001 characters"),
    "an own pair too long": ("seq2seq", {"text": "w1 " * 900}, DataError, "shorten it to about"),
}  # fmt: skip


@pytest.mark.parametrize("kind, given, error, complaint", BAD.values(), ids=BAD)
def test_what_cannot_be_looked_at_is_refused_in_one_sentence(kind, given, error, complaint):
    changes = {"head": "none"} if kind == "headless" else {}
    model = model_of("encoder" if kind == "headless" else kind, TOKENIZER, **changes)
    with pytest.raises(error, match=complaint):
        look(model, TOKENIZER, InspectConfig(**given))


def test_a_mask_that_the_tokenizer_lacks_is_refused(byte_tokenizer):
    tokenizer = byte_tokenizer("<|endoftext|>")
    for given in ({"text": "a [MASK]"}, {"text": "a", "mask": "each"}):
        with pytest.raises(DataError, match="no token that hides another"):
            look(model_of("encoder", tokenizer), tokenizer, InspectConfig(**given))


def test_a_mark_that_begins_and_ends_stands_at_the_end_alone(byte_tokenizer):
    tokenizer = byte_tokenizer("<|endoftext|>", "<|mask|>")
    seen = look(model_of("encoder", tokenizer), tokenizer, InspectConfig(text="a[MASK]b<|mask|>"))
    assert [piece.text for piece in seen.views[0].keys] == ["a", "<|mask|>", "b", "<|mask|>", "<|endoftext|>"]
    assert [entry.place for entry in seen.expected] == [1, 3]


def test_the_text_that_is_refused_fits_when_cut_as_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(read, "MOST_NUMBERS", 2000)
    model = model_of("decoder", TOKENIZER)
    with pytest.raises(DataError, match=r"has 61 tokens, .* 2 x 4 heads .* about 22 tokens") as refused:
        look(model, TOKENIZER, InspectConfig(text="w1 " * 60))
    assert "layers=[0,1]" in str(refused.value)
    assert look(model, TOKENIZER, InspectConfig(text="w1 " * 21)).views[0].weights.shape[-1] == 22


def test_a_head_of_a_known_kind_has_a_share_of_one():
    """Weights written by hand: previous, first, own, induction and uniform, over a b c a b c."""
    tokens, size = [1, 2, 3, 1, 2, 3], 6
    weights = torch.zeros(1, 5, size, size)
    for query in range(size):
        weights[0, 0, query, max(query - 1, 0)] = 1
        weights[0, 1, query, 0] = 1
        weights[0, 2, query, query] = 1
        weights[0, 3, query, query - 2 if query > 2 else 0] = 1
        weights[0, 4, query, : query + 1] = 1 / (query + 1)
    found = {name: value[0].tolist() for name, value in figures(weights, "decoder", tokens).items()}
    assert found["previous"][0] == found["first"][1] == found["own"][2] == found["induction"][3] == 1
    assert found["induction"][:3] == [0, 0, 0] and found["own"][:2] == [0, 0]
    assert found["distance"][0] == 1 and found["distance"][1] == 3 and found["distance"][2] == 0
    assert found["entropy"][:4] == [0, 0, 0, 0]
    assert found["entropy"][4] == pytest.approx(sum(math.log2(n) for n in range(2, 7)) / 5, rel=1e-5)


def test_an_encoders_head_may_look_forward_and_a_cross_head_has_no_distance():
    weights = torch.zeros(1, 1, 4, 4)
    for query in range(4):
        weights[0, 0, query, min(query + 1, 3)] = 1
    found = figures(weights, "encoder", [1, 2, 3, 4])
    assert found["following"].item() == 1 and found["previous"].item() == 0
    assert found["last"].item() == pytest.approx(2 / 3) and "induction" not in found
    assert set(figures(weights[..., :3, :], "cross", [1, 2, 3])) == {"entropy", "first", "last"}


def test_an_induction_head_looks_after_an_earlier_token_like_its_own():
    assert repeats([1, 2, 1, 3, 1]) == [(2, 1), (4, 1), (4, 3)]
    assert repeats([7, 7]) == [] and repeats([1, 2, 3]) == [], "a token never stands after itself"
    assert "induction" not in figures(torch.ones(1, 1, 3, 3) / 3, "decoder", [1, 2, 3])


CALLS = {
    "a text": (["Once upon a time"], {"text": "Once upon a time"}),
    "an equation": (["x + 1 = 2"], {"text": "x + 1 = 2"}),
    "a text like YAML": (["text=[1, 2]: no"], {"text": "[1, 2]: no"}),
    "settings": (["hi", "format=text", "top=3", "layers=[0,2]"], {"top": 3, "layers": (0, 2)}),
    "a pair": (["source=A dog.", "target=Ein Hund."], {"source": "A dog.", "target": "Ein Hund."}),
}  # fmt: skip


@pytest.mark.parametrize("words, expected", CALLS.values(), ids=CALLS)
def test_words_become_settings(words, expected):
    config, others = from_words(words, ["report", "output"])
    assert others == [] and {key: getattr(config, key) for key in expected} == expected


def test_words_for_the_recipe_are_handed_on():
    config, others = from_words(["output=runs/x", "hi", "report.lang=zh"], ["report", "output"])
    assert config.text == "hi" and others == ["output=runs/x", "report.lang=zh"]


WRONG = {
    "no text": ([], "needs a text"),
    "two texts": (["hello", "world"], "there are two texts, 'hello' and 'world'"),
    "a misspelt key": (["hello", "fromat=text"], "no key 'fromat'. Did you mean 'format'?"),
    "an equation that looks like a key": (["x=1"], "write text='x=1'"),
    "a wrong format": (["hi", "format=pdf"], "format cannot be 'pdf'"),
    "too many candidates": (["hi", "top=99"], "top should be less than or equal to 20"),
    "a layer below 0": (["hi", "layers=[-1]"], "should be greater than or equal to 0"),
}


@pytest.mark.parametrize("words, complaint", WRONG.values(), ids=WRONG)
def test_words_that_mean_nothing_are_refused(words, complaint):
    with pytest.raises(ConfigError) as refused:
        from_words(words, ["output"])
    assert complaint in str(refused.value)
