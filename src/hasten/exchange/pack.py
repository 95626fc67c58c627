"""Laying a model down: as a checkpoint of ours, a Hugging Face folder, a GGUF file; whole or not at all."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from hasten.core.config import dump
from hasten.core.errors import ConfigError
from hasten.core.files import beside, contents, replace_folder, sync, write_json, write_text
from hasten.evaluate.pooling import settings_files
from hasten.exchange.parcel import LUGGAGE, Parcel
from hasten.model.compressed import COMPRESSION, CompressionNote, tensors_of
from hasten.model.factored import factored_layers
from hasten.model.gguf import save_gguf
from hasten.model.interop import GENERATION, OnTensor, narrowed, save_hugging_face
from hasten.model.plain import quantization_of
from hasten.model.quantized import quantized_weights
from hasten.model.transformer import Decoder, Transformer
from hasten.tokenizer.files import FILE, ROLES_FILE
from hasten.tokenizer.template import TEMPLATE
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.held import WEIGHTS
from hasten.train.snapshot import MODEL

GgufType = Literal["F32", "F16", "Q8_0", "Q4_0"]
GGUF_TYPES: dict[str, GgufType] = {"float32": "F32", "float16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


def write_checkpoint(folder: Path, parcel: Parcel) -> None:
    """Lay a model down as a checkpoint, each number in the type it came in, integers with a note of them."""
    write_text(folder / MODEL, dump(parcel.model.config))
    quantization = quantization_of(parcel.model)
    if quantization is not None:
        note = CompressionNote(quantization=quantization, parent=parcel.title, steps=("came as integers",))
        write_text(folder / COMPRESSION, dump(note))
    weights = folder / f"{WEIGHTS}.safetensors"
    weights.parent.mkdir()
    held = tensors_of(parcel.model)
    tensors = {name: narrowed(t, parcel.types.get(name, t.dtype), name) for name, t in held.items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    write_luggage(folder, parcel)


def write_luggage(folder: Path, parcel: Parcel) -> None:
    """Put beside the weights what belongs to them: as it came where it came as files, else written anew."""
    if parcel.folder is not None:
        carry(parcel.folder, folder)
    tokenizer = parcel.tokenizer
    if parcel.folder is None and parcel.template is not None:
        write_text(folder / TEMPLATE, parcel.template)
    if tokenizer is None:
        return
    kept = {name for name in (FILE, ROLES_FILE) if (folder / name).exists()}
    if ROLES_FILE not in kept and FILE not in kept:
        tokenizer.save(folder)
    elif FILE not in kept:
        write_text(folder / FILE, tokenizer.inner.to_str(pretty=True))
    elif ROLES_FILE not in kept:
        write_json(folder / ROLES_FILE, roles(tokenizer))
    if not (folder / GENERATION).exists():
        write_json(folder / GENERATION, {**special_ids(tokenizer), "eos_token_id": ends(tokenizer)})


def carry(source: Path, folder: Path) -> None:
    """Copy what travels with the weights as it is."""
    names = [Path(name) for name in LUGGAGE if (source / name).is_file()]
    for name in [*names, *settings_files(source)]:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def roles(tokenizer: Tokenizer) -> dict[str, Any]:
    """A `tokenizer_config.json` for a tokenizer that came without."""
    spelled = {name.removesuffix("_id"): id for name, id in special_ids(tokenizer).items()}
    words = {name: tokenizer.inner.id_to_token(id) for name, id in spelled.items()}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **words}


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids that a `config.json` names."""
    padding = {} if tokenizer.pad_id == tokenizer.eot_id else {"pad_token_id": tokenizer.pad_id}
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eot_id, **padding}


def ends(tokenizer: Tokenizer) -> int | list[int]:
    """All ids that end a text, one alone as a number."""
    return tokenizer.eot_id if len(tokenizer.end_ids) == 1 else sorted(tokenizer.end_ids)


def write_folder(
    folder: Path, parcel: Parcel, types: Mapping[str, torch.dtype], max_shard_bytes: int, on_tensor: OnTensor
) -> None:
    """Lay a model down as a Hugging Face folder."""
    save_hugging_face(
        parcel.model,
        folder,
        types=types,
        extra=special_ids(parcel.tokenizer) if parcel.tokenizer else {},
        max_shard_bytes=max_shard_bytes,
        on_tensor=on_tensor,
    )
    write_luggage(folder, parcel)


def types_of(parcel: Parcel, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """In which type each weight goes out: `dtype`, or the one in which it came."""
    if dtype is None:
        return dict(parcel.types)
    others = (*dict(quantized_weights(parcel.model)), *factored_layers(parcel.model))
    return dict.fromkeys([*parcel.types, *(f"{name}.weight" for name in others)], dtype)


def gguf_type(model: Transformer) -> str:
    """The type in which GGUF has a model's numbers: the integers of a quantised one, or halves."""
    bits = Counter(layer.bits for _, layer in quantized_weights(model))
    return f"q{bits.most_common(1)[0][0]}_0" if bits else "float16"


def write_gguf(parcel: Parcel, output: Path, dtype: GgufType, nearest_split: bool = False) -> None:
    """Write a model as one GGUF file, under a temporary name until it is whole."""
    if parcel.tokenizer is None:
        raise ConfigError(f"{parcel.title}: has no tokenizer, which a GGUF file holds; put its {FILE} there")
    if not isinstance(parcel.model, Decoder):
        raise ConfigError(
            f"{parcel.title}: is a model of kind {parcel.model.config.kind}, and hasten writes decoders to"
            " GGUF; export it to=hf"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary, template = beside(output), parcel.template
    try:
        save_gguf(
            parcel.model,
            parcel.tokenizer,
            temporary,
            dtype,
            template,
            name=parcel.title,
            nearest_split=nearest_split,
        )
        sync(temporary)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    sync(output.parent)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder that appears as `final` when the block succeeds, and is gone when not.

    As `core.files.publish`, without a manifest: the folder is for programs that know none.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(final)
    temporary.mkdir()
    try:
        yield temporary
        for path in contents(temporary):
            path.chmod(temporary.stat().st_mode & 0o666)  # the library keeps its files from everybody else
            sync(path)
        replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync(final.parent)
