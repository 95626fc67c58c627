"""What the `adapter_config.json` of a LoRA of PEFT's says, read with no trust in it.

Nothing that it says is passed over: a field that could change the model is read, or refused by name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, TypeVar

from hasten.adapt.config import LowRank
from hasten.core.errors import CheckpointError
from hasten.core.foreign import file_inside, read_json
from hasten.model.families.base import Fields, shown
from hasten.model.interop import refuse_code

CONFIG = "adapter_config.json"
TOLD_BY_TENSORS = (
    "target_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "exclude_modules",
)  # fmt: skip
OF_NO_MATTER = (
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "task_type",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core",
    "qalora_group_size", "fan_in_fan_out", "ensure_weight_tying",
)  # fmt: skip
"""Bookkeeping, and settings of ways that are refused where they are on."""
KEPT_BASES = (True, False, "gaussian", "eva", "orthogonal")
"""First values of a pair that leave the base as it was; others, such as PiSSA, have a base of their own."""
MOST_NAMES = 1 << 14
"""Names of modules in a file: more than any model has matrices, and few enough to look for beside each."""
NAME = re.compile(r"\^?[A-Za-z0-9_.]+")
"""A pattern that is a plain name.  No other is tried: a stranger's regular expression can run forever."""
T = TypeVar("T")


@dataclass(frozen=True)
class Terms:
    """What all pairs of an adapter have in common, and the ranks and alphas of those that differ."""

    where: str
    low_rank: LowRank
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: tuple[str, ...]  # empty where the file has a pattern, a word, or exceptions

    def of(self, path: str) -> LowRank:
        """Those of the pair beside their module `path`."""
        rank = matching(self.ranks, path, self.low_rank.rank)
        return self.low_rank._replace(rank=rank, alpha=matching(self.alphas, path, self.low_rank.alpha))

    def with_rank(self, rank: int, scale: float) -> LowRank:
        """Those of a pair of this rank, with the alpha that gives it its scale."""
        alpha = alpha_of(rank, scale, self.low_rank.rslora)
        return self.low_rank._replace(rank=rank, alpha=alpha)

    def asks_for(self, path: str) -> bool:
        """Whether the file says that there is a pair beside this module."""
        return any(is_named(target, path) for target in self.targets)


def alpha_of(rank: int, scale: float, rslora: bool) -> float:
    """The alpha that gives a pair of this rank its scale."""
    return scale * (sqrt(rank) if rslora else rank)


def is_named(name: str, path: str) -> bool:
    """Whether a module's path is `name`, or ends in it; `^` before a name stands for the path's beginning."""
    return path == name.removeprefix("^") or path.endswith(f".{name}")


def matching(values: Mapping[str, T], path: str, default: T) -> T:
    """The first value whose name is that of a module."""
    return next((value for name, value in values.items() if is_named(name, path)), default)


def read_terms(folder: Path) -> Terms:
    """What an adapter's folder says of it; CheckpointError for what hasten cannot hold."""
    path, values = read_values(folder)
    refuse_code(values, path)
    fields = Fields(values, str(path))
    fields.choose("peft_type", "", {"LORA": None})
    refuse_other_ways(fields)
    rslora, dora = fields.flag("use_rslora", False), fields.flag("use_dora", False)
    low_rank = LowRank(fields.count("r"), fields.number("lora_alpha"), rslora, dora, read_dropout(fields))
    ranks, alphas = read_pattern(fields, "rank_pattern"), read_pattern(fields, "alpha_pattern")
    targets = read_targets(fields)
    fields.skip(*TOLD_BY_TENSORS, *OF_NO_MATTER)
    fields.finish()
    return Terms(str(path), low_rank, ranks, alphas, targets)


def read_values(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file and its fields."""
    path = file_inside(folder, CONFIG, str(folder))
    return path, read_json(path, "an adapter of PEFT has it")


def refuse_other_ways(fields: Fields) -> None:
    """Refuse adapters that are more than a pair beside a matrix, or that need another base."""
    fields.require("bias", "none")
    for name in ("lora_bias", "use_qalora"):
        fields.require(name, False)
    start = fields.take("init_lora_weights", True)
    if not isinstance(start, bool | str) or start not in KEPT_BASES:
        raise CheckpointError(
            f"{fields.where}: init_lora_weights is {shown(start)}, which changes the base too; convert the"
            " adapter with peft (path_initial_model_for_weight_conversion) and take that"
        )


def read_dropout(fields: Fields) -> float:
    """What was dropped of what the pairs read."""
    share = fields.take("lora_dropout", 0.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise CheckpointError(f"{fields.where}: lora_dropout should be from 0 to below 1, got {shown(share)}")
    return float(share)


def read_pattern(fields: Fields, name: str) -> dict[str, Any]:
    """Ranks or alphas by names of modules."""
    values = fields.take(name, {})
    if not isinstance(values, dict):
        raise CheckpointError(f"{fields.where}: {name} should be a mapping, got {shown(values)}")
    refuse_crowds(fields, name, len(values))
    for key in values:
        if not NAME.fullmatch(key):
            raise CheckpointError(
                f"{fields.where}: {name} has the pattern {shown(key)}, and hasten follows names of modules"
                " only; write each module's name"
            )
    inner = Fields(values, f"{fields.where}: {name}")
    return {key: inner.count(key) if name == "rank_pattern" else inner.number(key) for key in values}


def refuse_crowds(fields: Fields, name: str, count: int) -> None:
    """Refuse more names than any model has modules for."""
    if count > MOST_NAMES:
        raise CheckpointError(f"{fields.where}: {name} has {count:,} names, and no model as many matrices")


def read_targets(fields: Fields) -> tuple[str, ...]:
    """The names of modules that have pairs, where the file names them one by one and without exceptions."""
    targets = fields.take("target_modules", None)
    if isinstance(targets, str) or targets is None:
        return ()
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise CheckpointError(
            f"{fields.where}: target_modules should be a list of names, got {shown(targets)}"
        )
    refuse_crowds(fields, "target_modules", len(targets))
    exceptions = any(fields.values.get(name) for name in ("layers_to_transform", "exclude_modules"))
    return () if exceptions else tuple(targets)


def adapter_base(folder: Path) -> str:
    """What the adapter in `folder` says that it was trained beside: a folder, or a name of the hub."""
    path, values = read_values(folder)
    base = values.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{path}: does not name its base; write base=path/to/folder")
    return base
