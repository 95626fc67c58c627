"""What the checks of a data set say, and which of it stops a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hasten.core.errors import ConfigError, DataError, did_you_mean
from hasten.data.tasks.protocol import Record, TaskConfig, Unit

Name = Literal[
    "labels",
    "duplicates",
    "conflicts",
    "leak",
    "empty",
    "truncated",
    "no-loss",
    "end-unsupervised",
    "pad-is-end",
    "template-drift",
]
NAMES: tuple[str, ...] = get_args(Name)
SHOWN = 3
"""Rows that a sentence names."""
TRAINING = "train"


@dataclass(frozen=True)
class Finding:
    """What one check came to, in a sentence; `examples` are rows, by their names, with what is in them."""

    name: Name
    ok: bool
    sentence: str
    examples: tuple[str, ...] = ()
    stops: bool = True  # a run, where it is not ok; else it is only told

    def as_json(self) -> dict[str, Any]:
        """For the record of a run."""
        return {
            "name": self.name,
            "ok": self.ok,
            "stops": self.stops,
            "sentence": self.sentence,
            "examples": list(self.examples),
        }


@dataclass(frozen=True)
class Part:
    """One split: records, their names (file and line), and what each became, if they are encoded already."""

    names: Sequence[str]
    records: Sequence[Record]
    units: Sequence[list[Unit] | str] = ()


@dataclass(frozen=True)
class Rows:
    """All that is known of a data set before any is encoded: its task, and its splits by name."""

    task: TaskConfig
    parts: Mapping[str, Part]
    learnt: Mapping[str, Any] = field(default_factory=dict)

    @property
    def training(self) -> Part:
        """What is learnt from."""
        return self.parts.get(TRAINING, Part((), ()))

    @property
    def held_out(self) -> dict[str, Part]:
        """What is measured with."""
        return {name: part for name, part in self.parts.items() if name != TRAINING}


def check_waived(waived: Iterable[str]) -> None:
    """Raise ConfigError for a name that is no check's."""
    for name in waived:
        if name not in NAMES:
            near = did_you_mean(name, NAMES)
            raise ConfigError(f"data.waive: there is no check '{name}'.{near} Choose from {', '.join(NAMES)}")


def stop_unless_waived(findings: Iterable[Finding], waived: Sequence[str]) -> None:
    """Raise DataError with all that stops a run and is not waived by name."""
    check_waived(waived)
    against = [f for f in findings if not f.ok and f.stops and f.name not in waived]
    if against:
        names = ", ".join(dict.fromkeys(finding.name for finding in against))
        sentences = "; ".join(f"{finding.name}: {finding.sentence}" for finding in against)
        raise DataError(
            f"the data are not fit to train on: {sentences} (to train all the same: data.waive: [{names}])"
        )


def told(finding: Finding, waived: Sequence[str]) -> str:
    """A finding as a line for a person: `ok`, `note`, `waived` or `STOP`, its name, and its sentence."""
    if finding.ok:
        word = "ok"
    elif not finding.stops:
        word = "note"
    else:
        word = "waived" if finding.name in waived else "STOP"
    return f"{word:<7} {finding.name:<17} {finding.sentence}"


def asked(record: Record, task: TaskConfig) -> str:
    """What a model is given of a record."""
    if "messages" in record:
        turns = record["messages"] if "chosen" in record else record["messages"][:-1]
        return "\n".join(turn["content"] for turn in turns)
    if "question" in record:
        return f"{record['question']}\n{record.get('context', '')}"
    return "\n".join(task.texts(record))


def said(record: Record) -> tuple[str, ...]:
    """What it is to say: an answer, the better and the worse one, or the label."""
    if "chosen" in record:
        return tuple(turn["content"] for side in ("chosen", "rejected") for turn in record[side])
    if "messages" in record:
        return (record["messages"][-1]["content"],)
    if "label" in record:
        return (str(record["label"]),)
    return tuple(map(str, record.get("answers", ())))


def listed(names: Sequence[str]) -> str:
    """The first few names: `a.jsonl:3, a.jsonl:9 and 12 more`."""
    rest = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def of(count: int, total: int, what: str) -> str:
    """`3 of 200 samples`."""
    return f"{count:,} of {total:,} {what}"


def excerpt(text: str, characters: int = 80) -> str:
    """The beginning of a text on one line, signs that steer a terminal spelt out."""
    line = " ".join(text.split())
    line = line if len(line) <= characters else line[:characters] + "…"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line)
