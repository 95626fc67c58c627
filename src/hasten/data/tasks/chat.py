"""Conversations, and whatever else is a question with an answer: instructions, summaries, programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from hasten.data.tasks.dialogues import (
    EMPTY_ANSWER,
    NO_TEXT,
    TOO_LONG,
    Spoken,
    SpokenConfig,
    SpokenEncoding,
    example,
    identified,
    learnable,
    longest_run,
    refuse_length,
    spoken,
    system_first,
    without_middle,
)
from hasten.data.tasks.layouts import Turn, conversation, turn
from hasten.data.tasks.patterns import Pattern
from hasten.data.tasks.protocol import Record, Setting, TooLong, Unit
from hasten.tokenizer.conversation import ASSISTANT, Dialogue, Taught


class ChatConfig(SpokenConfig):
    """Learn to answer: a decoder reads a conversation, and its answers carry the loss.

    Rows come in one of the known layouts (messages, ShareGPT, Alpaca, prompt and completion, question and
    answer and their like), or in any columns that `prompt` and `answer` name.  A record is `{"messages":
    [{"role", "content", "weight"?}], "references": [...], "id"?}`, its last message the answer.
    """

    kind: Literal["chat"] = "chat"
    prompt: str | None = Field(
        None, description="what is asked, columns in braces: 'Summarise:\\n{dialogue}'; null: by the layout"
    )
    answer: str | None = Field(
        None, description="what is to be said: '{summary}'; of a column with a list the first is learnt"
    )
    learn: Literal["answers", "last"] = Field(
        "answers",
        description="all answers of a conversation, or its last; weight: 0 in a message takes it out",
    )
    too_long: TooLong = Field(
        "error",
        description="what a conversation does that fits no row: cut leaves out the middle of the longest"
        " passage without loss, never of an answer; what still does not fit is dropped and counted",
    )

    @model_validator(mode="after")
    def check_columns(self) -> "ChatConfig":
        if (self.prompt is None) != (self.answer is None):
            raise ValueError("prompt and answer belong together; give the other one too")
        for written in filter(None, (self.prompt, self.answer)):
            Pattern.of(written)
        return self

    def record(self, row: Mapping[str, Any]) -> Record:
        """The messages of a row and the answers that are right; `RowError` where it has no conversation."""
        if self.prompt is None or self.answer is None:
            turns, references = conversation(row)
        else:
            references = Pattern.of(self.answer).several(row)
            turns = [turn("user", Pattern.of(self.prompt).fill(row)), turn(ASSISTANT, references[0])]
        return identified(row, {"messages": system_first(turns, self.system), "references": references})

    def texts(self, record: Record) -> list[str]:
        """All messages, and the answers that are right beside the last."""
        return [message["content"] for message in record["messages"]] + record["references"][1:]

    def open(self, setting: Setting) -> "ChatEncoding":
        """Conversations by the template and the tokenizer of the model."""
        return ChatEncoding(Spoken.open(self.template, setting), self)

    def dialogue(self, record: Record) -> Dialogue:
        """A record's messages, and which of them carry loss."""
        learn = learnable(record["messages"])
        if self.learn == "last":
            learn = [wanted and place == len(learn) - 1 for place, wanted in enumerate(learn)]
        return Dialogue(spoken(record["messages"]), learn)


@dataclass(frozen=True)
class ChatEncoding(SpokenEncoding):
    """Conversations as examples, and as prompts to answer."""

    config: ChatConfig

    def units(self, records: Sequence[Record]) -> list[list[Unit] | str]:
        """One example of each record; several where the template rewrites the past."""
        dialogues = [self.config.dialogue(record) for record in records]
        found = self.spoken.taught(dialogues, records)
        return [
            EMPTY_ANSWER if is_empty(dialogue) else self.fitted(taught, record)
            for taught, dialogue, record in zip(found, dialogues, records, strict=True)
        ]

    def fitted(self, taught: Sequence[Taught], record: Record) -> list[Unit] | str:
        """The parts of a conversation at a length that fits a row."""
        if any(len(part.ids) < 2 for part in taught):  # nothing to read and nothing to say
            return NO_TEXT
        most = self.spoken.row_tokens + 1  # the last id is never read
        longest = max(len(part.ids) for part in taught)
        if longest > most:
            refuse_length(record, longest - 1, self.spoken.row_tokens, self.config.too_long)
            if self.config.too_long == "drop":
                return TOO_LONG
        parts = [without_middle(part, len(part.ids) - most, longest_run(part)) for part in taught]
        whole = [part for part in parts if part is not None]
        return [(example(part),) for part in whole] if len(whole) == len(parts) else TOO_LONG

    def asked(self, record: Record) -> list[Turn]:
        """What stands before the answer."""
        turns: list[Turn] = record["messages"]
        return turns[:-1]


def is_empty(dialogue: Dialogue) -> bool:
    """Whether there is nothing in the answers that are to be learnt."""
    return bool(dialogue.turns) and not any(
        dialogue.messages[turn]["content"].strip() for turn in dialogue.turns
    )
