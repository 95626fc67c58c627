"""What optimizers and parallelism need to know of a model: module-name patterns to one word each."""

from typing import Literal

LAYOUT = {
    "embedding": "vocab",
    "layers.*.attention.query": "columns",
    "layers.*.attention.key": "columns",
    "layers.*.attention.value": "columns",
    "layers.*.attention.out": "rows",
    "layers.*.ffn.gate": "columns",
    "layers.*.ffn.up": "columns",
    "layers.*.ffn.down": "rows",
}
"""How a linear splits over a tensor-parallel axis: by outputs (columns), inputs (rows) or vocabulary.

A module that matches no pattern is held whole by every rank.
"""

Role = Literal["matrix", "embedding", "head", "vector"]


def role(name: str) -> Role:
    """What a parameter is to an optimizer, by its name in `model.named_parameters()`.

    Muon takes the `matrix` kind: the weights between hidden states.  A tied table is an `embedding`.  The
    `relative` biases are numbers that are added to scores, each by itself, so they are a `vector` too.
    """
    *above, kind = name.split(".")
    module = above[-1] if above else ""
    if module in ("embedding", "source_embedding", "positions", "token_types"):
        return "embedding"
    if module == "head":
        return "head"
    if kind.endswith("bias") or module in ("norm", "relative") or module.endswith("_norm"):
        return "vector"
    return "matrix"
