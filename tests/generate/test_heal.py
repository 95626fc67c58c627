"""A prompt may end anywhere: its last token is chosen anew, and no character is lost or doubled."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.generate.heal import beginning_like, heal
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig, train

TEXT = ["def f(x):\n    return x\n\n\ndef g(y):\n    return y\n", "你好，世界。\n", "if a:\n    b = 1\n"] * 9


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train(TEXT, TokenizerConfig(vocab_size=290), progress=False)


@pytest.fixture(scope="module")
def model(words) -> Decoder:
    return build(ModelConfig(vocab_size=words.vocab_size, dim=32, num_heads=2, num_layers=2), seed=0).eval()


def test_only_tokens_that_begin_like_the_last_may_take_its_place(words):
    ids = words.encode("def f(x):")
    kept, first = heal(ids, words)
    assert kept == ids[:-1] and first is not None and ids[-1] in first
    last = words.token_bytes[ids[-1]]
    assert {id for id in range(words.vocab_size) if words.token_bytes[id].startswith(last)} == set(first)
    assert beginning_like(ids[-1], words) == first


def test_a_last_token_that_nothing_extends_and_a_special_one_stay(words):
    alone = next(id for id in range(words.vocab_size) if len(beginning_like(id, words)) == 1)
    assert heal([5, alone], words) == ([5, alone], None)
    assert heal([5, words.eot_id], words) == ([5, words.eot_id], None)
    assert heal([], words) == ([], None)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.sampled_from(["def f(x):", "def f(x", "你好", "if a:\n", "if a:\n  ", "retu", "\n\n"]),
    seed=st.integers(0, 9),
)
def test_prompt_and_text_join_to_what_the_tokens_spell(words, model, prompt, seed):
    pieces: list[str] = []
    settings = GenerateConfig(max_new_tokens=6, seed=seed, precision="model", stop_at_end_of_text=False)
    (completion,) = generate(model, words, [prompt], settings, lambda _, piece: pieces.append(piece))
    kept, first = heal(words.encode(prompt), words)
    spelt = b"".join(
        words.token_bytes[id] for id in [*kept, *completion.tokens] if id not in words.special_ids
    )
    whole = spelt.decode("utf-8", "replace")
    assert whole.startswith(prompt + completion.text)
    assert not whole.removeprefix(prompt + completion.text).strip("\ufffd"), (
        "only half a character may be left"
    )
    assert "".join(pieces) == completion.text
    assert len(completion.tokens) == 6 + (first is not None)
    assert first is None or completion.tokens[0] in first


def test_without_healing_the_prompts_tokens_stay(words, model):
    settings = GenerateConfig(max_new_tokens=3, temperature=0, heal_prompt=False, precision="model")
    (completion,) = generate(model, words, ["def f(x):"], settings)
    assert len(completion.tokens) <= 3
