"""Samples as the model reads them, with what carries loss in colour: for a terminal, and for a page.

Blanks, line breaks, special tokens and signs that steer a terminal are made visible.  Nothing of a sample is
trusted: control characters never reach a terminal, and a page gets no tags from it.
"""

import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import groupby
from typing import Any

import numpy as np

from hasten.core.batch import IGNORE, UNKNOWN
from hasten.data.tasks.protocol import Example, Unit
from hasten.tokenizer.tokenizer import Tokenizer

VISIBLE = {" ": "·", "\n": "↵\n", "\t": "→\t"}
PLAIN, LEARNT, SPECIAL, OFF = "\x1b[2m", "\x1b[1;32m", "\x1b[7m", "\x1b[0m"
"""ANSI: faint, bold green, inverse, and back to what was before."""
LONGEST_RUN = 400
"""Tokens of a run without loss that are shown, half from each end."""
LEGEND = "green: learnt; faint: read only; inverse: special tokens"
PAGE_LEGEND = (
    "green: learnt; grey: read only; framed: special tokens",
    "绿色为学习部分，灰色仅供阅读，带框为特殊词元",
)
SIDES = {", chosen": "，较好", ", rejected": "，较差"}
TEACHER_SAYS = "(no label: what the teacher says)"
PLAIN_LEGEND = "in ⟦ ⟧: learnt; the rest is read only"


@dataclass(frozen=True)
class Stretch:
    """Tokens that are alike: learnt or not, special or not; or how many are not shown."""

    text: str
    is_learnt: bool
    is_special: bool = False
    left_out: int = 0


def supports_colour() -> bool:
    """Whether standard output is a terminal that shows colours, and nobody asked for none (no-color.org)."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def samples_text(
    units: Sequence[Unit],
    tokenizer: Tokenizer,
    *,
    labels: Sequence[str] | None = None,
    colour: bool | None = None,
) -> str:
    """Units for a terminal, with ANSI colours where they are supported, else in brackets.

    With `labels` the one target of an example is a class, else each is the next token.
    """
    coloured = supports_colour() if colour is None else colour
    write = ansi if coloured else bracketed
    lines = [LEGEND if coloured else PLAIN_LEGEND]
    for number, unit in enumerate(units, 1):
        for part, example in enumerate(unit):
            lines.append(f"--- sample {number}{side(unit, part)}, {len(example.tokens):,} tokens")
            lines.append("".join(map(write, stretches(example, tokenizer, labels))))
            lines += [f"=> {visible(label)}" for label in label_of(example, labels)]
    return "\n".join(lines)


def samples_html(units: Sequence[Unit], tokenizer: Tokenizer, *, labels: Sequence[str] | None = None) -> str:
    """Units for a page: a fragment whose classes `samples.css` colours, in a light theme and a dark one."""
    return page(samples_json(units, tokenizer, labels=labels))


def samples_json(
    units: Sequence[Unit], tokenizer: Tokenizer, *, labels: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Units as a run's record keeps them, for `page`: plain data, so that no file holds a part of a page."""
    return [
        {
            "sample": number,
            "side": side(unit, part),
            "tokens": len(example.tokens),
            "stretches": [asdict(stretch) for stretch in stretches(example, tokenizer, labels)],
            "labels": [visible(label) for label in label_of(example, labels)],
        }
        for number, unit in enumerate(units, 1)
        for part, example in enumerate(unit)
    ]


def page(samples: Sequence[Mapping[str, Any]]) -> str:
    """What `samples_json` kept, as a fragment of a page; all of it is escaped."""
    english, chinese = map(escape, PAGE_LEGEND)
    legend = f'<p class="remark"><span lang="en">{english}</span><span lang="zh">{chinese}</span></p>'
    return f'{legend}<div class="samples loss">{"".join(map(article, samples))}</div>'


def article(sample: Mapping[str, Any]) -> str:
    """One sample on a page."""
    tokens = "".join(html(Stretch(**stretch)) for stretch in sample["stretches"])
    labels = "".join(f'<span class="learnt label">{escape(str(label))}</span>' for label in sample["labels"])
    count, number, better = f"{int(sample['tokens']):,}", int(sample["sample"]), str(sample["side"])
    english = f"{number}{escape(better)}: {count} tokens"
    chinese = f"{number}{SIDES.get(better, '')}：{count} 个词元"
    title = f'<span lang="en">{english}</span><span lang="zh">{chinese}</span>'
    return f'<article><p class="remark">{title}</p><pre>{tokens}{labels}</pre></article>'


def side(unit: Unit, part: int) -> str:
    """Which answer of a pair an example is."""
    return "" if len(unit) == 1 else tuple(SIDES)[part]


def label_of(example: Example, labels: Sequence[str] | None) -> list[str]:
    """The names of the classes among the targets."""
    targets = [target for target in example.targets if target != IGNORE] if labels is not None else []
    return [TEACHER_SAYS if target == UNKNOWN else (labels or ())[target] for target in targets]


def stretches(example: Example, tokenizer: Tokenizer, labels: Sequence[str] | None) -> Iterator[Stretch]:
    """An example cut where loss begins and ends, and around special tokens."""
    ids, learnt = shown_ids(example, labels)
    kinds = [(bool(flag), id in tokenizer.special_ids) for id, flag in zip(ids, learnt, strict=True)]
    at = 0
    for (flag, special), run in groupby(kinds):
        end = at + len(list(run))
        yield from shortened(ids[at:end], flag, special, tokenizer)
        at = end


def shown_ids(example: Example, labels: Sequence[str] | None) -> tuple[list[int], list[bool]]:
    """The ids of a text with which of them are learnt: targets are the next ids, unless they are classes.

    Of a span in a text it is what stands between its places.
    """
    ids = list(example.tokens)
    if labels is not None or example.places:
        first, last = example.places.get("start", 0), example.places.get("end", -1)
        inside = np.arange(len(ids))
        return ids, list((inside >= first) & (inside <= last) & (last > 0))
    learnt = [False, *(target != IGNORE for target in example.targets)]
    if learnt[-1]:
        return [*ids, example.targets[-1]], learnt
    return ids, learnt[:-1]


def shortened(ids: list[int], flag: bool, special: bool, tokenizer: Tokenizer) -> Iterator[Stretch]:
    """A run of tokens; of a long one without loss the two ends."""
    if flag or len(ids) <= LONGEST_RUN:
        yield Stretch(visible(tokenizer.decode(ids, special=True)), flag, special)
        return
    half = LONGEST_RUN // 2
    yield Stretch(visible(tokenizer.decode(ids[:half], special=True)), flag, special)
    yield Stretch("", flag, left_out=len(ids) - LONGEST_RUN)
    yield Stretch(visible(tokenizer.decode(ids[-half:], special=True)), flag, special)


def visible(text: str) -> str:
    """`text` with blanks shown, and control and direction characters spelt out."""
    return "".join(
        VISIBLE.get(c) or (f"\\u{ord(c):04x}" if unicodedata.category(c)[0] == "C" else c) for c in text
    )


def ansi(stretch: Stretch) -> str:
    """A stretch in colour."""
    if stretch.left_out:
        return f"{PLAIN} … {stretch.left_out:,} tokens … {OFF}"
    return f"{SPECIAL * stretch.is_special}{LEARNT if stretch.is_learnt else PLAIN}{stretch.text}{OFF}"


def bracketed(stretch: Stretch) -> str:
    """A stretch without colour."""
    if stretch.left_out:
        return f" … {stretch.left_out:,} tokens … "
    return f"⟦{stretch.text}⟧" if stretch.is_learnt else stretch.text


def html(stretch: Stretch) -> str:
    """A stretch for a page."""
    if stretch.left_out:
        return f'<span class="read"> … {int(stretch.left_out):,} … </span>'
    kind = f"{'learnt' if stretch.is_learnt else 'read'}{' special' * stretch.is_special}"
    return f'<span class="{kind}">{escape(str(stretch.text))}</span>'
