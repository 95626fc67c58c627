"""Long texts cut to what a reader needs of them."""

import re
from dataclasses import dataclass

AROUND = 240
"""Characters of a context on either side of an answer."""
PROMPT = 600
"""Characters of a prompt, half from each end."""
TORN_START, TORN_END = re.compile(r"\A\S{0,15}\s+"), re.compile(r"\s+\S{0,15}\Z")
"""Of a word that a cut went through; where words have no blanks between them there is none."""


@dataclass(frozen=True)
class Marked:
    """A part of a text, and what stands before and after it."""

    before: str
    found: str
    after: str


def marked(context: str, *wanted: str) -> Marked:
    """The first place where the first of the `wanted` that `context` holds stands, with what is around it.

    Without any, the beginning.
    """
    found = next((text for text in wanted if text and text in context), "")
    start = context.find(found)
    before, after = context[:start], context[start + len(found) :]
    return Marked(
        before if len(before) <= AROUND else f"… {TORN_START.sub('', before[-AROUND:])}",
        found,
        after if len(after) <= AROUND else f"{TORN_END.sub('', after[:AROUND])} …",
    )


def shortened(text: str) -> str:
    """The two ends of a text of more than PROMPT characters."""
    return text if len(text) <= PROMPT else f"{text[: PROMPT // 2]} … {text[-PROMPT // 2 :]}"
