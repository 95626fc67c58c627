"""The second half of preparing a task: records that were kept, as tables of examples of their splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hasten.data.encode import Counts, Cut, Encoder, TextsBeside, batches
from hasten.data.split import Split
from hasten.data.stage import Part
from hasten.data.tasks.protocol import Encoding, TaskConfig, Unit
from hasten.data.tasks.records import record_of
from hasten.data.tasks.table import TableWriter


@dataclass(frozen=True)
class TaskEncoder(Encoder):
    """Writes the tables of parts."""

    task: TaskConfig = field(kw_only=True)
    encoding: Encoding = field(kw_only=True)
    gone: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Training rows that are not to be learnt from, each with the rule by which it is left out."""

    def write(self, cut: Cut) -> dict[Split, Counts]:
        """Write a part's tables, one for each split that it has records of."""
        outputs: dict[Split, TableOutput] = {}
        for batch in batches(cut.texts()):
            found = self.encoding.units([record_of(text) for _, _, text in batch])
            for (split, name, text), units in zip(batch, found, strict=True):
                if split not in outputs:
                    outputs[split] = TableOutput(self.folder / split, cut.part, self.task)
                if split == "train" and name in self.gone:
                    outputs[split].leave_out(self.gone[name])
                else:
                    outputs[split].add(name, text, units)
            self.advance(sum(len(text.encode()) for _, _, text in batch))
        for output in outputs.values():
            output.close()
        return {split: output.counts for split, output in outputs.items()}


class TableOutput(TextsBeside):
    """One table in the making."""

    def __init__(self, folder: Path, part: Part, task: TaskConfig) -> None:
        super().__init__(folder, part, texts=True)
        self.task, self.table = task, TableWriter(part.source, task.per_unit)

    def add(self, name: str, text: str, units: Sequence[Unit] | str) -> None:
        """Take in a record with its units, or with the rule by which it has none: it is kept all the same."""
        if isinstance(units, str):
            self.leave_out(units)
            units = []
        size = sum(len(part.encode()) for part in self.task.texts(record_of(text)))
        before = self.table.num_tokens
        self.table.add(name, units, size)
        self.counts.add(Counts(1, self.table.num_tokens - before, size))
        self.keep(name, text)

    def leave_out(self, rule: str) -> None:
        """Count a record that nothing is learnt from."""
        self.counts.left_out[rule] = self.counts.left_out.get(rule, 0) + 1

    def close(self) -> Path:
        """Make the files appear, whole."""
        path = super().close()
        self.table.write(path)
        return path
