"""ROUGE is that of rouge-score for English, and by the formula over characters for Chinese."""

from collections import Counter

import numpy as np
import pytest

from hasten.core.errors import DataError
from hasten.evaluate.interval import half_interval
from hasten.evaluate.rouge import (
    RougeConfig,
    Tokenizer,
    lead,
    lead_sentences,
    score_rouge,
    sentences,
    tokens_of,
)

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
TEXTS = ["The cats were running home. They slept.", "Nothing here", "", "A dog! 🎉 barked"]
REFERENCES = [
    ["A cat runs home.", "Cats run to their homes. Then they sleep."],
    ["Something else"],
    ["Empty"],
    ["The dog barks"],
]
CHINESE = ["基于平方和优化的控制器设计", "水运工程的管理", "", "GPT-4模型的评测"]
TITLES = [["一种基于平方和优化的控制器设计方法"], ["水运工程施工项目全过程管理"], ["空"], ["GPT-4 评测"]]


def test_english_is_as_rouge_score_has_it_with_stems_and_the_best_reference():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = score_rouge(TEXTS, REFERENCES)
    for kind in ("rouge1", "rouge2", "rougeL"):
        best = [
            max(scorer.score(gold, text)[kind].fmeasure for gold in golds)
            for text, golds in zip(TEXTS, REFERENCES, strict=True)
        ]
        assert getattr(found, kind).score == pytest.approx(100 * np.mean(best))
    assert "tokens:english|stemming:porter|refs:best" in found.signature
    plain = score_rouge(TEXTS, REFERENCES, RougeConfig(stemming=False))
    assert plain.rouge1.score < found.rouge1.score and "stemming:no" in plain.signature


def test_sentences_are_compared_one_by_one_in_rouge_lsum():
    scorer = rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=True)
    text, gold = "He went home. She stayed at work.", "She stayed. He went home early."
    by_hand = scorer.score("She stayed.\nHe went home early.", "He went home.\nShe stayed at work.")
    found = score_rouge([text], [[gold]])
    assert found.rougeLsum.score == pytest.approx(100 * by_hand["rougeLsum"].fmeasure)
    assert found.rougeLsum.score > found.rougeL.score


def ngram_f(text: str, gold: str, n: int) -> float:
    """F of the runs of n characters that both have."""
    mine, theirs = ([x[i : i + n] for i in range(len(x) - n + 1)] for x in (text, gold))
    common = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * common / (len(mine) + len(theirs)) if common else 0.0


def lcs_f(text: str, gold: str) -> float:
    """F of the longest subsequence that both have."""
    table = np.zeros((len(text) + 1, len(gold) + 1), int)
    for i, a in enumerate(text, 1):
        for j, b in enumerate(gold, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if a == b else max(table[i - 1, j], table[i, j - 1])
    return 2 * table[-1, -1] / (len(text) + len(gold)) if table[-1, -1] else 0.0


def test_chinese_is_by_the_formula_over_characters():
    texts, golds = CHINESE[:3], TITLES[:3]  # without Latin words a token is a character
    found = score_rouge(texts, golds)
    pairs = [(text, gold[0]) for text, gold in zip(texts, golds, strict=True)]
    assert found.rouge1.score == pytest.approx(100 * np.mean([ngram_f(*pair, 1) for pair in pairs]))
    assert found.rouge2.score == pytest.approx(100 * np.mean([ngram_f(*pair, 2) for pair in pairs]))
    assert found.rougeL.score == pytest.approx(100 * np.mean([lcs_f(*pair) for pair in pairs]))
    assert "tokens:characters|stemming:no" in found.signature
    usual = rouge_scorer.RougeScorer(["rouge1"], use_stemmer=True)
    assert usual.score(pairs[0][1], pairs[0][0])["rouge1"].fmeasure == 0  # what most people get by default


def test_tokens_are_characters_of_chinese_and_words_between_them():
    assert Tokenizer().tokenize("GPT-4模型，在2024年") == ["gpt", "4", "模", "型", "在", "2024", "年"]
    assert Tokenizer().tokenize("Größe über_alles 🎉 犬が") == ["größe", "über", "alles", "犬", "が"]
    assert Tokenizer().tokenize("𠮷野家") == ["𠮷", "野", "家"]


@pytest.mark.parametrize(
    ("reference", "tokens"),
    [
        ("A naïve view. " + 20 * "The house is old. ", "english"),
        ("The house is old", "english"),
        ("Zwei Männer sitzen auf einer Bank", "words"),
        ("一种新的方法", "characters"),
        ("犬が走る", "characters"),
        ("Мама мыла раму", "words"),
        ("123", "english"),
    ],
)
def test_tokens_are_as_the_script_of_the_references_asks(reference, tokens):
    assert tokens_of([[reference]]) == tokens


def test_the_interval_is_that_of_a_bootstrap_and_always_the_same():
    values = np.random.default_rng(0).random(400)
    found = half_interval(values)
    assert found == half_interval(values)
    # Of a mean of many, 1.96 standard errors; 1,000 samples know the ends to some percent.
    assert found == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert half_interval([0.5]) is None and half_interval([0.5, 0.5]) == 0


def test_sentences_end_where_they_do():
    assert sentences('Hi, Mr. Smith. "How are you?" Fine... I think; yes.') == [
        "Hi, Mr. Smith.",
        '"How are you?"',
        "Fine...",
        "I think; yes.",
    ]
    assert sentences("建立了模型；提出方法.仿真结果表明,有3.5倍。“好！”他说") == [
        "建立了模型；提出方法.",
        "仿真结果表明,有3.5倍。",
        "“好！”",
        "他说",
    ]
    assert sentences("#P1#: Hello\n#P2#: Hi there. Bye\n\n") == ["#P1#: Hello", "#P2#: Hi there.", "Bye"]
    assert sentences("") == [] and sentences(" . ") == ["."]


def test_the_lead_is_the_first_sentences():
    assert lead("One. Two. Three.", 2) == "One.\nTwo."
    assert lead("目的 观察疗效.方法 随机分组.", 1) == "目的 观察疗效."
    assert lead("", 3) == ""
    assert (lead_sentences([["标题"]]), lead_sentences([["A title"]])) == (1, 3)


def test_nothing_to_compare_is_an_error():
    for texts, references in (([], []), (["a"], [[]])):
        with pytest.raises(DataError, match="ROUGE compares texts with references"):
            score_rouge(texts, references)
