"""What a folder of sentence-transformers says of how its encoder makes a vector of a text.

Such a folder is one of Hugging Face with `modules.json` beside it: the steps from text to vector, each with a
folder of its own (sbert.net, "Creating Custom Models").  Encoder and pooling are read; hasten normalises in
any case; any other step is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hasten.core.errors import CheckpointError
from hasten.core.foreign import NotJsonError, confined, parse

Pooling = Literal["mean", "first", "pooler"]
MODULES, LIMITS, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
MODES: dict[str, Pooling] = {"mean_tokens": "mean", "cls_token": "first", "mean": "mean", "cls": "first"}
"""Their names of what we have, in the older files (`pooling_mode_mean_tokens: true`) and the newer."""
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Settings:
    """From text to vector: None where the folder says nothing."""

    pooling: Pooling | None = None
    max_tokens: int | None = None
    lower_case: bool = False
    prompt: str = ""


def read_settings(folder: Path) -> Settings:
    """The settings in `folder`, none of them where there is no `modules.json`.

    Raises CheckpointError for a step that hasten does not have: left out, the vectors would be others.
    """
    if not (folder / MODULES).is_file():
        return Settings()
    pooling = None
    for name, place in steps(folder):
        if name == "Pooling":
            pooling = read_pooling(place / "config.json", folder)
        elif name != "Normalize" and (name, place) != ("Transformer", folder):
            raise CheckpointError(
                f"{folder / MODULES}: hasten has no step {name} in {place.name or '.'}, only a Transformer in"
                " the folder itself, Pooling and Normalize; take a model without it"
            )
    limits = read_object(folder / LIMITS, folder)
    return Settings(
        pooling,
        whole_number(limits.get("max_seq_length"), folder / LIMITS),
        bool(limits.get("do_lower_case")),
        read_prompt(folder / PROMPTS, folder),
    )


def steps(folder: Path) -> list[tuple[str, Path]]:
    """Class and folder of each step, in order; a folder lies within `folder`."""
    modules = read_value(folder / MODULES, folder)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{folder / MODULES}: should be a list of steps; fetch the folder again")
    found = []
    for module in modules:
        kind, path = str(module.get("type", "")), str(module.get("path", ""))
        if path and (Path(path).name != path or path == ".."):
            raise CheckpointError(f"{folder / MODULES}: {path!r} is no folder within this one")
        found.append((kind.rpartition(".")[2], folder / path if path else folder))
    return found


def read_pooling(path: Path, folder: Path) -> Pooling:
    """The one pooling that a step's file asks for."""
    values = read_object(path, folder)
    asked = [name.removeprefix("pooling_mode_") for name in values if name.startswith("pooling_mode_")]
    chosen = [name for name in asked if values[f"pooling_mode_{name}"]]
    if "pooling_mode" in values:
        chosen.append(str(values["pooling_mode"]))
    if len(chosen) != 1 or chosen[0] not in MODES:
        raise CheckpointError(
            f"{path}: hasten pools by {' or '.join(list(MODES)[:2])} alone, and the file asks for"
            f" {', '.join(chosen) or 'nothing'}; take another model, or write pooling=mean or pooling=first"
        )
    return MODES[chosen[0]]


def read_prompt(path: Path, folder: Path) -> str:
    """What stands before every text, where the folder names a prompt as its default."""
    values = read_object(path, folder)
    name, prompts = values.get("default_prompt_name"), values.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise CheckpointError(f"{path}: names the prompt {name!r}, which it lacks; fetch the folder again")
    return prompt


def whole_number(value: Any, path: Path) -> int | None:
    """A limit in tokens, or None."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise CheckpointError(f"{path}: max_seq_length should be a whole number above 0, got {str(value)[:40]!r}")


def read_object(path: Path, folder: Path) -> dict[str, Any]:
    """The mapping in a JSON file, {} without the file."""
    values = read_value(path, folder) if path.is_file() else {}
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: should hold a mapping; fetch the folder again")
    return values


def read_value(path: Path, folder: Path) -> Any:
    """The value in a JSON file of bounded size below `folder`."""
    confined(path, folder, str(folder))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise CheckpointError(f"{path}: is larger than {MAX_FILE_BYTES:,} bytes and no such file")
        return parse(data)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); fetch the folder again") from None
    except NotJsonError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); fetch the folder again") from None


def settings_files(folder: Path) -> list[Path]:
    """What `read_settings` reads in `folder`, relative to it: to be taken along with the model."""
    if not (folder / MODULES).is_file():
        return []
    found = [place / "config.json" for name, place in steps(folder) if name == "Pooling"]
    found += [folder / name for name in (MODULES, LIMITS, PROMPTS)]
    return [confined(path, folder, str(folder)).relative_to(folder) for path in found if path.is_file()]
