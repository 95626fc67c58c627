"""Damaged and hostile folders of models: refused in words, nothing run, no memory for what is not there."""

import json
import os
import pickle
import shutil
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mutations import changed_values, mutations
from safetensors.torch import save_file
from torch import nn

from hasten.core.errors import CheckpointError, DataError, HastenError
from hasten.model.config import ModelConfig
from hasten.model.families.registry import FAMILIES
from hasten.model.interop import load_hugging_face, read_config, save_hugging_face
from hasten.model.transformer import build
from hasten.model.weights import weights_in
from hasten.tokenizer.template import find_template, render
from hasten.tokenizer.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

SHAPE = ModelConfig(
    vocab_size=260, dim=16, num_layers=2, num_heads=2, activation="swiglu", ffn_dim=24, max_positions=32
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a tiny Llama."""
    folder = tmp_path_factory.mktemp("whole")
    save_hugging_face(build(SHAPE, seed=0), folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(whole, tmp_path / "model")


def attempt(call: Callable[[], Any]) -> Any:
    """The result of a call, None where it is refused in a sentence; anything else fails the test."""
    try:
        return call()
    except HastenError as error:
        assert len(str(error)) < 2000
        return None


@pytest.mark.parametrize("kind", FAMILIES)
def test_damaged_configs_give_a_shape_or_a_refusal(kind, tmp_path):
    values = json.loads(transformers.AutoConfig.for_model(kind).to_json_string(use_diff=False))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    whole = attempt(lambda: read_config(path))
    for changed in changed_values(values, 250, seed=1):
        path.write_text(json.dumps(changed))
        found = attempt(lambda: read_config(path))
        assert found is None or isinstance(found[1], ModelConfig)
    for content in mutations(json.dumps(values).encode(), 50, seed=2):
        path.write_bytes(content)
        attempt(lambda: read_config(path))
    assert whole is None or isinstance(whole[1], ModelConfig)


def test_a_model_is_loaded_as_its_config_says_or_not_at_all(folder):
    values = json.loads((folder / "config.json").read_text())
    loaded = 0
    for changed in changed_values(values, 500, seed=3):
        (folder / "config.json").write_text(json.dumps(changed))
        model = attempt(lambda: load_hugging_face(folder))
        if model is not None:
            loaded += 1
            assert model.config == read_config(folder / "config.json")[1]
            assert model.config.num_parameters == sum(p.numel() for p in model.parameters())
    assert loaded > 10


BOMBS = {
    "vocab_size": 2**40, "hidden_size": 2**40, "num_hidden_layers": 2**40, "num_attention_heads": 2**40,
    "num_key_value_heads": 2**40, "head_dim": 2**40, "intermediate_size": 2**62,
    "max_position_embeddings": 2**62,
}  # fmt: skip


@pytest.mark.parametrize("field", BOMBS)
def test_a_config_that_describes_more_than_the_files_hold_takes_no_memory(field, folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, field: BOMBS[field]}))
    tracemalloc.start()
    try:
        model = attempt(lambda: load_hugging_face(folder))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert model is None or field == "max_position_embeddings"  # rotary positions have no table


def test_many_layers_of_a_small_file_are_refused_before_they_are_built(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 1000}))
    with pytest.raises(CheckpointError, match=r"in 1,000 layers, and the files hold"):
        load_hugging_face(folder)


def hostile_code(folder: Path, canary: Path) -> None:
    """Programs under every name that a loader might import or run."""
    program = f"import pathlib; pathlib.Path({str(canary)!r}).write_text('run')\n"
    for name in ("modeling_llama.py", "configuration_llama.py", "tokenization_x.py", "modeling_x.py"):
        (folder / name).write_text(program)
    for name in ("__init__.py", "setup.py", "conftest.py", "sitecustomize.py", "torch.py", "json.py"):
        (folder / name).write_text(program)


ASKING = [
    {"auto_map": {"AutoModelForCausalLM": "modeling_x.Model"}},
    {"auto_map": {"AutoConfig": "other/repository--configuration_x.Config"}},
    {"trust_remote_code": True},
    {"custom_pipelines": {"text": {"impl": "modeling_x.Pipeline"}}},
    {"model_type": "x"},
]


@pytest.mark.parametrize("fields", ASKING, ids=lambda fields: next(iter(fields)))
def test_a_config_that_asks_for_code_is_refused_and_nothing_is_run(fields, folder, tmp_path, monkeypatch):
    hostile_code(folder, tmp_path / "canary")
    monkeypatch.chdir(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **fields}))
    reason = "cannot hold model_type 'x'" if "model_type" in fields else "asks for code of its own"
    with pytest.raises(CheckpointError, match=reason):
        load_hugging_face(folder)
    assert not (tmp_path / "canary").exists()


def test_programs_beside_the_weights_are_not_looked_at(folder, tmp_path, monkeypatch):
    hostile_code(folder, tmp_path / "canary")
    monkeypatch.chdir(folder)
    assert load_hugging_face(folder).config.dim == SHAPE.dim
    assert not (tmp_path / "canary").exists()


PAYLOADS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{% for x in range(10**9) %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{% include '/etc/passwd' %}",
    "{{ messages.append(1) }}",
]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_that_reaches_out_is_confined(payload, file, folder, tmp_path):
    payload = payload.replace("CANARY", str(tmp_path / "canary"))
    text = (
        payload if file.endswith("jinja") else json.dumps({"chat_template": payload, "bos_token": "%}{{ 1"})
    )
    (folder / file).write_text(text)
    template = find_template(folder)
    assert template is not None
    with pytest.raises(DataError):
        render(template, [{"role": "user", "content": "hello"}])
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"chat_template": 1},
        {"chat_template": ["x"]},
        {"bos_token": {"a": 1}},
        {"bos_token": 1, "chat_template": ""},
    ],
)
def test_settings_of_the_wrong_kind_are_no_crash(settings, folder):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    attempt(lambda: find_template(folder))


def test_damaged_tokenizers_are_refused_or_encode(byte_tokenizer, tmp_path):
    whole = byte_tokenizer("<|end|>", "<|endoftext|>").inner.to_str().encode()
    path = tmp_path / "tokenizer.json"
    for content in mutations(whole, 1500, seed=4):
        path.write_bytes(content)
        tokenizer = attempt(lambda: Tokenizer.load(path))
        if tokenizer is not None:
            ids = attempt(partial(tokenizer.encode, "cat"))
            assert ids is None or all(0 <= id < tokenizer.vocab_size for id in ids)


def test_damaged_files_beside_a_tokenizer_are_refused_or_read(byte_tokenizer, tmp_path):
    byte_tokenizer("<|end|>", "<|endoftext|>").save(tmp_path)
    files = {
        "tokenizer_config.json": (tmp_path / "tokenizer_config.json").read_bytes(),
        "special_tokens_map.json": b'{"bos_token": "<|end|>", "eos_token": {"content": "<|end|>"}}',
        "generation_config.json": b'{"bos_token_id": 256, "eos_token_id": [256, 257], "pad_token_id": 0}',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, content in files.items():
        for damaged in mutations(content, 400, seed=5):
            (tmp_path / name).write_bytes(damaged)
            tokenizer = attempt(lambda: Tokenizer.load(tmp_path))
            if tokenizer is not None:
                assert all(0 <= id < tokenizer.vocab_size for id in tokenizer.end_ids)
            attempt(lambda: find_template(tmp_path))
        (tmp_path / name).write_bytes(content)


class Canary:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path, call: Callable[..., Any] = os.mkdir) -> None:
        self.path, self.call = path, call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, (str(self.path),)


def expanded() -> torch.Tensor:
    """A billion numbers out of one."""
    return torch.zeros(1).expand(1 << 30)


TRICKS: dict[str, Callable[[Path], Any]] = {
    "a command": lambda canary: {"w": Canary(canary)},
    "a command beside": lambda canary: {"w": torch.ones(2), "x": Canary(canary, open)},
    "a command in the order": lambda canary: OrderedDict(w=torch.ones(2), x=Canary(canary)),
    "a sparse tensor": lambda canary: {"w": torch.eye(3).to_sparse()},
    "a sparse tensor of rows": lambda canary: {"w": torch.eye(3).to_sparse_csr()},
    "a quantized tensor": lambda canary: {"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
    "an expanded tensor": lambda canary: {"w": expanded()},
    "a list": lambda canary: [torch.ones(2)],
    "a tensor alone": lambda canary: torch.ones(2),
    "mappings in mappings": lambda canary: {"state_dict": {"w": torch.ones(2)}},
    "a number": lambda canary: {"w": 1},
    "names that are numbers": lambda canary: {1: torch.ones(2)},
    "a tensor of no device": lambda canary: {"w": torch.ones(2, device="meta")},
    "complex numbers": lambda canary: {"w": torch.ones(2, dtype=torch.complex64)},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRICKS)
def test_a_pickle_of_anything_but_plain_tensors_is_refused_and_not_run(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(TRICKS[name](tmp_path / "canary"), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model"):
        dict(weights_in(folder, pickle=True))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused_at_every_protocol(protocol, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Canary(tmp_path / "canary")}, protocol))
    with pytest.raises(CheckpointError, match=r"no archive of torch\.save"):
        weights_in(tmp_path, pickle=True)
    assert not (tmp_path / "canary").exists()


def rewritten(
    path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    """Write an archive anew with its entries changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(name, data))


def saved(folder: Path) -> Path:
    """Plain pickled weights, and where."""
    torch.save({"w": torch.arange(4.0), "b": torch.ones(2, 3).bfloat16()}, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def test_plain_pickled_weights_are_read_by_flag_only(tmp_path):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"a pickle, which can hold a program.*pickle=true"):
        weights_in(tmp_path)
    found = weights_in(tmp_path, pickle=True)
    assert found["w"].tolist() == [0, 1, 2, 3]
    assert found["b"].dtype == torch.bfloat16


def test_tied_pickled_tensors_are_read(tmp_path):
    shared = nn.Parameter(torch.ones(2, 2))
    torch.save(OrderedDict(w=shared, x=shared.T), tmp_path / "pytorch_model.bin")
    assert weights_in(tmp_path, pickle=True)["x"].shape == (2, 2)


def test_a_compressed_archive_is_refused(tmp_path):
    rewritten(saved(tmp_path), lambda name, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="is compressed"):
        weights_in(tmp_path, pickle=True)


def in_pickle(old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    """Replace opcodes of the pickle."""
    return lambda name, data: data.replace(old, new) if name.endswith("data.pkl") else data


FOUR, ENDS = b"K\x04", {"the tensor": b"\x85", "the storage": b"t", "both": b""}
"""How a small number is pickled, and what comes after it: a tuple of one, or of all since a mark."""


@pytest.mark.parametrize("what", ENDS)
@pytest.mark.parametrize("size", [5, 1 << 16, 1 << 31, 1 << 40, 1 << 62])
def test_a_claim_of_more_numbers_than_there_are_takes_no_memory_and_is_refused(what, size, tmp_path):
    new = b"\x8a\x09" + size.to_bytes(9, "little")
    rewritten(saved(tmp_path), in_pickle(FOUR + ENDS[what], new + ENDS[what]))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            weights_in(tmp_path, pickle=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_damaged_pickles_are_refused_or_hold_plain_tensors(tmp_path):
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as archive:
        program = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    for content in mutations(path.read_bytes(), 300, seed=6):
        path.write_bytes(content)
        check_plain(attempt(lambda: weights_in(tmp_path, pickle=True)))
    for damaged in mutations(program, 700, seed=7):
        saved(tmp_path)
        rewritten(path, lambda name, data, new=damaged: new if name.endswith("data.pkl") else data)
        check_plain(attempt(lambda: weights_in(tmp_path, pickle=True)))


def check_plain(found: Any) -> None:
    """Every tensor, if there are any, is dense and within the file's size."""
    for tensor in found.values() if found is not None else ():
        assert tensor.layout == torch.strided
        assert tensor.numel() <= 16


def test_safetensors_go_before_pickles(tmp_path):
    saved(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert weights_in(tmp_path)["w"].tolist() == [0]
