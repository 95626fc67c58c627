"""The ledger as a page and as a table: complete, escaped, in two languages, with the figures it was given."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import CPU, NAMES, SLOWER, ledger

from hasten.ledger import page
from hasten.ledger.arms import make_arms
from hasten.ledger.table import cells, show, times
from hasten.ledger.techniques import TECHNIQUES
from hasten.ledger.words import WORDS

VOID = {"meta", "input", "path"}


class Tags(HTMLParser):
    """Checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html() -> str:
    return page.render(ledger(), "en")


def test_the_page_is_whole_and_needs_nothing_else(html: str) -> None:
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert "default-src 'none'" in html
    assert not re.findall(r"(?:src|href)=", html) and "url(" not in html


def test_every_arm_is_in_the_tables_and_every_figure_is_its_own(html: str) -> None:
    for row in ledger()["rows"]:
        assert "".join(f"<td>{cell}</td>" for cell in cells(row)) in html
        if row["technique"] and row["kind"] != "stair":
            assert all(text.replace("'", "&#39;") in html for text in TECHNIQUES[row["technique"]].does)


def test_what_could_not_be_had_is_listed_with_its_reason_and_escaped(html: str) -> None:
    assert "needs a GPU" in html and "需要 GPU" in html
    assert "Killed &lt;by&gt; the kernel" in html and "EPYC &lt;9R14&gt;" in html


@pytest.mark.parametrize("language, chosen", [("en", "lang-en"), ("zh", "lang-zh")])
def test_the_page_opens_in_its_language_and_has_both(language: page.Language, chosen: str) -> None:
    html = page.render(ledger(), language)
    assert f'<html lang="{language}">' in html and f'id="{chosen}" checked' in html
    assert html.count('<span lang="en">') == html.count('<span lang="zh">')


def test_a_busy_machine_is_warned_of_and_a_quiet_one_is_not(html: str) -> None:
    assert 'class="warning"' not in html
    assert "Others used 0.6 cores" in page.render(ledger(busy=0.6), "en")


def test_the_bars_stand_where_the_figures_are() -> None:
    """Places on the drawing are read back through the ticks: 1× and a bar's end give its ratio."""
    slower, loss = page.pictures(ledger()["rows"])
    named = {tick.label: page.WIDTH * tick.place for tick in slower.ticks}
    unit = named["2×"] - named["1×"]
    found = {}
    for bar in slower.bars:
        begin, end = map(float, re.findall(r"[\d.]+", bar.path.replace(" 10H", " ").replace("M", "")))
        found[bar.name[0]] = 1 + (end - begin) / unit
        assert begin == pytest.approx(named["1×"], abs=0.1) == pytest.approx(slower.one, abs=0.1)
    assert found["without C++ kernels"] == pytest.approx(SLOWER["without kernels"], abs=0.01)
    assert found["none of them"] == pytest.approx(SLOWER["plain"], abs=0.01)
    assert list(found.values())[:-1] == sorted(list(found.values())[:-1], reverse=True)
    assert [bar.name[0] for bar in loss.bars] == ["without Muon", "without modern block", "none of them"]


def test_one_repeat_has_no_range_and_no_whisker() -> None:
    once = ledger(repeats=1)
    assert all(not bar.whisker for picture in page.pictures(once["rows"]) for bar in picture.bars)
    assert "(" not in "".join(cell for row in once["rows"] for cell in cells(row))


@pytest.mark.parametrize(
    "spread, text",
    [
        (None, "–"),
        ({"median": 1.234, "low": 1.2, "high": 1.3, "repeats": 3}, "1.23× (1.20–1.30)"),
        ({"median": 12.34, "low": 12.34, "high": 12.34, "repeats": 1}, "12.3×"),
        ({"median": 2.0, "low": 2.0, "high": 2.0, "repeats": 2, "reached": 1}, ">2.00×"),
    ],
)
def test_ratios_are_written_with_their_range(spread: dict[str, float] | None, text: str) -> None:
    assert times(spread) == text


@pytest.mark.parametrize("language, heading", [("en", "Peak memory"), ("zh", "峰值内存")])
def test_the_terminal_gets_a_line_for_each_arm(
    language: page.Language, heading: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    show(ledger(), language)
    out = capsys.readouterr().out
    assert heading in out and "2.10×" in out
    assert len(out.splitlines()) == 1 + len(make_arms(NAMES, CPU, staircase=True)) + 2


def test_a_page_is_written_where_it_was_asked_for(tmp_path: Path) -> None:
    path = page.write_page(ledger(), tmp_path / "ledger.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_words_take_as_many_values_in_both_languages() -> None:
    assert all(english.count("{}") == chinese.count("{}") for english, chinese in WORDS.values())
