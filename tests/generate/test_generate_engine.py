"""Texts from prompts, against a model that reads everything again for every token."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.core.errors import ConfigError, DataError
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate, ready
from hasten.generate.sample import draws
from hasten.model.transformer import Decoder
from hasten.ops.attention import attend
from hasten.tokenizer.tokenizer import Tokenizer

Make = Callable[..., Decoder]
PROMPTS = ["", "a", "The quick brown fox", "床前明月光", "def f(x):\n    ", "👩‍🚀 in space"]
fixtures_are_shared = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def greedy(**changes: object) -> GenerateConfig:
    return GenerateConfig(**{"temperature": 0.0, "max_new_tokens": 12, **changes})


def sampled(**changes: object) -> GenerateConfig:
    return GenerateConfig(**{"temperature": 1.0, "max_new_tokens": 12, **changes})


@torch.no_grad()
def next_logits(model: Decoder, ids: list[int]) -> Tensor:
    """What the model says after `ids`, all of them read at once: [V]."""
    return model.logits(model(torch.tensor([ids]))[0, -1])


def read_again(model: Decoder, tokenizer: Tokenizer, prompt: str, count: int) -> list[int]:
    """The likeliest token, `count` times, with no cache; it ends with the end of the text."""
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    start = len(ids)
    while len(ids) < start + count and (len(ids) == start or ids[-1] != tokenizer.eot_id):
        ids.append(int(next_logits(model, ids).argmax()))
    return ids[start:]


@fixtures_are_shared
@given(
    prompt=st.text(max_size=10),
    position=st.sampled_from(["rotary", "learned", "none"]),
    seed=st.integers(0, 5),
)
def test_greedy_takes_the_likeliest_token_of_a_full_reading_each_time(
    small_model: Make, bytes_only, prompt, position, seed
):
    model = small_model(seed, position=position)
    [completion] = generate(model, bytes_only, [prompt], greedy())
    assert list(completion.tokens) == read_again(model, bytes_only, prompt, 12)


@pytest.mark.parametrize(
    "config",
    [
        greedy(),
        sampled(),
        sampled(top_k=20, top_p=0.9, min_p=0.01, temperature=1.3, repetition_penalty=1.2),
        sampled(stop=("e", "\n"), max_new_tokens=40),
        sampled(context_overflow="slide", max_new_tokens=100),
        sampled(batch_rows=4),
    ],
    ids=["greedy", "sampled", "filtered", "stopped", "sliding", "in two batches"],
)
def test_prompts_together_give_the_texts_that_each_gives_alone(small_model: Make, bytes_only, config):
    model = small_model()
    together = generate(model, bytes_only, PROMPTS, config)
    alone = [generate(model, bytes_only, [prompt], config)[0] for prompt in PROMPTS]
    assert together == alone
    assert [completion.prompt for completion in together] == PROMPTS


def test_sampling_inverts_the_distribution_at_the_rows_own_draws(small_model: Make, bytes_only):
    """A loop with no cache, no batch and no filter, from the definition."""
    model = small_model()
    [completion] = generate(model, bytes_only, ["So"], sampled(top_p=None, temperature=0.7, seed=3))
    ids = [bytes_only.bos_id, *bytes_only.encode("So")]
    for draw, token in zip(draws(3, "So", 12).tolist(), completion.tokens, strict=False):
        mass = (next_logits(model, ids).double() / 0.7).softmax(-1).cumsum(-1)
        assert token == next(t for t in range(257) if mass[t] > draw)
        ids.append(token)


def test_samples_of_a_prompt_have_the_seeds_that_follow(small_model: Make, bytes_only):
    model = small_model()
    three = generate(model, bytes_only, ["x", "y"], sampled(samples_per_prompt=3, seed=5))
    assert [(c.prompt, c.seed) for c in three] == [("x", 5), ("x", 6), ("x", 7), ("y", 5), ("y", 6), ("y", 7)]
    assert len({c.tokens for c in three}) == 6
    assert generate(model, bytes_only, ["y"], sampled(seed=6)) == [three[4]]


def test_a_longer_completion_begins_with_the_shorter(small_model: Make, bytes_only):
    model = small_model()
    [short], [long] = (
        generate(model, bytes_only, ["Once"], sampled(max_new_tokens=n, stop_at_end_of_text=False))
        for n in (5, 25)
    )
    assert (len(short.tokens), len(long.tokens)) == (5, 25)
    assert long.tokens[:5] == short.tokens


def test_repetition_penalty_counts_the_prompt_and_the_text(small_model: Make, bytes_only):
    model = small_model()
    [completion] = generate(model, bytes_only, ["Again"], greedy(repetition_penalty=1.4))
    ids = [bytes_only.bos_id, *bytes_only.encode("Again")]
    for token in completion.tokens:
        logits = next_logits(model, ids)
        for seen in set(ids):
            logits[seen] = logits[seen] / 1.4 if logits[seen] > 0 else logits[seen] * 1.4
        assert token == int(logits.argmax())
        ids.append(token)


STORY = "Es war 一天,那只猫🐈‍⬛说:你好!\nThe end. Fin"


def test_text_is_streamed_in_whole_characters(speaking, bytes_only):
    pieces: list[str] = []
    [completion] = generate(
        speaking(STORY), bytes_only, ["E"], greedy(max_new_tokens=200), lambda i, p: pieces.append(p)
    )
    assert "".join(pieces) == completion.text == STORY[1:]
    assert completion.stopped_by == "end_of_text"
    assert "\ufffd" not in completion.text
    assert pieces == list(STORY[1:])  # one character each, although many are three or four tokens


@pytest.mark.parametrize("count", range(1, 25))
def test_a_character_whose_last_byte_never_came_is_not_printed(speaking, bytes_only, count):
    [completion] = generate(speaking(STORY), bytes_only, ["E"], greedy(max_new_tokens=count))
    whole = STORY[1:].encode()[:count].decode("utf-8", errors="ignore")
    assert (completion.text, completion.stopped_by) == (whole, "length")
    assert len(completion.tokens) == count


@pytest.mark.parametrize("stop", ["那只", "🐈‍⬛说", "!\nThe", "E", "d. Fin"])
def test_a_stop_string_over_many_tokens_ends_the_text_and_is_never_printed(speaking, bytes_only, stop):
    pieces: list[str] = []
    config = greedy(max_new_tokens=200, stop=(stop, "never"))
    [completion] = generate(speaking(STORY), bytes_only, ["E"], config, lambda i, p: pieces.append(p))
    expected = STORY[1:].partition(stop)[0]
    found = stop in STORY[1:]
    assert "".join(pieces) == completion.text == expected
    assert completion.stopped_by == ("stop" if found else "end_of_text")


def test_texts_of_a_batch_are_streamed_each_to_its_place(small_model: Make, bytes_only):
    texts = ["" for _ in range(12)]

    def collect(index: int, piece: str) -> None:
        texts[index] += piece

    config = sampled(samples_per_prompt=2, stop=("\n",), batch_rows=5)
    completions = generate(small_model(), bytes_only, PROMPTS, config, collect)
    assert texts == [completion.text for completion in completions]


def test_the_end_of_a_text_ends_it_unless_asked_otherwise(speaking, bytes_only):
    model = speaking("Hi")
    [ended] = generate(model, bytes_only, ["H"], greedy())
    assert (ended.text, ended.stopped_by) == ("i", "end_of_text")
    assert ended.tokens[-1] == bytes_only.eot_id
    [went_on] = generate(model, bytes_only, ["H"], greedy(stop_at_end_of_text=False))
    assert went_on.stopped_by == "context"  # this model has positions for three tokens


def test_a_full_context_ends_the_text_and_says_so(small_model: Make, bytes_only):
    model = small_model(max_positions=16, position="learned")
    config = greedy(max_new_tokens=100, stop_at_end_of_text=False)
    [completion] = generate(model, bytes_only, ["12345"], config)
    # The beginning, five bytes, and ten more tokens are read; what follows the sixteenth is known too.
    assert (completion.stopped_by, len(completion.tokens)) == ("context", 11)
    assert completion.remark == (
        "the text ends after 11 tokens because the model's context is full;"
        " write context_overflow: slide to go on without the beginning"
    )
    assert list(completion.tokens) == read_again(model, bytes_only, "12345", 11)


@pytest.mark.parametrize("position", ["rotary", "learned", "none"])
def test_a_sliding_context_reads_its_last_half_as_a_text_of_its_own(small_model: Make, bytes_only, position):
    model = small_model(max_positions=16, position=position)
    config = greedy(max_new_tokens=50, context_overflow="slide", stop_at_end_of_text=False)
    [completion] = generate(model, bytes_only, ["12345"], config)
    window = [bytes_only.bos_id, *bytes_only.encode("12345")]
    forgotten = 0
    for token in completion.tokens:
        if len(window) > 16:
            forgotten += len(window) - 8
            window = window[-8:]
        assert token == int(next_logits(model, window).argmax())
        window.append(token)
    assert completion.stopped_by == "length"
    assert completion.forgotten_tokens == forgotten
    assert completion.remark == f"the model forgot the first {forgotten} tokens as its context was full"


def test_a_prompt_longer_than_the_context_is_refused_or_its_end_kept(small_model: Make, bytes_only):
    model = small_model(max_positions=16)
    prompt = "0123456789" * 2
    with pytest.raises(DataError, match=r"has 21 tokens and the model's context 16; shorten it, or write"):
        generate(model, bytes_only, [prompt], greedy())
    [completion] = generate(model, bytes_only, [prompt], greedy(context_overflow="slide", max_new_tokens=1))
    last_half = bytes_only.encode(prompt)[-8:]
    assert completion.tokens == (int(next_logits(model, last_half).argmax()),)
    assert completion.forgotten_tokens == 13


def test_a_text_within_the_context_has_no_remark(small_model: Make, bytes_only):
    [completion] = generate(small_model(), bytes_only, ["a"], greedy(max_new_tokens=3))
    assert completion.remark is None


def test_rows_of_a_padded_vocabulary_are_never_chosen(small_model: Make, bytes_only):
    model = small_model(vocab_size=300)
    with torch.no_grad():
        model.head.weight[257:] *= 100
    config = sampled(max_new_tokens=40, temperature=5.0, stop_at_end_of_text=False, top_p=None)
    [completion] = generate(model, bytes_only, ["a"], config)
    assert len(completion.tokens) == 40
    assert max(completion.tokens) < 257


def test_the_tokenizer_of_another_model_is_refused(small_model: Make, bytes_only):
    with pytest.raises(ConfigError, match="the model knows 100 tokens and the tokenizer has 257; they don't"):
        generate(small_model(vocab_size=100), bytes_only, ["a"], greedy())


def test_no_prompts_give_no_texts(small_model: Make, bytes_only):
    assert generate(small_model(), bytes_only, [], greedy()) == []


def test_a_model_in_training_comes_back_as_it_was(small_model: Make, bytes_only):
    model = small_model(dropout=0.5).train()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    first, second = (generate(model, bytes_only, ["a"], sampled(precision="bf16")) for _ in range(2))
    assert first == second  # no dropout
    assert model.training
    assert all(layer.training for layer in model.layers.values())
    assert all(layer.attention.attend is attend for layer in model.layers.values())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])


def test_a_training_step_still_works_after_a_sample(small_model: Make, bytes_only):
    model = small_model().train()
    generate(model, bytes_only, ["a"], greedy())
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert model.embedding.weight.grad is not None


def test_precision_is_that_of_the_weights_unless_asked_otherwise(small_model: Make):
    model = small_model()
    with ready(model, greedy()) as prepared:
        assert prepared.model is model
    with ready(model, greedy(precision="bf16")) as prepared:
        assert prepared.model.embedding.weight.dtype == torch.bfloat16
    assert model.embedding.weight.dtype == torch.float32


STORIES = Path(__file__).parents[2] / "../shared/data/models/stories260K"
LILY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    " One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    """Lily's mom said, "Lily, let's go to the park.\""""
)


@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared model stories260K is not beside the repository")
def test_a_published_model_tells_its_published_story():
    """The greedy text of stories260K, as printed in llama2.c, doc/stories260K.md."""
    from hasten.model.interop import load_hugging_face

    model, tokenizer = load_hugging_face(STORIES), Tokenizer.load(STORIES)
    [from_nothing, from_a_word] = generate(
        model, tokenizer, ["", "Once upon a time"], greedy(max_new_tokens=200)
    )
    assert from_nothing.text.startswith(LILY)
    assert ("Once upon a time" + from_a_word.text).startswith(LILY)
