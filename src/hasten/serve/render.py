"""A program: render one chat template from standard input to standard output, with no way out.

Chat templates come with models from strangers, and Jinja expressions can reach into the interpreter or
run for ever.  So `hasten.serve.template` runs this file in a process of its own (`python -I`, no
environment), which knows Jinja's immutable sandbox and nothing of hasten, and which the kernel stops when
it takes too long, too much memory, or tries to write a file.
"""

import json
import signal
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

READABLE = (str, dict, list, tuple, LoopContext, Namespace, Undefined)


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox, closed further: attributes of text and plain containers only, and refusals raise."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return isinstance(obj, READABLE) and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"'{attribute}' of a {type(obj).__name__} is out of bounds")


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is plain."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that Jinja looks for

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def tojson(value: Any, indent: int | None = None) -> str:
    """JSON as it stands: Jinja's own filter would escape `<` for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def environment() -> Environment:
    """What chat templates are written for: trimmed blocks, loop controls, three helpers, no more globals."""
    result = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    for name in ("lipsum", "cycler", "joiner"):
        del result.globals[name]
    result.filters["tojson"] = tojson
    result.globals["raise_exception"] = refuse
    result.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return result


def confine(seconds: float, memory_bytes: int) -> None:
    """Let the kernel end this process at the limit, whatever the interpreter is busy with."""
    import resource  # noqa: PLC0415 - Unix only; elsewhere the parent's own time-out is what remains

    signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM, unhandled, ends the process
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def answer(request: dict[str, Any]) -> dict[str, str]:
    """`{"text": ...}`, or `{"error": ...}` in words."""
    try:
        text = environment().from_string(request["template"]).render(request["variables"])
    except MemoryError:
        return {"error": f"needs more than {request['memory_bytes'] >> 20} MiB of memory"}
    except SecurityError as error:
        return {"error": f"reaches for what a template may not touch: {error}"}
    except RecursionError:
        return {"error": "is nested too deeply"}
    except Exception as error:  # whatever a stranger's template raises is its author's mistake
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    if len(text) > request["longest"]:
        return {"error": f"renders more than {request['longest']:,} characters"}
    return {"text": text}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    if sys.platform != "win32":
        confine(asked["seconds"], asked["memory_bytes"])
    json.dump(answer(asked), sys.stdout)
