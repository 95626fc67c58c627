"""Before step 1 of a fine-tuning: are the data what their owner believes they are?

What was found, and some samples as the model reads them, are shown and kept in the run's folder as
`checks.json`; what must not be stops the run, unless `data.waive` names it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hasten.core.console import say
from hasten.core.files import fingerprint, write_json
from hasten.data.config import DataConfig
from hasten.data.prepare import Prepared
from hasten.data.split import SPLITS, Split
from hasten.data.tasks.checks import Examples, example_findings
from hasten.data.tasks.findings import Finding, Part, Rows, check_waived, stop_unless_waived, told
from hasten.data.tasks.protocol import Encoding, Example, Unit
from hasten.data.tasks.record_checks import record_findings
from hasten.data.tasks.rendered import samples_json, samples_text
from hasten.data.tasks.table import PLACE, Table, open_tables
from hasten.tokenizer.tokenizer import Tokenizer

CHECKS = "checks.json"
SAMPLES = 3
LEFT_OUT = "left out"


def check_data(
    data: DataConfig, prepared: Prepared, tokenizer: Tokenizer, encoding: Encoding, *, aloud: bool
) -> dict[str, Any]:
    """Look at everything that is to be trained and measured on, and say what was found, `aloud` or not.

    Returns the record for `checks.json`.  Raises DataError, with all that is wrong, where that stops the run.
    """
    assert data.task is not None
    check_waived(data.waive)
    parts: dict[str, Part] = {s: part_of(prepared, s) for s in SPLITS if s in prepared.splits}
    found = [
        *record_findings(Rows(data.task, parts, prepared.learnt)),
        *example_findings(Examples(data.task, parts, tokenizer, data.row_tokens, prompts_of(encoding))),
    ]
    samples = list(first_units(parts["train"]))
    labels = prepared.learnt.get("labels")
    if aloud:
        say(
            "\n".join(["samples    as the model reads them", samples_text(samples, tokenizer, labels=labels)])
        )
        say("\n".join(f"check      {told(finding, data.waive)}" for finding in found))
    stop_unless_waived(found, data.waive)
    return record(found, data.waive, samples_json(samples, tokenizer, labels=labels))


def record(found: list[Finding], waived: tuple[str, ...], samples: Any) -> dict[str, Any]:
    """What `checks.json` holds."""
    return {"findings": [finding.as_json() for finding in found], "waived": list(waived), "samples": samples}


def keep_checks(folder: Path, checks: dict[str, Any]) -> None:
    """Write what was found into a run's folder."""
    write_json(folder / CHECKS, checks)


def prompts_of(encoding: Encoding) -> Any:
    """The encoding, where it can say what generation reads."""
    return encoding if hasattr(encoding, "prompts") else None


def part_of(prepared: Prepared, split: Split) -> Part:
    """The records of a split with what became of each, in one order."""
    units = [unit for table in open_tables(prepared.folder / split).values() for unit in units_of(table)]
    named = list(prepared.records(split))
    assert len(named) == len(units)
    return Part([name for name, _ in named], [record for _, record in named], units)


def units_of(table: Table) -> Iterator[list[Unit] | str]:
    """What became of each record of a source: its units, or that it has none."""
    of_record: list[list[Unit]] = [[] for _ in range(int(table.first_record[-1]))]
    for unit in range(table.num_units):
        numbers = range(unit * table.per_unit, (unit + 1) * table.per_unit)
        of_record[int(table.record[numbers[0]])].append(
            tuple(example_of(table, number) for number in numbers)
        )
    yield from (units or LEFT_OUT for units in of_record)


def example_of(table: Table, number: int) -> Example:
    """An example as it was before it was written down."""
    tokens, targets, _ = table.example(number)
    names = (name for name in table.columns if name.startswith(PLACE))
    places = {name.removeprefix(PLACE): int(table.columns[name][number]) for name in names}
    return Example(tokens.tolist(), targets.tolist(), places=places)


def first_units(part: Part) -> Iterator[Unit]:
    """Some units, always the same, from here and there."""
    whole = [units for units in part.units if not isinstance(units, str)]
    order = sorted(range(len(whole)), key=lambda number: fingerprint([number]))
    yield from (whole[number][0] for number in order[:SAMPLES])
