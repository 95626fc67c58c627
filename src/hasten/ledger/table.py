"""The ledger as a table in the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hasten.core.console import say
from hasten.ledger.words import WORDS, arm_words
from hasten.report.figures import compact, significant, size
from hasten.report.frame import Language

Row = dict[str, Any]


def show(ledger: dict[str, Any], language: Language = "en") -> None:
    """Print the rows, then what could not be had and why."""
    chinese = language == "zh"
    Console().print(table(ledger["rows"], chinese))
    for name, reason in ledger["missing"].items():
        say(f"{name}: {reason[chinese]}")
    for name, reason in ledger["failed"].items():
        say(f"{name}: {WORDS['failed'][chinese]}: …{reason}")


def table(rows: list[Row], chinese: bool) -> Table:
    """A line for each arm."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    result.add_column("")
    for key in ("pace", "time", "loss_time", "memory", "repeats"):
        result.add_column(WORDS[key][chinese], justify="right")
    for row in rows:
        result.add_row(Text(arm_words(row)[chinese]), *cells(row))
    return result


def cells(row: Row) -> list[str]:
    """Pace, relative time for tokens and to the loss, memory, repeats."""
    pace, memory = row["tokens_per_second"], row["peak_memory"]
    return [
        compact(pace["median"]),
        times(row["slower"]),
        times(row["time_to_loss"]),
        size(memory["median"]),
        str(pace["repeats"]),
    ]


def times(spread: dict[str, Any] | None) -> str:
    """`1.23× (1.19–1.31)`; `>` where some repeat did not get there; a dash for what was not measured."""
    if spread is None:
        return "–"
    unreached = spread.get("reached", spread["repeats"]) < spread["repeats"]
    text = f"{'>' if unreached else ''}{factor(spread['median'])}×"
    return f"{text} ({span(spread)})" if span(spread) else text


def span(spread: dict[str, Any]) -> str:
    """`1.19–1.31`, the range over repeats; nothing where there is none to see."""
    low, high = factor(spread["low"]), factor(spread["high"])
    return f"{low}–{high}" if low != high else ""


def factor(value: float) -> str:
    """Two decimals below ten: `factor(1.2345)` -> `1.23`."""
    return f"{value:.2f}" if value < 9.995 else significant(value)
