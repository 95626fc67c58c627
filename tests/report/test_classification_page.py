"""Drawings of a classification: the counts and shares of the record, names as text, both languages."""

import json
from dataclasses import asdict
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hasten.core.files import write_json
from hasten.evaluate.calibration import Bin, Calibration
from hasten.evaluate.classifier import Finer
from hasten.evaluate.classify import ClassificationScore, ClassScore, Mistake, Tempered
from hasten.report.chart import HEIGHT, WIDTH
from hasten.report.confusion import MOST, make_confusion
from hasten.report.frame import page_environment
from hasten.report.page import write_page
from hasten.report.reliability import make_reliability
from hasten.report.summary import summary
from hasten.report.words import WORDS

HOSTILE = """</span></svg><script>alert(1)</script>"'&lt;{{ 7*7 }}{}"""


def bins(*counts: int, lift: float = 0.0) -> list[Bin]:
    """A bin of equal width for each count; a full one is as often right as it is sure, and `lift` more."""
    width = 1 / len(counts)
    made = []
    for number, count in enumerate(counts):
        low, middle = number * width, (number + 0.5) * width
        made.append(Bin(low, low + width, count, middle if count else None, middle + lift if count else None))
    return made


def score(name: str = "sports", pair: str | None = None) -> Any:
    after = Calibration(0.01, 0.012, 0.2, 0.3, bins(0, 0, 5, 25))
    found = ClassificationScore(
        examples=30,
        left_out=2,
        accuracy=0.9,
        interval=(0.744, 0.965),
        macro_f1=0.88,
        majority=0.6,
        majority_macro_f1=0.375,
        classes=[ClassScore(name, 0.9, 0.95, 0.92, 18, 19), ClassScore("world", 0.9, 0.8, 0.85, 12, 11)],
        confusion=[[17, 1], [2, 10]],
        calibration=Calibration(0.07, 0.08, 0.21, 0.31, bins(0, 0, 10, 20, lift=-0.05)),
        tempered=Tempered(1.7, 40, after),
        finer=Finer(7, 0.634),
        mistakes=[Mistake(f"about {name}", pair, name, "world", 0.97)],
    )
    return SimpleNamespace(split="test", **vars(found))


def plain(found: Any) -> ClassificationScore:
    """The score alone."""
    return ClassificationScore(**{name: value for name, value in vars(found).items() if name != "split"})


class Outline(HTMLParser):
    """Tags and texts as a browser takes them apart."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.texts: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes.append({"tag": tag, **dict(attrs)})

    def handle_data(self, data):
        self.texts.append(data.strip())


def drawn(found: Any) -> str:
    environment = page_environment("hasten.report", WORDS)
    environment.globals |= {"make_confusion": make_confusion, "make_reliability": make_reliability}
    names = [each.name for each in found.classes]
    template = environment.get_template("classification.html")
    return template.module.classification_of(
        found,
        make_confusion(names, found.confusion),
        make_reliability(found.calibration.bins, found.tempered.calibration.bins if found.tempered else ()),
        WIDTH,
        HEIGHT,
    )


def test_every_count_stands_in_its_cell_with_its_share_of_the_row():
    outline = Outline(drawn(score()))
    for count in ("17", "1", "2", "10"):
        assert count in outline.texts
    cells = [a for a in outline.attributes if a["tag"] == "rect" and a.get("fill-opacity")]
    found = {(int(a["x"]), int(a["y"])): (a["class"], float(a["fill-opacity"])) for a in cells}
    assert found == {
        (0, 0): ("s0", round(17 / 18, 3)),
        (1, 0): ("s1", round(1 / 18, 3)),
        (0, 1): ("s1", round(2 / 12, 3)),
        (1, 1): ("s0", round(10 / 12, 3)),
    }


def test_figures_and_words_stand_in_both_languages():
    texts = " ".join(Outline(drawn(score())).texts)
    for figure in ("90.0%", "74.4% – 96.5%", "88.0%", "60.0%", "37.5%", "7.0%", "1.0%", "1.7", "40", "97.0%"):
        assert figure in texts, figure
    assert "The 7 finer labels" in texts and "更细的 7 个标签" in texts and "63.4%" in texts
    assert "Confusion matrix" in texts and "混淆矩阵" in texts and "可靠性图" in texts
    assert "sports taken for world, 97.0% sure" in texts
    assert "Texts too long, left out:" in texts


def test_names_and_texts_of_a_run_stay_text():
    harmless, hostile = Outline(drawn(score("sports", "b"))), Outline(drawn(score(HOSTILE, HOSTILE)))
    assert hostile.tags == harmless.tags
    assert sum(HOSTILE in text for text in hostile.texts) >= 4


def test_a_page_shows_the_classification_of_its_run(make_run):
    folder = make_run()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    record = {"split": "test", **asdict(plain(score()))}
    write_json(folder / "evaluation.json", {**evaluation, "classification": record})
    html = write_page([folder]).read_text(encoding="utf-8")
    texts = " ".join(Outline(html).texts)
    for figure in ("Confusion matrix", "74.4% – 96.5%", "sports taken for world, 97.0% sure", "校准误差"):
        assert figure in texts, figure
    assert ".confusion rect" in html
    assert summary(folder)["class_accuracy"] == 0.9 and summary(folder)["macro_f1"] == 0.88
    assert "Confusion matrix" not in write_page([make_run("other")]).read_text(encoding="utf-8")


def test_a_matrix_without_a_count_in_a_row_is_drawn():
    figure = make_confusion(["a", "b"], [[0, 0], [1, 3]])
    assert [(cell.count, cell.share) for cell in figure.cells] == [(0, 0), (0, 0), (1, 0.25), (3, 0.75)]
    assert [cell.strong for cell in figure.cells] == [False, False, False, True]


def test_up_to_twenty_classes_have_their_own_row_and_of_more_the_rarest_share_one():
    draw = np.random.default_rng(0)
    for count in (7, MOST):
        counts = draw.integers(0, 50, (count, count))
        figure = make_confusion([f"c{n}" for n in range(count)], counts.tolist())
        assert figure.size == count and figure.numbered
        assert [cell.count for cell in figure.cells] == counts.flatten().tolist()
    counts = draw.integers(0, 50, (33, 33))
    figure = make_confusion([f"c{n}" for n in range(33)], counts.tolist())
    assert figure.size == MOST and figure.names[-1] is None
    assert sum(cell.count for cell in figure.cells) == counts.sum()
    kept = [int(name[1:]) for name in figure.names if name is not None]
    assert kept == sorted(kept)
    assert min(counts[kept].sum(axis=1)) >= max(counts[[n for n in range(33) if n not in kept]].sum(axis=1))
    table = np.array([cell.count for cell in figure.cells]).reshape(MOST, MOST)
    assert (table[:-1, :-1] == counts[np.ix_(kept, kept)]).all()
    assert not make_confusion(["a", "b"], [[1, 0], [0, 1]]).numbered


def test_bars_are_as_high_as_the_share_that_is_right_and_begin_where_there_are_texts():
    figure = make_reliability(bins(0, 0, 10, 30, lift=-0.1), bins(0, 0, 20, 20))
    assert figure is not None
    first, second = figure.accuracy
    assert (first.height, second.height) == (pytest.approx(HEIGHT * 0.525), pytest.approx(HEIGHT * 0.775))
    assert 0 < first.x < first.x + first.width < WIDTH / 2 < second.x
    assert [bar.height for bar in figure.examples] == [pytest.approx(HEIGHT / 3), HEIGHT]
    assert figure.diagonal == f"M0 {HEIGHT / 2:.1f}L{WIDTH} 0"  # the drawing begins at half sure
    # After tempering each bin is as often right as it is sure: its points lie on the diagonal.
    for point in figure.after.removeprefix("M").split("L"):
        x, y = map(float, point.split())
        assert y == pytest.approx(HEIGHT * (1 - (0.5 + 0.5 * x / WIDTH)), abs=0.2)
    assert figure.after_dots.count("h0") == 2
    assert [tick.label for tick in figure.x_ticks] == ["50%", "60%", "70%", "80%", "90%", "100%"]
    assert first.words == "50.0%–75.0%: 52.5%, 10"


def test_without_texts_or_a_temperature_there_is_less_to_draw():
    assert make_reliability(bins(0, 0)) is None
    figure = make_reliability(bins(0, 3))
    assert figure is not None and figure.after == ""
    found = score()
    found.tempered = None
    assert "with a temperature" not in drawn(found)
