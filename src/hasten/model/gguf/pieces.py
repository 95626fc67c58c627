"""SentencePiece's BPE: characters, bytes to fall back on, and pairs joined in the order of scores.

llama.cpp joins the two neighbours whose joint piece has the highest score; a tokenizer.json joins the pair
that stands first in its list of merges.  Both do the same where the list has every pair that makes a piece,
piece after piece in the order of scores.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hasten.core.console import say
from hasten.core.errors import CheckpointError

Described = dict[str, Any]
SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def scores_of(described: Described, tokens: Sequence[str]) -> list[float]:
    """A score for each of `tokens`: minus the place of its first merge, single characters after them.

    Raises CheckpointError where no scores mean the same as the list of merges.
    """
    model = described["model"]
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    missing = [name for name in BYTES if name not in vocab]
    if missing:
        raise CheckpointError(f"the tokenizer falls back on bytes and has no token {missing[0]}; add all 256")
    places = dict[str, int]()
    for first, second in merges:
        places.setdefault(first + second, len(places))
    check_order(merges, places)
    check_closed(set(merges), places, vocab)
    last = len(places)
    return [float(-places.get(token, last + id)) for id, token in enumerate(tokens)]


def check_order(merges: Sequence[tuple[str, str]], places: Mapping[str, int]) -> None:
    """The merges that make one piece stand together."""
    order = [places[first + second] for first, second in merges]
    for (first, second), before, here in zip(merges[1:], order, order[1:], strict=False):
        if here < before:
            raise CheckpointError(
                f"the tokenizer's merge {first!r} {second!r} stands after merges of later pieces, which"
                " scores cannot say, and llama.cpp has only these for such a vocabulary; export to Hugging"
                " Face"
            )


def check_closed(merges: set[tuple[str, str]], places: Mapping[str, int], vocab: Mapping[str, int]) -> None:
    """Every pair that makes a piece is a merge."""
    for piece in places:
        for pair in halves(piece, vocab):
            if pair not in merges:
                raise CheckpointError(
                    f"the tokenizer never joins {pair[0]!r} and {pair[1]!r} to {piece!r}, and llama.cpp"
                    " would, which joins whatever makes a piece; export to Hugging Face"
                )


def halves(piece: str, vocab: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The ways to cut a piece in two pieces of the vocabulary."""
    for at in range(1, len(piece)):
        if piece[:at] in vocab and piece[at:] in vocab:
            yield piece[:at], piece[at:]


def begins_with_space(described: Described) -> bool:
    """Whether a space is put before every text; raises CheckpointError for another treatment of spaces."""
    normalizer, cut = described["normalizer"], described["pre_tokenizer"]
    if normalizer and normalizer["type"] == "Sequence" and len(normalizer["normalizers"]) == 1:
        normalizer = normalizer["normalizers"][0]
    idle = cut is None or (cut["type"] == "Split" and cut["pattern"] == {"String": " "})  # none is left
    if normalizer == {"type": "Sequence", "normalizers": [PREPEND, REPLACE]} and idle:
        return True
    if normalizer == REPLACE and idle:
        return False
    if normalizer is None and cut and cut["type"] == "Metaspace" and not cut["split"]:
        if cut["prepend_scheme"] != "never":
            say(
                "gguf: a text that begins with a space begins with two in llama.cpp, unlike in this tokenizer"
            )
        return bool(cut["prepend_scheme"] != "never")
    raise CheckpointError(
        "the tokenizer treats spaces in a way of its own (its normalizer and pre_tokenizer), which llama.cpp"
        " does not have for a vocabulary with bytes to fall back on"
    )


def describe_pieces(
    tokens: Sequence[str], scores: Sequence[float], joins: Sequence[bool], unknown: str
) -> Described:
    """The model of a tokenizer.json; `joins` tells the tokens that merging may make."""
    vocab = {token: id for id, token in enumerate(tokens)}
    parts = {token: id for id, token in enumerate(tokens) if joins[id]}
    made = [(-scores[id], id, pair) for token, id in parts.items() for pair in halves(token, parts)]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [list(pair) for _, _, pair in sorted(made)],
    }


def surroundings(space: bool) -> Described:
    """What stands around the model: spaces are written as a character, and come back."""
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    normalizers = [PREPEND, REPLACE] if space else [REPLACE]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [*decoders, {"type": "Fuse"}, *([STRIP] if space else [])],
        },
    }
