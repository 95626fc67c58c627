"""Models to GGUF and back: bits, shapes, the tokenizer, the template, and what is refused."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_gguf import BASE, SHAPES, make_bytewise, make_model
from torch import nn

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.gguf import load_gguf, save_gguf
from hasten.model.gguf.architectures import TRAINING
from hasten.model.gguf.container import read
from hasten.model.gguf.quant import F32, Bytes, Floats, quantize
from hasten.model.gguf.writer import Block, write
from hasten.model.transformer import Decoder, build
from hasten.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_bytewise()


def fields(model: Decoder) -> dict[str, Any]:
    """The shape, without what training only looks at."""
    return model.config.model_dump(exclude=TRAINING)


@pytest.mark.parametrize("name", SHAPES)
def test_a_written_model_comes_back_bit_for_bit(name, tokenizer, tmp_path):
    model = make_model(name)
    save_gguf(model, tokenizer, tmp_path / "m.gguf", "F32")
    assert read(tmp_path / "m.gguf").metadata["general.architecture"] == SHAPES[name][0]
    again, words, template = load_gguf(tmp_path / "m.gguf")
    assert template is None
    assert words.encode("a little girl") == tokenizer.encode("a little girl")
    wanted, found = fields(model), fields(again)
    scale = (wanted.pop("embedding_scale"), found.pop("embedding_scale"))
    assert scale[0] == pytest.approx(scale[1])
    assert found == wanted
    # Gemma's norms are stored as 1 + weight, which costs the last bits of a small weight.
    shifted = name.startswith("gemma")
    for parameter, value in model.state_dict().items():
        other = again.state_dict()[parameter]
        near = torch.allclose(other, value, rtol=0, atol=1e-6)
        assert near if shifted and "norm" in parameter else torch.equal(other, value), parameter
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize(("dtype", "allowed"), [("F16", 2.0**-11), ("Q8_0", 0.6 / 127)])
def test_rounding_is_that_of_the_format(dtype, allowed, tokenizer, tmp_path):
    model = make_model("gpt2")
    save_gguf(model, tokenizer, tmp_path / "m.gguf", dtype)
    again, _, _ = load_gguf(tmp_path / "m.gguf")
    for name, value in model.state_dict().items():
        other = again.state_dict()[name]
        if value.dim() == 1 or name == "positions.weight":  # norms, biases and positions stay as they are
            assert torch.equal(other, value), name
        else:
            assert (other - value).abs().max() <= value.abs().max() * allowed, name
            assert not torch.equal(other, value), name


def test_rows_that_are_no_multiple_of_32_become_float16_in_an_8_bit_file(tokenizer, tmp_path):
    shape = {**BASE, "dim": 32, "ffn_dim": 40}
    save_gguf(build(ModelConfig.model_validate(shape), 0), tokenizer, tmp_path / "m.gguf", "Q8_0")
    kinds = {name: entry.format.name for name, entry in read(tmp_path / "m.gguf").tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_llama_has_the_pairs_of_a_head_side_by_side(tokenizer, tmp_path):
    model = make_model("llama")
    save_gguf(model, tokenizer, tmp_path / "m.gguf", "F32")
    stored = read(tmp_path / "m.gguf").floats("blk.0.attn_q.weight").reshape(4, 4, 2, 32)
    ours = model.layers["0"].attention.query.weight.detach().numpy().reshape(4, 2, 4, 32)
    for head in range(4):
        for pair in range(4):
            assert np.array_equal(stored[head, pair, 0], ours[head, 0, pair])
            assert np.array_equal(stored[head, pair, 1], ours[head, 1, pair])


def test_the_template_and_the_name_travel(tokenizer, tmp_path):
    template = "{% for message in messages %}<|im_start|>{{ message['content'] }} 你好{% endfor %}"
    save_gguf(make_model("llama"), tokenizer, tmp_path / "m.gguf", "F16", template, name="a small one")
    metadata = read(tmp_path / "m.gguf").metadata
    assert metadata["general.name"] == "a small one"
    assert metadata["general.file_type"] == 1
    assert metadata["tokenizer.ggml.add_bos_token"] is False  # the template writes it all
    assert load_gguf(tmp_path / "m.gguf")[2] == template


def test_the_package_gguf_reads_what_is_written(tokenizer, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    model = make_model("llama")
    save_gguf(model, tokenizer, tmp_path / "m.gguf", "F32")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert np.array_equal(tensors["output.weight"], model.head.weight.detach().numpy())
    assert reader.fields["llama.block_count"].contents() == 2
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == 352


def test_hastens_own_shape_is_refused_with_the_fields_in_the_way(tokenizer, tmp_path):
    model = build(ModelConfig(preset="hasten-tiny", vocab_size=352, num_layers=1), seed=0)
    with pytest.raises(CheckpointError, match=r"nearest is qwen3, where activation is .* embedding_norm is"):
        save_gguf(model, tokenizer, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"norm": "layer"}, "norm is rms and not layer"),
        ({"sliding_window": 16}, "sliding_window is None and not 16"),
        ({"logit_soft_cap": 30.0}, "logit_soft_cap is None and not 30.0"),
        ({"activation": "gelu", **dict.fromkeys(("attention_bias", "out_bias", "ffn_bias"), True),
          "norm": "layer", "position": "learned", "num_kv_heads": 4}, "activation is gelu_tanh and not gelu"),
        ({"rotary_share": 0.5}, "rotary_share is 1.0 and not 0.5"),
        ({"qk_norm": True, "rope_scaling": {"kind": "llama3"}}, "rope_scaling is None and not llama3"),
    ],
)  # fmt: skip
def test_a_shape_that_llama_cpp_has_not_is_refused(shape, message, tokenizer, tmp_path):
    model = build(ModelConfig.model_validate({**BASE, **shape}), seed=0)
    with pytest.raises(CheckpointError, match=message):
        save_gguf(model, tokenizer, tmp_path / "m.gguf")


def test_numbers_that_a_format_cannot_hold_are_refused(tokenizer, tmp_path):
    model = make_model("llama")
    with torch.no_grad():
        model.layers["0"].ffn.up.weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"'blk.0.ffn_up.weight' has numbers up to 1e\+06, which F16"):
        save_gguf(model, tokenizer, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
    save_gguf(model, tokenizer, tmp_path / "m.gguf", "F32")
    with torch.no_grad():
        model.layers["0"].ffn.up.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="F32 cannot hold"):
        save_gguf(model, tokenizer, tmp_path / "m.gguf", "F32")


def test_an_unknown_dtype_and_a_strange_parameter_are_refused(tokenizer, tmp_path):
    model = make_model("llama")
    with pytest.raises(CheckpointError, match=r"dtype cannot be 'Q4_K'; choose from F32, F16, Q8_0"):
        save_gguf(model, tokenizer, tmp_path / "m.gguf", "Q4_K")
    model.layers["0"].ffn.up.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"layers\.0\.ffn\.up\.extra has no place"):
        save_gguf(model, tokenizer, tmp_path / "m.gguf")


def rewritten(path: Path, keys: dict[str, Any], drop: str = "", add: tuple[int, ...] = ()) -> None:
    """The file with keys changed (None removes one), a tensor dropped, or a strange one added."""
    file = read(path)
    metadata = {k: plain(v) for k, v in {**file.metadata, **keys}.items() if v is not None}
    blocks = [
        Block(name, entry.shape, F32, partial(packed, file.floats(name)))
        for name, entry in file.tensors.items()
        if name != drop
    ]
    if add:
        blocks.append(Block("strange.weight", add, F32, partial(packed, np.zeros(add, np.float32))))
    write(path, metadata, blocks)


def packed(values: Floats) -> Bytes:
    """As F32."""
    return quantize(values.reshape(-1), F32)


def plain(value: Any) -> Any:
    """Arrays as the writer takes them."""
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.architecture": "lama"}, "cannot hold the architecture 'lama'. Did you mean 'llama'"),
        ({"general.architecture": None}, "cannot hold the architecture None"),
        ({"general.type": "adapter"}, "'general.type' is 'adapter'"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"llama.block_count": None}, "'llama.block_count' is missing"),
        ({"llama.block_count": 2**31}, "'llama.block_count' is 2,147,483,648, and the file has"),
        ({"llama.block_count": 3}, "has no tensor 'blk.2.attn_norm.weight'"),
        ({"llama.block_count": 1}, "'blk.1.attn_norm.weight' has no place in a llama"),
        ({"llama.block_count": "2"}, "should be int, got str"),
        ({"llama.block_count": 0}, "is 0, and should be 1 or more"),
        ({"llama.attention.head_count": 2**31}, "more than any tensor of the file has room for"),
        ({"llama.attention.head_count": 2}, "'blk.0.attn_k.weight' is|rope.dimension_count' is 8"),
        ({"llama.attention.head_count_kv": 3}, "must be a multiple of num_kv_heads"),
        ({"llama.feed_forward_length": 48}, r"'blk.0.ffn_gate.weight' is \[64, 32\] where its keys ask for"),
        ({"llama.embedding_length": 64}, "'llama.embedding_length' is 64, and the rest of the file says 32"),
        ({"llama.vocab_size": 9}, "'llama.vocab_size' is 9"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon' is nan"),
        ({"llama.attention.layer_norm_rms_epsilon": 1}, "should be float, got int"),
        ({"llama.rope.freq_base": -1.0}, "rope_theta"),
        ({"llama.rope.scaling.type": "yarn"}, "is 'yarn', and hasten can hold 'none', 'linear'"),
        ({"llama.expert_count": 8}, r"'llama.expert_count' \(8\) is unknown to hasten"),
        ({"llama.attention.key_length": 16}, "value_length|rope.dimension_count"),
        ({"tokenizer.chat_template": 1}, "'tokenizer.chat_template' should be a text"),
    ],
)
def test_keys_that_do_not_fit_are_named(keys, message, tokenizer, tmp_path):
    path = tmp_path / "m.gguf"
    save_gguf(make_model("llama"), tokenizer, path, "F32")
    rewritten(path, keys)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_gguf(path)
    assert str(caught.value).startswith(str(path))


def test_missing_strange_and_broken_tensors_are_named(tokenizer, tmp_path):
    path, model = tmp_path / "m.gguf", make_model("llama")
    save_gguf(model, tokenizer, path, "F32")
    rewritten(path, {}, drop="output_norm.weight")
    with pytest.raises(CheckpointError, match=r"has no tensor 'output_norm\.weight'"):
        load_gguf(path)
    save_gguf(model, tokenizer, path, "F32")
    rewritten(path, {}, add=(3, 3))
    with pytest.raises(CheckpointError, match=r"'strange\.weight' has no place in a llama"):
        load_gguf(path)
    save_gguf(model, tokenizer, path, "F32")
    entry = read(path).tensors["blk.1.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    data[entry.begin : entry.begin + 4] = np.float32(np.inf).tobytes()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'blk\.1\.ffn_up\.weight' has numbers that are not finite"):
        load_gguf(path)


def test_other_factors_than_llama_3s_are_refused(tokenizer, tmp_path):
    path = tmp_path / "m.gguf"
    save_gguf(make_model("llama llama3 rope"), tokenizer, path, "F32")
    rewritten(path, {"llama.rope.scaling.original_context_length": 4096})
    with pytest.raises(CheckpointError, match=r"'rope_freqs\.weight' has other factors than Llama 3\.1's"):
        load_gguf(path)


def test_values_of_other_namespaces_say_nothing_about_the_model(tokenizer, tmp_path):
    path, model = tmp_path / "m.gguf", make_model("llama")
    save_gguf(model, tokenizer, path, "F32")
    rewritten(path, {"general.license": "mit", "somebody.note": "hello"})
    assert fields(load_gguf(path)[0]) == fields(model)


def test_a_file_is_replaced_whole_or_not_at_all(tokenizer, tmp_path):
    path = tmp_path / "m.gguf"
    save_gguf(make_model("llama"), tokenizer, path, "F32")
    before = path.read_bytes()
    broken = make_model("llama")
    with torch.no_grad():
        broken.head.weight[0, 0] = torch.inf
    with pytest.raises(CheckpointError):
        save_gguf(broken, tokenizer, path, "F32")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert json.dumps(sorted(read(path).tensors))
