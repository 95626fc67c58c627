"""Exact match and F1 are those of the definitions, written out here a second time."""

import re
from itertools import product

import pytest

from hasten.core.errors import DataError
from hasten.evaluate.answers import longest_run, mixed_segments, rule_of, score, score_answers

pytest.importorskip("nltk")
SQUAD = [
    ("the Denver Broncos!", ["Denver Broncos", "The Broncos"]),
    ("a, an, the", ["the"]),
    ("", ["Paris"]),
    ("Paris", []),
    ("", []),
    ("Paris Paris", ["Paris"]),
    ("in 1990 and 1991", ["1991", "between 1990 and 1991"]),
    ("🎉 party 🎉", ["party 🎉"]),
    ("the U.S.A.", ["USA"]),
    ("北京", ["北京 市"]),
    ("another theatre", ["theatre"]),
    ("Saint\u00a0Bernadette", ["saint bernadette"]),
]
CMRC = [
    ("《战国无双3》", ["战国无双3", "《战国无双3》"]),
    ("光荣和ω-force", ["光荣和ω-force开发"]),
    ("在1990年，北京。", ["1990年"]),
    ("", ["北京"]),
    ("北京", []),
    ("", []),
    ("北京北京", ["北京"]),
    ("南京的北京", ["北京南京"]),
    ("🎉北京🎉", ["北京🎉"]),
    ("Hello World 你好", ["hello  world"]),
    ("don't 去", ["don't 来"]),
    ("。，", ["北京"]),
]


def squad_words(text: str) -> list[str]:
    """Lower case; then without ASCII punctuation; then without the three articles; then cut at spaces."""
    punctuation = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
    return re.sub(r"\b(a|an|the)\b", " ", re.sub(punctuation, "", text.lower())).split()


def squad(text: str, golds: list[str]) -> tuple[float, float]:
    """The best of the golds that have a word; where none has, whether the text has none."""
    best = [0.0, 0.0]
    for gold in [gold for gold in golds if squad_words(gold)] or [""]:
        mine, theirs = squad_words(text), squad_words(gold)
        rest, common = list(theirs), 0
        for word in mine:
            if word in rest:
                rest.remove(word)
                common += 1
        if not mine or not theirs:
            f1 = float(mine == theirs)
        elif common:
            precision, recall = common / len(mine), common / len(theirs)
            f1 = 2 * precision * recall / (precision + recall)
        else:
            f1 = 0.0
        best = [max(best[0], float(" ".join(mine) == " ".join(theirs))), max(best[1], f1)]
    return best[0], best[1]


SIGNS = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"


def cmrc_segments(text: str) -> list[str]:
    """Han characters singly, the rest by NLTK's rules for words."""
    from nltk.tokenize import NLTKWordTokenizer

    bare = re.sub(f"[{re.escape(SIGNS)}]", "", text.lower().strip())
    parts = re.split(r"([\u4e00-\u9fa5])", bare)
    cut = (
        [part] if re.fullmatch(r"[\u4e00-\u9fa5]", part) else NLTKWordTokenizer().tokenize(part)
        for part in parts
        if part.strip()
    )
    return [segment for segments in cut for segment in segments]


def cmrc(text: str, golds: list[str]) -> tuple[float, float]:
    """The longest stretch of segments that both have, by trying all."""
    best = [0.0, 0.0]
    for gold in golds or [""]:
        mine, theirs = cmrc_segments(text), cmrc_segments(gold)
        stretches = [theirs[i:j] for i in range(len(theirs)) for j in range(i + 1, len(theirs) + 1)]
        places = product(range(len(mine)), repeat=2)
        common = max((j + 1 - i for i, j in places if mine[i : j + 1] in stretches), default=0)
        if not mine or not theirs:
            f1 = float(mine == theirs)
        elif common > 0:
            precision, recall = common / len(mine), common / len(theirs)
            f1 = 2 * precision * recall / (precision + recall)
        else:
            f1 = 0.0
        same = "".join(c for c in text.lower().strip() if c not in SIGNS) == "".join(
            c for c in gold.lower().strip() if c not in SIGNS
        )
        best = [max(best[0], float(same)), max(best[1], f1)]
    return best[0], best[1]


@pytest.mark.parametrize("number", range(len(SQUAD)))
def test_words_are_scored_as_squad_defines(number):
    text, golds = SQUAD[number]
    found = score(text, golds, "squad")
    assert (found.exact, found.f1) == pytest.approx(squad(text, golds))


@pytest.mark.parametrize("number", range(len(CMRC)))
def test_chinese_is_scored_as_cmrc_2018_defines(number):
    text, golds = CMRC[number]
    found = score(text, golds, "cmrc2018")
    assert (found.exact, found.f1) == pytest.approx(cmrc(text, golds))


def test_figures_known_by_hand():
    assert score("The Broncos of Denver", ["Denver Broncos"], "squad").f1 == pytest.approx(2 * 2 / (3 + 2))
    # 南 京 的 北 京 and 北 京 南 京: the longest run is two long, however many characters both have.
    assert score("南京的北京", ["北京南京"], "cmrc2018").f1 == pytest.approx(2 * 2 / (5 + 4))
    assert mixed_segments("我在 New York 3.5年") == ["我", "在", "new", "york", "3.5", "年"]
    assert longest_run("abcbcd", "xbcd") == 3
    assert longest_run("", "abc") == 0


def test_the_means_are_over_all_questions_and_over_those_with_an_answer():
    found = score_answers(["Paris", "", "in Rome", "Oslo"], [["Paris"], [], ["Rome"], []])
    assert (found.exact, found.f1) == pytest.approx((50, 100 * (1 + 1 + 2 / 3 + 0) / 4))
    assert (found.exact_with_answer, found.f1_with_answer) == pytest.approx((50, 100 * (1 + 2 / 3) / 2))
    assert (found.questions, found.without_answer, found.correct_without_answer) == (4, 2, 50)
    assert found.f1_interval is not None and 0 < found.f1_interval <= 50
    assert found.signature == "rule:squad|refs:best|scale:100|bootstrap:1000"
    assert score_answers(["Paris"], [["Paris"]]).exact_interval is None


def test_the_rule_follows_the_script_of_the_references():
    assert rule_of([["北京"], ["上海"]]) == "cmrc2018"
    assert rule_of([["Peking"], [], ["München"]]) == "squad"
    assert score_answers(["北京。"], [["北京"]]).exact == 100


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="no question to score"):
        score_answers([], [])
