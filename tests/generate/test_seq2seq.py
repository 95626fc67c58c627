"""A model that reads a source writes the same with its cache as without, by sampling and by search."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.core.errors import DataError
from hasten.generate.beam import Beams, Rules
from hasten.generate.config import GenerateConfig
from hasten.generate.constraint import constrained, forbid
from hasten.generate.engine import generate
from hasten.generate.source_cache import SourceCache
from hasten.model.config import ModelConfig
from hasten.model.transformer import Seq2Seq, build
from hasten.ops.attention import attend

Make = Callable[..., Seq2Seq]
SHAPES = [
    {"position": "rotary", "qk_norm": True},
    {"position": "relative", "attention_scale": 1.0, "norm": "rms", "relative_distance": 12},
    {"position": "learned", "num_kv_heads": 2, "norm_place": "after", "norm": "layer"},
    {"position": "sinusoidal", "embedding_scale": 5.6, "shared_embeddings": False, "source_vocab_size": 257},
]
shapes = st.sampled_from(SHAPES)
factories = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def translator() -> Make:
    """`translator(seed, position="relative", ...)`: random weights, with logits far enough apart."""

    def make(seed: int = 0, **changes: object) -> Seq2Seq:
        shape = {"kind": "seq2seq", "vocab_size": 258, "dim": 32, "num_layers": 2, "num_heads": 4}
        config = ModelConfig.model_validate({**shape, "max_positions": 64, "init_std": 0.3, **changes})
        model = build(config, seed=seed).eval()
        assert isinstance(model, Seq2Seq)
        return model

    return make


def drawn(rows: int, length: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


@factories
@given(
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    shape=shapes,
)
def test_any_way_of_feeding_a_text_gives_the_same_hidden_states(translator: Make, cuts, lengths, shape):
    model, text = translator(**shape), drawn(len(lengths), sum(cuts), seed=1)
    sources = [drawn(1, n, seed=n)[0].tolist() for n in lengths]
    padding = [0] * len(sources)
    with torch.no_grad(), SourceCache(model, sources, padding, capacity=sum(cuts)) as cache:
        pieces = torch.cat([cache.read(piece) for piece in text.split(cuts, dim=1)], dim=1)
    for row, source in enumerate(sources):
        with torch.no_grad():
            alone = model(text[row : row + 1], source=torch.tensor([source]))[0]
        torch.testing.assert_close(pieces[row], alone, rtol=1e-4, atol=1e-4)


@factories
@given(data=st.data(), shape=shapes)
def test_rows_and_sources_that_stay_go_on_as_if_nobody_had_left(translator: Make, data, shape):
    """After any choice of beams, a row sees its own past and its own source."""
    model, sources = translator(**shape), [[3, 4, 5], [6], [7, 8, 9, 10, 11]]
    stay = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True).map(sorted))
    begun, beams = drawn(3, 2, seed=2), 2
    chosen = [source for source in stay for _ in range(beams)]
    following = drawn(len(chosen), 2, seed=3)
    with torch.no_grad(), SourceCache(model, sources, [0, 0, 0], capacity=6) as cache:
        cache.read(begun)
        cache.keep(torch.tensor(chosen), torch.tensor(stay))
        first = cache.read(following)
        swapped = torch.arange(len(chosen)).view(-1, beams).flip(1).flatten()
        cache.keep(swapped, torch.arange(len(stay)))
        then = cache.read(following[:, :1])
    for row, source in enumerate(chosen):
        whole = torch.cat((begun[source], following[row]))
        with torch.no_grad():
            alone = model(whole[None], source=torch.tensor([sources[source]]))[0, 2:]
        torch.testing.assert_close(first[row], alone, rtol=1e-4, atol=1e-4)
    for row, before in enumerate(swapped.tolist()):
        source = chosen[before]
        whole = torch.cat((begun[source], following[before], following[row, :1]))
        with torch.no_grad():
            alone = model(whole[None], source=torch.tensor([sources[source]]))[0, -1:]
        torch.testing.assert_close(then[row], alone, rtol=1e-4, atol=1e-4)


def test_the_encoder_and_the_keys_of_the_sources_run_once(translator: Make):
    model, calls = translator(), []
    for block in model.decoder.layers.values():
        block.cross.key.register_forward_hook(lambda *_: calls.append("key"))
    model.encoder.norm.register_forward_hook(lambda *_: calls.append("encoder"))
    with torch.no_grad(), SourceCache(model, [[1, 2], [3]], [0, 0], capacity=9) as cache:
        for _ in range(5):
            cache.read(drawn(2, 1, seed=0))
    assert calls == ["encoder", "key", "key"]


def test_the_model_gets_its_attention_back_even_after_an_error(translator: Make):
    model = translator()
    with pytest.raises(RuntimeError, match="over"), SourceCache(model, [[1]], [0], capacity=2):
        raise RuntimeError("over")
    for block in model.decoder.layers.values():
        assert block.attention.attend is attend and block.cross.attend is attend
        assert block.cross.read == block.cross.keys_and_values


@pytest.fixture(scope="module")
def letters(byte_tokenizer):
    """256 bytes, the end of text and padding."""
    return byte_tokenizer("<|endoftext|>", "<|pad|>")


SENTENCES = ["a man", "", "two dogs run through the snow", "ein Mann", "x", "日本"]


def uncached(model: Seq2Seq, letters, text: str) -> Callable[[Tensor], Tensor]:
    """Logits after a text so far, everything computed anew: [N, L] -> [N, V]."""
    source = torch.tensor([[*letters.encode(text), letters.eot_id]])

    @torch.no_grad()
    def follow(tokens: Tensor) -> Tensor:
        begun = torch.cat((torch.full((len(tokens), 1), letters.bos_id), tokens), 1)
        hidden = model(begun, source=source.expand(len(tokens), -1))
        return model.logits(hidden[:, -1])

    return follow


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["position"])
@pytest.mark.parametrize("options", [{}, {"no_repeat_ngram": 2, "min_new_tokens": 5, "early_stopping": True}])
def test_a_search_finds_what_a_search_without_a_cache_finds(translator: Make, letters, shape, options):
    model = translator(seed=4, **shape)
    config = GenerateConfig(beams=3, samples_per_prompt=3, max_new_tokens=10, batch_rows=4, **options)
    completions = iter(generate(model, letters, SENTENCES, config))
    for text in SENTENCES:
        follow = uncached(model, letters, text)
        beams = Beams(torch.tensor([10]), [letters.eot_id], Rules(3, early_stopping=config.early_stopping))
        while beams.open:
            scores = forbid(follow(beams.history).log_softmax(-1), [letters.pad_id])
            begun = torch.full((len(beams.history), 1), letters.bos_id)
            history = torch.cat((begun, beams.history), 1)
            beams.step(constrained(scores, history, beams.length, config, [letters.eot_id]))
        for hypothesis in beams.results[0]:
            completion = next(completions)
            assert list(completion.tokens) == hypothesis.tokens
            assert completion.score == pytest.approx(hypothesis.score, rel=1e-3, abs=1e-4)
            assert completion.prompt == text


def test_beams_are_the_default_where_a_source_is_read(translator: Make, letters):
    model = translator(seed=2)
    searched = generate(model, letters, SENTENCES, GenerateConfig(max_new_tokens=8))
    five = generate(model, letters, SENTENCES, GenerateConfig(max_new_tokens=8, beams=5, seed=9))
    assert [c.tokens for c in searched] == [c.tokens for c in five]
    assert all(c.score is not None for c in searched)


def test_the_likeliest_token_each_time_is_what_one_beam_takes(translator: Make, letters):
    model = translator(seed=3, position="relative")
    greedy = GenerateConfig(beams=1, temperature=0, max_new_tokens=9)
    for completion in generate(model, letters, SENTENCES, greedy):
        follow, text = uncached(model, letters, completion.prompt), list[int]()
        for token in completion.tokens:
            logits = follow(torch.tensor([text], dtype=torch.int64))[0]
            logits[letters.pad_id] = -torch.inf
            assert token == int(logits.argmax())
            text.append(token)


def test_samples_depend_on_their_source_and_seed_alone(translator: Make, letters):
    model = translator(seed=5)
    config = GenerateConfig(beams=1, temperature=1.0, samples_per_prompt=2, max_new_tokens=9)
    together = generate(model, letters, SENTENCES, config)
    for index, text in enumerate(SENTENCES):
        assert generate(model, letters, [text], config) == together[2 * index : 2 * index + 2]
    assert len({c.text for c in together}) > len(SENTENCES)


@pytest.mark.parametrize("beams", [1, 4])
def test_no_text_holds_padding(translator: Make, letters, beams):
    model = translator(seed=6)
    with torch.no_grad():
        model.head.weight[letters.pad_id] *= 50
    config = GenerateConfig(beams=beams, temperature=1.0, max_new_tokens=12)
    for completion in generate(model, letters, SENTENCES, config):
        assert letters.pad_id not in completion.tokens


def test_a_text_goes_as_far_as_there_are_positions(translator: Make, letters):
    model = translator(seed=7, position="learned", max_positions=6)
    config = GenerateConfig(beams=2, max_new_tokens=50, min_new_tokens=50)
    [completion] = generate(model, letters, ["abc"], config)
    assert (len(completion.tokens), completion.stopped_by) == (6, "context")


def test_a_source_longer_than_the_positions_is_refused(translator: Make, letters):
    with pytest.raises(
        DataError, match=r"the source 'aaaa.* has 65 tokens and the model reads at most 64; cut"
    ):
        generate(translator(), letters, ["ok", "a" * 64], GenerateConfig())


def test_rows_that_have_ended_are_told_a_batch_at_a_time(translator: Make, letters):
    told: list[list[str]] = []
    config = GenerateConfig(beams=2, max_new_tokens=4, batch_rows=4)
    generate(
        translator(), letters, SENTENCES, config, on_done=lambda rows: told.append([r.prompt for r in rows])
    )
    assert [len(batch) for batch in told] == [4, 2]
    assert sorted(itertools.chain(*told)) == sorted(SENTENCES)
