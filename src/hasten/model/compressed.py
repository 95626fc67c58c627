"""What was done to a model beside making its configuration smaller, so that its shape can be built again."""

from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from hasten.core.config import Config
from hasten.model.factored import put_factored
from hasten.model.quantized import Quantization, put_quantized

COMPRESSION = "compression.yaml"


class CompressionNote(Config):
    """What `compression.yaml` says, which lies beside the weights of a compressed model."""

    kind: Literal["compression"] = "compression"
    ranks: dict[str, PositiveInt] = Field({}, description="of each layer that is two thin ones, by its name")
    quantization: Quantization | None = None
    parent: str = Field(description="the model that it was made from, as it was named")
    digest: str | None = Field(None, description="of the parent's weights")
    steps: tuple[str, ...] = Field((), description="what was done, in words, in order")


def shape_as(model: nn.Module, note: CompressionNote) -> None:
    """Give a plain model the layers that a note speaks of, in place, also on the meta device."""
    if note.ranks:
        put_factored(model, note.ranks)
    if note.quantization is not None:
        put_quantized(model, note.quantization)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a model by name, trained or not; one that two modules share is there once."""
    names: dict[int, str] = {}
    live = model.state_dict(keep_vars=True)
    for name, tensor in live.items():
        names.setdefault(id(tensor), name)
    return {name: live[name].detach() for name in names.values()}
