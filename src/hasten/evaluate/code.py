"""Does the Python that a model writes parse?  A measure of form for models too small for unit tests.

The prompts are headers of functions in documents the model has not seen; the model continues; the share
of snippets that `ast.parse` accepts is the score.  The documents' own continuations, cut at the same
length, go through the same measure: what they miss of 100% is the measure's own error.
"""

import ast
import codeop
import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, takewhile, zip_longest

from hasten.evaluate.sample import draw

NOT_PYTHON = (
    SyntaxError,
    ValueError,
    RecursionError,
    MemoryError,
)  # all that the parser can raise on odd text


@dataclass(frozen=True)
class Snippet:
    """A prompt (whole lines) and what a model wrote after it.

    `finished` says that the model ended the text itself; otherwise its budget of tokens did.
    """

    prompt: str
    completion: str
    finished: bool = False


@dataclass(frozen=True)
class ParseRate:
    """Share of snippets that parse; `stderr` is that of a proportion, None for fewer than two."""

    rate: float
    stderr: float | None
    parsed: int
    snippets: int


@dataclass(frozen=True)
class FunctionPrompt:
    """A function's header and first statement, and how its author went on."""

    prompt: str
    continuation: str
    document: str
    line: int  # of the header in the document, from 1
    before: str  # the document up to the end of the prompt's last line, as its author indented it
    margin: str  # by which the author indented the header

    def context(self, lines: int) -> str:
        """What a model reads: the prompt in its place, after so many lines of the document."""
        kept = lines + self.prompt.count("\n")
        return "\n".join(self.before.split("\n")[-kept:])

    def snippet(self, completion: str, finished: bool) -> "Snippet":
        """The function that `completion`, written after `context`, makes of the prompt.

        It ends before the first line that is indented no deeper than its header; what a model writes after
        that is no longer this function.
        """
        first, *rest = completion.split("\n")
        inside = list(takewhile(lambda line: indented_deeper(line, self.margin), rest))
        body = "\n".join([first, *(line.removeprefix(self.margin) for line in inside)])
        ended = len(inside) < len(rest)
        return Snippet(self.prompt.removesuffix("\n"), body + "\n" * ended, finished or ended)


def indented_deeper(line: str, margin: str) -> bool:
    """Whether a line can belong to a function whose header is indented by `margin`; an empty one can."""
    return not line.strip() or (line.startswith(margin) and line[len(margin)] in " \t")


def parse_rate(snippets: Sequence[Snippet]) -> ParseRate:
    """The share of `snippets` for which `parses` holds.  Raises ValueError for none at all."""
    if not snippets:
        raise ValueError("the parse rate of no snippet is undefined; give at least one")
    parsed, n = sum(map(parses, snippets)), len(snippets)
    rate = parsed / n
    stderr = math.sqrt(rate * (1 - rate) / (n - 1)) if n > 1 else None
    return ParseRate(rate, stderr, parsed, n)


def parses(snippet: Snippet) -> bool:
    """Whether `ast.parse` accepts the snippet's `source` and the model has said something in it.

    That is a statement of its own, or that the function ends here (`finished`).  Where the budget cut
    everything that the model began, the prompt alone would parse: that does not count.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source(snippet))
    except NOT_PYTHON:
        return False
    given = textwrap.dedent(snippet.prompt).removesuffix("\n").split("\n")
    end = (len(given), len(given[-1].encode()))  # line from 1, column in bytes: as the parser counts
    simple = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and not hasattr(node, "body")]
    return snippet.finished or any((node.end_lineno or 0, node.end_col_offset or 0) > end for node in simple)


def source(snippet: Snippet) -> str:
    """Prompt and completion, dedented, without what the end of the budget cut.

    Of a completion that its budget ended, the last line goes if it is not whole, and then line after
    line from the end for as long as only the end is missing: an open bracket or string, a block's
    header without its body, a `try` without its `except`.  An error before the end stays one.
    """
    text = textwrap.dedent(snippet.prompt + snippet.completion)
    if snippet.finished:
        return text
    lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    while lines and lacks_only_its_end("".join(lines)):
        lines.pop()
    return "".join(lines)


def lacks_only_its_end(text: str) -> bool:
    """Whether more lines could still make Python of `text`, by the interactive interpreter's own rule."""
    if text.endswith("\\\n"):
        return True
    try:
        return codeop.compile_command(text, symbol="exec") is None
    except (*NOT_PYTHON, OverflowError):
        return False


def is_trivial(statement: ast.stmt) -> bool:
    """`pass`, or a constant that stands alone (`...`, a docstring)."""
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def function_prompts(
    documents: Iterable[tuple[str, str]],
    count: int,
    seed: int,
    fits: Callable[[FunctionPrompt], bool] = lambda prompt: True,
) -> list[FunctionPrompt]:
    """Up to `count` prompts from `documents` of (id, text), the same whatever the documents' order.

    As many documents as possible contribute one function each; only then does any give a second.
    Documents that are not Python give none.  Prompts that do not `fit` are passed over.
    """
    in_order = sorted(documents, key=lambda document: draw(seed, document[0]))
    drawn = (functions(name, text, seed) for name, text in in_order)
    found = ([prompt for prompt in prompts if fits(prompt)] for prompts in drawn)
    per_document = list(islice((prompts for prompts in found if prompts), count))
    rounds = chain.from_iterable(zip_longest(*per_document))
    return list(islice((prompt for prompt in rounds if prompt is not None), count))


def functions(document: str, text: str, seed: int) -> list[FunctionPrompt]:
    """Every function of a document that makes a prompt, in an order drawn by `seed`."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # the parser counts each as one end of line
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = list(ast.walk(ast.parse(text)))
    except NOT_PYTHON:
        return []
    lines = text.split("\n")
    cut = (as_prompt(node, lines, document) for node in nodes if isinstance(node, ast.FunctionDef))
    prompts = [prompt for prompt in cut if prompt is not None]
    return sorted(prompts, key=lambda prompt: draw(seed, f"{document}:{prompt.line}"))


def as_prompt(node: ast.FunctionDef, lines: list[str], document: str) -> FunctionPrompt | None:
    """The prompt of one function, up to its first statement, or None where it makes no good one.

    A docstring of one line comes along; after one of several lines, or after a bare header, a model spends
    its budget on prose.  The first statement must stand on lines of its own, and others must follow it.
    """
    docstring = is_trivial(node.body[0])
    own = node.body[docstring:]
    if len(own) < 2 or is_trivial(own[0]) or hasattr(own[0], "body"):
        return None
    if docstring and node.body[0].lineno != node.body[0].end_lineno:
        return None
    prompt_end = own[0].end_lineno or own[0].lineno  # a line number, from 1
    if start(node.body[0]) <= header_end(node) or start(own[1]) <= prompt_end:
        return None
    margin = lines[node.lineno - 1][: node.col_offset]
    # Not textwrap.dedent: a string that reaches to the left of the function would hold everything back.
    whole = [line.removeprefix(margin) + "\n" for line in lines[node.lineno - 1 : node.end_lineno]]
    size = prompt_end - node.lineno + 1
    before = "\n".join(lines[:prompt_end])
    return FunctionPrompt("".join(whole[:size]), "".join(whole[size:]), document, node.lineno, before, margin)


def header_end(node: ast.FunctionDef) -> int:
    """The last line that an argument, a default or an annotation of the header reaches, at least."""
    parts = [node.args, *([node.returns] if node.returns else [])]
    ends = (getattr(part, "end_lineno", None) for root in parts for part in ast.walk(root))
    return max([node.lineno, *(end for end in ends if end)])


def start(statement: ast.stmt) -> int:
    """A statement's first line, its decorators counted."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])
