"""Training rows that nothing is to be learnt from, before any is encoded."""

from collections.abc import Collection, Iterable, Mapping

from hasten.data.split import SPLITS, Split
from hasten.data.tasks.findings import Part, Rows
from hasten.data.tasks.protocol import Record, TaskConfig
from hasten.data.tasks.record_checks import left_out
from hasten.data.tasks.records import record_of


def rows_to_leave_out(
    task: TaskConfig, texts: Iterable[tuple[Split, str, str]], rules: Collection[str]
) -> Mapping[str, str]:
    """{training row: the rule by which it goes}, of all `texts` (split, name, record as text)."""
    if not rules:
        return {}
    named: dict[str, tuple[list[str], list[Record]]] = {split: ([], []) for split in SPLITS}
    for split, name, text in texts:
        names, records = named[split]
        names.append(name)
        records.append(record_of(text))
    return left_out(Rows(task, {split: Part(*both) for split, both in named.items()}), rules)
