"""Time greedy writing with weights of eight and four bits: hasten beside llama.cpp, equal weights, in turn.

    make bench-peers                                              an environment with llama.cpp
    python bench/quantized.py --rows 1 4 --save bench/results/quantized.json

Shapes, processes and turns are those of `generate.py`: random weights of a Llama, which each
library rounds to nearest.  hasten has scales for groups of 128 as it does by default, or of 32 as in Q8_0 and
Q4_0 ("g32"); llama.cpp rounds what its matrices read to eight bits too, in blocks of 32, and "a8" is hasten
with a scale for each token.  All arms of hasten are in bf16 where nothing is an integer.

The JSON on the last line has medians and all repeats of decoding and of reading the prompt, ratios, peak
memory, and how many tokens each arm chose like the first.
"""

from statistics import median
from typing import Any

from generate import ARMS, Arm, Case, Words, parser_of, run

WAYS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8, "group_size": 128},
    "int8 g32": {"bits": 8, "group_size": 32},
    "int8 a8": {"bits": 8, "group_size": 128, "activations": "int8"},
    "int4": {"bits": 4, "group_size": 128, "embedding_bits": 4},
    "int4 head8": {"bits": 4, "group_size": 128, "embedding_bits": 8},
    "int4 g32": {"bits": 4, "group_size": 32, "embedding_bits": 4},
    "int4 a8": {"bits": 4, "group_size": 128, "embedding_bits": 4, "activations": "int8"},
}
"""What `hasten.model.quantized.Quantization` is told."""
OURS: dict[str, Arm] = {
    f"hasten {name}": ("hasten", {"precision": "bf16", "quantization": way}) for name, way in WAYS.items()
}
THEIRS: dict[str, Arm] = {f"llama.cpp {kind}": ("llama", {"kind": kind}) for kind in ("q8_0", "q4_0")}
WHOLE = ("hasten bf16", "llama.cpp bf16")
ALL: dict[str, Arm] = {**{name: ARMS[name] for name in WHOLE}, **OURS, **THEIRS}
PEER = {"int8": "llama.cpp q8_0", "int4": "llama.cpp q4_0"}
"""Whose speed an arm of hasten is measured by, by the first word of its way."""


def ratios(speeds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """How many times as fast each arm of small integers is as its peer and as hasten in bf16.

    The median over the repeats of the ratio within each: a busy moment of the machine meets both.
    """
    found: dict[str, dict[str, float]] = {}
    for name in OURS.keys() & speeds.keys():
        others = [PEER[name.split()[1]], *WHOLE[:1]]
        found[name] = {
            other: median(a / b for a, b in zip(speeds[name], speeds[other], strict=True))
            for other in others
            if other in speeds
        }
    return found


def result_of(case: Case) -> dict[str, Any]:
    """One case: what `generate.py` tells, and the ratios."""
    result = case.result()
    result.pop("hasten_over")
    return {**result, "decode_over": ratios(case.decode), "read_over": ratios(case.read)}


def main(arguments: Words = None) -> None:
    """Compare, print, save."""
    run("quantized", parser_of(__doc__, ["110m"], [1]), ALL, result_of, arguments)


if __name__ == "__main__":
    main()
