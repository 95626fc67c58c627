"""Two answers to one question, of which the first was preferred: what DPO and its relatives learn from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from hasten.data.tasks.dialogues import (
    EMPTY_ANSWER,
    EQUAL_ANSWERS,
    NO_TEXT,
    TOO_LONG,
    Spoken,
    SpokenConfig,
    SpokenEncoding,
    example,
    identified,
    learnable,
    prompt_run,
    refuse_length,
    spoken,
    system_first,
    without_middle,
)
from hasten.data.tasks.layouts import Turn, from_json, instruction, is_messages, message, messages, turn
from hasten.data.tasks.layouts import spoken as cell
from hasten.data.tasks.patterns import Pattern
from hasten.data.tasks.protocol import Record, RowError, Setting, TooLong, Unit
from hasten.tokenizer.conversation import ASSISTANT, Dialogue, Taught

TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
PROMPTS = ("messages", "conversations", "prompt", "question", "instruction", "query", "input")
"""Columns with what is asked, the first that a row has."""


class PreferencesConfig(SpokenConfig):
    """Learn which of two answers is better: a decoder reads both, each behind what was asked.

    Rows have `chosen` and `rejected`, as texts, messages, whole conversations, or transcripts with
    `\\n\\nHuman:` and `\\n\\nAssistant:` (Bai et al. 2022); and what is asked in one of the columns of
    `PROMPTS`, unless both are conversations.  A record is `{"messages": [...], "chosen": [...], "rejected":
    [...], "references": [...], "id"?}`.
    """

    kind: Literal["preferences"] = "preferences"
    per_unit: ClassVar[int] = 2
    prompt: str | None = Field(None, description="what is asked, columns in braces; null: by the layout")
    chosen: str | None = Field(None, description="the better answer, columns in braces")
    rejected: str | None = Field(None, description="the worse answer, columns in braces")
    too_long: TooLong = Field(
        "error",
        description="what a pair does that fits no row: cut leaves out the middle of what is asked, never of"
        " an answer; what still does not fit is dropped and counted",
    )

    @model_validator(mode="after")
    def check_columns(self) -> "PreferencesConfig":
        written = [self.prompt, self.chosen, self.rejected]
        if any(written) and not all(written):
            raise ValueError("prompt, chosen and rejected belong together; give all three, or none")
        for pattern in filter(None, written):
            Pattern.of(pattern)
        return self

    def record(self, row: Mapping[str, Any]) -> Record:
        """What was asked, the better answer and the worse one; `RowError` where a row has no such thing."""
        if self.prompt is None or self.chosen is None or self.rejected is None:
            prompt, chosen, rejected = preference(row)
        else:
            prompt = [turn("user", Pattern.of(self.prompt).fill(row))]
            chosen, rejected = (
                [turn(ASSISTANT, Pattern.of(written).fill(row))] for written in (self.chosen, self.rejected)
            )
        record = {
            "messages": system_first(prompt, self.system),
            "chosen": chosen,
            "rejected": rejected,
            "references": [chosen[-1]["content"]],
        }
        return identified(row, record)

    def texts(self, record: Record) -> list[str]:
        """All messages, those of both answers too."""
        return [m["content"] for part in ("messages", "chosen", "rejected") for m in record[part]]

    def open(self, setting: Setting) -> "PreferencesEncoding":
        """Pairs by the template and the tokenizer of the model."""
        return PreferencesEncoding(Spoken.open(self.template, setting), self)


@dataclass(frozen=True)
class PreferencesEncoding(SpokenEncoding):
    """Pairs as units of two examples, the chosen one first."""

    config: PreferencesConfig

    def units(self, records: Sequence[Record]) -> list[list[Unit] | str]:
        """One unit of each record: (what was asked and the better answer, the same and the worse one)."""
        dialogues = [dialogue(record, side) for record in records for side in ("chosen", "rejected")]
        found = self.spoken.taught(dialogues, [record for record in records for _ in range(2)])
        return [
            self.unit(record, one, other)
            for record, one, other in zip(records, found[::2], found[1::2], strict=True)
        ]

    def unit(self, record: Record, one: Sequence[Taught], other: Sequence[Taught]) -> list[Unit] | str:
        """Both answers at lengths that fit a row together."""
        if any(not answer[-1]["content"].strip() for answer in (record["chosen"], record["rejected"])):
            return EMPTY_ANSWER
        chosen, rejected = (
            one[-1],
            other[-1],
        )  # where a template rewrites the past, the last answers are compared
        if chosen == rejected:
            return EQUAL_ANSWERS
        if min(len(chosen.ids), len(rejected.ids)) < 2:
            return NO_TEXT
        tokens = len(chosen.ids) - 1 + len(rejected.ids) - 1
        excess = tokens - self.spoken.row_tokens
        if excess > 0:
            refuse_length(record, tokens, self.spoken.row_tokens, self.config.too_long)
            if self.config.too_long == "drop":
                return TOO_LONG
        pair = [without_middle(side, (excess + 1) // 2, prompt_run(side)) for side in (chosen, rejected)]
        fitting = [example(side) for side in pair if side is not None]
        return [tuple(fitting)] if len(fitting) == len(pair) else TOO_LONG

    def asked(self, record: Record) -> list[Turn]:
        """What stands before the answer."""
        return before(record)


def dialogue(record: Record, side: str) -> Dialogue:
    """What was asked and one of the answers, which carries the loss."""
    turns = record["messages"] + record[side]
    answer = learnable(turns)
    return Dialogue(spoken(turns), [learn and n >= len(record["messages"]) for n, learn in enumerate(answer)])


def before(record: Record) -> list[Turn]:
    """What stands before the last message of the better answer."""
    turns: list[Turn] = record["messages"] + record["chosen"]
    return turns[:-1]


def preference(row: Mapping[str, Any]) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """A row's question, better answer and worse one."""
    chosen, rejected = answer(row, "chosen"), answer(row, "rejected")
    if chosen[0]["role"] != ASSISTANT and rejected[0]["role"] != ASSISTANT:
        shared = same_beginning(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    else:
        prompt = asked(row)
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or {turns[0]["role"], turns[-1]["role"]} != {ASSISTANT}:
            raise RowError(
                f"{name} should begin and end with an answer of the assistant behind what both have in"
                " common; mend it, or leave the row out"
            )
    return prompt, chosen, rejected


def answer(row: Mapping[str, Any], column: str) -> list[Turn]:
    """The messages in `chosen` or `rejected`: an answer alone, or a conversation that ends with it."""
    value = row.get(column)
    if value is None:
        here = ", ".join(map(str, row)) or "none"
        raise RowError(
            f"has no column '{column}' (its columns: {here}); rename one, or write data.task.prompt, chosen"
            " and"
            ' rejected: "{column}"'
        )
    if isinstance(value, Mapping):
        return [message(value, column)]
    if isinstance(value, str) and (turns := transcript(value)):
        return turns
    return cell(value, ASSISTANT, column)


def asked(row: Mapping[str, Any]) -> list[Turn]:
    """The messages that both answers follow."""
    column = next((name for name in PROMPTS if row.get(name) is not None), None)
    if column is None:
        raise RowError(
            f"has an answer and nothing that it answers; give one of the columns {', '.join(PROMPTS)}"
        )
    if column == "instruction":
        return instruction(row)
    if column in ("messages", "conversations") or is_messages(from_json(row[column])):
        turns = messages(row[column], column)
    else:
        turns = transcript(str(row[column])) or cell(row[column], "user", column)
    if turns and turns[-1] == turn(ASSISTANT, ""):
        turns.pop()  # a transcript that ends with `Assistant:` asks for what comes then
    if not turns or turns[-1]["role"] == ASSISTANT:
        raise RowError(f"{column} should end with a question, which both answers follow; mend it")
    return turns


def transcript(text: str) -> list[Turn]:
    """The messages of `\\n\\nHuman: ...\\n\\nAssistant: ...`; none where a text does not begin so."""
    before, *parts = TRANSCRIPT.split(text)
    if before.strip() or not parts:
        return []
    roles = {"Human": "user", "Assistant": ASSISTANT}
    return [turn(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def same_beginning(one: Sequence[Turn], other: Sequence[Turn]) -> int:
    """How many messages two conversations have in common, without the last of either."""
    most = min(len(one), len(other)) - 1
    return next((n for n in range(most) if one[n] != other[n]), most)
