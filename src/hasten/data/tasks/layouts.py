"""Conversations in the layouts that data sets come in: which columns a row has says which one it is.

    messages                  [{"role": "user", "content": "..."}, ...]          OpenAI, ChatML
    conversations             [{"from": "human", "value": "..."}, ...]           ShareGPT
    instruction, output       also input, history [[question, answer], ...]      Alpaca
    context, question, answer(s)
    prompt, completion        and the other pairs of `PAIRS`

Messages and a history may stand in a table's cell as JSON.  A list of answers has several that are right: the
first is learnt, all are kept.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from hasten.core.errors import did_you_mean
from hasten.data.tasks.protocol import RowError

Row = Mapping[str, Any]
Turn = dict[str, Any]  # {"role": "assistant", "content": "...", "weight": 0}, the weight only where it is 0

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "ipython": "tool",
}
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "answers"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("instruction", "response"),
    ("instruction", "answer"),
    ("input", "output"),
    ("source", "target"),
)
"""Columns with a question and its answer."""
KNOWN = "messages | conversations | instruction, output | context, question, answer | " + " | ".join(
    ", ".join(pair) for pair in PAIRS
)


def conversation(row: Row) -> tuple[list[Turn], list[str]]:
    """A row's messages, and all answers that are right to the last question."""
    for columns, read in LAYOUTS:
        if all(row.get(column) is not None for column in columns):
            return read(row)
    columns_here = ", ".join(map(str, row)) or "none"
    raise RowError(
        f"has no conversation in a known layout (its columns: {columns_here}; known: {KNOWN}); rename the"
        " columns,"
        ' or write data.task.prompt: "{column}" and data.task.answer: "{column}"'
    )


def of_messages(row: Row) -> tuple[list[Turn], list[str]]:
    """OpenAI's layout."""
    return with_reference(messages(row["messages"], "messages"))


def of_conversations(row: Row) -> tuple[list[Turn], list[str]]:
    """ShareGPT's layout, in which some have a column `system`."""
    turns = messages(row["conversations"], "conversations")
    system = [turn("system", text(row["system"], "system"))] if row.get("system") else []
    return with_reference(system + turns)


def of_instruction(row: Row) -> tuple[list[Turn], list[str]]:
    """Alpaca's layout: the input stands below its instruction, `history` before both."""
    return with_reference([*instruction(row), turn("assistant", text(row["output"], "output"))])


def instruction(row: Row) -> list[Turn]:
    """What is asked in Alpaca's layout."""
    given = text(row["input"], "input") if row.get("input") else ""
    asked = text(row["instruction"], "instruction") + (f"\n\n{given}" if given else "")
    system = [turn("system", text(row["system"], "system"))] if row.get("system") else []
    return [*system, *history(row.get("history")), turn("user", asked)]


def history(value: Any) -> list[Turn]:
    """Earlier rounds, [[question, answer], ...]."""
    rounds = from_json(value) or []
    if not isinstance(rounds, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in rounds
    ):
        raise RowError("history should be [[question, answer], ...]; write it so, or leave the column out")
    roles = ("user", "assistant")
    return [
        turn(role, text(part, "history")) for pair in rounds for role, part in zip(roles, pair, strict=True)
    ]


def of_context(row: Row) -> tuple[list[Turn], list[str]]:
    """A passage and a question about it."""
    asked = f"{text(row['context'], 'context')}\n\n{text(row['question'], 'question')}"
    return answered(turn("user", asked), row["answer" if row.get("answer") is not None else "answers"])


def of_pair(asked: str, said: str) -> Callable[[Row], tuple[list[Turn], list[str]]]:
    """A reader of two columns, either of which may hold messages."""

    def read(row: Row) -> tuple[list[Turn], list[str]]:
        before = spoken(row[asked], "user", asked)
        if is_messages(from_json(row[said])):
            return with_reference(before + messages(row[said], said))
        return answered(*before, row[said], name=said)

    return read


def answered(*parts: Any, name: str = "answers") -> tuple[list[Turn], list[str]]:
    """The messages before an answer, and last the answer as a row has it."""
    *before, answer = parts
    references = answers(answer, name)
    return [*before, turn("assistant", references[0])], references


def answers(value: Any, name: str) -> list[str]:
    """All answers in a cell: a text, a list of them, or SQuAD's {"text": [...]}."""
    value = value.get("text") if isinstance(value, dict) else value
    several = value if isinstance(value, list | tuple) else [value]
    if not several:
        raise RowError(f"{name} holds no answer; give one, or leave the row out")
    return list(dict.fromkeys(text(one, name) for one in several))


def with_reference(turns: list[Turn]) -> tuple[list[Turn], list[str]]:
    """Messages that end with an answer, and that answer."""
    if not turns or turns[-1]["role"] != "assistant":
        said = f"ends with a message of '{turns[-1]['role']}'" if turns else "has no messages"
        raise RowError(
            f"{said}, where an answer of the assistant is to be learnt; add it, or take that message out"
        )
    return turns, [turns[-1]["content"]]


def spoken(value: Any, role: str, column: str) -> list[Turn]:
    """A cell with messages, or with the words of one by `role`."""
    return messages(value, column) if is_messages(from_json(value)) else [turn(role, text(value, column))]


def messages(value: Any, column: str) -> list[Turn]:
    """A list of messages in any of the spellings in use."""
    value = from_json(value)
    if not isinstance(value, list | tuple) or not all(isinstance(one, dict) for one in value):
        raise RowError(
            f"{column} should be a list of messages such as {{'role': 'user', 'content': '...'}}, got"
            f" {type(value).__name__}; write it so, or name the columns with data.task.prompt and answer"
        )
    return [message(one, f"message {number} of {column}") for number, one in enumerate(value, 1)]


def message(value: Mapping[str, Any], where: str) -> Turn:
    """One message, its role by the name that templates know."""
    spoken = value.get("role", value.get("from"))
    role = ROLES.get(spoken.lower()) if isinstance(spoken, str) else None
    if role is None:
        near = did_you_mean(str(spoken), ROLES)
        raise RowError(f"{where} is by {str(spoken)[:40]!r}.{near} Known: {', '.join(ROLES)}")
    if value.get("tool_calls"):
        raise RowError(f"{where} calls tools, which is not read yet; leave the row out")
    result = turn(role, content(value.get("content", value.get("value")), where))
    return result if weight(value, where) or role != "assistant" else {**result, "weight": 0}


def weight(value: Mapping[str, Any], where: str) -> bool:
    """Whether a message is to be learnt: `weight` 0 or 1, or `train` false or true."""
    given = value.get("train", value.get("weight"))
    if given not in (None, 0, 1):
        raise RowError(f"{where} has the weight {str(given)[:20]}; a message is learnt or not: write 1 or 0")
    return given is None or bool(given)


def content(value: Any, where: str) -> str:
    """The words of a message: a text, or a list of parts that are text."""
    if not isinstance(value, list):
        return text(value, where)
    kinds = {part.get("type") if isinstance(part, dict) else type(part).__name__ for part in value}
    if kinds - {"text"}:
        raise RowError(
            f"{where} holds {', '.join(sorted(map(str, kinds)))}; only text is read: leave the row out"
        )
    return "".join(text(part.get("text"), where) for part in value)


def text(value: Any, name: str) -> str:
    """A cell that is text, or a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"{name} should be text, got {type(value).__name__}; write it as text")
    return str(value)


def turn(role: str, content: str) -> Turn:
    """A message."""
    return {"role": role, "content": content}


def is_messages(value: Any) -> bool:
    """Whether a cell holds messages, and not other data."""
    several = isinstance(value, list | tuple) and bool(value)
    return several and all(isinstance(one, dict) and ("role" in one or "from" in one) for one in value)


def from_json(value: Any) -> Any:
    """The list that a cell of text spells as JSON, else the cell itself."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


Reader = Callable[[Row], tuple[list[Turn], list[str]]]
LAYOUTS: list[tuple[tuple[str, ...], Reader]] = [
    (("messages",), of_messages),
    (("conversations",), of_conversations),
    (("instruction", "output"), of_instruction),
    (("context", "question", "answer"), of_context),
    (("context", "question", "answers"), of_context),
    *((pair, of_pair(*pair)) for pair in PAIRS),
]
