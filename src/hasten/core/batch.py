"""What the data side hands to the loop.  Letters in shapes: B rows, T tokens."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

IGNORE = -100
"""A target with this value carries no loss."""
UNKNOWN = -1
"""A target that is there and nobody knows: what belongs there, a teacher alone can say."""
SOURCE = ("source", "source_positions", "source_segments")
"""What a batch of pairs has in `extra`: texts [B, S] that an encoder reads, with positions and segments."""

TYPES = "token_types"
"""What a batch has in `extra` for encoders that tell a first text from a second: [B, T]."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch: what one forward pass sees.

    `segments` numbers the documents inside each row from 1 (0 is padding): attention never crosses
    them.  None says that no row holds more than one document, and attention needs no mask.
    `documents` names what is inside, for the record of a batch that went wrong.
    """

    tokens: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64, IGNORE where there is nothing to learn
    segments: Tensor | None = None  # [B, T] int64
    positions: Tensor | None = None  # [B, T] int64, from 0 in each document piece; None is 0..T-1
    documents: tuple[str, ...] = ()
    extra: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {f.name: on(getattr(self, f.name), device) for f in fields(self)}
        return Batch(**moved)


def on(value: Any, device: torch.device) -> Any:
    """`value` on `device` where it is a tensor or a dictionary of tensors, else unchanged."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: on(item, device) for key, item in value.items()}
    return value
