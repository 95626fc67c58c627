"""Adapters in PEFT's format, both ways: `adapter_config.json` and `adapter_model.safetensors`, equal logits.

Names are those of the Hugging Face model that the base can be written as (`model/families`).  Nothing of a
folder is run, nothing is unpickled, and a tensor that has no place is refused by name.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hasten.adapt.config import LowRank
from hasten.adapt.linear import LoraLinear
from hasten.adapt.lora import adapted_layers, put_beside, trained_whole
from hasten.adapt.peft_names import Matrix, Pair, apart, held, joined, matrices, outermost
from hasten.adapt.peft_terms import CONFIG, Terms, adapter_base, alpha_of, read_terms
from hasten.core.errors import CheckpointError
from hasten.core.files import beside, sync, write_json
from hasten.core.foreign import file_inside
from hasten.model.families.base import Family, combine
from hasten.model.families.classes import SPANS, head_word
from hasten.model.families.registry import family_of
from hasten.model.interop import exact
from hasten.model.safetensors_file import SafetensorsFile
from hasten.model.transformer import Transformer
from hasten.model.weights import present

__all__ = ["adapter_base", "is_adapter", "load_adapter", "save_adapter"]

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
A, B, LENGTHS = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
TASKS = {
    ("decoder", "vocabulary"): "CAUSAL_LM",
    ("seq2seq", "vocabulary"): "SEQ_2_SEQ_LM",
    ("encoder", "pooled_classes"): "SEQ_CLS",
    ("decoder", "pooled_classes"): "SEQ_CLS",
    ("encoder", "token_classes"): "TOKEN_CLS",
    ("encoder", SPANS): "QUESTION_ANS",
    ("encoder", "none"): "FEATURE_EXTRACTION",
}
"""PEFT's word for what a model is for; it has none for masked words."""


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter of PEFT's."""
    return present(folder / CONFIG)


def save_adapter(folder: Path, model: Transformer, base: str) -> None:
    """Write the adapter of `model` so that `peft` loads it beside `base`, a folder or a name of the hub.

    What is trained whole goes along.  An adapter that is there already is replaced, its tensors before what
    is said of them.  CheckpointError where no architecture of Hugging Face can hold the model.
    """
    family, _ = family_of(model.config)
    adapted = adapted_layers(model)
    assert adapted, "a plain model has no adapter"
    pairs = {m.path: joined(m) for m in matrices(model, family) if adapted.keys() & m.layers.keys()}
    whole = whole_tensors(model, family)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, {f"{PREFIX}{name}": t for name, t in {**named(pairs), **whole}.items()})
    low_rank = next(iter(adapted.values())).low_rank
    headless = model.config.head == "none"
    names = [family.written_name(source, headless) for source in family.sources(model.config).values()]
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": TASKS.get((model.config.kind, head_word(model.config))),
            "base_model_name_or_path": base,
            "inference_mode": True,
            **described(pairs, low_rank),
            "fan_in_fan_out": any(s.transposed for s in family.sources(model.config).values()),
            "modules_to_save": outermost(names, whole) or None,
        },
    )


def named(pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
    """The tensors of pairs by their names."""
    tensors = dict[str, Tensor]()
    for path, pair in pairs.items():
        tensors |= {f"{path}.{A}": pair.a, f"{path}.{B}": pair.b}
        tensors |= {} if pair.lengths is None else {f"{path}.{LENGTHS}": pair.lengths}
    return tensors


def described(pairs: Mapping[str, Pair], low_rank: LowRank) -> dict[str, Any]:
    """What the file says of pairs: the rank and alpha that most of them have, those of the others by name."""
    alphas = {path: number(alpha_of(p.rank, p.scale, low_rank.rslora)) for path, p in pairs.items()}
    settings = {path: (pair.rank, alphas[path]) for path, pair in pairs.items()}
    (rank, alpha), _ = Counter(settings.values()).most_common(1)[0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": low_rank.dropout,
        "use_rslora": low_rank.rslora,
        "use_dora": low_rank.dora,
        "bias": "none",
        "init_lora_weights": True,
        "target_modules": list(pairs),
        "rank_pattern": {path: own for path, (own, _) in settings.items() if own != rank},
        "alpha_pattern": {path: own for path, (_, own) in settings.items() if own != alpha},
    }


def number(value: float) -> float:
    """A whole number as such."""
    return int(value) if value == int(value) else value


def whole_tensors(model: Transformer, family: Family) -> dict[str, Tensor]:
    """What is trained whole, by their names."""
    sources, headless = family.sources(model.config), model.config.head == "none"
    whole = {name: held(model.get_parameter(name)) for name in trained_whole(model)}
    return {
        family.written_name(sources[name], headless): combine({0: tensor}, sources[name])
        for name, tensor in whole.items()
    }


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file in one step."""
    temporary = beside(path)
    try:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, metadata={"format": "pt"})
        temporary.chmod(path.parent.stat().st_mode & 0o666)  # the library keeps it from everybody else
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@torch.no_grad()
def load_adapter(folder: Path, model: Transformer) -> None:
    """Put the adapter of PEFT's in `folder` beside a plain model, in place; it then gives what `peft` gives.

    Raises CheckpointError, with the model as before, for what does not belong to it or cannot be held.
    """
    terms, tensors = read_terms(folder), tensors_in(folder)
    family, _ = family_of(model.config)
    found = Adapter(tensors, family, terms)
    pairs = dict[str, Pair]()
    for matrix in matrices(model, family):
        if (pair := found.pair(matrix)) is not None:
            pairs |= apart(pair, matrix)
    whole = {name: found.whole(name, model) for name in trained_whole(model)}
    found.finish()
    put_beside(model, {name: terms.with_rank(pair.rank, pair.scale) for name, pair in pairs.items()})
    for name, pair in pairs.items():
        fill(model.get_submodule(name), pair)
    for name, value in whole.items():
        if value is not None:
            model.get_parameter(name).copy_(value)


def fill(layer: nn.Module, pair: Pair) -> None:
    """Give a layer's pair its numbers."""
    assert isinstance(layer, LoraLinear)
    layer.lora_a.copy_(pair.a)
    layer.lora_b.copy_(pair.b)
    if layer.lora_magnitude is not None and pair.lengths is not None:
        layer.lora_magnitude.copy_(pair.lengths)


def tensors_in(folder: Path) -> SafetensorsFile:
    """The tensors of an adapter; a pickle is refused, for it can hold a program."""
    if not present(folder / WEIGHTS) and present(folder / PICKLED):
        raise CheckpointError(
            f"{folder}: has its adapter only in {PICKLED}, a pickle, which can hold a program; save it with"
            " peft as safetensors (safe_serialization=True)"
        )
    return SafetensorsFile(file_inside(folder, WEIGHTS, str(folder)))


class Adapter:
    """The tensors of an adapter by plain names, each taken once."""

    def __init__(self, file: SafetensorsFile, family: Family, terms: Terms) -> None:
        self.file, self.family, self.terms = file, family, terms
        strange = next((name for name in file if not name.startswith(PREFIX)), None)
        if strange is not None:
            raise CheckpointError(
                f"{file.path}: '{strange[:200]}' should begin with {PREFIX}; save the adapter with peft"
            )
        short = family.plain_names((name.removeprefix(PREFIX) for name in file), str(file.path))
        self.left = {plain: f"{PREFIX}{name}" for plain, name in short.items()}

    def take(self, plain: str) -> Tensor | None:
        """A tensor in float32, None where there is none; damaged numbers are refused."""
        name = self.left.pop(plain, None)
        return None if name is None else exact(self.file[name], f"{self.file.path}: '{name[:200]}'")

    def pair(self, matrix: Matrix) -> Pair | None:
        """The pair beside a matrix, None where there is none and none is asked for."""
        a, b, lengths = (self.take(f"{matrix.plain}.{kind}") for kind in (A, B, LENGTHS))
        if a is None and b is None and lengths is None and not self.terms.asks_for(matrix.path):
            return None
        inputs, outputs = size(matrix)
        asked = self.terms.of(matrix.path)
        lengths_wanted = [outputs] if asked.dora else None
        wanted = {A: [asked.rank, inputs], B: [outputs, asked.rank], LENGTHS: lengths_wanted}
        for (kind, shape), tensor in zip(wanted.items(), (a, b, lengths), strict=True):
            if (None if tensor is None else list(tensor.shape)) != shape:
                raise CheckpointError(
                    f"{self.file.path}: '{matrix.path}.{kind}' is {described_as(tensor)} where {CONFIG} and"
                    f" the model ask for {shape or 'none'}; take both files, and the base they were made for"
                )
        assert a is not None and b is not None
        return Pair(a, b, asked.scale, lengths)

    def whole(self, name: str, model: Transformer) -> Tensor | None:
        """A parameter of ours that may be there as a whole."""
        source = self.family.sources(model.config)[name]
        tensor = self.take(source.name)
        if tensor is None:
            return None
        ours, shape = source.extract(tensor), model.get_parameter(name).shape
        if ours.shape != shape:
            raise CheckpointError(
                f"{self.file.path}: '{source.name}' gives {list(ours.shape)} for {name} where the model has"
                f" {list(shape)}; give the base that the adapter was made for"
            )
        return ours

    def finish(self) -> None:
        """Refuse what has no place."""
        if self.left:
            raise CheckpointError(
                f"{self.file.path}: '{next(iter(self.left.values()))[:200]}' has no place: hasten holds pairs"
                " beside the linear layers of blocks, and whole heads of classes; merge it with peft, or give"
                " the base that it was made for"
            )


def size(matrix: Matrix) -> tuple[int, int]:
    """Inputs and outputs of a matrix of theirs."""
    layers = [layer for layer in matrix.layers.values() if isinstance(layer, nn.Linear)]
    return layers[0].in_features, sum(layer.out_features for layer in layers)


def described_as(tensor: Tensor | None) -> str:
    """A tensor's shape in words."""
    return "missing" if tensor is None else str(list(tensor.shape))
