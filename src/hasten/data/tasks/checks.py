"""What can be wrong with examples as a model will read them, looked for before step 1.

Checks of rows, before anything is encoded, are in `record_checks.py`; these are of what became of the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hasten.core.batch import IGNORE
from hasten.data.tasks.findings import Finding, Part, listed, of
from hasten.data.tasks.protocol import Example, Record, TaskConfig, Unit
from hasten.tokenizer.tokenizer import Tokenizer

WRITTEN = ("chat", "preferences")
"""Tasks of a model that writes, and has to know when to stop."""
PROMPTS_LOOKED_AT = 1_000
MANY_LEFT_OUT = 0.5
"""Share of the rows from which on it stops a run that they are left out or cut."""
TAIL_TOKENS = 12
"""Of a prompt, that an example of drift shows."""


class Prompts(Protocol):
    """An encoding of a task whose model writes."""

    def prompts(self, records: Sequence[Record], most: int | None = None) -> list[list[int]]:
        """What generation reads before it gives each record's last answer."""
        ...


@dataclass(frozen=True)
class Examples:
    """All that is known once rows are encoded: splits by name, and what they were encoded with."""

    task: TaskConfig
    parts: Mapping[str, Part]
    tokenizer: Tokenizer
    row_tokens: int
    prompts: Prompts | None = None  # the encoding, of a task whose model writes

    def each(self) -> Iterator[tuple[str, Example]]:
        """(name of the row, example) of all splits."""
        for part in self.parts.values():
            for name, units in zip(part.names, part.units, strict=True):
                for unit in units if not isinstance(units, str) else ():
                    yield from ((name, example) for example in unit)


def example_findings(examples: Examples) -> list[Finding]:
    """Everything that can be said of encoded rows."""
    found = [truncated(examples), no_loss(examples)]
    if examples.task.kind in WRITTEN:
        found += ends(examples)
        if examples.prompts is not None:
            found.append(template_drift(examples, examples.prompts))
    return found


def truncated(examples: Examples) -> Finding:
    """How many rows were left out, by which rule, and how many were cut."""
    outcomes = [
        (name, units)
        for part in examples.parts.values()
        for name, units in zip(part.names, part.units, strict=True)
    ]
    gone, total = [name for name, units in outcomes if isinstance(units, str)], len(outcomes)
    rules = dict.fromkeys(units for _, units in outcomes if isinstance(units, str))
    by_rule = ", ".join(f"{rule} {sum(units == rule for _, units in outcomes):,}" for rule in rules)
    cut = [name for name, units in outcomes if not isinstance(units, str) and fills(units, examples)]
    said = [f"{of(len(gone), total, 'rows')} are left out ({by_rule}: {listed(gone)})"] if gone else []
    said += [f"{of(len(cut), total, 'rows')} are cut to fit a row ({listed(cut)})"] if cut else []
    if not said:
        return Finding("truncated", True, f"all {total:,} rows fit", stops=False)
    sentence = f"{', '.join(said)}; a larger data.row_tokens (now {examples.row_tokens:,}) keeps more"
    many = len(gone) + len(cut) > MANY_LEFT_OUT * total
    return Finding("truncated", False, sentence, tuple(gone + cut), stops=many)


def fills(units: Sequence[Unit], examples: Examples) -> bool:
    """Whether a row's units were cut: where that is allowed, one that fills its row to the last place was."""
    if getattr(examples.task, "too_long", None) != "cut":
        return False
    most = examples.row_tokens - examples.task.per_unit + 1
    return any(sum(len(example.tokens) for example in unit) >= most for unit in units)


def no_loss(examples: Examples) -> Finding:
    """Samples in which nothing is to be learnt."""
    number, without = 0, list[str]()
    for name, example in examples.each():
        number += 1
        if not example.places and not learnt(example).any():
            without.append(name)
    if not without:
        return Finding("no-loss", True, f"each of {number:,} samples has something to learn")
    sentence = (
        f"{of(len(without), number, 'samples')} have no token that carries loss ({listed(without)}); give an"
        " answer that is learnt (in conversations: weight 1), or take these rows out"
    )
    return Finding("no-loss", False, sentence, tuple(without))


def ends(examples: Examples) -> list[Finding]:
    """Whether every answer teaches the model to stop, and whether padding hides the token that does."""
    tokenizer = examples.tokenizer
    stop = ", ".join(repr(tokenizer.inner.id_to_token(id)) for id in sorted(tokenizer.end_ids))
    pad_ends = tokenizer.pad_id in tokenizer.end_ids
    number, endless, hidden = 0, list[str](), list[str]()
    for name, example in examples.each():
        runs = runs_of(learnt(example))
        number += bool(runs)
        open_ends = [last for _, last in runs if example.targets[last] not in tokenizer.end_ids]
        if open_ends:
            masked = pad_ends and any(end_is_hidden(example, last, tokenizer.end_ids) for last in open_ends)
            (hidden if masked else endless).append(name)
    return [endless_finding(endless, number, stop), hidden_finding(hidden, number, stop, pad_ends)]


def end_is_hidden(example: Example, last: int, end_ids: frozenset[int]) -> bool:
    """Whether the place behind an answer has an end that is no target; what comes last is not seen."""
    if last + 1 >= len(example.tokens):
        return False
    return last + 2 >= len(example.tokens) or example.tokens[last + 2] in end_ids


def endless_finding(endless: list[str], number: int, stop: str) -> Finding:
    """Answers whose last token with loss is none at which generation stops."""
    if not endless:
        return Finding("end-unsupervised", True, f"each answer ends with a learnt {stop}")
    sentence = (
        f"{of(len(endless), number, 'samples')} never teach the model to stop ({listed(endless)}): no answer"
        f" of theirs ends with {stop}, at which generation stops; let the template write {{{{ eos_token }}}}"
        " behind an answer, or choose another with data.task.template"
    )
    return Finding("end-unsupervised", False, sentence, tuple(endless))


def hidden_finding(hidden: list[str], number: int, stop: str, pad_ends: bool) -> Finding:
    """Answers whose end carries no loss because it is the token that fills rows."""
    if not pad_ends:
        return Finding("pad-is-end", True, f"padding is no token that ends a text ({stop})")
    if not hidden:
        return Finding("pad-is-end", True, f"padding is {stop}, and the end carries loss all the same")
    sentence = (
        f"padding is {stop}, which ends an answer, and was left out of the loss with it in"
        f" {of(len(hidden), number, 'samples')} ({listed(hidden)}); give the tokenizer a pad_token of its"
        " own, or set targets by place and not by token"
    )
    return Finding("pad-is-end", False, sentence, tuple(hidden))


def template_drift(examples: Examples, prompts: Prompts) -> Finding:
    """Whether what stands before a learnt answer is what generation reads before it answers."""
    rows = evenly(comparable(examples), PROMPTS_LOOKED_AT)
    read = prompts.prompts([record for _, record, _, _ in rows])
    drifted, shown = list[str](), list[str]()
    for (name, _, before, was_cut), prompt in zip(rows, read, strict=True):
        if list(before) != prompt and not (was_cut and len(prompt) > len(before)):
            drifted.append(name)
            shown.append(f"{name}: learnt behind {tail(before, examples)}, read is {tail(prompt, examples)}")
    if not drifted:
        return Finding(
            "template-drift", True, f"{len(rows):,} prompts are what generation reads, token by token"
        )
    sentence = (
        f"in {of(len(drifted), len(rows), 'samples')} the answer is learnt behind other tokens than"
        f" generation reads before it answers ({shown[0]}); let the template write the same with"
        " add_generation_prompt as before an answer, or choose another with data.task.template"
    )
    return Finding("template-drift", False, sentence, tuple(shown))


def comparable(examples: Examples) -> list[tuple[str, Record, Sequence[int], bool]]:
    """(name, record, ids before its last answer, whether it was cut) of rows whose last answer is learnt."""
    found = list[tuple[str, Record, Sequence[int], bool]]()
    for part in examples.parts.values():
        for name, record, units in zip(part.names, part.records, part.units, strict=True):
            if isinstance(units, str) or not last_is_learnt(record):
                continue
            example = units[-1][0]
            runs = runs_of(learnt(example))
            if runs:
                before = list(example.tokens[: runs[-1][0] + 1])
                found.append((name, record, before, fills(units, examples)))
    return found


def last_is_learnt(record: Record) -> bool:
    """Whether a record's last answer carries loss."""
    turns: list[dict[str, Any]] = record["chosen"] if "chosen" in record else record["messages"]
    return turns[-1].get("weight", 1) != 0


def tail(ids: Sequence[int], examples: Examples) -> str:
    """The end of a prompt, for a message."""
    return repr(examples.tokenizer.decode(list(ids[-TAIL_TOKENS:]), special=True))


def evenly(rows: list[Any], most: int) -> list[Any]:
    """At most so many of the rows, from all parts of them alike."""
    return rows if len(rows) <= most else [rows[n * len(rows) // most] for n in range(most)]


def learnt(example: Example) -> NDArray[np.bool_]:
    """Which places [n] of an example have a target."""
    return np.asarray(example.targets, np.int64) != IGNORE


def runs_of(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(first, last) place of each run of true ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True)]
