"""Each head in a few figures, by which heads of a known kind are found.

Letters in shapes: L layers, H heads, T queries, S keys.  In self-attention all figures are means over the
tokens but the first, which has nothing before it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Figures = dict[str, Tensor]
"""Name to one number for each head, [L, H]."""


def entropy(weights: Tensor) -> Tensor:
    """How spread a head's look is, in bits: 0 for one token, log2 n for n tokens alike."""
    return -torch.special.xlogy(weights, weights).sum(-1).mean(-1) / torch.log(torch.tensor(2.0))


def distance(weights: Tensor) -> Tensor:
    """How far away what is looked at lies on average, in tokens: 1 is a neighbour."""
    queries, keys = weights.shape[-2:]
    at, seen = torch.arange(keys - queries, keys)[:, None], torch.arange(keys)
    return (weights * (at - seen).abs()).sum(-1).mean(-1)


def first(weights: Tensor) -> Tensor:
    """The share that goes to the first token."""
    return weights[..., 0].mean(-1)


def last(weights: Tensor) -> Tensor:
    """The share that goes to the last token."""
    return weights[..., -1].mean(-1)


def own(weights: Tensor) -> Tensor:
    """The share that stays at the token itself."""
    return aside(weights, 0)


def previous(weights: Tensor) -> Tensor:
    """The share that goes to the token before."""
    return aside(weights, -1)


def following(weights: Tensor) -> Tensor:
    """The share that goes to the token after."""
    return aside(weights, 1)


def aside(weights: Tensor, step: int) -> Tensor:
    """The mean share that goes `step` tokens onward, over the queries that have such a token."""
    offset = weights.shape[-1] - weights.shape[-2] + step
    return weights.diagonal(offset, dim1=-2, dim2=-1).mean(-1)


DECODER = (entropy, distance, first, previous, own)
ENCODER = (entropy, distance, first, last, previous, own, following)
CROSS = (entropy, first, last)


def figures(weights: Tensor, kind: str, ids: Sequence[int]) -> Figures:
    """Figures of weights [L, H, T, S], where `ids` are the tokens looked from; `kind` is a view's."""
    chosen: Sequence[Callable[[Tensor], Tensor]] = {"encoder": ENCODER, "cross": CROSS}.get(kind, DECODER)
    seen = weights if kind == "cross" else weights[..., 1:, :]
    found = {measure.__name__: measure(seen) for measure in chosen}
    if kind == "decoder" and (places := repeats(ids)):
        queries, keys = torch.tensor(places).unbind(-1)
        # Each query counts once, however often its token stood there before.
        share = torch.zeros(*weights.shape[:3]).index_add_(2, queries, weights[..., queries, keys])
        found["induction"] = share[..., queries.unique()].mean(-1)
    return found


def repeats(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Where an induction head would look: (query, the place after an earlier token like the query's).

    Olsson et al. 2022: `A B ... A` looks at B.
    """
    return [(query, key + 1) for query, id in enumerate(ids) for key in range(query - 1) if ids[key] == id]
