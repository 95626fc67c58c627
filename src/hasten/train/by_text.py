"""A teacher of classes that spells otherwise than its student, or is of another kind: it reads the texts.

What it says of a text is a score for each class, and classes are the same however a text is spelt.
Letters in shapes: N texts, D the teacher's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hasten.core.batch import Batch
from hasten.core.errors import DataError
from hasten.data.prepare import Prepared
from hasten.data.tasks.labelled import LabelledConfig, LabelledEncoding
from hasten.data.tasks.pooled import pooled_states
from hasten.data.tasks.protocol import Example, Record, Setting
from hasten.data.tasks.wording import prompt_of
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import CrossEntropy
from hasten.tokenizer.tokenizer import Tokenizer

LONGER = 2
"""Times a student's row, that a text may take where another tokenizer spells it."""
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Texts:
    """The labelled texts behind the rows of a training."""

    task: LabelledConfig
    prepared: Prepared

    def asks_alike(self, folder: Path) -> bool:
        """Whether the teacher in `folder` is asked as its student is."""
        return prompt_of(folder, self.task.columns) == self.task.prompt

    def read_by(self, folder: Path, teacher: ModelConfig, tokenizer: Tokenizer, row_tokens: int) -> "Reading":
        """The texts as the teacher in `folder` reads them, whose student has rows of so many tokens."""
        named = list(self.prepared.records("train"))
        records = dict(named)
        if len(records) < len(named):
            raise DataError(
                "two files of data.sources have the same name, so a teacher cannot tell their rows apart;"
                " give one of them another name"
            )
        longest = min(LONGER * row_tokens, teacher.max_positions)
        setting = Setting(tokenizer, teacher.kind, longest, learnt=self.prepared.learnt)
        own = self.task.model_copy(update={"prompt": prompt_of(folder, self.task.columns)})
        return Reading(own.open(setting), records)


@dataclass(frozen=True)
class Reading:
    """Records of texts by name, as a teacher reads them."""

    encoding: LabelledEncoding
    records: dict[str, Record]

    def states(self, teacher: Transformer, names: Sequence[str], device: torch.device) -> Tensor:
        """The teacher's states [N, D] at the places where it says the classes of the texts of these names."""

        def read(batch: Batch) -> Tensor:
            states: Tensor = teacher(**CrossEntropy().inputs(batch.to(device)))
            return states

        found = torch.empty(len(names), teacher.config.dim, device=device)
        setting, examples = self.encoding.setting, [self.example(name) for name in names]
        sizes = {"row_tokens": setting.row_tokens, "batch_tokens": BATCH_TOKENS}
        for numbers, states in pooled_states(read, examples, pad_id=setting.tokenizer.pad_id, **sizes):
            found[numbers] = states.float()
        return found

    def example(self, name: str) -> Example:
        """The text of this name; DataError where it does not fit into a row."""
        (units,) = self.encoding.units([self.records[name]])
        if isinstance(units, str):
            most = self.encoding.setting.row_tokens
            raise DataError(
                f"{name}: the teacher finds this text {units}, and reads {most:,} tokens of one; write"
                " data.task.too_long=cut, or leave the row out"
            )
        return units[0][0]
