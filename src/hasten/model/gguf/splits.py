"""How a byte-level tokenizer cuts text before it merges, and what llama.cpp calls that: `tokenizer.ggml.pre`.

llama.cpp has the patterns in its code and a file only their name, so a pattern without a name cannot travel.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from hasten.core.console import say
from hasten.core.errors import CheckpointError
from hasten.tokenizer.files import GPT2_PATTERN, parse

Described = dict[str, Any]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern inside the tokenizers library's `ByteLevel`; hasten's spelling of it means the same."""
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
THREES = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST
ONES = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST
DIGIT = r"\p{N}"
SAME = {GPT2_PATTERN: GPT2, r"\d": DIGIT}


@dataclass(frozen=True)
class Split:
    """Patterns that cut one after the other, and whether a piece that is a token is not merged at all."""

    steps: tuple[str, ...]
    whole_pieces: bool = False
    begins: bool = False
    """Whether texts begin with a token of their own where a file does not say."""


SPLITS = {
    "gpt-2": Split((GPT2,)),
    "smollm": Split((DIGIT, GPT2)),
    "llama-bpe": Split((THREES,), whole_pieces=True, begins=True),
    "dbrx": Split((THREES,)),
    "qwen2": Split((ONES,)),
}
ALIASES = {
    "phi-2": "gpt-2", "mpt": "gpt-2", "olmo": "gpt-2", "jais": "gpt-2", "modern-bert": "gpt-2",
    "starcoder": "smollm", "refact": "smollm", "command-r": "smollm", "codeshell": "smollm",
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe",
    "smaug-bpe": "dbrx", "stablelm2": "qwen2", "deepseek-r1-qwen": "qwen2", "megrez": "qwen2",
}  # fmt: skip
"""Names that llama.cpp treats like another."""

PROBE = """Once upon a time, there was a little girl named Lily; she'd found 3 shells and 12 stones.
"Don't go," said Tom's mother in 1984. It cost $1,299.99 (about 250 euros)...

def area(radius: float, *, scale=1.0) -> float:
    if radius < 0:
        raise ValueError(f"radius is {radius!r}")
    return 3.14159 * radius ** 2 * scale  # in m^2

<p class="note">naïve café, Straße; Привет, мир! 今天天气很好，我们在2024年去北京。</p>
"""
"""English, numbers, code and other scripts, to see how far two ways to cut are apart."""


def cutter(name: str) -> Described:
    """The `pre_tokenizer` of a tokenizer.json that cuts as llama.cpp does for `name`."""
    parts = [step(pattern) for pattern in SPLITS[name].steps if pattern != GPT2]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parts.append({**last, "use_regex": GPT2 in SPLITS[name].steps})
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


def step(pattern: str) -> Described:
    """One cut by a pattern."""
    if pattern == DIGIT:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def patterns_of(cut: Described | None) -> Iterator[str]:
    """The patterns of a `pre_tokenizer`, one after the other; raises CheckpointError for anything else."""
    match cut:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            for part in parts:
                yield from patterns_of(part)
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": used}:
            yield from [GPT2] if used else []
        case {"type": "Digits", "individual_digits": True}:
            yield DIGIT
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            yield SAME.get(pattern, pattern)
        case _:
            kind = cut.get("type") if cut else None
            raise CheckpointError(
                f"the tokenizer cuts text by {kind}, which llama.cpp does not for a byte-level vocabulary"
            )


def name_split(described: Described, nearest: bool) -> str:
    """What llama.cpp calls the way in which a tokenizer cuts; with `nearest` also what is only like it."""
    model = described["model"]
    split = Split(tuple(patterns_of(described["pre_tokenizer"])), bool(model["ignore_merges"]))
    for name, known in SPLITS.items():
        same_pieces = known.steps == split.steps or not model["merges"]  # then all cuts give single bytes
        if same_pieces and (known.whole_pieces == split.whole_pieces or not model["merges"]):
            return name
    if not nearest:
        raise CheckpointError(
            "llama.cpp has no name (tokenizer.ggml.pre) for the pattern by which this tokenizer cuts text,"
            " and would cut it in another way, so that the model would read other tokens than it was trained"
            " on; nearest_split=true accepts that, and token ids in place of text go round it"
        )
    return nearest_split(described)


def nearest_split(described: Described) -> str:
    """The known way that gives the fewest other tokens for `PROBE`, after saying how many."""
    own = ids_of(described)
    apart = {name: difference(own, ids_of(recut(described, name))) for name in SPLITS}
    name = min(apart, key=lambda name: apart[name])
    say(
        f"gguf: llama.cpp cuts text by '{name}', the nearest to this tokenizer's own pattern:"
        f" {apart[name]:.0%} of the tokens of a mixed sample become others, most of them in indented code and"
        " in numbers"
    )
    return name


def recut(described: Described, name: str) -> Described:
    """The tokenizer with another way to cut."""
    model = {**described["model"], "ignore_merges": SPLITS[name].whole_pieces}
    return {**described, "pre_tokenizer": cutter(name), "model": model}


def ids_of(described: Described) -> list[int]:
    """The tokens of `PROBE`."""
    inner = parse(json.dumps(described), Path("tokenizer.json"))
    return list(inner.encode(PROBE, add_special_tokens=False).ids)


def difference(own: list[int], other: list[int]) -> float:
    """The share of `own` that `other` does not have in the same order."""
    same = sum(
        block.size for block in SequenceMatcher(None, own, other, autojunk=False).get_matching_blocks()
    )
    return 1 - same / len(own)
