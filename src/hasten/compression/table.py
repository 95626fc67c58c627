"""What a chain came to, for the terminal: a column for each model, and what the last has cost."""

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hasten.compression.record import Compression, Measured
from hasten.core.console import say
from hasten.evaluate.agreement import Estimate
from hasten.report.figures import compact, percent, significant, size

ABSENT = "–"


def show(record: Compression) -> None:
    """Print the table, and what the last model has cost."""
    Console().print(table(record))
    say(cost(record))


def table(record: Compression) -> Table:
    """A line for each figure that some model has."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    result.add_column("", no_wrap=True)
    for model in record.models:
        result.add_column(Text(model.name), justify="right")
    for words, cell in ROWS:
        cells = [cell(model) for model in record.models]
        if any(each != ABSENT for each in cells):
            result.add_row(named(words, record), *cells)
    return result


def named(words: str, record: Compression) -> str:
    """The name of a line; the figure of quality has one of its own."""
    quality = next((model.quality for model in record.models if model.quality), None)
    return words.format(quality=quality.name.replace("_", " ") if quality else "quality")


def interval(found: Estimate | None, digits: int, sign: str = "") -> str:
    """`1.93 ± 0.05`; a dash where there is nothing."""
    if found is None:
        return ABSENT
    beside = "" if found.interval is None else f" ± {found.interval:.{digits}f}"
    return f"{found.value:{sign}.{digits}f}{beside}"


def share(found: Estimate) -> str:
    """`93.1% ± 0.4%`."""
    beside = "" if found.interval is None else f" ± {percent(found.interval)}"
    return f"{percent(found.value)}{beside}"


def peak(model: Measured) -> str:
    """Beyond a process without a model."""
    return size(model.memory.of_model) if model.memory else ABSENT


def reading(model: Measured) -> str:
    """Of one prompt, or of one text."""
    return f"{1000 * model.speed.read_seconds:,.2f} ms" if model.speed else ABSENT


def pace(model: Measured) -> str:
    """Tokens or examples a second."""
    return f"{significant(model.speed.per_second)} {model.speed.unit}/s" if model.speed else ABSENT


ROWS: tuple[tuple[str, Callable[[Measured], str]], ...] = (
    ("bytes on the disk", lambda model: size(model.bytes)),
    ("parameters", lambda model: compact(model.parameters)),
    ("zeros in matrices", lambda model: percent(model.zeros) if model.zeros > 0.01 else ABSENT),
    ("peak memory for it", peak),
    ("reads a prompt in", reading),
    ("  times as fast", lambda model: interval(model.reading_speedup, 2)),
    ("then", pace),
    ("  times as fast", lambda model: interval(model.speedup, 2)),
    ("{quality}", lambda model: interval(model.quality.score, 4) if model.quality else ABSENT),
    ("  change", lambda model: interval(model.quality.change, 4, "+") if model.quality else ABSENT),
    ("quality kept", lambda model: percent(model.quality.kept) if model.quality else ABSENT),
    ("same first choice", lambda model: share(model.agreement.same) if model.agreement else ABSENT),
    ("KL, nats", lambda model: interval(model.agreement.kl, 4) if model.agreement else ABSENT),
)
"""Words, and how a figure of a model is written."""


def cost(record: Compression) -> str:
    """What the last model has given up, in one sentence."""
    first, last = record.models[0], record.models[-1]
    asked = f"{record.target['asked']}: " if record.target else ""
    words = [f"{asked}{last.folder} has {last.bytes / first.bytes:.1%} of the bytes ({size(last.bytes)})"]
    if last.speedup:
        words.append(f"is {interval(last.speedup, 2)} times as fast")
    if last.quality and last.quality.change:
        change = interval(last.quality.change, 4, "+")
        words.append(f"keeps {last.quality.kept:.1%} of the quality ({last.quality.name} {change})")
    if last.agreement:
        words.append(f"chooses the same in {percent(last.agreement.same.value)} of all places")
    return ", ".join(words)
