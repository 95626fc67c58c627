"""What the data side hands to the loop.  Letters in shapes: B rows, T tokens."""

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

IGNORE = -100
"""A target with this value carries no loss."""


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
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        moved = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        extra = {name: value.to(device, non_blocking=True) for name, value in self.extra.items()}
        return replace(self, **moved, extra=extra)
