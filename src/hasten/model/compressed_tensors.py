"""Quantised layers as Hugging Face folders have them: the formats of compressed-tensors, in both directions.

    pack-quantized   X.weight_packed int32 [O, ceil(I bits / 32)], X.weight_scale [O, G], X.weight_shape [2]
    int-quantized    X.weight int8 [O, I], X.weight_scale [O, G]

Packed integers are those of ours plus 2^(bits-1), the first in the lowest bits of a word.  `config.json` says
in `quantization_config` how many bits, which groups, and whether activations are integers too.  The format is
that of the package compressed-tensors (its `compressors/` and `quantization/quant_args.py`); symmetric
integers of 4 and 8 bits are held, and whatever else a file says is refused by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.model.families.base import shown
from hasten.model.quantized import Bits, QuantizedLinear
from hasten.model.weights import Weights
from hasten.ops.quantize import num_groups

FIELD, METHOD = "quantization_config", "compressed-tensors"
PACKED, INTEGERS = "pack-quantized", "int-quantized"
ENDINGS = (".weight_packed", ".weight_scale", ".weight_shape")
WORD = 32
"""Bits of a packed word."""


@dataclass(frozen=True)
class Scheme:
    """How the weights of some layers are integers."""

    bits: Bits
    group: int | None
    activations: Literal["none", "int8"]


def pack32(values: Tensor, bits: int) -> Tensor:
    """Integers int8 [O, I] as words int32 [O, ceil(I bits / 32)]; a row is filled up with zeros of theirs."""
    many = WORD // bits
    codes = values.long() + (1 << (bits - 1))
    codes = F.pad(codes, (0, -codes.shape[1] % many)).unflatten(1, (-1, many))
    words = (codes << (bits * torch.arange(many, device=codes.device))).sum(-1)
    return torch.where(words >= 1 << (WORD - 1), words - (1 << WORD), words).to(torch.int32)


def unpack32(words: Tensor, bits: int, inputs: int) -> Tensor:
    """What `pack32` made of int8 [O, inputs]."""
    shifts = bits * torch.arange(WORD // bits, device=words.device)
    codes = (words.long()[..., None] >> shifts) & ((1 << bits) - 1)
    return (codes.flatten(1)[:, :inputs] - (1 << (bits - 1))).to(torch.int8)


def tensors_of_layer(name: str, values: Tensor, scales: Tensor, scheme: Scheme) -> dict[str, Tensor]:
    """What stands in a file for the weight [O, I] of the module `name`: integers [O, I], scales [O, G]."""
    scaled = {f"{name}.weight_scale": scales.contiguous()}
    if scheme.activations == "int8" and scheme.bits == 8:
        return {f"{name}.weight": values.contiguous(), **scaled}
    shape = torch.tensor(values.shape)
    return {f"{name}.weight_packed": pack32(values, scheme.bits), **scaled, f"{name}.weight_shape": shape}


def scheme_of(layer: QuantizedLinear) -> Scheme:
    """The scheme of a layer."""
    return Scheme(layer.bits, layer.group, "int8" if layer.integers else "none")


def described(schemes: Mapping[str, Scheme], ignored: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` of layers by their names in the file; those `ignored` stay floats."""
    kinds = list(dict.fromkeys(schemes.values()))
    formats = {kind: INTEGERS if kind.activations == "int8" and kind.bits == 8 else PACKED for kind in kinds}
    groups = {}
    for number, kind in enumerate(kinds):
        members = [name for name, scheme in schemes.items() if scheme == kind]
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if len(kinds) == 1 else members,
            "weights": {**WEIGHTS, **grouped(kind)},
            "input_activations": None if kind.activations == "none" else ACTIVATIONS,
            "output_activations": None,
            "format": formats[kind],
        }
    return {
        "quant_method": METHOD,
        "format": "mixed-precision" if len(set(formats.values())) > 1 else formats[kinds[0]],
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(ignored),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


WEIGHTS: dict[str, Any] = {"type": "int", "symmetric": True, "dynamic": False, "observer": "minmax"}
ACTIVATIONS: dict[str, Any] = {
    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None, "dynamic": True,
    "observer": None,
}  # fmt: skip


def grouped(kind: Scheme) -> dict[str, Any]:
    """The fields of a scheme's bits and groups."""
    strategy = "channel" if kind.group is None else "group"
    return {"num_bits": kind.bits, "strategy": strategy, "group_size": kind.group}


def read_schemes(values: Any, where: str) -> list[Scheme]:
    """The schemes that a `quantization_config` speaks of; CheckpointError for one that cannot be held."""
    told = Told(values, f"{where}: {FIELD}")
    told.require("quant_method", METHOD)
    told.require("format", PACKED, INTEGERS, "mixed-precision", "naive-quantized")
    told.require("quantization_status", "compressed", None)
    told.require("kv_cache_scheme", None)
    for name in ("sparsity_config", "transform_config"):
        told.require(name, None, {})
    groups = told.value("config_groups")
    if not isinstance(groups, dict) or not groups:
        told.fail("config_groups", groups, "groups of layers")
    return [read_scheme(group, f"{told.where}.config_groups.{name[:40]}") for name, group in groups.items()]


def read_scheme(values: Any, where: str) -> Scheme:
    """One group of layers."""
    told = Told(values, where)
    told.require("output_activations", None)
    weights = Told(told.value("weights"), f"{where}.weights")
    weights.require("type", "int")
    weights.require("symmetric", True)
    weights.require("dynamic", False, None)
    weights.require("num_bits", 4, 8)
    weights.require("actorder", None, "static", "weight")
    weights.require("strategy", "group", "channel")
    by_group = weights.value("strategy") == "group"
    group = weights.value("group_size") if by_group else None
    if by_group and (isinstance(group, bool) or not isinstance(group, int) or group < 1):
        weights.fail("group_size", group, "a whole number from 1")
    read = told.value("input_activations")
    if read is not None:
        activations = Told(read, f"{where}.input_activations")
        for name in ("type", "symmetric", "dynamic", "num_bits", "strategy"):
            activations.require(name, ACTIVATIONS[name])
    return Scheme(weights.value("num_bits"), group, "none" if read is None else "int8")


class Told:
    """A part of a `config.json`; what it says that cannot be held is refused by name."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise CheckpointError(f"{where} should be a table of fields, got {shown(values)}")
        self.values, self.where = values, where

    def value(self, name: str) -> Any:
        """The field `name`, None where it is absent."""
        return self.values.get(name)

    def require(self, name: str, *known: Any) -> None:
        """Refuse a value of the field `name` that is not among `known`."""
        value = self.value(name)
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in known):
            self.fail(name, value, " or ".join(repr(each) for each in known))

    def fail(self, name: str, value: Any, wanted: str) -> None:
        """Say what is wrong with a field."""
        raise CheckpointError(f"{self.where}: hasten cannot hold {name} {shown(value)}, only {wanted}")


class Unpacked(Mapping[str, Tensor]):
    """The tensors of a folder by their names in a plain one, the weights of quantised layers as float32."""

    def __init__(self, tensors: Weights, schemes: Sequence[Scheme], where: str) -> None:
        self.tensors, self.schemes, self.where = tensors, schemes, where
        scale = ENDINGS[1]
        self.modules = {name.removesuffix(scale) for name in tensors if name.endswith(scale)}
        inside = {module + ending for module in self.modules for ending in ENDINGS}
        weights = [f"{module}.weight" for module in self.modules]
        self.names = dict.fromkeys([*(name for name in tensors if name not in inside), *weights])

    def __getitem__(self, name: str) -> Tensor:
        module = name.removesuffix(".weight")
        if module not in self.modules or not name.endswith(".weight"):
            return self.tensors[name]
        values, scales, scheme = self.layer(module)
        groups = scales.float().repeat_interleave(scheme.group or values.shape[1], dim=1)
        return values * groups

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_numbers(self) -> int:
        """How many numbers there can be at most: a word of 32 bits holds eight."""
        return self.tensors.num_numbers * WORD // 4

    def layer(self, module: str) -> tuple[Tensor, Tensor, Scheme]:
        """Integers int8 [O, I], scales [O, G] and scheme of a layer; CheckpointError where none fits."""
        scales = self.tensors[f"{module}.weight_scale"]
        packed = f"{module}.weight_packed" in self.tensors
        stored = self.tensor(f"{module}.weight_packed" if packed else f"{module}.weight")
        outputs, inputs = self.shape(module) if packed else stored.shape
        for scheme in self.schemes:
            width = -(-inputs * scheme.bits // WORD) if packed else inputs
            fits = tuple(stored.shape) == (outputs, width) and (packed or scheme.bits == 8)
            even = scheme.group is None or inputs % scheme.group == 0
            if fits and even and tuple(scales.shape) == (outputs, num_groups(inputs, scheme.group)):
                values = unpack32(stored, scheme.bits, inputs) if packed else stored
                return values, self.finite(scales, module), scheme
        raise CheckpointError(
            f"{self.where}: '{module}' has integers {list(stored.shape)} and scales {list(scales.shape)},"
            f" which no group of {FIELD} describes; take the config.json that came with the weights"
        )

    def tensor(self, name: str) -> Tensor:
        """A matrix of integers; CheckpointError for anything else."""
        kind = torch.int32 if name.endswith("_packed") else torch.int8
        if name not in self.tensors:
            raise CheckpointError(f"{self.where}: has scales and no '{name}'; fetch the folder again")
        tensor = self.tensors[name]
        if tensor.dtype != kind or tensor.ndim != 2:
            raise CheckpointError(
                f"{self.where}: '{name}' is {list(tensor.shape)} of {str(tensor.dtype)[6:]}, and should be a"
                f" matrix of {str(kind)[6:]}; fetch the folder again"
            )
        return tensor

    def shape(self, module: str) -> tuple[int, int]:
        """Rows and columns of a packed weight."""
        name = f"{module}.weight_shape"
        told = self.tensors[name] if name in self.tensors else torch.zeros(0)
        numbers = told.tolist() if told.dtype in (torch.int64, torch.int32) and told.numel() == 2 else []
        if len(numbers) != 2 or min(numbers) < 1:
            raise CheckpointError(
                f"{self.where}: '{name}' should be two whole numbers; fetch the folder again"
            )
        return int(numbers[0]), int(numbers[1])

    def finite(self, scales: Tensor, module: str) -> Tensor:
        """The scales, which must be numbers to multiply with."""
        if not scales.is_floating_point() or not bool(scales.isfinite().all()):
            raise CheckpointError(
                f"{self.where}: '{module}.weight_scale' has numbers that are not finite; the weights are"
                " damaged"
            )
        return scales
