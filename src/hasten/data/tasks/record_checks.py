"""What can be wrong with rows whatever the tokenizer: labels, rows that come twice, rows that leak."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import xxhash

from hasten.core.errors import did_you_mean
from hasten.data.tasks.findings import Finding, Name, Part, Rows, asked, excerpt, listed, of, said
from hasten.data.tasks.likeness import LEAST_CHARACTERS, bare, near, same
from hasten.data.tasks.protocol import Record, TaskConfig

MANY_DUPLICATES, MANY_CONFLICTS = 0.05, 0.01
"""Shares of the rows from which on they stop a run: a few are in every data set."""
RARE_SHARE, FEWEST_LETTERS = 0.02, 4
"""A label this much rarer than another that is spelt almost as it, both of so many letters, is a slip."""
SHOWN_LABELS = 12


def record_findings(rows: Rows) -> list[Finding]:
    """Everything that can be said before a row is encoded."""
    found = [labels(rows), duplicates(rows), conflicts(rows), leak(rows), empty(rows)]
    return [finding for finding in found if finding is not None]


def labels(rows: Rows) -> Finding | None:
    """How many rows each label has; labels that are unknown, or look like a slip of the pen."""
    counts = Counter(label for label in map(label_of, rows.training.records) if label is not None)
    if not counts:
        return None
    problems, names = list[str](), list[str]()
    known = rows.learnt.get("labels") or list(counts)
    for split, part in rows.held_out.items():
        for label, where in unknown(part, known).items():
            near_one = did_you_mean(label, known)
            problems.append(
                f"{split} has the label {label!r}, which training has not ({listed(where)}).{near_one}"
            )
            names += where
    for rare, frequent in slips(counts):
        where = [
            name
            for name, record in zip(rows.training.names, rows.training.records, strict=True)
            if label_of(record) == rare
        ]
        problems.append(
            f"{rare!r} ({counts[rare]:,} rows: {listed(where)}) looks like a slip for {frequent!r}"
            f" ({counts[frequent]:,} rows)"
        )
        names += where
    without = len(rows.training.records) - counts.total()
    distribution = shares(counts) + (f", without a label {without:,}" if without else "")
    if not problems:
        return Finding("labels", True, distribution)
    ending = "mend the labels, or list those that are meant in data.task.labels"
    return Finding("labels", False, f"{'; '.join(problems)}; {ending}", (distribution, *names))


def label_of(record: Record) -> str | None:
    """A record's label, of those that have one."""
    return None if record.get("label") is None else str(record["label"])


def unknown(part: Part, known: Sequence[str]) -> dict[str, list[str]]:
    """{label that is not known: the rows with it}."""
    found = defaultdict[str, list[str]](list)
    for name, record in zip(part.names, part.records, strict=True):
        label = label_of(record)
        if label is not None and label not in known:
            found[label].append(name)
    return dict(found)


def shares(counts: Mapping[str, int]) -> str:
    """`positive 52% (3,610), negative 48% (3,307)`, the most frequent first."""
    total, ranked = sum(counts.values()), sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [
        f"{excerpt(label, 30)} {count / total:.0%} ({count:,})" for label, count in ranked[:SHOWN_LABELS]
    ]
    rest = f" and {len(ranked) - SHOWN_LABELS} more" if len(ranked) > SHOWN_LABELS else ""
    return f"training: {', '.join(parts)}{rest}"


def slips(counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """(rare label, the frequent one that it is a slip for)."""
    for rare, count in counts.items():
        frequent = [other for other, n in counts.items() if count <= max(1, RARE_SHARE * n) and n > count]
        slip = next((other for other in frequent if is_slip(rare, other)), None)
        if slip is not None:
            yield rare, slip


def is_slip(one: str, other: str) -> bool:
    """Whether two labels are the same but for case, blanks or signs, or for one letter.

    Digits are never slips: `class 1` is not `class 2`.
    """
    if bare(one) == bare(other):
        return True
    if min(len(one), len(other)) < FEWEST_LETTERS or digits(one) != digits(other):
        return False
    return one_edit_apart(one.lower(), other.lower())


def digits(text: str) -> str:
    """The digits in a text."""
    return "".join(filter(str.isdigit, text))


def one_edit_apart(one: str, other: str) -> bool:
    """Whether a letter put in, left out or changed, or two neighbours swapped, make one of the other."""
    if len(one) > len(other):
        one, other = other, one
    start = next((n for n in range(len(one)) if one[n] != other[n]), len(one))
    if len(one) != len(other):
        return one[start:] == other[start + 1 :]
    swapped = (
        one[start : start + 2] == other[start : start + 2][::-1] and one[start + 2 :] == other[start + 2 :]
    )
    return one[start + 1 :] == other[start + 1 :] or swapped


def left_out(rows: Rows, rules: Collection[str]) -> dict[str, Name]:
    """{training row: the rule by which it has to go}, so that the checks of these names find nothing more.

    Of equal rows the first stays, of those that contradict each other none, of those that leak none.
    """
    gone = dict[str, Name]()
    if "leak" in rules:
        gone |= {found.training: "leak" for found in leaks(rows)}
    if "conflicts" in rules:
        contested = (told.values() for told in opinions(rows).values() if len(told) > 1)
        gone |= {name: "conflicts" for sides in contested for names in sides for name in names}
    if "duplicates" in rules:
        gone |= {name: "duplicates" for name, first in repetitions(rows) if gone.get(first) is None}
    return gone


def duplicates(rows: Rows) -> Finding:
    """Training rows that say the same twice."""
    again, total = [f"{name} = {first}" for name, first in repetitions(rows)], len(rows.training.records)
    if not again:
        return Finding("duplicates", True, f"no row of training comes twice ({total:,} rows)", stops=False)
    sentence = (
        f"{of(len(again), total, 'training rows')} say again what another says ({listed(again)}); they count"
        " as often as they come: data.leave_out: [duplicates] keeps one of each"
    )
    return Finding("duplicates", False, sentence, tuple(again), stops=len(again) > MANY_DUPLICATES * total)


def repetitions(rows: Rows) -> Iterator[tuple[str, str]]:
    """(training row, the first one that says the same)."""
    first = dict[int, str]()
    for name, record in zip(rows.training.names, rows.training.records, strict=True):
        before = first.setdefault(digest(asked(record, rows.task), *said(record)), name)
        if before != name:
            yield name, before


def conflicts(rows: Rows) -> Finding | None:
    """Training rows with the same text and another label, or with a preference the other way round."""
    total = len(rows.training.records)
    if not any("label" in record or "chosen" in record for record in rows.training.records):
        return None
    against = [f"{name} against {other}" for name, other in contradictions(rows)]
    if not against:
        return Finding(
            "conflicts", True, f"no training rows contradict each other ({total:,} rows)", stops=False
        )
    sentence = (
        f"{of(len(against), total, 'training rows')} give the same text another label, or prefer the other of"
        f" the same answers ({listed(against)}); decide which is right, or leave both out:"
        " data.leave_out: [conflicts]"
    )
    return Finding("conflicts", False, sentence, tuple(against), stops=len(against) > MANY_CONFLICTS * total)


def contradictions(rows: Rows) -> Iterator[tuple[str, str]]:
    """(training row, an earlier one that says otherwise), of rows with labels or preferences."""
    for told in opinions(rows).values():
        names = [(name, said) for said, several in told.items() for name in several]
        first = names[0]
        yield from ((name, first[0]) for name, said in names if said != first[1])


def opinions(rows: Rows) -> dict[int, dict[tuple[str, ...], list[str]]]:
    """For what training rows are about: {what they say of it: their names}, of labels and preferences."""
    found = defaultdict[int, dict[tuple[str, ...], list[str]]](lambda: defaultdict(list))
    for name, record in zip(rows.training.names, rows.training.records, strict=True):
        if "label" in record or "chosen" in record:
            answers = sorted(said(record)) if "chosen" in record else ()
            found[digest(asked(record, rows.task), *answers)][said(record)].append(name)
    return found


@dataclass(frozen=True)
class Leak:
    """A held-out row that a training row holds: names of both, and how alike they are."""

    kind: Literal["equal", "near"]
    split: str
    held_out: str
    training: str


def leak(rows: Rows) -> Finding | None:
    """Held-out rows that are in training."""
    total = sum(len(part.records) for part in rows.held_out.values())
    if not total:
        return None
    groups = defaultdict[str, dict[str, str]](dict)
    for found in leaks(rows):
        pair = f"{found.held_out} is in {found.training}"
        groups[f"{found.kind} in {found.split}"].setdefault(found.held_out, pair)
    if not groups:
        return Finding("leak", True, f"none of {total:,} held-out rows is in training, nor nearly")
    parts = [f"{len(met):,} {what} ({listed(list(met.values()))})" for what, met in groups.items()]
    sentence = (
        f"of {total:,} held-out rows training holds {', '.join(parts)}; the score would be too good:"
        " data.leave_out: [leak] takes these rows out of training"
    )
    return Finding("leak", False, sentence, tuple(pair for met in groups.values() for pair in met.values()))


def leaks(rows: Rows) -> Iterator[Leak]:
    """Every pair of a held-out row and a training row that holds it; a pair that is equal is not near too."""
    for split, part in rows.held_out.items():
        equal = set[tuple[int, int]]()
        for one, other in equals(rows.training, part, rows.task):
            equal.add((one, other))
            yield Leak("equal", split, part.names[other], rows.training.names[one])
        texts = [all_text(record, rows.task) for record in part.records]
        training = (all_text(record, rows.task) for record in rows.training.records)
        for one, other, _ in near(training, texts):
            if (one, other) not in equal:
                yield Leak("near", split, part.names[other], rows.training.names[one])


def equals(training: Part, part: Part, task: TaskConfig) -> Iterator[tuple[int, int]]:
    """(number in training, number in `part`) of rows that ask the same, or say the same in all."""
    held = defaultdict[int, list[int]](list)
    for number, record in enumerate(part.records):
        for key in keys(record, task):
            held[key].append(number)
    for number, record in enumerate(training.records):
        yield from (
            (number, other) for other in sorted({o for key in keys(record, task) for o in held.get(key, ())})
        )


def keys(record: Record, task: TaskConfig) -> set[int]:
    """What equal rows have in common; nothing of a row too short to mean anything."""
    texts = {"asked": bare(asked(record, task)), "all": bare(all_text(record, task))}
    return {digest(kind, text) for kind, text in texts.items() if len(text) >= LEAST_CHARACTERS}


def all_text(record: Record, task: TaskConfig) -> str:
    """All text of a record."""
    return "\n".join(task.texts(record))


def empty(rows: Rows) -> Finding:
    """Rows in which nothing is asked."""
    nothing = [
        name
        for part in rows.parts.values()
        for name, record in zip(part.names, part.records, strict=True)
        if not asked(record, rows.task).strip()
    ]
    total = sum(len(part.records) for part in rows.parts.values())
    if not nothing:
        return Finding("empty", True, f"each of {total:,} rows has text", stops=False)
    sentence = (
        f"{of(len(nothing), total, 'rows')} ask nothing ({listed(nothing)}); fill them or take them out"
    )
    return Finding("empty", False, sentence, tuple(nothing), stops=False)


def digest(*texts: str) -> int:
    """64 bits for texts, case, blanks and Unicode form aside."""
    return xxhash.xxh3_64_intdigest("\x1f".join(map(same, texts)).encode("utf-8", "surrogatepass"))
