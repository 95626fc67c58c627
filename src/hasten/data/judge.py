"""Over all parts together: which documents repeat others, and what was dropped in all."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hasten.data.config import DataConfig
from hasten.data.dedup import BANDS, LEAST_WORDS, Numbers, Rows, first_equal, near_duplicates
from hasten.data.stage import BAND_KEYS, DIGESTS, LENGTHS, SIGNATURES, SIZES, Part
from hasten.data.tally import EXAMPLES, Tally

EXACT, NEAR = "exact duplicate", "near-duplicate"


@dataclass(frozen=True)
class Judgement:
    """D documents in order of their parts, held-out sources first: of equal documents the first stays."""

    parts: list[Part]
    config: DataConfig

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        """[D]: whether a document stays whatever it repeats: what to test on is not ours to thin out."""
        return np.concatenate([np.full(part.documents, part.split != "train") for part in self.parts])

    @cached_property
    def equal(self) -> Numbers:
        """[D]: the first document with the same text, often the document itself."""
        digests = np.concatenate([part.array(DIGESTS) for part in self.parts])
        numbers = np.arange(len(digests))
        return (
            np.where(self.held_out, numbers, first_equal(digests))
            if self.config.exact_duplicates
            else numbers
        )

    @cached_property
    def alike(self) -> Numbers:
        """[D]: the first document of a group of near-duplicates, often the document itself."""
        numbers = np.arange(len(self.equal))
        if self.config.near_duplicates is None:
            return numbers
        lengths = np.concatenate([part.array(LENGTHS) for part in self.parts])
        alive = (self.equal == numbers) & (lengths >= LEAST_WORDS)
        keys = (np.concatenate([part.array(BAND_KEYS)[band] for part in self.parts]) for band in range(BANDS))
        signed = Rows([part.array(SIGNATURES) for part in self.parts])
        return near_duplicates(keys, signed, alive, self.config.near_duplicates, self.held_out)

    def keep(self) -> list[NDArray[np.bool_]]:
        """For each part [its documents]: whether they stay."""
        numbers = np.arange(len(self.equal))
        stays = (self.equal == numbers) & (self.alike == numbers)
        return np.split(stays, np.cumsum([part.documents for part in self.parts])[:-1])

    def tally(self) -> Tally:
        """What all rules dropped, duplicates included."""
        tally = Tally()
        for part in self.parts:
            tally.add(part.tally)
        sizes = np.concatenate([part.array(SIZES) for part in self.parts])
        for rule, first in (EXACT, self.equal), (NEAR, self.alike):
            gone = np.flatnonzero(first != np.arange(len(first)))
            texts = self.look_up({*gone[:EXAMPLES].tolist(), *first[gone[:EXAMPLES]].tolist()})
            for number in gone[:EXAMPLES].tolist():
                name, text = texts[number]
                tally.drop(rule, name, text, f"like {texts[int(first[number])][0]}")
            if len(gone):
                tally.dropped[rule].documents, tally.dropped[rule].bytes = len(gone), int(sizes[gone].sum())
        return tally

    def look_up(self, numbers: set[int]) -> dict[int, tuple[str, str]]:
        """{number: (name, text)} of a few documents."""
        found: dict[int, tuple[str, str]] = {}
        first = 0
        for part in self.parts:
            if numbers & set(range(first, first + part.documents)):
                texts = enumerate(part.texts(), first)
                found |= {number: entry for number, entry in texts if number in numbers}
            first += part.documents
        return found
