"""Guesses from counts, against counts by hand."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.data.shards import Shards, ShardWriter
from hasten.evaluate.neighbours import Commonest, Guesses, counted

BEGIN, END, MASK = 0, 1, 2
texts = st.lists(st.lists(st.integers(2, 6), max_size=12), min_size=1, max_size=8)


def by_hand(documents: list[list[int]], left: int, right: int) -> tuple[set[int], set[int], set[int]]:
    """The commonest tokens in each context: several where they are equally common."""
    windows = [w for d in documents for w in zip(d, d[1:], d[2:], strict=False) if w[1] != MASK]

    def best(tokens: list[int]) -> set[int]:
        counts = Counter(tokens)
        return {token for token, count in counts.items() if count == max(counts.values())}

    unigram = best([token for _, token, _ in windows])
    bigram = best([token for before, token, _ in windows if before == left]) or unigram
    both = best([t for before, t, after in windows if (before, after) == (left, right)]) or bigram
    return unigram, bigram, both


@settings(max_examples=60, deadline=None)
@given(texts=texts, left=st.integers(0, 6), right=st.integers(0, 6))
def test_guesses_are_the_commonest_tokens_of_what_was_counted(texts, left, right):
    documents = [[BEGIN, *text, END] for text in texts]
    if not any(token != MASK for text in texts for token in text):
        return
    guesses = Guesses([np.array(d) for d in documents], 7, frozenset({BEGIN, END, MASK}))
    found = guesses.guess(np.array([left]), np.array([right]))
    for guess, expected in zip(found.values(), by_hand(documents, left, right), strict=True):
        assert int(guess[0]) in expected


def test_of_equally_common_tokens_the_smallest_is_taken_every_time():
    contexts, tokens = np.array([5, 5, 5, 5, 9]), np.array([8, 3, 8, 3, 1])
    commonest = Commonest.count(contexts, tokens)
    assert commonest.guess(np.array([5, 9, 7]), np.array([0, 0, 4])).tolist() == [3, 1, 4]


def test_of_much_text_an_even_part_is_counted(tmp_path):
    writer = ShardWriter("text", 100, bos_id=BEGIN, eot_id=END)
    for number in range(10):
        writer.add(str(number), [10 + number] * 8, 8)
    writer.write(tmp_path / "text-00000.safetensors")
    shards = {"text": Shards([tmp_path / "text-00000.safetensors"])}
    assert [int(ids[1]) for ids in counted(shards)] == list(range(10, 20))
    assert [int(ids[1]) for ids in counted(shards, most=34)] == [10, 13, 16, 19]
