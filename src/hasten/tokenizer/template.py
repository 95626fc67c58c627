"""Chat templates: find one beside a tokenizer, and render conversations with it in a confined process."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.core.errors import DataError

SECONDS, STARTUP_SECONDS = 0.5, 10.0
PATIENCE_SECONDS = 5.0
"""Of one rendering among many: on a busy machine one of thousands has to wait longer than half a second."""
MEMORY_BYTES = 512 << 20
LONGEST_TEMPLATE, LONGEST_TEXT = 100_000, 4_000_000
BATCH_TEXT, MOST_TEXT = 4_000_000, 64_000_000
"""Characters that one process is given, more or less, and that it may write."""
SETTINGS, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
NO_MARKS = ("", "")

Message = dict[str, str]  # {"role": "user", "content": "..."}


@dataclass(frozen=True)
class Ask:
    """What to render of a conversation: its first `end` messages, and what begins an answer if one follows.

    `marked`: with the marks around what the template encloses in `{% generation %}`.
    """

    end: int
    answer_follows: bool
    marked: bool = False

    @property
    def line(self) -> tuple[int, bool, bool]:
        """As the confined process reads it."""
        return self.end, self.answer_follows, self.marked


@dataclass(frozen=True)
class Refusal:
    """Why a template does not render a conversation, as what follows `chat template: `."""

    reason: str


def find_template(folder: Path) -> str | None:
    """The chat template of a model's folder, or None, with the special tokens that the folder names
    (`bos_token`, `eos_token`, ...) set at its beginning.
    """
    source = template_source(folder)
    return None if source is None else set_special_tokens(read_settings(folder / SETTINGS)) + source


def template_source(folder: Path) -> str | None:
    """The chat template of a model's folder as it came, or None: `chat_template.jinja`, else
    `tokenizer_config.json`.  It is text; only `render` runs it, in its sandbox.
    """
    own, where = folder / TEMPLATE, folder / SETTINGS
    if own.is_file():
        with own.open("rb") as file:
            data, where = file.read(4 * LONGEST_TEMPLATE + 1), own
        source: Any = data.decode("utf-8", errors="replace")
    else:
        source = read_settings(where).get("chat_template")
    if isinstance(source, list):  # several templates by name
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise DataError(f"{where}: chat_template should be text, got {type(source).__name__}")
    if source is not None and len(source) > LONGEST_TEMPLATE:
        raise DataError(f"{where}: its chat template is longer than {LONGEST_TEMPLATE:,} characters")
    return source


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a tokenizer_config.json; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: is not JSON ({error}); fetch it again from the model's source") from None
    if not isinstance(settings, dict):
        raise DataError(f"{path}: should hold a JSON object, got {type(settings).__name__}")
    return settings


def set_special_tokens(settings: dict[str, Any]) -> str:
    """`{% set bos_token = "<s>" %}...`: templates expect these names to be defined."""
    named = {
        key: value
        for key, value in settings.items()
        if re.fullmatch(r"(bos|eos|unk|sep|pad|cls|mask)_token", key)
    }
    words = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    given = {key: word for key, word in words.items() if isinstance(word, str) and word}
    return "".join(f"{{% set {key} = {json.dumps(word)} %}}" for key, word in given.items())


def render(template: str, messages: list[Message], **variables: Any) -> str:
    """The conversation as the model's text, up to where the assistant answers.

    Raises DataError when the template reaches out of its sandbox, fails, refuses the messages, or takes
    more than half a second, 512 MiB, or four million characters.
    """
    asks = [Ask(len(messages), answer_follows=True)]
    [found] = run_process(template, [(messages, asks)], SECONDS, NO_MARKS, variables)
    if isinstance(found, Refusal):
        raise DataError(f"chat template: {found.reason}; use another, or chat without a template")
    return found[0]


def render_all(
    template: str,
    asked: Sequence[tuple[Sequence[Message], Sequence[Ask]]],
    marks: tuple[str, str] = NO_MARKS,
) -> list[list[str] | Refusal]:
    """For each conversation its renderings, in order, or why the template refuses it.

    As safe as `render`, with one process for some four million characters.  A template that has to be stopped
    is a DataError.
    """
    results: list[list[str] | Refusal] = []
    for group in groups(asked):
        results += run_process(template, group, PATIENCE_SECONDS, marks, {})
    return results


def groups(
    asked: Sequence[tuple[Sequence[Message], Sequence[Ask]]],
) -> Iterator[list[tuple[Sequence[Message], Sequence[Ask]]]]:
    """Conversations that one process renders, about `BATCH_TEXT` characters each time."""
    group, characters = list[tuple[Sequence[Message], Sequence[Ask]]](), 0
    for messages, asks in asked:
        group.append((messages, asks))
        characters += len(asks) * sum(len(message["content"]) + 64 for message in messages)
        if characters >= BATCH_TEXT:
            yield group
            group, characters = [], 0
    if group:
        yield group


def run_process(
    template: str,
    group: Sequence[tuple[Sequence[Message], Sequence[Ask]]],
    seconds: float,
    marks: tuple[str, str],
    variables: Mapping[str, Any],
) -> list[list[str] | Refusal]:
    """What the confined process `render.py` says to each conversation."""
    if len(template) > LONGEST_TEMPLATE:
        raise DataError(f"chat template: is longer than {LONGEST_TEMPLATE:,} characters; use a shorter one")
    rules = {
        "template": template,
        "seconds": seconds,
        "memory_bytes": MEMORY_BYTES,
        "longest": LONGEST_TEXT,
        "most": MOST_TEXT,
        "marks": marks,
    }
    lines = [json.dumps(rules)]
    for messages, asks in group:
        # Templates ask whether there are tools and documents by comparing with none.
        given = {"tools": None, "documents": None, "messages": list(messages), **variables}
        lines.append(json.dumps({"variables": given, "asks": [ask.line for ask in asks]}))
    expected = sum(len(asks) for _, asks in group)
    answers = iter(ask_process("\n".join(lines), expected, seconds))
    return [gathered([next(answers) for _ in asks]) for _, asks in group]


def gathered(answers: list[dict[str, str]]) -> list[str] | Refusal:
    """The texts of a conversation, or the first thing that was wrong with it."""
    error = next((answer["error"] for answer in answers if "error" in answer), None)
    return [answer["text"] for answer in answers] if error is None else Refusal(error)


def ask_process(request: str, expected: int, seconds: float) -> list[dict[str, str]]:
    """One answer for each rendering; of one alone, the process being killed is an answer too."""
    program = [sys.executable, "-I", "-X", "utf8", str(Path(__file__).with_name("render.py"))]
    out = ""
    try:
        done = subprocess.run(
            program,
            input=request,
            capture_output=True,
            encoding="utf-8",
            env={},
            timeout=STARTUP_SECONDS + expected * seconds,
            check=False,
        )
        out = done.stdout if done.returncode == 0 else ""
    except subprocess.TimeoutExpired:
        pass
    answers = [json.loads(line) for line in out.splitlines()]
    if len(answers) == expected:
        return answers
    # Killed by the alarm, or out of memory where the interpreter could not even say so.
    reason = f"took longer than {seconds} s or more than {MEMORY_BYTES >> 20} MiB to render"
    if expected == 1:
        return [{"error": reason}]
    raise DataError(f"chat template: {reason} one of {expected:,} conversations; use another template")
