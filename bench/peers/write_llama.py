"""llama.cpp through its Python binding: its own calls, without the binding's copies and samplers.

The weights of a Hugging Face folder are written as a GGUF file first, in the precision that is asked for.
"""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

KINDS = {kind.lower(): gguf.GGMLQuantizationType[kind] for kind in ("F16", "BF16", "Q8_0", "Q4_0")}
LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def opened(*, folder: str, kind: str, threads: int) -> Callable[[list[list[int]], int], list[list[int]]]:
    """What continues prompts."""
    path = Path(folder) / f"model-{kind}.gguf"
    if not path.exists():
        write_gguf(Path(folder), path, KINDS[kind])
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    vocab_size = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["vocab_size"]

    def write(prompts: list[list[int]], count: int) -> list[list[int]]:
        return Session(model, len(prompts), len(prompts[0]) + count, threads, vocab_size).write(
            prompts, count
        )

    return write


class Session:
    """A context of its own for each call, as wide as it is needed."""

    def __init__(self, model: object, rows: int, length: int, threads: int, vocab_size: int) -> None:
        options = llama_cpp.llama_context_default_params()
        options.n_seq_max, options.n_ctx = rows, rows * length
        options.n_batch = options.n_ubatch = min(rows * length, 2048)
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, options)
        self.vocab_size, self.room = vocab_size, options.n_batch
        self.batch = llama_cpp.llama_batch_init(self.room, 0, 1)

    def write(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """The likeliest token of each row, `count` times."""
        length, rows = len(prompts[0]), range(len(prompts))
        for row in rows:  # one row at a time: a batch holds no more than n_batch tokens
            self.decode([(prompts[row][i], i, row, i == length - 1) for i in range(length)])
            first = self.likeliest(length - 1)
            prompts[row] = [*prompts[row], first]
        for place in range(length, length + count - 1):
            self.decode([(prompts[row][-1], place, row, True) for row in rows])
            for row in rows:
                prompts[row].append(self.likeliest(row))
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        return [ids[length:] for ids in prompts]

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Read tokens: each its id, its position, its row, and whether its scores are wanted."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, place, row, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, place, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode has failed")

    def likeliest(self, index: int) -> int:
        """The token with the highest score at a place of the last batch."""
        scores = llama_cpp.llama_get_logits_ith(self.context, index)
        return int(np.ctypeslib.as_array(scores, (self.vocab_size,)).argmax())


def write_gguf(folder: Path, path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """The model of a Hugging Face folder (Llama) as a file for llama.cpp, with no vocabulary of words."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, tensor in load_file(folder / "model.safetensors").items():
        theirs, values = translated(name), tensor.astype(np.float32)
        if theirs.endswith(("attn_q.weight", "attn_k.weight")):
            values = interleaved(values, heads if "attn_q" in theirs else kv_heads)
        whole = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else kind
        writer.add_tensor(theirs, gguf.quants.quantize(values, whole), raw_dtype=whole)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def translated(name: str) -> str:
    """A tensor's name there: model.layers.0.mlp.up_proj.weight -> blk.0.ffn_up.weight."""
    stem, _, suffix = name.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{suffix}"
    _, _, number, rest = stem.split(".", 3)
    return f"blk.{number}.{LAYER[rest]}.{suffix}"


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows so that pairs to be turned are neighbours, as llama.cpp turns them, not half a head apart."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
