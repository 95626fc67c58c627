"""Time greedy decoding against `transformers`: equal Llama shapes, equal weights, in turn in one process.

    python bench/generation.py --shapes tiny 110m --rows 1 8

All sides continue the same random prompts by the same number of tokens, through what a user calls: `generate`
of `hasten`, which also turns tokens into text as they come, and `generate` of `transformers` with its default
cache.  Reading the prompt is timed by asking for one token, and taken off.  Each repeat times all sides one
after the other, so that a busy machine meets them alike.  "hasten auto" is what users get from float32
weights: from 64 tokens on packed as float16 for decoding, and the packing is timed as decoding.  The others
are named after their precision.

The JSON on the last line has medians, all repeats, and whether a side chose the tokens of transformers in
fp32: rounding may part them at a near tie of these random weights.
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from hasten.core.runtime import environment
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.model.interop import load_hugging_face
from hasten.model.transformer import Decoder
from hasten.tokenizer.tokenizer import Tokenizer

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {  # that of stories260K
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 512,
    },
    "110m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 32_000,
    },
}
Generate = Callable[[list[list[int]], int], list[list[int]]]
"""`count` tokens after each prompt of ids."""


def make_sides(shape: dict[str, int]) -> dict[str, Generate]:
    """Everything that is compared, with the same random weights."""
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(**shape, max_position_embeddings=1024, initializer_range=0.05)
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_hugging_face(Path(folder)).float().eval()
    their_half, our_half = copy.deepcopy(theirs).bfloat16(), copy.deepcopy(ours).bfloat16()
    tokenizer = words(shape["vocab_size"])
    return {
        "hasten auto": partial(our_tokens, ours, tokenizer, "auto"),
        "hasten fp32": partial(our_tokens, ours, tokenizer, "model"),
        "hasten bf16": partial(our_tokens, our_half, tokenizer, "model"),
        "transformers fp32": partial(their_tokens, theirs),
        "transformers bf16": partial(their_tokens, their_half),
    }


def words(vocab_size: int) -> Tokenizer:
    """A tokenizer whose token i is the word `t<i>`: any ids can be written as a prompt."""
    inner = tokenizers.Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t1"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["t0"])
    return Tokenizer(inner, {"eos_token": "t0"})


def our_tokens(
    model: Decoder, tokenizer: Tokenizer, precision: str, prompts: list[list[int]], count: int
) -> list[list[int]]:
    """With hasten; `generate` itself puts the first token, 0, before a prompt."""
    settings = {
        "temperature": 0,
        "max_new_tokens": count,
        "stop_at_end_of_text": False,
        "precision": precision,
    }
    texts = [" ".join(f"t{i}" for i in ids[1:]) for ids in prompts]
    completions = generate(model, tokenizer, texts, GenerateConfig.model_validate(settings))
    return [list(completion.tokens) for completion in completions]


@torch.inference_mode()
def their_tokens(model: LlamaForCausalLM, prompts: list[list[int]], count: int) -> list[list[int]]:
    """With transformers."""
    ids = torch.tensor(prompts)
    config = GenerationConfig(
        max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[:, ids.shape[1] :].tolist()


def seconds(side: Generate, prompts: list[list[int]], count: int) -> float:
    before = time.perf_counter()
    side(prompts, count)
    return time.perf_counter() - before


def compare(shape: str, sides: dict[str, Generate], rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Decoding and reading speed of every side for one case, in tokens per second over all rows."""
    draw = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, SHAPES[shape]["vocab_size"], (rows, options.prompt_tokens), generator=draw)
    prompts[:, 0] = 0
    ids, count = prompts.tolist(), options.new_tokens
    chosen = {name: side(ids, count) for name, side in sides.items()}  # also warms them up
    speeds: dict[str, dict[str, list[float]]] = {name: {"decode": [], "read": []} for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            first, whole = seconds(side, ids, 1), seconds(side, ids, count)
            speeds[name]["read"].append(rows * options.prompt_tokens / first)
            speeds[name]["decode"].append(rows * (count - 1) / max(whole - first, 1e-9))
    decode = {name: statistics.median(speed["decode"]) for name, speed in speeds.items()}
    return {
        "shape": shape,
        "rows": rows,
        "decode_tokens_per_second": {name: round(x, 1) for name, x in decode.items()},
        "read_tokens_per_second": {n: round(statistics.median(s["read"]), 1) for n, s in speeds.items()},
        "auto_over_transformers_bf16": round(decode["hasten auto"] / decode["transformers bf16"], 2),
        "auto_over_transformers_fp32": round(decode["hasten auto"] / decode["transformers fp32"], 2),
        "same_tokens": {name: tokens == chosen["transformers fp32"] for name, tokens in chosen.items()},
        "repeats": {n: {k: [round(x, 1) for x in v] for k, v in s.items()} for n, s in speeds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for shape in options.shapes:
        sides = make_sides(SHAPES[shape])
        for rows in options.rows:
            results.append(compare(shape, sides, rows, options))
            print({key: value for key, value in results[-1].items() if key != "repeats"}, flush=True)
    facts = {"load_average": os.getloadavg(), "arguments": vars(options), **environment()}
    print(json.dumps({"program": "generation", "results": results, "environment": facts}))


if __name__ == "__main__":
    main()
