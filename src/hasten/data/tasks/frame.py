"""The special tokens that stand around one text or two: `[CLS] a [SEP] b [SEP]`, or whatever a model reads.

They are those that the tokenizer's own template adds, as `transformers` calls it.  A tokenizer without one
gets BERT's order for an encoder; for a decoder texts stay as they are.  Where a template puts nothing between
two texts, the token that ends a text stands there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tokenizers

from hasten.core.errors import DataError
from hasten.data.tasks.protocol import ModelKind
from hasten.tokenizer.tokenizer import Tokenizer


class Marks(NamedTuple):
    """Special tokens next to each other, and the type of each."""

    tokens: tuple[int, ...] = ()
    types: tuple[int, ...] = ()


@dataclass(frozen=True)
class Frame:
    """What stands before a text, between it and a second one, and behind; and the types of the texts."""

    before: Marks
    between: Marks
    after: Marks
    first_type: int = 0
    second_type: int = 0

    @property
    def size(self) -> int:
        """How many tokens are added."""
        return len(self.before.tokens) + len(self.between.tokens) + len(self.after.tokens)

    def tokens(self, first: Sequence[int], second: Sequence[int] = ()) -> list[int]:
        """The texts within their special tokens: [size + texts]."""
        return [*self.before.tokens, *first, *self.between.tokens, *second, *self.after.tokens]

    def types(self, first: int, second: int = 0) -> list[int]:
        """The type of each of `tokens`, for texts of so many tokens."""
        one, two = [self.first_type] * first, [self.second_type] * second
        return [*self.before.types, *one, *self.between.types, *two, *self.after.types]

    def second_place(self, first: int) -> int:
        """Where the second text begins, behind a first one of so many tokens."""
        return len(self.before.tokens) + first + len(self.between.tokens)


def frame_of(tokenizer: Tokenizer, reads: ModelKind, *, pair: bool) -> Frame:
    """The frame of single texts, or of pairs; DataError for a template that does more than add tokens."""
    first, second = tokenizer.encode_batch(["a", "b"])
    whole = tokenizer.inner.encode("a", "b" if pair else None)
    added = len(whole.ids) - len(first) - pair * len(second)
    if not added:
        return plain(tokenizer, reads, pair)
    frame = cut(whole, pair)
    if frame is None or frame.size != added:
        raise DataError(
            "the tokenizer's template (post_processor) does not keep texts whole and in order, and cannot be"
            " followed; take the tokenizer.json that came with the model"
        )
    if pair and not frame.between.tokens:
        return Frame(
            frame.before, Marks((tokenizer.eot_id,), (0,)), frame.after, frame.first_type, frame.second_type
        )
    return frame


def cut(whole: tokenizers.Encoding, pair: bool) -> Frame | None:
    """The parts of two texts (or one) with their special tokens; None where they are not in order."""
    owners, ids, types = whole.sequence_ids, whole.ids, whole.type_ids
    wanted = (0, 1) if pair else (0,)
    if any(owner not in owners for owner in wanted):
        return None
    spans = [(owners.index(owner), len(owners) - owners[::-1].index(owner)) for owner in wanted]
    (start, stop), (begin, end) = spans[0], spans[-1]
    if pair and begin < stop:
        return None

    def marks(low: int, high: int) -> Marks:
        return Marks(tuple(ids[low:high]), tuple(types[low:high]))

    between = marks(stop, begin) if pair else Marks()
    return Frame(marks(0, start), between, marks(end, len(ids)), types[start], types[begin])


def plain(tokenizer: Tokenizer, reads: ModelKind, pair: bool) -> Frame:
    """The frame where a tokenizer has no template."""
    end = Marks((tokenizer.eot_id,), (0,))
    between = end if pair else Marks()
    if reads != "encoder":
        return Frame(Marks(), between, Marks())
    after = Marks(end.tokens, (int(pair),))
    return Frame(Marks((tokenizer.bos_id,), (0,)), between, after, second_type=int(pair))
