"""The parse rate, tried on code whose author is known to write Python: the standard library."""

import ast
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.evaluate.code import (
    FunctionPrompt,
    Snippet,
    function_prompts,
    lacks_only_its_end,
    parse_rate,
    parses,
    source,
)

HEADER = "def area(radius):\n"
MODULES = ["argparse", "bisect", "calendar", "dataclasses", "heapq", "statistics", "textwrap", "tokenize"]


@pytest.fixture(scope="module")
def library() -> list[FunctionPrompt]:
    """Every function of some modules that makes a prompt."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    documents = [(name, (folder / f"{name}.py").read_text(encoding="utf-8")) for name in MODULES]
    return function_prompts(documents, 10_000, seed=0)


def test_every_authors_function_parses(library):
    assert len(library) > 100
    assert all(parses(Snippet(p.prompt, p.continuation, finished=True)) for p in library)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_where_the_budget_cuts_right_code_no_error_is_counted(library, data):
    """Either a whole statement is left, and then it parses, or nothing of the author's own is."""
    prompt = data.draw(st.sampled_from(library))
    cut = data.draw(st.integers(0, len(prompt.continuation)))
    snippet = Snippet(prompt.prompt, prompt.continuation[:cut])
    left = source(snippet)
    if not parses(snippet):
        added = left.removeprefix(prompt.prompt)
        assert not any(line.strip() and not line.strip().startswith("#") for line in added.split("\n"))
    if left:
        ast.parse(left)


@pytest.mark.parametrize(
    "completion",
    [
        "    return 3 * radius ** 2\n",
        "    return 3 * radius\n    rest = (1,\n        2, ",
        "    x = 1\n    if radius:\n",
        "    x = 1\n    try:\n        y = 2\n",
        '    x = 1\n    """an open string\n    that goes on\n',
        "    y = 1\n    x = 1 + \\\n        2 + \\\n",
        "    x = 1\n    y = x +",
        "    return radius\n\ndef other(x):\n    # to be written\n",
    ],
)
def test_what_the_end_of_the_budget_cuts_is_forgiven(completion):
    assert parses(Snippet(HEADER, completion))


@pytest.mark.parametrize(
    "completion",
    [
        "    return 3 * * radius\n    pi = 3\n",
        "  x = 1\n      y = 2\n",
        "    x = (1 2)\n    y = 3\n",
        "    x = 'open\n    y = 3\n",
        "return radius\n",
        "    x = 1)\n",
        "    x = '\x00'\n",
        "    x = " + "(" * 5000 + "\n    y = 1\n" + ")" * 5000 + "\n",
    ],
)
def test_an_error_before_the_end_stays_one(completion):
    assert not parses(Snippet(HEADER, completion))


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "\n\n",
        "    # a remark\n",
        "    return",
    ],
)
def test_a_snippet_without_a_statement_of_its_own_does_not_count(completion):
    assert not parses(Snippet(HEADER, completion))


def test_the_prompts_own_statements_do_not_count():
    prompt = "import math\n\ndef area(radius):\n"
    assert not parses(Snippet(prompt, "    # nothing\n"))
    assert parses(Snippet(prompt, "    return math.pi\n"))
    assert parses(Snippet(prompt.removesuffix("\n"), " return math.pi\n"))
    assert not parses(Snippet('def area(radius):\n    """Of a circle."""\n', "\n"))


def test_a_finished_completion_is_taken_as_it_is():
    assert parses(Snippet(HEADER, "    return radius", finished=True))
    assert not parses(Snippet(HEADER, "    x = 1\n    if radius:\n", finished=True))


def test_an_indented_snippet_is_dedented():
    assert parses(Snippet("    def f(self):\n", "        return self\n"))


def test_an_open_end_is_told_from_an_error():
    assert lacks_only_its_end("def f():\n")
    assert not lacks_only_its_end("def f(:\n")
    assert not lacks_only_its_end("x = 1\n")


def test_the_rate_is_a_proportion_with_its_standard_error():
    good, bad = Snippet(HEADER, "    return 1\n"), Snippet(HEADER, "    return )\n")
    rate = parse_rate([good, good, good, bad])
    assert (rate.rate, rate.parsed, rate.snippets) == (0.75, 3, 4)
    assert rate.stderr == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
    assert parse_rate([good]).stderr is None
    with pytest.raises(ValueError, match="give at least one"):
        parse_rate([])


TEXT = '''
import os

def first(a,
          b=(1, 2)):
    """One line."""
    a += 1
    return a

class Thing:
    @property
    def second(self) -> int:
        text = """
left of everything
"""
        return text

    def third(self): x = 3; return x

    def fourth(self):
        """Several
        lines."""
        x = 4
        return x

    def fifth(self):
        pass

def sixth():
    @cache
    def inner():
        x = 6
        return x
    return inner
'''


def test_a_prompt_is_a_function_up_to_its_first_statement_dedented():
    prompts = {p.prompt: p.continuation for p in function_prompts([("doc", TEXT)], 10, seed=0)}
    assert prompts == {
        'def first(a,\n          b=(1, 2)):\n    """One line."""\n    a += 1\n': "    return a\n",
        'def second(self) -> int:\n    text = """\nleft of everything\n"""\n': "    return text\n",
        "def inner():\n    x = 6\n": "    return x\n",
    }


def test_windows_line_ends_make_no_difference():
    assert function_prompts([("d", TEXT.replace("\n", "\r\n"))], 9, 0) == function_prompts(
        [("d", TEXT)], 9, 0
    )


def test_prompts_depend_on_the_seed_and_not_on_the_order_of_the_documents():
    documents = [
        (f"doc{i}", f"def f{i}(x):\n    y = x\n    return y\n\ndef g{i}(x):\n    y = x\n    return y\n")
        for i in range(12)
    ]
    once = function_prompts(documents, 5, seed=1)
    assert once == function_prompts(documents[::-1], 5, seed=1)
    assert once != function_prompts(documents, 5, seed=2)


def test_documents_take_turns():
    documents = [
        (f"doc{i}", f"def f{i}(x):\n    y = x\n    return y\n\ndef g{i}(x):\n    y = x\n    return y\n")
        for i in range(4)
    ]
    assert len({p.document for p in function_prompts(documents, 4, seed=0)}) == 4
    assert len(function_prompts(documents, 6, seed=0)) == 6
    assert len(function_prompts(documents, 100, seed=0)) == 8


def test_text_that_is_not_python_and_prompts_that_do_not_fit_are_passed_over():
    documents = [("prose", "Once upon a time, def f(x): was a line."), ("code", TEXT), ("null", "x = '\x00'")]
    prompts = function_prompts(documents, 10, seed=0, fits=lambda prompt: len(prompt.prompt) < 30)
    assert {p.prompt for p in prompts} == {"def inner():\n    x = 6\n"}


def test_every_function_of_the_library_is_cut_out_of_its_file_again(library):
    """The author's own continuation, with what comes after it in the file, gives back the function alone."""
    for prompt in library:
        margin = prompt.margin
        whole = "".join(
            f"{margin}{line}" if line.strip() else line for line in prompt.continuation.splitlines(True)
        )
        snippet = prompt.snippet(f"\n{whole}{margin}def another(): (", finished=False)
        assert snippet.finished and parses(snippet), prompt
        assert "def another(): (" not in snippet.completion


def test_the_context_is_the_file_up_to_the_prompts_last_line_without_its_end():
    text = "import os\n\nclass A:\n    def f(self):\n        x = os.sep\n        return x\n"
    (prompt,) = function_prompts([("doc", text)], 10, seed=0)
    assert prompt.context(100) == "import os\n\nclass A:\n    def f(self):\n        x = os.sep"
    assert prompt.context(1) == "class A:\n    def f(self):\n        x = os.sep"
    assert prompt.context(0) == "    def f(self):\n        x = os.sep"
    written = prompt.snippet("\n        return 1\n\n    def g(self): broken(", finished=False)
    assert written.prompt + written.completion == "def f(self):\n    x = os.sep\n    return 1\n\n" and parses(
        written
    )
