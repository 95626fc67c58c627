"""Beam search finds what `transformers` finds, and with beams enough the likeliest text of all."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor

from hasten.generate.beam import Beams, Hypothesis, Rules, best_of
from hasten.generate.config import GenerateConfig
from hasten.generate.constraint import constrained

END = 3
VOCABULARY = 24
NO_PROMPT = torch.zeros(1, 0, dtype=torch.int64)


def marian() -> transformers.PreTrainedModel:
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "vocab_size": VOCABULARY}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ffn = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64}
    ids = {"pad_token_id": 0, "eos_token_id": END, "decoder_start_token_id": 0, "forced_eos_token_id": None}
    return transformers.MarianMTModel(transformers.MarianConfig(**shape, **heads, **ffn, **ids, init_std=0.6))


def t5() -> transformers.PreTrainedModel:
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY}
    ids = {"pad_token_id": 0, "eos_token_id": END, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**shape, **ids, initializer_factor=4.0)
    )


def gpt2() -> transformers.PreTrainedModel:
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": VOCABULARY}
    ids = {"bos_token_id": 0, "eos_token_id": END, "pad_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **ids, initializer_range=0.7))


def search(
    follow: Callable[[Tensor, Tensor], Tensor],
    prompts: Tensor,
    config: GenerateConfig,
    eot_id: int = END,
) -> list[list[Hypothesis]]:
    """Beam search of prompts [S, P] without a cache: `follow(source of each beam, its tokens)` -> [N, V]."""
    rules = Rules(config.beams or 1, config.length_penalty, config.length_rule, config.early_stopping)
    beams = Beams(torch.full((len(prompts),), config.max_new_tokens), [eot_id], rules)
    while beams.open:
        source = beams.sources.repeat_interleave(beams.scores.shape[1])
        log_probs = follow(source, beams.history).log_softmax(-1)
        history = torch.cat((prompts[source], beams.history), 1)
        beams.step(constrained(log_probs, history, beams.length, config, [eot_id]))
    return beams.results


SETTINGS = [
    {"beams": 5},
    {"beams": 4, "early_stopping": True},
    {"beams": 3, "early_stopping": "never", "length_penalty": 0.6},
    {"beams": 5, "length_penalty": 2.0, "early_stopping": True},
    {"beams": 5, "length_penalty": 2.0, "early_stopping": "never"},
    {"beams": 4, "length_penalty": 0.0},
    {"beams": 4, "length_penalty": -1.0, "early_stopping": "never"},
    {"beams": 4, "no_repeat_ngram": 2},
    {"beams": 4, "min_new_tokens": 6, "no_repeat_ngram": 1, "length_penalty": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("make", [marian, t5, gpt2])
def test_the_texts_and_their_scores_are_those_of_transformers(make, settings):
    torch.manual_seed(3)
    model = make().eval()
    config = GenerateConfig(max_new_tokens=12, **settings)
    sources = torch.randint(4, VOCABULARY, (6, 5))
    theirs = model.generate(
        sources,
        attention_mask=torch.ones_like(sources),
        num_beams=config.beams,
        num_return_sequences=config.beams,
        do_sample=False,
        max_new_tokens=config.max_new_tokens,
        min_new_tokens=config.min_new_tokens,
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
        no_repeat_ngram_size=config.no_repeat_ngram,
        output_scores=True,
        return_dict_in_generate=True,
    )
    seq2seq = model.config.is_encoder_decoder
    prompts = torch.zeros(len(sources), 1, dtype=torch.int64) if seq2seq else sources

    @torch.no_grad()
    def follow(source: Tensor, tokens: Tensor) -> Tensor:
        text = torch.cat((prompts[source], tokens), 1)
        given = {"input_ids": sources[source], "decoder_input_ids": text} if seq2seq else {"input_ids": text}
        return model(**given).logits[:, -1]

    ours = best_of(search(follow, prompts, config), config.beams or 0)
    for mine, other in zip(ours, theirs.sequences[:, prompts.shape[1] :].tolist(), strict=True):
        assert mine.tokens == other[: len(mine.tokens)]
        assert set(other[len(mine.tokens) :]) <= {0, END}  # padding
    scores = torch.tensor([hypothesis.score for hypothesis in ours])
    torch.testing.assert_close(scores, theirs.sequences_scores, rtol=1e-4, atol=1e-5)
    assert any(h.tokens[-1] == END for h in ours)


def table(seed: int, vocabulary: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Logits that depend on the source and on all tokens so far, by a hash."""

    def follow(source: Tensor, tokens: Tensor) -> Tensor:
        rows = []
        for number, ids in zip(source.tolist(), tokens.tolist(), strict=True):
            key = hash((seed, number, *ids)) % 2**31
            rows.append(torch.randn(vocabulary, generator=torch.Generator().manual_seed(key)))
        return torch.stack(rows)

    return follow


@pytest.mark.parametrize("rule", ["power", "gnmt"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 1.7])
def test_with_beams_enough_the_likeliest_text_of_all_is_found(rule, alpha):
    """Every text of at most four tokens over three letters, the last of which ends it, scored one by one."""
    follow, end, longest = table(7, 3), 2, 4
    rules = Rules(81, alpha, rule, "never")
    config = GenerateConfig(
        beams=rules.width,
        max_new_tokens=longest,
        length_penalty=alpha,
        length_rule=rule,
        early_stopping="never",
    )
    found = search(follow, NO_PROMPT.expand(3, 0), config, eot_id=end)
    for source in range(3):
        texts = [
            text
            for n in range(1, longest + 1)
            for text in itertools.product(range(3), repeat=n)
            if end not in text[:-1] and (text[-1] == end or n == longest)
        ]
        scores = {text: score(follow, source, text) / penalty(len(text), rule, alpha) for text in texts}
        best = sorted(texts, key=lambda text: -scores[text])
        assert [tuple(h.tokens) for h in found[source]] == best
        for h in found[source]:
            assert h.score == pytest.approx(scores[tuple(h.tokens)], rel=1e-5)
            assert h.log_probability == pytest.approx(score(follow, source, tuple(h.tokens)), rel=1e-5)


def score(follow: Callable[[Tensor, Tensor], Tensor], source: int, text: tuple[int, ...]) -> float:
    """log p, token by token, in float64."""
    total = 0.0
    for n, token in enumerate(text):
        logits = follow(torch.tensor([source]), torch.tensor([text[:n]], dtype=torch.int64))[0].double()
        total += float(logits[token] - logits.logsumexp(0))
    return total


def penalty(length: int, rule: str, alpha: float) -> float:
    return math.pow(length if rule == "power" else (5 + length) / 6, alpha)


@pytest.mark.parametrize("early", [False, True, "never"])
def test_sources_of_one_search_do_not_see_each_other(early):
    follow = table(1, 12)
    config = GenerateConfig(beams=4, max_new_tokens=15, early_stopping=early)
    together = search(follow, NO_PROMPT.expand(7, 0), config)
    for number in range(7):
        alone = search(lambda source, tokens, n=number: follow(source + n, tokens), NO_PROMPT, config)[0]
        assert [h.tokens for h in alone] == [h.tokens for h in together[number]]


def test_each_source_has_its_own_limit():
    limits = torch.tensor([3, 9, 1])
    beams, follow = Beams(limits, [END], Rules(3)), table(5, 10)
    while beams.open:
        source = beams.sources.repeat_interleave(beams.scores.shape[1])
        beams.step(follow(source, beams.history).log_softmax(-1))
    longest = [max(len(h.tokens) for h in found) for found in beams.results]
    assert all(mine <= limit for mine, limit in zip(longest, limits.tolist(), strict=True))
    assert longest[0] == 3 and longest[2] == 1


def test_a_wide_search_over_a_narrow_vocabulary_has_as_many_texts_as_there_are():
    found = search(table(2, 2), NO_PROMPT, GenerateConfig(beams=9, max_new_tokens=2), eot_id=1)[0]
    assert sorted(tuple(h.tokens) for h in found) == [(0, 0), (0, 1), (1,)]


def test_no_sources_are_no_search():
    beams = Beams(torch.zeros(0, dtype=torch.int64), [END], Rules(3))
    assert not beams.open and beams.results == []
