"""Hugging Face checkpoints: `config.json` and safetensors, in both directions, with equal logits.

Nothing of a folder is imported or run, and nothing that it says is passed over: what hasten cannot hold is
refused by name.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.core.config import parse
from hasten.core.console import say
from hasten.core.errors import CheckpointError, ConfigError
from hasten.core.files import write_json
from hasten.core.foreign import file_inside, read_json
from hasten.model.compressed_tensors import FIELD, Unpacked, read_schemes
from hasten.model.config import ModelConfig
from hasten.model.families.base import Family, Fields, Source, combine
from hasten.model.families.registry import family_named, family_of
from hasten.model.folder_integers import hold_integers, kept_integers
from hasten.model.plain import numbers, plain_weights, type_of
from hasten.model.transformer import Transformer, assemble
from hasten.model.weight_files import groups, write_shards
from hasten.model.weights import Weights, present, weights_in

CONFIG, GENERATION = "config.json", "generation_config.json"
CODE_FIELDS = ("auto_map", "custom_code", "custom_pipelines", "trust_remote_code")
MAX_SHARD_BYTES = 5_000_000_000
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Types = dict[str, torch.dtype]
OnTensor = Callable[[int, int], None]
"""Told of each tensor: how many are done, of how many."""


def load_hugging_face(folder: Path, pickle: bool = False) -> Transformer:
    """The model in a Hugging Face folder, in float32 on the CPU, with dropout off.

    Whatever the folder says about the model that hasten cannot hold, or a tensor that is missing, has another
    shape or is left over, is a `CheckpointError`.
    """
    return load_with_types(folder, pickle)[0]


def load_with_types(
    folder: Path, pickle: bool = False, on_tensor: OnTensor = lambda done, total: None
) -> tuple[Transformer, Types]:
    """As `load_hugging_face`, with the type in which each parameter came."""
    family, config, tensors, theirs = opened(folder, pickle)
    with torch.device("meta"):
        model = assemble(config)
    state, types = translate(theirs, model, family, folder, on_tensor)
    model.load_state_dict(state, assign=True)
    if isinstance(tensors, Unpacked):
        hold_integers(model, family.sources(config), theirs.names, tensors)
    return model, types


def shape_in(folder: Path, pickle: bool = False) -> ModelConfig:
    """The shape of the model that `load_hugging_face` would load."""
    return opened(folder, pickle)[1]


def opened(folder: Path, pickle: bool) -> tuple[Family, ModelConfig, Weights | Unpacked, "Renamed"]:
    """What a folder says of its model, its tensors, and these by the names of the family; none is read."""
    family, values = read_family(folder / CONFIG)
    stored = weights_in(folder, pickle)
    tensors: Weights | Unpacked = stored
    if values.get(FIELD) is not None:
        tensors = Unpacked(stored, read_schemes(values[FIELD], str(folder / CONFIG)), str(folder))
    theirs = Renamed(tensors, family.plain_names(tensors, str(folder)))
    config = read_shape(family, values, folder / CONFIG, theirs)
    check_room(config, tensors, folder)
    return family, config, tensors, theirs


def check_room(config: ModelConfig, tensors: Weights | Unpacked, folder: Path) -> None:
    """Refuse a model that the files cannot fill by far, before it is built.

    What is missing by less is told by name when the tensors are looked for.
    """
    layers, numbers = config.encoder_layers + config.decoder_layers, tensors.num_numbers
    if layers > len(tensors) or config.num_parameters > 2 * numbers:
        raise CheckpointError(
            f"{folder}: {CONFIG} describes {config.num_parameters:,} parameters in {layers:,} layers, and the"
            f" files hold {numbers:,} in {len(tensors):,} tensors; take the file that came with the weights"
        )


class Renamed(Mapping[str, Tensor]):
    """`tensors` by other names: {new name: name}."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self.tensors, self.names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.names[name]]

    def __iter__(self) -> Any:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read_config(path: Path) -> tuple[Family, ModelConfig]:
    """The architecture that a `config.json` alone describes, and its shape."""
    family, values = read_family(path)
    return family, read_shape(family, values, path, {})


def read_family(path: Path) -> tuple[Family, dict[str, Any]]:
    """The family that a `config.json` names, and its fields."""
    values = read_json(path)
    refuse_code(values, path)
    return family_named(values.get("model_type"), str(path)), {**started(path.parent), **values}


def read_shape(
    family: Family, values: dict[str, Any], path: Path, theirs: Mapping[str, Tensor]
) -> ModelConfig:
    """What the fields say, and for some families the names of the tensors (a pooler, a head of its own)."""
    fields = Fields(values, str(path), theirs)
    if values.get(FIELD) is not None:
        read_schemes(values[FIELD], str(path))  # a quantised model has the shape of a plain one
        fields.skip(FIELD)
    try:
        shape = family.read(fields)
        fields.finish()
        return parse(ModelConfig, shape, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        # A family computes with what it reads: a word where it expects a number comes out here.
        raise CheckpointError(
            f"{path}: a field is not of the kind that a {values['model_type']} has ({error}); take the file"
            " that came with the weights"
        ) from None


def refuse_code(values: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that wants a program of the folder's own to be run."""
    for name in CODE_FIELDS:
        if values.get(name):
            raise CheckpointError(
                f"{path}: asks for code of its own ({name}: {json.dumps(values[name])[:80]}), and hasten runs"
                " none; take a checkpoint of the same model that transformers holds without trust_remote_code"
            )


def started(folder: Path) -> dict[str, Any]:
    """`decoder_start_token_id`, which newer folders keep in generation_config.json alone."""
    if not present(folder / GENERATION):
        return {}
    values = read_json(file_inside(folder, GENERATION, str(folder)))
    name = "decoder_start_token_id"
    return {name: values[name]} if values.get(name) is not None else {}


def translate(
    theirs: Mapping[str, Tensor],
    model: Transformer,
    family: Family,
    folder: Path,
    on_tensor: OnTensor = lambda done, total: None,
) -> tuple[dict[str, Tensor], Types]:
    """`theirs` as a float32 state of `model`, and as what each came; shapes checked, no tensor left over."""
    parameters, sources = dict(model.named_parameters()), family.sources(model.config)
    check_leftovers(theirs, model.config, family, folder)
    state, types = dict[str, Tensor](), Types()
    for done, (their_name, names) in enumerate(wanted(parameters, sources).items()):
        on_tensor(done, len(sources))
        if their_name not in theirs:
            raise CheckpointError(f"{folder}: has no tensor '{their_name}', which {CONFIG} asks for")
        tensor = theirs[their_name]  # read once, however many of ours lie in it
        whole = exact(tensor, f"{folder}: '{their_name}'")
        for name in names:
            ours = sources[name].extract(whole)
            if ours.shape != parameters[name].shape:
                raise CheckpointError(
                    f"{folder}: '{their_name}' is {list(tensor.shape)}, which gives {list(ours.shape)} for"
                    f" {name} where {CONFIG} asks for {list(parameters[name].shape)}"
                )
            state[name], types[name] = ours, tensor.dtype
    return state, types


def wanted(parameters: Mapping[str, Tensor], sources: Mapping[str, Source]) -> dict[str, list[str]]:
    """Which parameters of ours each of their tensors holds."""
    holders: dict[str, list[str]] = defaultdict(list)
    for name in parameters:
        holders[sources[name].name].append(name)
    return holders


def exact(tensor: Tensor, what: str) -> Tensor:
    """`tensor` in float32 with every number kept; `what` begins the complaint where that cannot be."""
    if tensor.dtype not in FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{what} is {kind}; hasten reads weights of 16, 32 and 64 bits, not quantized")
    ours = tensor.float()
    if not torch.isfinite(ours).all():
        raise CheckpointError(f"{what} holds numbers that are infinite or none; the weights are damaged")
    if tensor.dtype == torch.float64 and not torch.equal(ours.double(), tensor):
        raise CheckpointError(
            f"{what} is float64 and would be rounded; save it as float32 where it came from"
        )
    return ours


def check_leftovers(theirs: Mapping[str, Tensor], config: ModelConfig, family: Family, folder: Path) -> None:
    """Refuse a tensor that has no place, or that is a copy and differs from what it should repeat."""
    used = {source.name for source in family.sources(config).values()}
    copies, derived = family.copies(config), family.derived(config)
    left_out = {name for name in theirs if name not in used and name.startswith(family.left_out or ("\0",))}
    if left_out:
        say(f"{folder}: {CONFIG} asks for a model without {', '.join(sorted(left_out))}: left out")
    for name in theirs:
        if name in copies and copies[name] in theirs and not torch.equal(theirs[name], theirs[copies[name]]):
            raise CheckpointError(
                f"{folder}: '{name}' differs from the embedding '{copies[name]}', yet {CONFIG} ties them; set"
                " tie_word_embeddings to false"
            )
        if name in derived and not close(theirs[name].float(), derived[name]()):
            raise CheckpointError(f"{folder}: '{name}' is not what {CONFIG} makes of it, and cannot be kept")
        if name not in {*used, *copies, *derived, *left_out} and not name.endswith(
            family.leftovers or ("\0",)
        ):
            raise CheckpointError(f"{folder}: the tensor '{name}' has no place in the model of {CONFIG}")


def close(theirs: Tensor, ours: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    return theirs.shape == ours.shape and torch.allclose(theirs, ours, atol=1e-5)


def save_hugging_face(
    model: Transformer,
    folder: Path,
    *,
    types: Mapping[str, torch.dtype] | None = None,
    extra: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_tensor: OnTensor = lambda done, total: None,
) -> None:
    """Write `model` so that `transformers` loads it with equal logits.

    `types` says for each parameter in which type it is written (the model's own where it says nothing);
    `extra` are fields that change no logit, such as the ids of special tokens.  Layers that are integers are
    written as these, in a format of compressed-tensors.  `CheckpointError` where no
    architecture that we know of can hold the model, or a type cannot hold a number.
    """
    family, fields = family_of(model.config)
    state, types = plain_weights(model), types or {}
    parts: dict[str, dict[int, str]] = defaultdict(dict)
    sources = {name: family.sources(model.config)[name] for name in state}
    for name, source in sources.items():
        parts[family.written_name(source, headless=model.config.head == "none")][source.part] = name
    kept = kept_integers(model, state, parts, sources, family)
    plain = {theirs: ours for theirs, ours in parts.items() if theirs not in kept.weights}
    kinds = {theirs: types.get(ours[0], type_of(state[ours[0]])) for theirs, ours in plain.items()}
    sizes = {
        theirs: sum(prod(state[name].shape) for name in ours.values()) * kinds[theirs].itemsize
        for theirs, ours in plain.items()
    }

    def tensor(theirs: str) -> Tensor:
        if theirs in kept.tensors:
            return kept.tensors[theirs]
        values = {part: numbers(state[name]).detach().cpu() for part, name in parts[theirs].items()}
        return narrowed(combine(values, sources[parts[theirs][0]]), kinds[theirs], theirs)

    folder.mkdir(parents=True, exist_ok=True)
    main = max(kinds.values(), key=lambda kind: sum(sizes[n] for n in kinds if kinds[n] == kind))
    sizes |= {theirs: packed.nbytes for theirs, packed in kept.tensors.items()}
    write_shards(folder, groups(sizes, max_shard_bytes), sizes, tensor, on_tensor)
    dtype = {"dtype": str(main).removeprefix("torch.")}
    write_json(folder / CONFIG, {**(extra or {}), **fields, **dtype, **kept.config})


def narrowed(tensor: Tensor, kind: torch.dtype, name: str) -> Tensor:
    """`tensor` in the type `kind`, which must not turn a finite number into an infinite one."""
    result = tensor.to(kind)
    if not torch.equal(torch.isfinite(result), torch.isfinite(tensor)):
        raise CheckpointError(
            f"'{name}' holds numbers beyond {str(kind).removeprefix('torch.')}; write dtype=bfloat16"
        )
    return result
