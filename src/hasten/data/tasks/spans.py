"""Questions whose answers stand in a text: extractive question answering (Rajpurkar et al. 2016, 2018).

Question and context are read together; the answer is the place of its first and its last token.  A context
that is too long is read in windows that overlap (Devlin et al. 2019, 4.2); where a window does not hold the
answer, or there is none, both places are the first token, [CLS].
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray
from pydantic import Field

from hasten.core.batch import IGNORE
from hasten.core.config import shorten
from hasten.core.errors import ConfigError, DataError
from hasten.data.tasks.columns import column, text_in
from hasten.data.tasks.frame import frame_of
from hasten.data.tasks.protocol import Example, Record, RowError, Setting, TaskConfig, TooLong, Unit
from hasten.tokenizer.tokenizer import no_unicode

TOO_LONG, NO_TOKEN = "question too long", "no token"
MISPLACED, CUT_UP = "answer not at its place", "answer in no window as a whole"
NULL = 0
"""The place in a window that stands for no answer."""


class SpansConfig(TaskConfig):
    """Extractive question answering, from rows as in SQuAD."""

    kind: Literal["spans"] = "spans"
    question_field: str = "question"
    context_field: str = "context"
    answers_field: str = Field(
        "answers",
        description="a list of texts; or {text: [...], answer_start: [...]}, or [{text: ..., answer_start:"
        " ...}], as in SQuAD; empty: the context does not tell",
    )
    starts_field: str | None = Field(
        "answer_starts",
        description="where each of a list of texts begins, in characters from 0; null: where it comes first",
    )
    id_field: str | None = Field("id", description="kept where rows have it")
    stride_tokens: Annotated[int, Field(ge=0)] = Field(
        128, description="of a context too long for one row, that a window and the next have in common"
    )
    too_long: TooLong = Field(
        "error",
        description="questions longer than half of what a stride leaves of a row: an error, left out, or cut"
        " at the end; contexts are never cut",
    )

    def record(self, row: Mapping[str, Any]) -> Record:
        """`question`, `context`, `answers` with their `starts` (-1: not in the context), `id` where given."""
        context = text_in(row, self.context_field)
        given = self.answers(row)
        texts = [answer_text(text) for text, _ in given]
        starts = [context.find(text) if start is None else start for text, start in given]
        name = None if self.id_field is None else row.get(self.id_field)
        return {
            **({} if name is None else {"id": str(name)}),
            **self.asked(row),
            "answers": texts,
            "starts": starts,
        }

    def asked(self, row: Mapping[str, Any]) -> Record:
        """The record of a row whose answers nobody knows: `question` and `context`."""
        fields = {"question": self.question_field, "context": self.context_field}
        return {name: text_in(row, field) for name, field in fields.items()}

    def answers(self, row: Mapping[str, Any]) -> list[tuple[Any, int | None]]:
        """Each answer with its start, in whichever of the layouts they are."""
        found = column(row, self.answers_field)
        if isinstance(found, Mapping):
            texts, starts = column(found, "text"), column(found, "answer_start")
        elif isinstance(found, list | tuple) and found and all(isinstance(x, Mapping) for x in found):
            texts = [column(each, "text") for each in found]
            starts = [column(each, "answer_start") for each in found]
        else:
            texts = [found] if isinstance(found, str) else found
            starts = self.given_starts(row, texts)
        return paired(texts, starts)

    def given_starts(self, row: Mapping[str, Any], texts: Any) -> Any:
        """The column with the starts; Nones where there is none to be."""
        if self.starts_field is None or not texts:
            return [None] * len(texts) if isinstance(texts, list | tuple) else None
        starts = column(row, self.starts_field)
        return [starts] if isinstance(starts, int) else starts

    def key(self, record: Record) -> str:
        """The context: all questions about it stay on one side of a split."""
        return str(record["context"])

    def texts(self, record: Record) -> list[str]:
        """Context and question; answers stand in the context."""
        return [record["context"], record["question"]]

    def survey(self, records: Iterable[Record]) -> dict[str, Any]:
        """`unanswerable`: how many questions of training have no answer, so that none may be given."""
        return {"unanswerable": sum(not record["answers"] for record in records)}

    def open(self, setting: Setting) -> "SpansEncoding":
        """The task with a tokenizer, for encoders."""
        return SpansEncoding(self, setting)


def paired(texts: Any, starts: Any) -> list[tuple[Any, int | None]]:
    """Two lists of equal length as one; RowError where they are none."""
    if not isinstance(texts, list | tuple) or not isinstance(starts, list | tuple):
        raise RowError(
            f"should have answers and their starts as two lists, got {shorten(texts)} and {shorten(starts)}"
        )
    if len(texts) != len(starts):
        raise RowError(f"has {len(texts)} answers and {len(starts)} starts; give each answer one")
    odd = [start for start in starts if start is not None and type(start) is not int]
    if odd:
        raise RowError(f"has the start {shorten(odd[0])}; write whole numbers, counted in characters from 0")
    return list(zip(texts, starts, strict=True))


def answer_text(text: Any) -> str:
    """An answer, which is a text with something in it."""
    if not isinstance(text, str) or not text.strip():
        raise RowError(f"has the answer {shorten(text)}; write a text, or no answer at all: []")
    return text


@dataclass(frozen=True)
class Window:
    """Some context behind its question: `length` tokens of it, from its `first` on, which are at `place`."""

    tokens: list[int]
    types: list[int]
    first: int
    length: int
    place: int

    def where(self, token: int) -> int | None:
        """The place of a token of the context, None where this window does not hold it."""
        held = self.first <= token < self.first + self.length
        return self.place + token - self.first if held else None


@dataclass(frozen=True)
class Reading:
    """A record as a model reads it: n tokens of context in one or more windows."""

    windows: list[Window]
    offsets: NDArray[np.int64]  # [n, 2] characters of the context that each token stands for, end excluded

    def tokens_of(self, start: int, end: int) -> tuple[int, int] | None:
        """First and last token that hold characters `start` to `end`; None where no token does."""
        first = int(np.searchsorted(self.offsets[:, 1], start, side="right"))
        last = int(np.searchsorted(self.offsets[:, 0], end, side="left")) - 1
        return (first, last) if first <= last else None

    def exact(self, first: int, last: int, start: int, end: int) -> bool:
        """Whether tokens `first` to `last` hold just these characters."""
        return int(self.offsets[first, 0]) == start and int(self.offsets[last, 1]) == end


class SpansEncoding:
    """Questions and contexts as an encoder reads them.

    `tally` counts `widened` answers, whose characters begin or end within a token, and `cut` questions.
    """

    def __init__(self, config: SpansConfig, setting: Setting) -> None:
        """Raises ConfigError for a model that does not see both sides of a place, or a row too short."""
        if setting.reads != "encoder":
            raise ConfigError(
                f"data.task.kind is spans, and a {setting.reads} does not see what follows a place that an"
                " answer may begin at; take an encoder, or kind: chat to have the answer written"
            )
        self.config, self.setting = config, setting
        self.frame = frame_of(setting.tokenizer, setting.reads, pair=True)
        self.tally = Counter[str]()
        if 2 * config.stride_tokens > setting.row_tokens:
            raise ConfigError(
                f"data.task.stride_tokens is {config.stride_tokens} and data.row_tokens {setting.row_tokens};"
                f" write stride_tokens={setting.row_tokens // 3}, or longer rows"
            )
        if self.question_room < 1:
            raise ConfigError(
                f"data.row_tokens is {setting.row_tokens}, which leaves no room for a question; write 64 or"
                " more"
            )

    @property
    def question_room(self) -> int:
        """Tokens of a question at most: half of what is left, so that windows go forward by as many."""
        return (self.setting.row_tokens - self.frame.size - self.config.stride_tokens) // 2

    def units(self, records: Sequence[Record]) -> list[list[Unit] | str]:
        """The windows of each record, a unit each, or why it is left out: no answer is where it should be."""
        readings = self.read(records)
        return [
            reading if isinstance(reading, str) else self.learnt(record, reading)
            for record, reading in zip(records, readings, strict=True)
        ]

    def learnt(self, record: Record, reading: Reading) -> list[Unit] | str:
        """The windows with the first answer that stands where the record says it does."""
        if not record["answers"]:
            return [(example(window, None),) for window in reading.windows]
        span = placed(record)
        found = None if span is None else reading.tokens_of(*span)
        if span is None or found is None:
            return MISPLACED
        examples = [example(window, found) for window in reading.windows]
        if all(each.places["end"] == NULL for each in examples):
            return CUT_UP
        self.tally["widened"] += not reading.exact(*found, *span)
        return [(each,) for each in examples]

    def read(self, records: Sequence[Record]) -> list[Reading | str]:
        """Each record in windows, or the rule by which it cannot be read."""
        questions = self.setting.tokenizer.encode_batch([record["question"] for record in records])
        contexts = list(dict.fromkeys(record["context"] for record in records))  # often asked about again
        encoded = dict(zip(contexts, self.encode(contexts), strict=True))
        return [
            self.reading(record, question, encoded[record["context"]])
            for record, question in zip(records, questions, strict=True)
        ]

    def encode(self, texts: list[str]) -> list[tokenizers.Encoding]:
        """Texts with the characters that each token stands for."""
        try:
            return self.setting.tokenizer.inner.encode_batch(texts, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            raise no_unicode() from None

    def reading(self, record: Record, question: list[int], context: tokenizers.Encoding) -> Reading | str:
        """The windows of one context behind its question."""
        if not context.ids or not question:
            return NO_TOKEN
        if len(question) > self.question_room:
            if self.config.too_long == "drop":
                return TOO_LONG
            question = self.shortened(record, question)
        room = self.setting.row_tokens - self.frame.size - len(question)
        starts = window_starts(len(context.ids), room, self.config.stride_tokens)
        offsets = np.array(context.offsets, np.int64).reshape(-1, 2)
        return Reading([self.window(question, context.ids, start, room) for start in starts], offsets)

    def shortened(self, record: Record, question: list[int]) -> list[int]:
        """A question cut to the room there is for it."""
        if self.config.too_long == "error":
            raise DataError(
                f"the question {shorten(record['question'])} has {len(question)} tokens, and rows of"
                f" {self.setting.row_tokens} have room for {self.question_room}; write more data.row_tokens,"
                " or data.task.too_long=cut or drop"
            )
        self.tally["cut"] += 1
        return question[: self.question_room]

    def window(self, question: list[int], context: list[int], start: int, room: int) -> Window:
        """One window, from a token of the context on."""
        seen = context[start : start + room]
        types = self.frame.types(len(question), len(seen))
        place = self.frame.second_place(len(question))
        return Window(self.frame.tokens(question, seen), types, start, len(seen), place)


def placed(record: Record) -> tuple[int, int] | None:
    """First character and end of the first answer that stands at its start, blanks around it left out."""
    for text, start in zip(record["answers"], record["starts"], strict=True):
        if start >= 0 and record["context"].startswith(text, start):
            begin = start + len(text) - len(text.lstrip())
            return begin, begin + len(text.strip())
    return None


def window_starts(length: int, room: int, stride: int) -> list[int]:
    """Where windows of `room` tokens begin in `length` tokens, so that neighbours share `stride`."""
    return [0, *range(room - stride, length - stride, room - stride)] if length > room else [0]


def example(window: Window, answer: tuple[int, int] | None) -> Example:
    """A window, and where the answer begins and ends in it; both at NULL where it is not all there."""
    places = [None, None] if answer is None else [window.where(token) for token in answer]
    start, end = (NULL, NULL) if None in places else places
    assert start is not None and end is not None
    ignored = [IGNORE] * len(window.tokens)
    return Example(window.tokens, ignored, window.types, {"start": start, "end": end})
