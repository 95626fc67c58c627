"""A GGUF file's named values, and which of its architecture's have been read."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hasten.core.config import shorten
from hasten.core.errors import CheckpointError
from hasten.model.gguf.quant import Floats

NOTHING: Any = object()
Shape = tuple[int, ...]


class Keys:
    """The values below `<architecture>.`, each to be read once, beside the tensors' names and shapes."""

    def __init__(
        self,
        where: Path | str,
        architecture: str,
        metadata: Mapping[str, Any],
        shapes: Mapping[str, Shape],
        floats: Callable[[str], Floats],
    ) -> None:
        prefix = f"{architecture}."
        self.where, self.architecture, self.shapes, self.floats = where, architecture, shapes, floats
        self.values = {
            key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)
        }

    def fail(self, name: str, reason: str) -> NoReturn:
        """Say what is wrong with a key."""
        raise CheckpointError(f"{self.where}: the key '{self.architecture}.{name}' {reason}")

    def take(self, name: str, kind: type, default: Any = NOTHING) -> Any:
        """The value of a key, which is read now; without a default it must be there."""
        value = self.values.pop(name, default)
        if value is NOTHING:
            self.fail(name, "is missing; convert the model anew")
        if value is not default and type(value) is not kind:
            self.fail(name, f"should be {kind.__name__}, got {type(value).__name__}")
        return value

    def integer(self, name: str, default: Any = NOTHING) -> int:
        """A whole number, 1 or more."""
        value: int = self.take(name, int, default)
        if value is not default and value < 1:
            self.fail(name, f"is {value}, and should be 1 or more")
        return value

    def size(self, name: str, default: Any = NOTHING) -> int:
        """A whole number that some tensor has room for."""
        value = self.integer(name, default)
        largest = max(max(shape) for shape in self.shapes.values())
        if value > largest:
            self.fail(name, f"is {value:,}, more than any tensor of the file has room for ({largest:,})")
        return value

    def number(self, name: str, default: Any = NOTHING) -> float:
        """A float: the shortest decimal number whose float32 it is."""
        value: float = self.take(name, float, default)
        if value is default:
            return value
        if not math.isfinite(value):
            self.fail(name, f"is {value}")
        return float(str(np.float32(value)))

    def expect(self, name: str, value: Any) -> None:
        """A key that says once more what is known already; it may be absent."""
        found = self.values.pop(name, value)
        if type(found) is not type(value) or found != value:
            self.fail(name, f"is {shorten(found)}, and the rest of the file says {value!r}")

    def choose(self, name: str, choices: Mapping[str, Any], default: str) -> Any:
        """A word, translated by `choices`."""
        value = self.take(name, str, default)
        if value not in choices:
            self.fail(name, f"is {shorten(value)}, and hasten can hold {', '.join(map(repr, choices))}")
        return choices[value]

    def has(self, tensor: str) -> bool:
        """Whether the file has the tensor."""
        return tensor in self.shapes

    def shape(self, tensor: str, dims: int = 2) -> Shape:
        """The shape of a tensor that must be there."""
        if tensor not in self.shapes:
            raise CheckpointError(
                f"{self.where}: has no tensor '{tensor}', which every {self.architecture} has"
            )
        shape = self.shapes[tensor]
        if len(shape) != dims:
            raise CheckpointError(
                f"{self.where}: the tensor '{tensor}' is {list(shape)}, and should have {dims} dimensions"
            )
        return shape

    def finish(self) -> None:
        """Refuse what nobody has read: it could change the model."""
        for name, value in self.values.items():
            self.fail(
                name[:100],
                f"({shorten(value)}) is unknown to hasten, which leaves none out: take a file without it",
            )
