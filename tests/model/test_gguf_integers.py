"""GGUF in four bits: ggml's own rounding, and integers that are there already, which are only packed."""

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_gguf_llama_cpp import ask, python, scores
from tiny_gguf import SHAPES, make_bytewise, make_model

from hasten.compress.quantize import Quantize
from hasten.core.batch import Batch
from hasten.core.errors import CheckpointError
from hasten.model.gguf import load_gguf, save_gguf
from hasten.model.gguf.quant import BLOCK, Q4_0, Q8_0, dequantize, pack, quantize
from hasten.model.quantized import Quantization, put_quantized, quantized_weights


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def reference_q4_0(block: np.ndarray) -> list[int]:
    """The bytes of a block as `quantize_row_q4_0_ref` of ggml-quants.c makes them, one number at a time."""
    single = np.float32
    largest = max(block.tolist(), key=abs)
    d = single(single(largest) / single(-8))
    inverse = single(1) / d if d else single(0)
    codes = [min(15, int(single(single(x) * inverse) + single(8.5))) for x in block]
    halves = list(np.float16(d).tobytes())
    return halves + [codes[i] | codes[i + 16] << 4 for i in range(16)]


def samples(draw: np.random.Generator) -> np.ndarray:
    """Blocks of all sizes, one of zeros, one with a maximum of either sign."""
    values = draw.normal(size=(60, BLOCK)) * 10.0 ** draw.integers(-3, 3, (60, 1))
    values[0], values[1, :2], values[2, :2] = 0, (3.0, -3.0), (-3.0, 3.0)
    return values.astype(np.float32)


def test_four_bits_are_rounded_as_ggml_does(draw):
    values = samples(draw)
    found = quantize(values.reshape(-1), Q4_0).reshape(-1, Q4_0.block_bytes)
    assert found.tolist() == [reference_q4_0(block) for block in values]


def test_four_bits_are_those_of_the_package_gguf(draw):
    quants = pytest.importorskip("gguf.quants")
    constants = pytest.importorskip("gguf.constants")
    values = samples(draw)
    theirs = quants.quantize(values, constants.GGMLQuantizationType.Q4_0)
    ours = quantize(values.reshape(-1), Q4_0).reshape(theirs.shape)
    # It rounds product and sum at once, as processors with fused multiply-add do: a tie may go the other way.
    assert (ours != theirs).mean() < 0.001
    again = quants.dequantize(ours, constants.GGMLQuantizationType.Q4_0)
    assert np.array_equal(again.reshape(-1), dequantize(ours.reshape(-1), Q4_0))


@pytest.mark.parametrize(("format", "low", "high"), [(Q4_0, -8, 7), (Q8_0, -127, 127)], ids=["Q4_0", "Q8_0"])
def test_integers_and_scales_come_back_from_their_blocks(format, low, high, draw):
    values = draw.integers(low, high + 1, (40, BLOCK)).astype(np.int8)
    scales = draw.normal(size=(40, 1)).astype(np.float16).astype(np.float32)
    found = dequantize(pack(values, scales, format), format).reshape(40, BLOCK)
    assert np.array_equal(found, values * scales)


def quantised(shape: str, **options: Any) -> Any:
    model = make_model(shape)
    put_quantized(model, Quantization(**{"group_size": 32, **options}))
    return model.eval()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_integers_are_written_as_they_are(shape, bits, tmp_path):
    model = quantised(shape, bits=bits)
    save_gguf(model, make_bytewise(), tmp_path / "mine.gguf", "Q4_0" if bits == 4 else "Q8_0")
    read = load_gguf(tmp_path / "mine.gguf")[0]
    layers = dict(quantized_weights(model))
    assert layers
    for name, layer in layers.items():
        assert torch.equal(read.get_submodule(name).weight, layer.weight), name


@pytest.mark.parametrize("group", [32, 64, None])
def test_larger_groups_are_blocks_that_share_a_scale(group, tmp_path):
    model = make_model("llama")
    narrow = ("*attention*", "*.gate", "*.up")  # rows of 32; those of `down` have 64
    put_quantized(model, Quantization(bits=4, group_size=group, embedding_bits=None, skip=narrow))
    save_gguf(model, make_bytewise(), tmp_path / "mine.gguf", "Q4_0")
    read = load_gguf(tmp_path / "mine.gguf")[0]
    for name, layer in quantized_weights(model):
        assert torch.equal(read.get_submodule(name).weight, layer.weight)


def test_gptq_reaches_llama_cpps_format_without_loss(tmp_path):
    model = make_model("llama")
    tokens = torch.randint(0, 352, (4, 24), generator=torch.Generator().manual_seed(0))
    Quantize(group_size=32, eight_bits=("*.down",)).apply(model, [Batch(tokens, tokens)])
    save_gguf(model, make_bytewise(), tmp_path / "mine.gguf", "Q4_0")
    read = load_gguf(tmp_path / "mine.gguf")[0].eval()
    with torch.no_grad():
        torch.testing.assert_close(read(tokens), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(python() is None, reason="llama_cpp is not installed; make bench-peers brings it")
@pytest.mark.parametrize("shape", ["llama", "qwen3", "gpt2"])
def test_llama_cpp_scores_with_the_same_integers(shape, tmp_path):
    model, tokens = quantised(shape, eight_bits=("*.value", "*.down")), [5, 200, 31, 77, 150, 9]
    save_gguf(model, make_bytewise(), tmp_path / "mine.gguf", "Q4_0")
    [answer] = ask([{"path": str(tmp_path / "mine.gguf"), "tokens": tokens}])
    expected = scores(model, tokens)
    off = torch.tensor(answer["logits"]) - expected
    assert off.square().mean().sqrt() < 0.05 * expected.std()  # it rounds activations to eight bits


def test_a_plain_model_keeps_its_table_in_eight_bits(tmp_path):
    gguf = pytest.importorskip("gguf")
    save_gguf(make_model("llama"), make_bytewise(), tmp_path / "mine.gguf", "Q4_0")
    kinds = {
        tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "mine.gguf").tensors
    }
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["blk.1.ffn_down.weight"] == kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["output_norm.weight"] == "F32"


def test_as_floats_integers_are_what_they_stand_for(tmp_path):
    model = quantised("llama")
    save_gguf(model, make_bytewise(), tmp_path / "mine.gguf", "F32")
    read = load_gguf(tmp_path / "mine.gguf")[0]
    for name, layer in quantized_weights(model):
        assert torch.equal(read.get_submodule(name).weight, layer.weight)


def test_groups_that_are_no_blocks_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="32 inputs in groups of 16, and GGUF has blocks of 32"):
        save_gguf(quantised("llama", group_size=16), make_bytewise(), tmp_path / "mine.gguf", "Q4_0")


def test_parts_of_one_matrix_have_the_bits_of_the_widest(tmp_path):
    model = quantised("gpt2", eight_bits=("*.value",))
    save_gguf(model, make_bytewise(), tmp_path / "mine.gguf", "Q4_0")
    read = load_gguf(tmp_path / "mine.gguf")[0]
    for name, layer in quantized_weights(model):
        assert torch.equal(read.get_submodule(name).weight, layer.weight)


def test_parts_of_one_matrix_that_are_floats_are_refused(tmp_path):
    model = quantised("gpt2", skip=("*.value",))
    with pytest.raises(CheckpointError, match="one matrix in GGUF and several layers here"):
        save_gguf(model, make_bytewise(), tmp_path / "mine.gguf", "Q4_0")


def test_ggml_itself_rounds_alike(draw):
    library = ggml()
    if library is None:
        pytest.skip("llama_cpp is not installed; make bench-peers brings it")
    values = samples(draw)
    blocks = np.zeros((len(values), Q4_0.block_bytes), np.uint8)
    library.quantize_row_q4_0_ref.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.quantize_row_q4_0_ref(values.ctypes.data, blocks.ctypes.data, values.size)
    ours = quantize(values.reshape(-1), Q4_0).reshape(blocks.shape)
    assert (ours != blocks).mean() < 0.001  # compilers may fuse product and sum


def ggml() -> Any:
    """The library with ggml's reference quantisers, of this environment or of .venv-peers."""
    found = importlib.util.find_spec("llama_cpp")
    roots = [Path(found.origin).parent] if found and found.origin else []
    roots += (Path(__file__).parents[2] / ".venv-peers/lib").glob("python*/site-packages/llama_cpp")
    names = {"linux": "libggml-base.so", "darwin": "libggml-base.dylib"}
    paths = [root / "lib" / names.get(sys.platform, "ggml-base.dll") for root in roots]
    return next((ctypes.CDLL(str(path)) for path in paths if path.exists()), None)
