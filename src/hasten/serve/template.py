"""Chat templates: find one beside a tokenizer, render it in a confined process, turn it into tokens."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hasten.core.errors import DataError
from hasten.tokenizer.tokenizer import Tokenizer

SECONDS, STARTUP_SECONDS = 0.5, 10.0
MEMORY_BYTES = 512 << 20
LONGEST_TEMPLATE, LONGEST_TEXT = 100_000, 4_000_000
SETTINGS = "tokenizer_config.json"
PRIVATE = 0xF0000
"""The first of the 65,534 characters of Supplementary Private Use Area A, which Unicode gives no meaning."""

Message = dict[str, str]  # {"role": "user", "content": "..."}


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
    own, where = folder / "chat_template.jinja", folder / SETTINGS
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
    named = {key: value for key, value in settings.items() if re.fullmatch(r"(bos|eos|unk|pad)_token", key)}
    words = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    given = {key: word for key, word in words.items() if isinstance(word, str) and word}
    return "".join(f"{{% set {key} = {json.dumps(word)} %}}" for key, word in given.items())


def render(template: str, messages: list[Message], **variables: Any) -> str:
    """The conversation as the model's text, up to where the assistant answers.

    Raises DataError when the template reaches out of its sandbox, fails, refuses the messages, or takes
    more than half a second, 512 MiB, or four million characters.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise DataError(f"chat template: is longer than {LONGEST_TEMPLATE:,} characters; use a shorter one")
    request = {
        "template": template,
        "variables": {"messages": messages, "add_generation_prompt": True, **variables},
        "seconds": SECONDS,
        "memory_bytes": MEMORY_BYTES,
        "longest": LONGEST_TEXT,
    }
    answer = ask(json.dumps(request))
    if "error" in answer:
        raise DataError(f"chat template: {answer['error']}; use another, or chat without a template")
    return answer["text"]


def ask(request: str) -> dict[str, str]:
    """What the confined process `render.py` says; its being killed is an answer too."""
    program = [sys.executable, "-I", "-X", "utf8", str(Path(__file__).with_name("render.py"))]
    try:
        done = subprocess.run(
            program,
            input=request,
            capture_output=True,
            encoding="utf-8",
            env={},
            timeout=STARTUP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {SECONDS} s to render"}
    if done.returncode == 0:
        return json.loads(done.stdout)
    # Killed by the alarm, or out of memory where the interpreter could not even say so.
    return {"error": f"took longer than {SECONDS} s or more than {MEMORY_BYTES >> 20} MiB to render"}


def conversation_ids(tokenizer: Tokenizer, template: str, messages: list[Message]) -> list[int]:
    """The rendered conversation as ids, in which only the template can write special tokens.

    A user who types `<|im_end|>` has typed ten characters: in the messages every special token's spelling is
    replaced by a private character before rendering, and put back, as plain text, after the cut.
    """
    added = tokenizer.inner.get_added_tokens_decoder()
    special = {token.content: id for id, token in added.items() if token.special}
    disguise = {word: chr(PRIVATE + n) for n, word in enumerate(special)}
    hidden = [{**message, "content": swap(message["content"], disguise)} for message in messages]
    text = render(template, hidden)
    restore = {private: word for word, private in disguise.items()}
    ids: list[int] = []
    for piece in re.split(f"({any_of(special)})", text):
        ids += [special[piece]] if piece in special else tokenizer.encode(swap(piece, restore))
    return ids


def swap(text: str, replacement: dict[str, str]) -> str:
    """`text` with each key of `replacement`, the longest first, replaced by its value."""
    return re.sub(any_of(replacement), lambda found: replacement[found[0]], text)


def any_of(words: Iterable[str]) -> str:
    """A pattern for any of the words, the longest first; for none it never matches."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or r"(?!)"
