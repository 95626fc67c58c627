"""What tasks of conversations share: the template, examples of a length that fits, and prompts to answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from hasten.core.batch import IGNORE
from hasten.core.errors import ConfigError, DataError
from hasten.data.tasks.protocol import Example, Record, Setting, TaskConfig, TooLong
from hasten.tokenizer.conversation import ASSISTANT, Conversations, Dialogue, Taught
from hasten.tokenizer.formats import ChatTemplate, choose_template, template_source_of
from hasten.tokenizer.template import Message, Refusal

T = TypeVar("T")
KEEP = 16
"""Tokens that stay on each side of a cut: the marks of a turn are among them."""
TOO_LONG, EMPTY_ANSWER, EQUAL_ANSWERS, NO_TEXT = "too long", "empty answer", "equal answers", "no text"


@dataclass(frozen=True)
class Spoken:
    """Conversations of a task as a decoder reads them."""

    conversations: Conversations
    template: ChatTemplate
    row_tokens: int

    @classmethod
    def open(cls, template: str | None, setting: Setting) -> "Spoken":
        """Choose the template; ConfigError where the model does not write what follows a text."""
        if setting.reads != "decoder":
            other = (
                "give the sources source_field and target_field, which an encoder-decoder translates"
                if setting.reads == "seq2seq"
                else "write model.kind: decoder, or data.task.kind: labelled"
            )
            raise ConfigError(f"data.task: a conversation is for a decoder, not for {setting.reads}; {other}")
        chosen = choose_template(template, setting.tokenizer, setting.base)
        return cls(Conversations(setting.tokenizer, chosen.text), chosen, setting.row_tokens)

    def taught(self, dialogues: Sequence[Dialogue], records: Sequence[Record]) -> list[list[Taught]]:
        """Each dialogue as ids with loss; DataError where the template refuses one."""
        return [
            self.accepted(found, record)
            for found, record in zip(self.conversations.taught(dialogues), records, strict=True)
        ]

    def prompts(
        self, conversations: Sequence[Sequence[Message]], records: Sequence[Record], most: int | None
    ) -> list[list[int]]:
        """Each conversation as generation reads it; of more than `most` tokens the middle is left out."""
        found = self.conversations.prompts(conversations)
        prompts = [self.accepted(ids, record) for ids, record in zip(found, records, strict=True)]
        return [
            ids if most is None or len(ids) <= most else ids[: (most + 1) // 2] + ids[len(ids) - most // 2 :]
            for ids in prompts
        ]

    def accepted(self, found: T | Refusal, record: Record) -> T:
        """What is no refusal."""
        if isinstance(found, Refusal):
            raise DataError(
                f"{title(record)}: the chat template ({self.template.name}) refuses it: {found.reason}; mend"
                " the row or leave it out, or write data.task.template with another"
            )
        return found


class SpokenConfig(TaskConfig):
    """What tasks of conversations have in common in a recipe."""

    system: str | None = Field(None, description="the system's message of conversations that have none")
    template: str | None = Field(
        None,
        description="chatml, plain, alpaca, or a .jinja file; null: the base model's own, or plain where it"
        " has none",
    )

    def key(self, record: Record) -> str:
        """The first question."""
        return first_question(record["messages"])

    def identity(self, base: Path | None) -> Any:
        """The template that conversations are written with."""
        return template_source_of(self.template, base)


@dataclass(frozen=True)
class SpokenEncoding:
    """What is the same of encoded conversations, whatever is learnt from them."""

    spoken: Spoken

    def asked(self, record: Record) -> list[dict[str, Any]]:
        """The messages before the answer that generation gives."""
        raise NotImplementedError

    def prompt_ids(self, record: Record, most: int | None = None) -> list[int]:
        """What generation reads before it gives a record's last answer; see `prompts`."""
        return self.prompts([record], most)[0]

    def prompts(self, records: Sequence[Record], most: int | None = None) -> list[list[int]]:
        """`prompt_ids` of many records; of a prompt of more than `most` tokens the middle is left out."""
        return self.spoken.prompts([spoken(self.asked(record)) for record in records], records, most)

    @property
    def template(self) -> str:
        """What `chat_template.jinja` beside the trained model has to hold."""
        return self.spoken.template.source


def system_first(turns: list[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
    """The messages, with the recipe's own first one where a conversation has none of the kind."""
    if system is None or any(turn["role"] == "system" for turn in turns):
        return turns
    return [{"role": "system", "content": system}, *turns]


def spoken(turns: Sequence[Mapping[str, Any]]) -> list[Message]:
    """What a template is to see of messages."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def learnable(turns: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of each message whether it is an answer that its data set has not taken out."""
    return [turn["role"] == ASSISTANT and turn.get("weight", 1) != 0 for turn in turns]


def first_question(turns: Sequence[Mapping[str, Any]]) -> str:
    """What a conversation begins with: those that begin alike are branches of one."""
    return next((turn["content"].strip() for turn in turns if turn["role"] == "user"), "")


def example(taught: Taught) -> Example:
    """Each id but the last as what is read, each but the first as what is to be said."""
    said = zip(taught.ids[1:], taught.learn[1:], strict=True)
    return Example(taught.ids[:-1], [id if learn else IGNORE for id, learn in said])


def without_middle(taught: Taught, excess: int, run: tuple[int, int]) -> Taught | None:
    """`excess` tokens fewer, from the middle of a run without loss; None where too little would stay."""
    start, end = run
    if excess <= 0:
        return taught
    if end - start - excess < 2 * KEEP:
        return None
    cut = (start + end - excess) // 2
    ids, learn = taught.ids, taught.learn
    return Taught(ids[:cut] + ids[cut + excess :], learn[:cut] + learn[cut + excess :])


def longest_run(taught: Taught) -> tuple[int, int]:
    """Where the longest run of tokens without loss begins and ends."""
    edges = [-1, *(place for place, learn in enumerate(taught.learn) if learn), len(taught.learn)]
    start, end = max(pairwise(edges), key=lambda edge: edge[1] - edge[0])
    return start + 1, end


def prompt_run(taught: Taught) -> tuple[int, int]:
    """What stands before the first token with loss."""
    return 0, next((place for place, learn in enumerate(taught.learn) if learn), len(taught.learn))


def refuse_length(record: Record, tokens: int, row_tokens: int, too_long: TooLong) -> None:
    """Raise where the recipe wants no conversation to be left out or cut."""
    if too_long == "error":
        raise DataError(
            f"{title(record)}: has {tokens:,} tokens, more than the {row_tokens:,} of a row; write"
            f" data.row_tokens={tokens}, or data.task.too_long: drop (leaves it out) or cut (shortens what"
            " is asked)"
        )


def title(record: Record) -> str:
    """How messages call a record: its id, or its first words."""
    if "id" in record:
        return f"the conversation {str(record['id'])[:60]!r}"
    words = " ".join(first_question(record["messages"]).split())
    return f"the conversation that begins {words[:48]!r}"


def identified(row: Mapping[str, Any], record: Record) -> Record:
    """The record, with its row's id where there is one."""
    name = row.get("id")
    return {**record, "id": str(name)} if isinstance(name, str | int) and name != "" else record
