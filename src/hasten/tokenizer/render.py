"""A program: render a chat template, from standard input to standard output, with no way out.

Chat templates come with models from strangers, and Jinja expressions can reach into the interpreter or
run for ever.  So `hasten.tokenizer.template` runs this file in a process of its own (`python -I`, no
environment), which knows Jinja's immutable sandbox and nothing of hasten, and which the kernel stops when
it takes too long, too much memory, or tries to write a file.

The first line is JSON and says what holds for all: `template`, `seconds` of one rendering, `memory_bytes`,
`longest` text and `most` characters in all, `marks` [2].  Each further line is a conversation: `variables`,
and in `asks` what to render of it, [how many messages, whether an answer follows, whether marks are shown].
Each rendering is answered by a line, `{"text": ...}` or `{"error": ...}`.
"""

import json
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

READABLE = (str, dict, list, tuple, LoopContext, Namespace, Undefined)


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox, closed further: attributes of text and plain containers only, and refusals raise."""

    marks = ("", "")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return isinstance(obj, READABLE) and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"'{attribute}' of a {type(obj).__name__} is out of bounds")


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}` encloses the assistant's words: plain, or between marks."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that Jinja looks for

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in self.marks())
        return [begin, *body, end]

    def marks(self) -> tuple[str, str]:
        assert isinstance(self.environment, Environment)
        return self.environment.marks


def refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def tojson(value: Any, indent: int | None = None) -> str:
    """JSON as it stands: Jinja's own filter would escape `<` for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def environment(marks: tuple[str, str] = ("", "")) -> Environment:
    """What chat templates are written for: trimmed blocks, loop controls, three helpers, no more globals."""
    result = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    result.marks = marks
    for name in ("lipsum", "cycler", "joiner"):
        del result.globals[name]
    result.filters["tojson"] = tojson
    result.globals["raise_exception"] = refuse
    result.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return result


@cache
def compiled(template: str, marks: tuple[str, str]) -> Template:
    """The template, ready for any number of conversations."""
    return environment(marks).from_string(template)


def confine(memory_bytes: int) -> None:
    """Let the kernel deny this process memory beyond the limit, and every file."""
    import resource  # noqa: PLC0415 - Unix only; elsewhere the parent's own time-out is what remains

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def restart_clock(seconds: float) -> None:
    """Let the kernel end this process when `seconds` are over, whatever the interpreter is busy with."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM, unhandled, ends the process


def answer(rules: dict[str, Any], variables: dict[str, Any], ask: list[Any]) -> dict[str, str]:
    """`{"text": ...}`, or `{"error": ...}` in words."""
    end, answer_follows, marked = ask
    marks = tuple(rules["marks"]) if marked else ("", "")
    seen = {**variables, "messages": variables["messages"][:end], "add_generation_prompt": answer_follows}
    try:
        text = compiled(rules["template"], marks).render(seen)
    except MemoryError:
        return {"error": f"needs more than {rules['memory_bytes'] >> 20} MiB of memory"}
    except SecurityError as error:
        return {"error": f"reaches for what a template may not touch: {error}"}
    except RecursionError:
        return {"error": "is nested too deeply"}
    except Exception as error:  # whatever a stranger's template raises is its author's mistake
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    if len(text) > rules["longest"]:
        return {"error": f"renders more than {rules['longest']:,} characters"}
    return {"text": text}


def answers(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """An answer for each rendering that is asked for, until there are more characters than allowed."""
    rules = json.loads(next(lines))
    if sys.platform != "win32":
        confine(rules["memory_bytes"])
    characters = 0
    for line in lines:
        conversation = json.loads(line)
        for ask in conversation["asks"]:
            restart_clock(rules["seconds"])
            given = answer(rules, conversation["variables"], ask)
            characters += len(given.get("text", ""))
            if characters > rules["most"]:
                given = {"error": f"renders more than {rules['most']:,} characters"}
            yield given


if __name__ == "__main__":
    for found in answers(iter(sys.stdin)):
        print(json.dumps(found))
