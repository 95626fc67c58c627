"""Laying a compressed model down as a checkpoint of ours, with what belongs to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hasten.core.config import dump
from hasten.core.files import publish, write_text
from hasten.exchange.pack import write_luggage
from hasten.exchange.parcel import Parcel
from hasten.model.compressed import COMPRESSION, CompressionNote, tensors_of
from hasten.train.held import WEIGHTS
from hasten.train.snapshot import MODEL


def save_compressed(
    final: Path, parcel: Parcel, note: CompressionNote, about: Mapping[str, Any] | None = None
) -> None:
    """Make the model of `parcel` appear as the checkpoint `final`, whole; `load_model` gives it back.

    The parcel is its parent's with another model in it: what travels with the weights is taken along, and a
    number is in the type that it had there where that type holds it, so that not a bit is lost.  `about` is
    for the manifest.
    """
    with publish(final, dict(about or {})) as folder:
        write_text(folder / MODEL, dump(parcel.model.config))
        write_text(folder / COMPRESSION, dump(note))
        weights = folder / f"{WEIGHTS}.safetensors"
        weights.parent.mkdir()
        tensors = {name: shortened(t, parcel.types.get(name)) for name, t in tensors_of(parcel.model).items()}
        save_file(tensors, weights, metadata={"format": "pt"})
        write_luggage(folder, parcel)


def shortened(tensor: Tensor, kind: torch.dtype | None) -> Tensor:
    """A tensor on the CPU in the type `kind` where that changes no number, else as it is."""
    whole = tensor.cpu().contiguous()
    if kind is None or not whole.is_floating_point() or kind.itemsize >= whole.dtype.itemsize:
        return whole
    short = whole.to(kind)
    return short if torch.equal(short.to(whole.dtype), whole) else whole
