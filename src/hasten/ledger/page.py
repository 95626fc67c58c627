"""ledger.html: the ledger as a page that needs nothing but itself, in English and Chinese."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hasten.core.files import write_text
from hasten.ledger.machine import BUSY_CORES
from hasten.ledger.table import cells, span, times
from hasten.ledger.techniques import TECHNIQUES
from hasten.ledger.words import WORDS, arm_words
from hasten.report.chart import WIDTH, Scale, Tick, ticks
from hasten.report.frame import Language, Words, both, page_environment, render_page

HEIGHT = 20  # of a bar's drawing, in its own coordinates
ROOM = 0.04  # of the range, left free at both ends
NUM_TICKS = 6
Row = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """One arm: from 1, where everything is on, to its median; the whisker spans the repeats."""

    name: Words
    label: str
    path: str
    whisker: str
    series: int


@dataclass(frozen=True)
class Picture:
    """Bars over one scale.  `title` and `note` are keys of words."""

    title: str
    note: str
    bars: list[Bar]
    ticks: list[Tick]
    one: float  # where 1× stands, in the drawing


def write_page(ledger: dict[str, Any], path: Path, language: Language = "en") -> Path:
    """Draw the ledger into the file `path`, and return that."""
    write_text(path, render(ledger, language))
    return path


def render(ledger: dict[str, Any], language: Language) -> str:
    """The page as text."""
    rows = {row["arm"]: row for row in ledger["rows"]}
    environment = page_environment("hasten.ledger", WORDS)
    environment.globals |= {
        "arm": lambda row: both(arm_words(row)),
        "cells": cells,
        "width": WIDTH,
        "height": HEIGHT,
    }
    environment.filters |= {"times": lambda spread: times(spread).partition(" ")[0], "span": span}
    return render_page(
        environment,
        "ledger.html",
        language,
        styles=[resources.files("hasten.ledger") / "ledger.css"],
        ledger=ledger,
        full=rows["full"],
        plain=rows.get("plain"),
        pictures=pictures(ledger["rows"]),
        ladder=[row for row in ledger["rows"] if row["kind"] == "stair"],
        table=[row for row in ledger["rows"] if row["kind"] != "stair"],
        techniques=TECHNIQUES,
        busy=busiest(ledger),
    )


def pictures(rows: Sequence[Row]) -> list[Picture]:
    """Time for the same tokens of every arm, and time to the same loss of those that learn otherwise."""
    slower = [row for row in rows if row["kind"] not in ("full", "stair") and row["slower"]]
    learning = [row for row in slower if row["learns"] and row["time_to_loss"]]
    drawn = [
        ("slower_title", "bars_note", "slower", slower),
        ("loss_title", "loss_note", "time_to_loss", learning),
    ]
    return [picture(title, note, figure, chosen) for title, note, figure, chosen in drawn if chosen]


def picture(title: str, note: str, figure: str, rows: Sequence[Row]) -> Picture:
    """Bars of one figure, the largest first, the plain arm last."""
    spreads = [row[figure] for row in rows]
    low, high = min(1.0, *(s["low"] for s in spreads)), max(1.0, *(s["high"] for s in spreads))
    room = ROOM * (high - low) or ROOM
    scale = Scale(low - room, high + room)
    ordered = sorted(rows, key=lambda row: (row["kind"] == "plain", -row[figure]["median"]))
    bars = [make_bar(row, row[figure], scale) for row in ordered]
    return Picture(title, note, bars, ticks(scale, lambda x, _: f"{x:g}×", NUM_TICKS), place(scale, 1.0))


def make_bar(row: Row, spread: Row, scale: Scale) -> Bar:
    """The drawing of one arm."""
    one, middle, low, high = (place(scale, x) for x in (1.0, spread["median"], spread["low"], spread["high"]))
    line = f"M{{:.1f}} {HEIGHT / 2:g}H{{:.1f}}"
    whisker = line.format(low, high) if spread["repeats"] > 1 else ""
    series = {"without": 0, "plain": 1, "with": 2}[row["kind"]]
    return Bar(arm_words(row), times(spread).partition(" ")[0], line.format(one, middle), whisker, series)


def place(scale: Scale, value: float) -> float:
    """Where a figure stands in the drawing."""
    return WIDTH * (value - scale.low) / (scale.high - scale.low)


def busiest(ledger: dict[str, Any]) -> str | None:
    """How many cores others used at most, if that is worth a warning."""
    known = [row["cores_used_by_others"] for row in ledger["rows"] if row["cores_used_by_others"] is not None]
    most = max(known, default=0.0)
    return f"{most:.1f}" if most > BUSY_CORES else None
