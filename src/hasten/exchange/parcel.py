"""A model and what belongs to it, wherever it lies: opened with no trust in its files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from hasten.core.errors import CheckpointError, ConfigError
from hasten.core.foreign import file_inside, read_json
from hasten.data.tasks.wording import LONGEST_PROMPT, PROMPT
from hasten.model.gguf import load_gguf
from hasten.model.interop import GENERATION, OnTensor, Types, load_with_types, refuse_code
from hasten.model.transformer import Transformer
from hasten.model.weights import present
from hasten.tokenizer.files import FILE, MAX_FILE_BYTES, ROLES_FILE
from hasten.tokenizer.older import rebuilt
from hasten.tokenizer.template import LONGEST_TEMPLATE, TEMPLATE, template_source
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.held import WEIGHTS, weights_of
from hasten.train.load import load_model
from hasten.train.pieces import Pieces
from hasten.train.restore import checkpoint_in, is_checkpoint

LUGGAGE = {
    FILE: MAX_FILE_BYTES, ROLES_FILE: MAX_FILE_BYTES, "special_tokens_map.json": 1 << 20,
    "added_tokens.json": 1 << 24, GENERATION: 1 << 20, TEMPLATE: 4 * LONGEST_TEMPLATE,
    PROMPT: 4 * LONGEST_PROMPT,
    "vocab.json": MAX_FILE_BYTES, "merges.txt": MAX_FILE_BYTES, "vocab.txt": MAX_FILE_BYTES,
}  # fmt: skip
"""What travels with the weights, and how many bytes of it at most."""


@dataclass(frozen=True)
class Parcel:
    """A model and what belongs to it."""

    model: Transformer
    types: Types  # of each parameter where it came from
    tokenizer: Tokenizer | None
    template: str | None
    folder: Path | None  # with the files that travel along; None for a GGUF file, which has all in it
    title: str


def opened(place: Path, pickle: bool = False, on_tensor: OnTensor = lambda done, total: None) -> Parcel:
    """What is at `place`: a GGUF file, a run or checkpoint of ours, or a Hugging Face folder."""
    if place.is_file():
        return opened_gguf(place, on_tensor)
    folder = checkpoint_in(place)
    model: Transformer
    if is_checkpoint(folder):
        model, tokenizer = load_model(folder)
        types = {name: dtype for name, (_, dtype) in Pieces(folder, WEIGHTS).layout().items()}
    else:
        check_luggage(folder)
        tokenizer = Tokenizer.load(folder) if has_tokenizer(folder) else None
        model, types = load_with_types(folder, pickle, on_tensor)
    return Parcel(model, types, tokenizer, template_source(folder), folder, title_of(place))


def opened_gguf(place: Path, on_tensor: OnTensor) -> Parcel:
    """What is in a GGUF file; its numbers, whatever they were packed as, are float32 from here on."""
    if place.suffix.lower() != ".gguf":
        raise ConfigError(f"{place}: is a file; give the folder that holds it, or a .gguf file")
    model, tokenizer, template = load_gguf(place)
    types = {name: tensor.dtype for name, tensor in weights_of(model).items()}
    on_tensor(len(types) - 1, len(types))
    return Parcel(model, types, tokenizer, template, None, title_of(place))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer that hasten reads; DataError for one that it cannot."""
    return (folder / FILE).exists() or rebuilt(folder) is not None


def check_luggage(folder: Path) -> None:
    """Refuse files beside the weights that lead outside, are huge, are no JSON, or ask for code."""
    for name, most in LUGGAGE.items():
        if not present(folder / name):
            continue
        path = file_inside(folder, name, str(folder))
        if path.stat().st_size > most:
            raise CheckpointError(f"{path}: has more than {most:,} bytes, which no model needs; take it away")
        if name in (ROLES_FILE, GENERATION):
            refuse_code(read_json(path), path)


def title_of(place: Path) -> str:
    """The name to give to what comes from `place`."""
    real = place.resolve()
    if real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--"):
        return real.parent.parent.name.rpartition("--")[2]
    title = real.stem if real.suffix == ".gguf" else real.name
    return title or "model"


def described(parcel: Parcel, types: Iterable[torch.dtype | str]) -> str:
    """What a model is whose numbers are of these types, in a few words."""
    config = parcel.model.config
    kinds = " and ".join(sorted({str(kind).removeprefix("torch.") for kind in types}))
    words = [f"{config.kind} of {config.num_parameters:,} parameters in {kinds}"]
    tokenizer = parcel.tokenizer
    words.append(f"a tokenizer of {tokenizer.vocab_size:,}" if tokenizer else "no tokenizer")
    words += ["a chat template"] if parcel.template else []
    return ", ".join(words)
