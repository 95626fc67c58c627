"""BERT's vocabulary (Devlin et al. 2019), the same from the same text every time.

The library numbers the letters in the order in which a hash table with a random seed gives its words, and
where two merges are equally frequent it takes the one with the smaller numbers.  So the letters are found
first and given to it in order, as if they were special tokens, which it numbers as they come.
"""

from collections import Counter
from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

UNKNOWN, CONTINUES = "[UNK]", "##"


def untrained(vocabulary: dict[str, int] | None = None) -> tokenizers.Tokenizer:
    """BERT's way from text to words; lower-case, without accents."""
    inner = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return inner


def train(
    pieces: Sequence[str], specials: Sequence[str], vocab_size: int, min_frequency: int
) -> tokenizers.Tokenizer:
    """At most `vocab_size` tokens, `specials` first, learnt from `pieces`.

    Rare characters beyond half of the vocabulary become [UNK]; words need the other half.
    """
    common = common_characters(pieces, vocab_size // 2)
    letters = learn(pieces, [], common, vocab_size=1)
    ordered = sorted(letters, key=lambda letter: (letter.startswith(CONTINUES), letter))
    vocabulary = learn(pieces, [*specials, *ordered], common, vocab_size, min_frequency)
    inner = untrained(vocabulary)
    inner.add_special_tokens(list(specials))
    return inner


def common_characters(pieces: Sequence[str], limit: int) -> list[str]:
    """The characters that are most frequent after normalisation, at most `limit`, ties by code point."""
    normalizer, counts = normalizers.BertNormalizer(), Counter[str]()
    for piece in pieces:
        counts.update(normalizer.normalize_str(piece))
    found = sorted((-count, letter) for letter, count in counts.items() if not letter.isspace())
    return [letter for _, letter in found[:limit]]


def learn(
    pieces: Sequence[str], first: Sequence[str], letters: list[str], vocab_size: int, min_frequency: int = 0
) -> dict[str, int]:
    """The library's vocabulary: `first`, then `letters` and their continuations as met, then merges."""
    inner = untrained()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(first),
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    inner.train_from_iterator(pieces, trainer)
    vocabulary: dict[str, int] = inner.get_vocab()
    return vocabulary
