"""Where a model says the class of a text, and what it makes of many texts there.

Letters in shapes: B rows, T tokens, E texts in a batch, D the model's width.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.data.tasks.packed import packed_rows
from hasten.data.tasks.protocol import Example


def pooled_place(example: Example) -> int:
    """Where the label is: the first token, or the last."""
    return 0 if example.targets[0] != IGNORE else len(example.tokens) - 1


def pooled_states(
    read: Callable[[Batch], Tensor],
    examples: Sequence[Example],
    *,
    row_tokens: int,
    batch_tokens: int,
    pad_id: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(which texts [E], their states [E, D] where the label is), of states [B, T, D] that `read` makes."""
    at = torch.tensor([pooled_place(example) for example in examples], dtype=torch.long)
    for rows in packed_rows(examples, row_tokens, batch_tokens, pad_id):
        hidden = read(rows.batch)
        places = rows.starts + at[rows.numbers]
        yield rows.numbers, hidden[rows.rows.to(hidden.device), places.to(hidden.device)]
