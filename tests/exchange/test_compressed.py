"""Compressed models as checkpoints: read back to the bit, of the right size, and hostile ones refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from adapted_run import base_in
from safetensors.torch import load_file, save_file

from hasten.core.errors import CheckpointError, ConfigError, HastenError
from hasten.core.files import damage, write_manifest
from hasten.exchange.compressed import save_compressed
from hasten.exchange.parcel import opened
from hasten.model.compressed import COMPRESSION, CompressionNote, shape_as, tensors_of
from hasten.model.config import ModelConfig
from hasten.model.quantized import Quantization, quantized_weights
from hasten.model.transformer import build
from hasten.ops.quantize import num_bytes
from hasten.train.begin import beginning
from hasten.train.load import load_model, load_trainable

WEIGHTS = "weights/model.safetensors"
INT4 = Quantization(bits=4, group_size=16)
Tensors = dict[str, torch.Tensor]


def compressed(
    folder: Path, quantization: Quantization | None = INT4, ranks: dict[str, int] | None = None
) -> Path:
    """A tiny Llama with other layers, as a checkpoint."""
    parcel = opened(base_in(folder / "base"))
    note = CompressionNote(quantization=quantization, ranks=ranks or {}, parent="base", steps=("rtn",))
    shape_as(parcel.model, note)
    save_compressed(folder / "small", parcel, note, {"kind": "compressed"})
    return folder / "small"


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("activations", ["none", "int8"])
@torch.no_grad()
def test_a_compressed_model_comes_back_to_the_bit(tmp_path, bits, activations):
    parcel = opened(base_in(tmp_path / "base"))
    quantization = Quantization(bits=bits, group_size=16, activations=activations, skip=("*.key",))
    note = CompressionNote(quantization=quantization, ranks={"layers.1.ffn.up": 16}, parent="base")
    shape_as(parcel.model, note)
    with torch.no_grad():  # as a method that factors would leave it
        for parameter in parcel.model.parameters():
            parameter.nan_to_num_(0.1, 0.1, 0.1).clamp_(-2, 2)
    save_compressed(tmp_path / "small", parcel, note)
    assert damage(tmp_path / "small") is None
    model, _ = load_model(tmp_path / "small")
    here, there = tensors_of(parcel.model), tensors_of(model)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert {layer.integers for _, layer in quantized_weights(model)} == {activations == "int8", False}
    tokens = torch.arange(10)[None]
    assert torch.equal(model.logits(model(tokens)), parcel.model.logits(parcel.model(tokens)))


@pytest.mark.parametrize("bits", [8, 4])
def test_files_are_as_large_as_the_arithmetic_says(tmp_path, bits):
    shape = {"vocab_size": 512, "dim": 256, "num_layers": 4, "num_heads": 4, "ffn_dim": 512}
    model = build(ModelConfig.model_validate(shape), seed=0).eval()
    parcel = replace(opened(base_in(tmp_path / "base")), model=model, types={})
    plain = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
    note = CompressionNote(quantization=Quantization(bits=bits, group_size=128), parent="base")
    shape_as(model, note)
    expected = sum(
        num_bytes(*shape, 8 if name.startswith(("embedding", "head")) else bits, 128)
        if len(shape) == 2
        else 4 * shape[0]
        for name, shape in plain.items()
    )
    save_compressed(tmp_path / "small", parcel, note)
    size = sum(path.stat().st_size for path in (tmp_path / "small").rglob("*") if path.is_file())
    assert expected < size < 1.03 * expected


def test_numbers_keep_the_type_that_they_came_in_where_it_holds_them(tmp_path):
    parcel = opened(base_in(tmp_path / "base"))
    parcel = replace(parcel, types=dict.fromkeys(parcel.types, torch.bfloat16))
    note = CompressionNote(quantization=INT4, parent="base")
    shape_as(parcel.model, note)
    with torch.no_grad():
        parcel.model.layers["0"].ffn_norm.weight.fill_(1 / 3)
        parcel.model.layers["1"].ffn_norm.weight.fill_(0.5)
    save_compressed(tmp_path / "small", parcel, note)
    stored = load_file(tmp_path / "small" / WEIGHTS)
    assert stored["layers.0.ffn_norm.weight"].dtype == torch.float32
    assert stored["layers.1.ffn_norm.weight"].dtype == torch.bfloat16
    assert load_model(tmp_path / "small")[0].layers["0"].ffn_norm.weight.dtype == torch.float32


def test_a_training_does_not_begin_with_integers(tmp_path):
    folder = compressed(tmp_path)
    with pytest.raises(CheckpointError, match="integers cannot be trained; begin with the model"):
        load_trainable(folder)
    with pytest.raises(CheckpointError, match="integers cannot be trained"):
        beginning(load_model(folder)[0].config, folder)


def without(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


UP = "layers.0.ffn.up"
HOSTILE = {
    "missing scales": (without(f"{UP}.scales"), "missing in the checkpoint"),
    "missing values": (without(f"{UP}.values"), "missing in the checkpoint"),
    "too few scales": (changed(f"{UP}.scales", lambda t: t[:, :1]), f"{UP}.scales"),
    "wide scales": (changed(f"{UP}.scales", torch.Tensor.float), "float32 in the checkpoint"),
    "values of another shape": (changed(f"{UP}.values", lambda t: t[:-1]), f"{UP}.values"),
    "values that are floats": (changed(f"{UP}.values", torch.Tensor.half), f"{UP}.values"),
    "values with a sign": (changed(f"{UP}.values", torch.Tensor.char), "int8 in the checkpoint"),
    "endless scales": (changed(f"{UP}.scales", lambda t: t * 1e9), "is not finite"),
    "left over": (lambda tensors: tensors.update({f"{UP}.zeros": torch.zeros(1)}), f"{UP}.zeros"),
}


@pytest.mark.parametrize(("spoil", "words"), HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_weights_are_refused_with_one_sentence(tmp_path, spoil, words):
    folder = compressed(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    spoil(tensors)
    save_file(tensors, folder / WEIGHTS)
    write_manifest(folder, {})
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


NOTES = {
    "another group": ({"quantization": {"group_size": 8}}, CheckpointError),
    "a group of none": ({"quantization": {"group_size": 0}}, ConfigError),
    "other bits": ({"quantization": {"bits": 8}}, CheckpointError),
    "three bits": ({"quantization": {"bits": 3}}, ConfigError),
    "no quantisation": ({"quantization": None}, CheckpointError),
    "a rank for nothing": ({"ranks": {"layers.7.ffn.up": 4}}, CheckpointError),
    "an endless rank": ({"ranks": {UP: 10**12}}, CheckpointError),
    "a rank of zero": ({"ranks": {UP: 0}}, ConfigError),
    "another kind": ({"kind": "adapter"}, ConfigError),
    "a group that does not fit": ({"quantization": {"group_size": 17}}, CheckpointError),
}


@pytest.mark.parametrize(("change", "error"), NOTES.values(), ids=list(NOTES))
def test_hostile_notes_are_refused_with_one_sentence(tmp_path, change, error):
    folder = compressed(tmp_path)
    note = yaml.safe_load((folder / COMPRESSION).read_text())
    inner = change.get("quantization")
    note |= {**change, "quantization": {**note["quantization"], **inner}} if inner else change
    (folder / COMPRESSION).write_text(yaml.safe_dump(note))
    write_manifest(folder, {})
    with pytest.raises(error) as caught:
        load_model(folder)
    assert issubclass(error, HastenError)
    assert "\n" not in str(caught.value)
