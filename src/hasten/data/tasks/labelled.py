"""Texts with labels: a text, or two, and the one class that it belongs to.

The label is the one target, at the place that a head of classes looks at: an encoder's first token, a
decoder's last one, as `transformers`' ...ForSequenceClassification reads them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hasten.core.batch import IGNORE, UNKNOWN
from hasten.core.config import shorten
from hasten.core.errors import ConfigError, DataError, did_you_mean
from hasten.data.tasks.columns import column, text_in
from hasten.data.tasks.frame import frame_of
from hasten.data.tasks.protocol import Example, Record, RowError, Setting, TaskConfig, TooLong, Unit
from hasten.data.tasks.wording import Wording
from hasten.tokenizer.tokenizer import Tokenizer

TOO_LONG, NO_TOKEN = "too long", "no token"
FEW_LABELS = 20
"""So many different labels are never too many; more than half as many as rows are no classes."""
NAMES = 10
"""Names of labels that a message shows."""

Name = Annotated[str, Field(min_length=1)]


class LabelledConfig(TaskConfig):
    """Classification: `text_field` is read, `label_field` is to be said."""

    kind: Literal["labelled"] = "labelled"
    text_field: str = Field("text", description="the column with the text")
    pair_field: str | None = Field(
        None, description="a second text, read behind the first: a premise and its hypothesis, two questions"
    )
    prompt: str | None = Field(
        None,
        description="words around the text, for a decoder that goes on with them: 'Review: {text}\\nIs it"
        " good?', with the names of the columns in braces",
    )
    label_field: str = Field("label", description="names, whole numbers, or true and false")
    group_field: str | None = Field(
        None,
        description="a coarser label, which is what is scored: the model learns the finer label_field, each"
        " of one group, and a group is as likely as its labels together",
    )
    labels: tuple[Name, ...] | None = Field(
        None,
        description="the classes in order; a label that is a number and none of these names counts into this"
        " list from 0, as a hub's ClassLabel does; null: the sorted names in the training rows",
    )
    unlabelled: Literal["error", "taught"] = Field(
        "error",
        description="training rows without a label: an error, or texts that a teacher answers alone"
        " (objective.kind: distillation)",
    )
    too_long: TooLong = Field(
        "error",
        description="texts longer than a row: an error, left out, or cut at the end, of two the longer first",
    )

    @model_validator(mode="after")
    def check(self) -> "LabelledConfig":
        """Refuse lists of labels that tell nothing apart."""
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            twice = next(name for name, count in Counter(self.labels).items() if count > 1)
            raise ValueError(f"labels has '{twice}' twice; name each class once")
        if self.prompt is not None:
            Wording.of(self.prompt, self.columns)
        if self.labels is not None and len(self.labels) < 2:
            raise ValueError("labels needs two names or more; with one there is nothing to tell apart")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the texts."""
        return (self.text_field,) if self.pair_field is None else (self.text_field, self.pair_field)

    def record(self, row: Mapping[str, Any]) -> Record:
        """`text`, `pair` where there are two, the name of the `label`, and of its `group` if it has one.

        Of a row without a label the texts alone, where that is no error.
        """
        if self.unlabelled == "taught" and row.get(self.label_field) in (None, ""):
            return self.asked(row)
        group = {} if self.group_field is None else {"group": text_in(row, self.group_field)}
        return {**self.asked(row), "label": self.name(column(row, self.label_field)), **group}

    def asked(self, row: Mapping[str, Any]) -> Record:
        """The record of a row whose label nobody knows: its texts."""
        fields = {"text": self.text_field, "pair": self.pair_field}
        return {name: text_in(row, field) for name, field in fields.items() if field is not None}

    def name(self, label: Any) -> str:
        """The name of a label: of a number, what `labels` has there."""
        if isinstance(label, str) and label:
            return label
        if isinstance(label, bool):
            return "true" if label else "false"
        if not isinstance(label, int):
            raise RowError(
                f"should have a name, a whole number, true or false in the column '{self.label_field}', got"
                f" {shorten(label)}"
            )
        if self.labels is None or str(label) in self.labels:
            return str(label)
        if not 0 <= label < len(self.labels):
            raise RowError(
                f"has the label {label}, and the {len(self.labels)} labels are counted from 0 to"
                f" {len(self.labels) - 1}; mend it, or write the numbers themselves into data.task.labels"
            )
        return self.labels[label]

    @property
    def held_out(self) -> "LabelledConfig":
        """With labels in every row: nothing can be measured without."""
        return self.model_copy(update={"unlabelled": "error"})

    def key(self, record: Record) -> str | None:
        """The texts: one that comes twice, with whatever labels, stays on one side of a split.

        None of a text without a label, which is of no use but to learn from.
        """
        return "\x1e".join(self.texts(record)) if "label" in record else None

    def texts(self, record: Record) -> list[str]:
        """The text or the two texts."""
        return [record[name] for name in ("text", "pair") if name in record]

    def survey(self, records: Iterable[Record]) -> dict[str, Any]:
        """`labels`, the names of the classes in order, and `groups`, that of each where there are some.

        Raises DataError where labels cannot be classes, or are of two groups.
        """
        counts, groups = Counter[str](), dict[str, str]()
        for record in records:
            if "label" not in record:
                continue
            counts[record["label"]] += 1
            if self.group_field is not None:
                check_group(record, groups.setdefault(record["label"], record["group"]))
        labels = self.classes(counts)
        return {"labels": labels, **({} if self.group_field is None else {"groups": groups})}

    def classes(self, counts: Counter[str]) -> list[str]:
        """The names of the classes in order."""
        if self.labels is not None:
            for name in counts:
                check_known(name, self.labels)
            return list(self.labels)
        total, field = counts.total(), self.label_field
        if len(counts) < 2:
            nothing = "no row with a label" if self.unlabelled == "taught" else "no rows"
            found = f"the one label '{next(iter(counts))}'" if counts else nothing
            raise DataError(f"training has {found}, which leaves nothing to tell apart; look at data.sources")
        if len(counts) > max(FEW_LABELS, total / 2):
            raise DataError(
                f"the column '{field}' has {len(counts):,} different values in {total:,} training rows, too"
                " many to be classes; name another column as data.task.label_field, or write data.task.labels"
            )
        return sorted(counts, key=order(counts))

    def open(self, setting: Setting) -> "LabelledEncoding":
        """The task with a tokenizer, for encoders and decoders."""
        return LabelledEncoding(self, setting)


def order(names: Iterable[str]) -> Any:
    """By what names are sorted: as numbers where all are, else as text."""
    return int if all(name.removeprefix("-").isdecimal() for name in names) else str


def check_group(record: Record, group: str) -> None:
    """Refuse a record whose label was of another group before."""
    if record["group"] != group:
        raise DataError(
            f"the label {record['label']!r} is of the group {group!r} in one row and of {record['group']!r}"
            " in another; a finer label has one group: mend the rows, or write no data.task.group_field"
        )


def check_known(name: str, labels: Sequence[str]) -> None:
    """Refuse a label that is none of `labels`."""
    if name not in labels:
        near, some = did_you_mean(name, labels), ", ".join(map(repr, labels[:NAMES]))
        more = f" and {len(labels) - NAMES:,} more" if len(labels) > NAMES else ""
        raise DataError(
            f"the label {name[:100]!r} is none of the {len(labels):,} classes ({some}{more}).{near} Mend the"
            " rows with it, or name every class in data.task.labels"
        )


class LabelledEncoding:
    """Labelled texts as a model reads them.

    `tally` counts texts that were cut; `words` are the ids of each label as an answer to the prompt.
    """

    def __init__(self, config: LabelledConfig, setting: Setting) -> None:
        """Raises ConfigError for a model that reads a source and writes, or a row without room for text."""
        if setting.reads == "seq2seq":
            raise ConfigError(
                "data.task.kind is labelled, and a seq2seq model has no head of classes; take an encoder or a"
                " decoder, or write source_field and target_field to have it write the label's name"
            )
        self.config, self.setting = config, setting
        self.labels: list[str] = list(setting.learnt["labels"])
        self.numbers = {name: number for number, name in enumerate(self.labels)}
        self.frame = frame_of(setting.tokenizer, setting.reads, pair=config.pair_field is not None)
        self.before: tuple[str, ...] = ("", "")
        self.words: list[list[int]] | None = None
        self.wording = None if config.prompt is None else Wording.of(config.prompt, config.columns)
        if self.wording is not None:
            self.frame, self.before = self.wording.around(self.frame, setting.tokenizer), self.wording.before
            self.words = [self.wording.answer(label, setting.tokenizer) for label in self.labels]
        self.room = setting.row_tokens - self.frame.size  # for texts
        if self.room < 1 + (config.pair_field is not None):
            raise ConfigError(
                f"data.row_tokens is {setting.row_tokens}, and {self.frame.size} stand around the text;"
                " write 64 or more"
            )
        self.tally = Counter[str]()

    @property
    def tokenizer(self) -> Tokenizer:
        """What texts are spelt with."""
        return self.setting.tokenizer

    def units(self, records: Sequence[Record]) -> list[list[Unit] | str]:
        """An example for each record, or why it is left out; DataError for a label that is no class."""
        firsts = self.spelt(records, "text", self.before[0])
        paired = self.config.pair_field is not None
        seconds = self.spelt(records, "pair", self.before[-1]) if paired else [[] for _ in records]
        return [self.unit(*each) for each in zip(records, firsts, seconds, strict=True)]

    def spelt(self, records: Sequence[Record], name: str, before: str) -> list[list[int]]:
        """The ids of one text of each record, behind the words before it; none where the text has none."""
        alone, *found = self.tokenizer.encode_batch([before, *(before + r.get(name, "") for r in records)])
        return [[] if ids == alone else ids for ids in found]

    def unit(self, record: Record, first: list[int], second: list[int]) -> list[Unit] | str:
        """The example of a record whose texts have these ids; without a label, its target is UNKNOWN."""
        if not first or ("pair" in record and not second):
            return NO_TOKEN
        if len(first) + len(second) > self.room:
            if self.config.too_long == "drop":
                return TOO_LONG
            first, second = self.shortened(record, first, second)
        label = self.number(record["label"]) if "label" in record else UNKNOWN
        return [(self.example(first, second, label),)]

    def number(self, label: str) -> int:
        """The number of a class by its name."""
        if label not in self.numbers:
            check_known(label, self.labels)
        return self.numbers[label]

    def example(self, first: list[int], second: list[int], label: int) -> Example:
        """The tokens, and the label at the place that is pooled."""
        tokens = self.frame.tokens(first, second)
        targets = [IGNORE] * len(tokens)
        targets[0 if self.setting.reads == "encoder" else -1] = label
        paired = self.config.pair_field is not None and self.setting.reads == "encoder"
        return Example(tokens, targets, self.frame.types(len(first), len(second)) if paired else None)

    def shortened(self, record: Record, first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
        """Both texts cut to the room there is, the longer one down to the shorter before both are."""
        length = len(first) + len(second) + self.frame.size
        if self.config.too_long == "error":
            raise DataError(
                f"the text {shorten(record['text'])} has {length:,} tokens and a row"
                f" {self.setting.row_tokens:,}; write data.row_tokens={length} if the model reads as many, or"
                " data.task.too_long=cut or drop"
            )
        self.tally["cut"] += 1
        shorter = min(len(first), len(second), self.room // 2)
        longer = self.room - shorter
        if len(first) <= len(second):
            return first[:shorter], second[:longer]
        return first[:longer], second[:shorter]
