"""What optimizers and parallelism need to know of a model: module-name patterns to one word each."""

from fnmatch import fnmatchcase
from typing import Literal

Word = Literal["columns", "rows", "vocab"]

LAYOUT: dict[str, Word] = {
    "embedding": "vocab",
    "source_embedding": "vocab",
    "head": "vocab",
    "head_bias": "vocab",
    "*relative": "columns",
    "*layers.*.attention.query": "columns",
    "*layers.*.attention.key": "columns",
    "*layers.*.attention.value": "columns",
    "*layers.*.attention.out": "rows",
    "*layers.*.cross.query": "columns",
    "*layers.*.cross.key": "columns",
    "*layers.*.cross.value": "columns",
    "*layers.*.cross.out": "rows",
    "*layers.*.ffn.gate": "columns",
    "*layers.*.ffn.up": "columns",
    "*layers.*.ffn.down": "rows",
}
"""How a linear or a table splits over a tensor-parallel axis: by outputs (columns), inputs (rows) or
vocabulary.  The outputs of the relative table are heads.

A module, or a parameter outside all modules, that matches no pattern is held whole by every rank.
"""


def word(name: str) -> Word | None:
    """The word of a module, or of a parameter outside all modules."""
    return next((word for pattern, word in LAYOUT.items() if fnmatchcase(name, pattern)), None)


Role = Literal["matrix", "embedding", "head", "vector"]


def role(name: str) -> Role:
    """What a parameter is to an optimizer, by its name in `model.named_parameters()`.

    Muon takes the `matrix` kind: the weights between hidden states, thin pairs beside them included.  A tied
    table is an `embedding`.  The `relative` biases are numbers that are added to scores, each by itself, so
    they are a `vector` too, as are the lengths of rows that DoRA trains.
    """
    *above, kind = name.split(".")
    module = above[-1] if above else ""
    if module in ("embedding", "source_embedding", "positions", "token_types"):
        return "embedding"
    if module == "head":
        return "head"
    if kind.endswith(("bias", "magnitude")) or module in ("norm", "relative") or module.endswith("_norm"):
        return "vector"
    return "matrix"
