"""Examples in memory-mapped files, one for each part of the data, as shards are for documents.

A table is a safetensors file with these arrays, little-endian.  Letters: N tokens, E examples, R records.

    tokens         [N]      uint32   all examples, one after the other
    targets        [N]      int32    what is to be said at each place, IGNORE where nothing is
    types          [N]      uint8    token types, 0 where there are none
    bounds         [E + 1]  uint64   example e is tokens[bounds[e] : bounds[e + 1]]
    records        [E]      uint64   the record that an example is of
    text_bytes     [R]      uint64   UTF-8 bytes of each record's text
    names          [...]    uint8    the records' names, one after the other, UTF-8
    name_bounds    [R + 1]  uint64   name r is names[name_bounds[r] : name_bounds[r + 1]]
    place.NAME     [E]      int64    a place in each example, -1 for none
    value.NAME     [E]      int64    a number of each example
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.core.batch import IGNORE
from hasten.core.errors import DataError
from hasten.data.shards import (
    NOTE,
    SUFFIX,
    Arrays,
    bounds,
    check_bounds,
    damaged,
    mapped,
    read_header,
    write_arrays,
)
from hasten.data.tasks.protocol import Example, Unit

Integers = NDArray[np.int64]
PLACE, VALUE = "place.", "value."
FIXED: Arrays = {
    "tokens": {"U32"},
    "targets": {"I32"},
    "types": {"U8"},
    "bounds": {"U64"},
    "records": {"U64"},
    "text_bytes": {"U64"},
    "names": {"U8"},
    "name_bounds": {"U64"},
    f"{PLACE}*": {"I64"},
    f"{VALUE}*": {"I64"},
}


@dataclass
class TableWriter:
    """Collects the units of one part's records in memory and writes them as one table."""

    source: str
    per_unit: int
    examples: list[Example] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)

    def add(self, name: str, units: Sequence[Unit], text_bytes: int) -> None:
        """Append the units of the record `name`."""
        for unit in units:
            assert len(unit) == self.per_unit
            self.examples += unit
            self.records += [len(self.names)] * len(unit)
        self.names.append(name.encode())
        self.text_bytes.append(text_bytes)

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return sum(len(example.tokens) for example in self.examples)

    def write(self, path: Path) -> None:
        """Make the table appear at `path`, whole.  Equal records give equal bytes."""
        arrays = {
            "tokens": joined((example.tokens for example in self.examples), "<u4"),
            "targets": joined((example.targets for example in self.examples), "<i4"),
            "types": joined((example.types or [0] * len(example.tokens) for example in self.examples), "<u1"),
            "bounds": bounds(len(example.tokens) for example in self.examples),
            "records": np.array(self.records, "<u8"),
            "text_bytes": np.array(self.text_bytes, "<u8"),
            "names": np.frombuffer(b"".join(self.names), "<u1"),
            "name_bounds": bounds(len(name) for name in self.names),
            **self.columns(),
        }
        typed = any(example.types is not None for example in self.examples)
        write_arrays(path, arrays, {"source": self.source, "per_unit": self.per_unit, "typed": typed})

    def columns(self) -> dict[str, NDArray[Any]]:
        """Named places and numbers, [E] each, -1 for an example that has none."""
        names = {f"{PLACE}{name}" for example in self.examples for name in example.places}
        names |= {f"{VALUE}{name}" for example in self.examples for name in example.values}
        columns: dict[str, list[int]] = defaultdict(list)
        for name in sorted(names):
            kind, _, key = name.partition(".")
            for example in self.examples:
                held = example.places if kind == "place" else example.values
                columns[name].append(held.get(key, -1))
        return {name: np.array(numbers, "<i8") for name, numbers in columns.items()}


def joined(parts: Iterable[Sequence[int]], dtype: str) -> NDArray[Any]:
    """All numbers of all parts, [N]."""
    return np.concatenate([np.empty(0, dtype), *(np.asarray(part, dtype) for part in parts)])


class Table:
    """The tables of one source, addressed as one run of E examples; DataError where a file is damaged."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.parts = [Part(path) for path in paths]
        self.first = np.cumsum([0, *(part.num_examples for part in self.parts)])  # [parts + 1]
        self.first_record = np.cumsum([0, *(len(part.text_bytes) for part in self.parts)])
        self.per_unit = self.parts[0].per_unit
        self.typed = any(part.typed for part in self.parts)

    @property
    def num_examples(self) -> int:
        """E."""
        return int(self.first[-1])

    @property
    def num_units(self) -> int:
        """Examples, or pairs of examples, that stay together."""
        return self.num_examples // self.per_unit

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all records' text."""
        return sum(int(part.text_bytes.sum()) for part in self.parts)

    @cached_property
    def lengths(self) -> Integers:
        """[E] tokens of each example."""
        return np.concatenate(
            [np.empty(0, np.int64), *(np.diff(p.bounds.astype(np.int64)) for p in self.parts)]
        )

    @cached_property
    def num_supervised(self) -> Integers:
        """[E] targets of each example that are not IGNORE."""
        return np.concatenate([np.empty(0, np.int64), *(part.num_supervised for part in self.parts)])

    @cached_property
    def columns(self) -> dict[str, Integers]:
        """{`place.NAME` or `value.NAME`: [E]}, -1 for an example that has none."""
        names = sorted({name for part in self.parts for name in part.columns})
        return {name: np.concatenate([part.column(name) for part in self.parts]) for name in names}

    def example(self, number: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Tokens, targets and types [n] each of an example."""
        if not 0 <= number < self.num_examples:
            raise IndexError(f"example {number} of {self.num_examples}")
        which = int(np.searchsorted(self.first, number, side="right")) - 1
        return self.parts[which].example(number - int(self.first[which]))

    @cached_property
    def record(self) -> Integers:
        """[E] the number of the record that each example is of."""
        parts = zip(self.parts, self.first_record.tolist(), strict=False)
        return np.concatenate(
            [np.empty(0, np.int64), *(p.records.astype(np.int64) + first for p, first in parts)]
        )

    def name(self, number: int) -> str:
        """Where the record of an example came from."""
        which = int(np.searchsorted(self.first, number, side="right")) - 1
        part = self.parts[which]
        return part.name(int(part.records[number - int(self.first[which])]))


class Part:
    """One table file, memory-mapped and checked."""

    def __init__(self, path: Path) -> None:
        header, start = read_header(path, FIXED)
        note = header.pop("__metadata__")[NOTE]
        self.path, self.source = path, note["source"]
        self.per_unit, self.typed = note.get("per_unit"), bool(note.get("typed"))
        arrays = {name: mapped(path, entry, start) for name, entry in header.items()}
        self.columns = {name: array for name, array in arrays.items() if name.startswith((PLACE, VALUE))}
        self.tokens, self.targets, self.types = (arrays[name] for name in ("tokens", "targets", "types"))
        self.bounds, self.records, self.text_bytes = (
            arrays[name] for name in ("bounds", "records", "text_bytes")
        )
        self.names, self.name_bounds = arrays["names"], arrays["name_bounds"]
        self.check()

    def check(self) -> None:
        """Refuse arrays that do not fit together."""
        check_bounds(self.path, "bounds", self.bounds, len(self.tokens), self.num_examples)
        check_bounds(self.path, "name_bounds", self.name_bounds, len(self.names), len(self.text_bytes))
        for array in (self.targets, self.types):
            if len(array) != len(self.tokens):
                raise damaged(self.path, f"{len(array):,} targets or types for {len(self.tokens):,} tokens")
        for array in self.columns.values():
            if len(array) != self.num_examples:
                raise damaged(self.path, f"a column of {len(array):,} for {self.num_examples:,} examples")
        if self.num_examples and int(self.records.max()) >= len(self.text_bytes):
            raise damaged(self.path, "an example is of a record that is not there")
        if self.per_unit not in (1, 2) or self.num_examples % self.per_unit:
            raise damaged(self.path, f"{self.num_examples:,} examples in units of {self.per_unit}")

    @property
    def num_examples(self) -> int:
        """E."""
        return len(self.records)

    @property
    def num_supervised(self) -> Integers:
        """[E] targets of each example that are not IGNORE."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.targets != IGNORE)])
        return np.diff(ends[self.bounds.astype(np.int64)])

    def column(self, name: str) -> Integers:
        """[E] of a column, -1 where this part has none of the name."""
        found = self.columns.get(name)
        return np.full(self.num_examples, -1) if found is None else found.astype(np.int64)

    def example(self, index: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Tokens, targets and types [n] each."""
        span = slice(int(self.bounds[index]), int(self.bounds[index + 1]))
        return self.tokens[span], self.targets[span], self.types[span]

    def name(self, record: int) -> str:
        """Where a record came from."""
        start, stop = self.name_bounds[record : record + 2]
        return self.names[int(start) : int(stop)].tobytes().decode(errors="replace")


def open_tables(folder: Path) -> dict[str, Table]:
    """{source name: its table} of one split's folder, sources in the order of their files."""
    paths: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        paths.setdefault(Part(path).source, []).append(path)
    if not paths:
        raise DataError(f"{folder}: holds no examples; run `hasten prepare` again, or ask for another split")
    return {source: Table(files) for source, files in paths.items()}
