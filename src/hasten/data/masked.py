"""What an encoder learns from: packed text in which some tokens are hidden.

A document stands in [CLS] ... [SEP], whatever the tokenizer calls them; one longer than a row is cut into
pieces that each do.  Which tokens are hidden is drawn anew each time a row is read: a pure function of the
seed and the number of the row in the run, so it is the same after a resume and on any number of ranks.
Letters: B rows, T tokens, N hidden tokens of a row at most, D documents, P pieces.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError
from hasten.data.config import MaskingConfig
from hasten.data.corpus import Corpus, Stream, plan
from hasten.data.examples import Ids, Places
from hasten.data.order import Integers, Order
from hasten.data.shards import Shards
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.words import WordStarts


@dataclass(frozen=True)
class Pieces:
    """Documents cut so that each piece, with the tokens that begin and end it, fits a row.

    Tokenizers with one token for both have it at the end alone.
    """

    shards: Shards
    content: int  # tokens of a piece at most, the added ones apart
    begins: bool  # whether a piece begins with a token of its own
    first: Integers  # [D + 1] number of each document's first piece

    @classmethod
    def cut(cls, shards: Shards, row_tokens: int, begins: bool) -> "Pieces":
        """The pieces of all documents for rows of `row_tokens`."""
        content = row_tokens - 1 - begins
        counts = np.maximum(-(-(shards.lengths - 2) // content), 1)
        return cls(shards, content, begins, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))

    @property
    def lengths(self) -> Integers:
        """[P] tokens of each piece, the added ones with it."""
        lengths = np.full(int(self.first[-1]), self.content, np.int64)
        rest = (self.shards.lengths - 2) - (np.diff(self.first) - 1) * self.content
        lengths[self.first[1:] - 1] = rest
        return lengths + 1 + self.begins

    def ids(self, piece: int, bos_id: int, eot_id: int) -> Ids:
        """A piece's tokens, the added ones with them."""
        document = self.document(piece)
        start = 1 + (piece - int(self.first[document])) * self.content
        last = piece == int(self.first[document + 1]) - 1
        inner = self.shards.ids(document, start, self.content)
        inner = (inner[:-1] if last and inner[-1:] == [eot_id] else inner).astype(np.int64)
        return np.concatenate([[bos_id] * self.begins, inner, [eot_id]]).astype(np.int64)

    def document(self, piece: int) -> int:
        """The document that a piece is of."""
        return int(np.searchsorted(self.first, piece, side="right")) - 1


@dataclass(frozen=True)
class MaskedStream(Stream):
    """One source, the pieces of its documents, and the plan of the rows that hold them."""

    pieces: Pieces


class MaskedCorpus(Corpus):
    """One split of prepared text in rows of T tokens, of which some have to be found out.

    A batch says in `extra["scored"]` [B x N] at which of its places b x T + t there are targets, the same
    number for every batch; a row with fewer repeats a place without a target.
    """

    def __init__(
        self,
        prepared: Path,
        split: str,
        row_tokens: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        *,
        tokenizer: Tokenizer,
        masking: MaskingConfig,
    ) -> None:
        """Plan the rows of `prepared`/`split`; raises DataError if there is nothing to read."""
        self.masking = Masking(tokenizer, masking, row_tokens)
        self.bos_id, self.eot_id = tokenizer.bos_id, tokenizer.eot_id
        super().__init__(prepared, split, row_tokens, seed, weights)
        self.pad_id = tokenizer.pad_id

    def open(self, name: str, shards: Shards, plans: Path) -> MaskedStream:
        """One source with the plan of its rows."""
        pieces = Pieces.cut(shards, self.row_tokens, self.bos_id != self.eot_id)
        return MaskedStream(name, shards, plan(pieces.lengths, self.row_tokens, plans), pieces)

    @property
    def head_share(self) -> float:
        """Share of the places in a row for which the model's head is asked."""
        return self.masking.most / self.row_tokens

    def read(self, order: Order, numbers: Integers, num_rows: int | None = None) -> Batch:
        """Rows [B] of `order` as a batch, with empty rows below up to `num_rows`."""
        count = num_rows or len(numbers)
        places = Places(count, self.row_tokens, self.pad_id)
        targets = np.full((count, self.row_tokens), IGNORE, np.int64)
        scored = np.zeros((count, self.masking.most), np.int64)
        names = dict[str, None]()
        rows = zip(*(found.tolist() for found in order.locate(numbers)), strict=True)
        for b, (source, row) in enumerate(rows):
            stream = self.streams[source]
            assert isinstance(stream, MaskedStream)
            for segment, (piece, start, length) in enumerate(stream.rows.pieces(row), 1):
                ids = stream.pieces.ids(piece, self.bos_id, self.eot_id)[start : start + length]
                places.put(b, segment, ids)
                names[stream.shards.name(stream.pieces.document(piece))] = None
            tokens = places.tokens[b]
            hidden = self.masking.choose(tokens, places.segments[b], self.generator(int(numbers[b])))
            targets[b, hidden.places] = tokens[hidden.places]
            tokens[hidden.places] = hidden.shown
            scored[b] = filled(hidden.places, targets[b], self.masking.most)
        scored += np.arange(count)[:, None] * self.row_tokens
        return Batch(
            torch.from_numpy(places.tokens),
            torch.from_numpy(targets),
            torch.from_numpy(places.segments),
            torch.from_numpy(places.positions),
            tuple(names),
            {"scored": torch.from_numpy(scored.reshape(-1))},
        )

    def generator(self, number: int) -> np.random.Generator:
        """Where a row's chances come from; `number` counts all rows of the run."""
        key = f"{self.seed} mask {number}".encode()
        return np.random.Generator(np.random.PCG64(xxhash.xxh3_128_intdigest(key)))

    @property
    def packed(self) -> bool:
        """Batches always come with segments."""
        return True


def filled(places: Integers, targets: Integers, count: int) -> Integers:
    """`places` made up to `count` with one that has no target; there is one wherever it is needed."""
    missing = count - len(places)
    spare = int((targets == IGNORE).argmax())
    return np.concatenate([places, np.full(missing, spare, np.int64)])


@dataclass(frozen=True)
class Hidden:
    """Places in a row, and what the model sees there."""

    places: Integers
    shown: Integers


class Masking:
    """Chooses what to hide: whole words, drawn until a share of the row's tokens is reached."""

    def __init__(self, tokenizer: Tokenizer, config: MaskingConfig, row_tokens: int) -> None:
        if tokenizer.mask_id is None:
            raise ConfigError(
                "the tokenizer has no mask token, which an encoder's training needs; write"
                " data.tokenizer.special_tokens=['<|mask|>'], or data.tokenizer.kind=wordpiece"
            )
        self.config, self.mask_id = config, tokenizer.mask_id
        self.most = max(round(config.share * row_tokens), 1)
        self.starts = WordStarts(tokenizer)
        self.special = np.zeros(tokenizer.vocab_size, bool)
        self.special[list(tokenizer.special_ids)] = True
        self.plain = np.flatnonzero(~self.special)  # what a random token is drawn from

    def choose(self, tokens: Integers, segments: Integers, draw: np.random.Generator) -> Hidden:
        """Places of a row [T] to predict, in order, and what stands there instead.

        Special tokens and padding are never chosen.  The budget is the share of the others, at most N; a word
        that it has no room for is passed over, as BERT's own data preparation does.
        """
        words = self.words(tokens, segments)
        usable = int(np.count_nonzero(words >= 0))
        budget = min(max(round(self.config.share * usable), 1), usable, self.most)
        sizes = np.bincount(words[words >= 0]) if usable else np.empty(0, np.int64)
        taken = np.zeros(len(sizes), bool)
        for word in draw.permutation(len(sizes)).tolist():
            if sizes[word] <= budget:
                taken[word], budget = True, budget - int(sizes[word])
            if not budget:
                break
        places = np.flatnonzero((words >= 0) & taken[words]) if usable else np.empty(0, np.int64)
        return Hidden(places, self.show(tokens[places], draw))

    def words(self, tokens: Integers, segments: Integers) -> Integers:
        """[T]: the number of each token's word, -1 for what is never hidden."""
        usable = (segments > 0) & ~self.special[tokens]
        # A piece may begin within a word: what is left of it is a word of its own, not the end of the last.
        begins = np.append(True, (segments[1:] != segments[:-1]) | ~usable[:-1])
        if self.config.whole_words:
            begins |= self.starts(tokens)
        else:
            begins[:] = True
        words = np.cumsum(begins & usable) - 1
        return np.where(usable, words, -1)

    def show(self, tokens: Integers, draw: np.random.Generator) -> Integers:
        """What the model sees in place of the chosen tokens [n]: the mask token, a random one, or itself."""
        chance = draw.random(len(tokens))
        random = self.plain[draw.integers(0, len(self.plain), len(tokens))]
        masked = np.where(chance < self.config.as_mask, self.mask_id, tokens)
        as_random = (chance >= self.config.as_mask) & (chance < self.config.as_mask + self.config.as_random)
        return np.where(as_random, random, masked)
