"""YAML and overrides to frozen, strict pydantic models, and back.

Precedence: defaults, then the file, then `key.sub=value` from the command line.  Every mistake ends
in a `ConfigError` that names the file, the dotted key, the value, a near match and the choices.
"""

import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from hasten.core.errors import ConfigError, did_you_mean

C = TypeVar("C", bound="Config")

SHOWN = 80
"""Characters of a wrong value that a message shows."""


class Config(BaseModel):
    """Base of every configuration: frozen, typed, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


PLAIN = {  # what an unquoted scalar may be: YAML 1.2's core, so that `on` is a word and 1:30 is no number
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][\d_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\d[\d_]*[eE][-+]?\d+|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
}


class RecipeLoader(yaml.SafeLoader):
    """Safe YAML that refuses aliases and a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            word = self.construct_object(key, deep=True)
            if not isinstance(word, str | int | float | None):
                raise ConfigError(f"line {line}: a key is a word, got a {type(word).__name__}; quote it")
            if word in seen:
                raise ConfigError(f"line {line}: '{key.value}' is given twice; keep one")
            seen.add(word)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("YAML aliases (*name) are not read in recipes; write the value out")
        return super().compose_node(parent, index)


class RecipeDumper(yaml.SafeDumper):
    """Quotes what `RecipeLoader` would not read back as the same text."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        # PyYAML folds these three as line breaks and does not unfold them; escapes need a double quote.
        breaks = set(text) & set("\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


RecipeDumper.add_representer(str, RecipeDumper.represent_str)

for side in (RecipeLoader, RecipeDumper):
    side.yaml_implicit_resolvers = {}
    for tag, (pattern, first) in PLAIN.items():
        side.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), first)


def read_yaml(text: str) -> Any:
    """The value of a YAML text, a `ConfigError` with the line where there is none."""
    try:
        return yaml.load(text, RecipeLoader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{place}not YAML: {getattr(error, 'problem', error)}") from None


def load(kind: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read `path` as a `kind`, with `key.sub=value` overrides on top."""
    return parse(kind, override(read(path), overrides), str(path))


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; `hasten recipes` lists the recipes that ship")
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; give a YAML recipe") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: should hold `key: value` lines, got {type(data).__name__}")
    return data


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`data` with each `key.sub=value` set; values are YAML (`true`, `3e-4`, `[a, b]`, `null`)."""
    result: dict[str, Any] = json.loads(json.dumps(data, default=str))
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"{shorten(item)}: an override is written key=value, for example train.steps=200"
            )
        try:
            value = read_yaml(text)
        except ConfigError:
            raise ConfigError(f"{shorten(item)}: the value is not YAML; quote it: {key}='\"...\"'") from None
        place = result
        *parents, last = key.split(".")
        for parent in parents:
            child = place.setdefault(parent, {})
            if not isinstance(child, dict):
                child = place[parent] = {}
            place = child
        place[last] = value
    return result


def parse(kind: type[C], data: dict[str, Any], where: str) -> C:
    """`data` as a `kind`; `where` begins every complaint."""
    try:
        # JSON mode is strict about scalars and still lets a list be a tuple and a string a path.
        return kind.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(kind, error.errors()[0])}") from None


def dump(config: Config) -> str:
    """YAML that `load` turns back into an equal `config`."""
    return yaml.dump(
        config.model_dump(mode="json"), Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=110
    )


def explain(kind: type[Config], problem: ErrorDetails) -> str:
    """One validation failure as a sentence: which key, what is wrong with it, what to write instead."""
    keys = [str(key) for key in problem["loc"]]
    models = list(models_along(kind, keys))
    # pydantic puts the chosen `kind` between the keys of a union; a reader of the recipe never wrote it.
    dotted = ".".join(key for key, (_, is_tag) in zip(keys, models, strict=True) if not is_tag)
    holder = models[-1][0] if models else kind
    value, context = problem["input"], problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            known, section = list(holder.model_fields), dotted.rpartition(".")[0] or "the recipe"
            near, fields = did_you_mean(keys[-1], known), ", ".join(known)
            return f"{section} has no field '{keys[-1]}'.{near} Known: {fields}"
        case "missing":
            return f"{dotted} is missing; add `{keys[-1]}: ...`"
        case "union_tag_invalid":
            choices = re.findall(r"'([^']+)'", str(context["expected_tags"]))
            near = did_you_mean(str(context["tag"]), choices)
            return f"{dotted}.kind cannot be '{context['tag']}'.{near} Choose from {', '.join(choices)}"
        case "union_tag_not_found":
            return f"{dotted} needs a `kind: ...`"
        case "literal_error":
            choices = re.findall(r"'([^']+)'", str(context["expected"]))
            near = did_you_mean(str(value), choices)
            return f"{dotted} cannot be {shorten(value)}.{near} Choose from {context['expected']}"
        case "value_error":
            reason = str(context["error"])
            return f"{dotted}: {reason}" if dotted else reason
        case "json_invalid":
            return "holds half of a surrogate pair, which is no text; write whole characters"
        case _:
            message = problem["msg"].removeprefix("Input should be ")
            for technical, plain in (("a valid array", "a list"), ("an object", "a mapping")):
                message = message.replace(technical, plain)
            return f"{dotted} should be {message}, got {shorten(value)}"


def shorten(value: object) -> str:
    """A value as Python writes it, with an ellipsis in place of what is too long for a message."""
    text = reprlib.repr(value) if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def models_along(kind: type[Config], keys: Sequence[str]) -> Iterator[tuple[type[Config], bool]]:
    """For each key of a path into `kind`: the model that holds it, and whether it is a union's tag."""
    holder: type[Config] = kind
    choices: list[type[Config]] = [kind]
    for key in keys:
        # A union without kinds, such as `TokenizerConfig | Path`, has its members' class names as tags.
        named = [m for m in choices if key == m.__name__ or key.endswith(f"{m.__name__}]")]
        tagged = named or [m for m in choices if "kind" in m.model_fields and key in tags(m)]
        if named or (len(choices) > 1 and tagged):
            choices = tagged
            yield tagged[0], True
            continue
        holder = next((m for m in choices if key in m.model_fields), choices[0] if choices else holder)
        annotation = holder.model_fields[key].annotation if key in holder.model_fields else None
        yield holder, False
        if not key.isdigit():
            choices = list(models_in(annotation))


def tags(model: type[Config]) -> tuple[Any, ...]:
    """The values that a union member's `kind` may take."""
    return get_args(model.model_fields["kind"].annotation)


def models_in(annotation: Any) -> Iterator[type[Config]]:
    """Every configuration class that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated, tuple, list, dict):
        for part in get_args(annotation):
            yield from models_in(part)
    elif get_origin(annotation) is Literal:
        return


def schema(kind: type[Config]) -> dict[str, Any]:
    """JSON schema of a configuration, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **kind.model_json_schema()}
