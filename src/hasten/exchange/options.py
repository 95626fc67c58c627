"""What `hasten import` and `hasten export` may be told."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from hasten.core.config import Config, override, parse
from hasten.core.errors import ConfigError
from hasten.model.interop import MAX_SHARD_BYTES

C = TypeVar("C", bound=Config)


class ImportConfig(Config):
    """How a model comes in."""

    output: Path | None = Field(None, description="the checkpoint's folder; by default models/NAME")
    pickle: bool = Field(False, description="read weights that exist only as a pickle (pytorch_model.bin)")
    revision: str | None = Field(None, description="a branch, tag or commit of the hub")


class ExportConfig(Config):
    """How a model goes out."""

    to: Literal["hf", "gguf", "peft"] = Field(
        description="hf: config.json and safetensors; gguf: llama.cpp's file; peft: a run's adapter alone"
    )
    output: Path | None = Field(None, description="a folder or a .gguf file; by default exports/NAME")
    dtype: Literal["float32", "bfloat16", "float16", "q8_0", "q4_0"] | None = Field(
        None,
        description="hf: by default as the numbers came, float32 for a model trained here; gguf: float16;"
        " a quantised model keeps its integers",
    )
    nearest_split: bool = Field(
        False, description="gguf: accept that llama.cpp cuts text in another way than the tokenizer does"
    )
    base: str | None = Field(
        None,
        description="peft: the model that the adapter names; by default what it was trained beside",
    )
    max_shard_bytes: int = Field(MAX_SHARD_BYTES, ge=1, description="hf: the weights' files are no larger")


def check_peft(config: ExportConfig) -> None:
    """Refuse options that mean nothing for an adapter, and `base` for anything else."""
    given = config.model_fields_set - {"to", "output", "base"}
    if config.to == "peft" and given:
        raise ConfigError(f"hasten export: {min(given)} is for whole models, and to is peft; leave it out")
    if config.to != "peft" and config.base is not None:
        raise ConfigError(f"hasten export: base is for to=peft, and to is {config.to}; leave it out")


def read_options(kind: type[C], words: Sequence[str], verb: str) -> tuple[str, C]:
    """What a verb's words name, and its options: `FOLDER to=hf` or `FOLDER --to hf`.

    A value is text as it stands where a field is text (a folder named `2024`, a commit of digits), else YAML.
    """
    if not words or words[0].startswith("--") or ("=" in words[0] and not Path(words[0]).exists()):
        raise ConfigError(f"hasten {verb} needs a model first: hasten {verb} path/to/folder")
    joined: list[str] = []
    for word in words[1:]:
        if joined and joined[-1].startswith("--"):
            joined[-1] = f"{joined[-1].removeprefix('--')}={word}"
        else:
            joined.append(word.removeprefix("--") if "=" in word else word)
    plain = {name for name, field in kind.model_fields.items() if field.annotation not in (bool, int)}
    quoted = []
    for word in joined:
        key, equals, value = word.partition("=")
        quoted.append(f"{key}={json.dumps(value, ensure_ascii=False)}" if equals and key in plain else word)
    return words[0], parse(kind, override({}, quoted), f"hasten {verb}")
