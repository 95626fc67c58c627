"""Quality against size: hasten's quantisation and llama.cpp's, of the same weights on the same text.

    make models bench-peers
    python bench/compression.py --data ../shared/data --save bench/results/compression.json

SmolLM2-135M reads windows of WikiText-2's validation text, spread evenly over it; perplexity, bits per byte
and the divergence from the original's distribution are over every token after the first of a window.  Methods
that look at texts are calibrated on Wikipedia articles and web pages, never on that text.  Sizes are those of
a GGUF file, which both programs write, so that bytes mean the same; it has a scale for each 32 weights, also
where a group of 64 shares one, and `tensor_bytes` are those of hasten's own tensors.  The width of this
model, 576, has no whole groups of 128: its groups are 64.  llama.cpp rounds activations to eight bits as it
multiplies; hasten does not unless it is told to.

Differences of perplexity are paired over windows: `rise` is the mean rise of -log p with its standard error.
The JSON on the last line has every window's sum; with --save it is there after each arm.
"""

import argparse
import gzip
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.compress.quantize import Quantize, size_of
from hasten.core.batch import Batch
from hasten.core.files import write_json
from hasten.core.runtime import environment
from hasten.model.gguf import save_gguf
from hasten.model.transformer import Decoder
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.load import load_model

BENCH = Path(__file__).parent
MODEL = Path(os.environ.get("HASTEN_MODELS", BENCH.parent / "runs/models")) / "SmolLM2-135M-Instruct-hf"
PEERS = BENCH.parent / ".venv-peers/bin/python"
ALL_FOUR: dict[str, Any] = {"group_size": 64, "eight_bits": ()}
ARMS = {
    "int8": Quantize(method="rtn", bits=8, group_size=32),
    "int4, nearest": Quantize(method="rtn", search=False, **ALL_FOUR),
    "int4, nearest, searched scales": Quantize(method="rtn", **ALL_FOUR),
    "int4, AWQ": Quantize(method="awq", **ALL_FOUR),
    "int4, GPTQ": Quantize(method="gptq", **ALL_FOUR),
    "int4 in 32, values int8, GPTQ": Quantize(method="gptq", group_size=32),
    "int4 in 32, 5 bits on average, GPTQ": Quantize(method="gptq", group_size=32, mean_bits=5.0),
}
LLAMA = ("Q8_0", "Q4_0", "Q4_K_M")
Result = dict[str, Any]


def rows_of(ids: Sequence[int], count: int, length: int) -> Tensor:
    """Windows [count, length] spread evenly over a text."""
    step = (len(ids) - length) // max(count - 1, 1)
    return torch.tensor([ids[i * step : i * step + length] for i in range(count)])


def read_gz(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def calibration(data: Path, tokenizer: Tokenizer, options: argparse.Namespace) -> list[Batch]:
    """Rows of articles and of web pages, half and half."""
    parts = []
    for name in ("wikipedia_en_30docs", "c4_en_300docs"):
        lines = read_gz(data / f"lm/{name}.jsonl.gz").splitlines()
        ids = [id for line in lines for id in [*tokenizer.encode(json.loads(line)["text"]), tokenizer.eot_id]]
        parts.append(rows_of(ids, options.calibration_rows // 2, options.length))
    rows = torch.stack(parts, dim=1).flatten(0, 1)  # in turn, so that the first few have both
    return [Batch(some, some) for some in rows.split(4)]


@torch.no_grad()
def log_probs(model: Decoder, row: Tensor) -> Tensor:
    """Of every token after each of the row but the last: [T - 1, V]."""
    return model.logits(model(row[None, :-1])[0]).float().log_softmax(-1)


def score(model: Decoder, rows: Tensor, reference: Path) -> Result:
    """Sums over each window: -log p, and the divergence from the reference, which the first model writes."""
    known = np.load(reference, mmap_mode="r") if reference.exists() else None
    nll, divergence, kept = [], [], []
    for number, row in enumerate(rows):
        found = log_probs(model, row)
        nll.append(-float(found.gather(-1, row[1:, None]).double().sum()))
        if known is None:
            kept.append(found.half().numpy())
        else:
            start = number * len(found)
            true = torch.from_numpy(known[start : start + len(found)].astype(np.float32))
            divergence.append(float((true.exp() * (true - found)).double().sum()))
    if known is None:
        np.save(reference, np.concatenate(kept))
    return {"nll": nll, "divergence": divergence or [0.0] * len(nll)}


def ours(options: argparse.Namespace, folder: Path, rows: Tensor) -> Iterator[tuple[str, Result]]:
    """The original, then each way to quantise it."""
    model, tokenizer = loaded(options.model)
    save_gguf(model, tokenizer, folder / "F16.gguf", "F16")
    size = (folder / "F16.gguf").stat().st_size
    yield "original in float16", {**score(model, rows, folder / "reference.npy"), "bytes": size}
    texts = calibration(options.data, tokenizer, options)
    for name in options.arms:
        model, started = loaded(options.model)[0], time.perf_counter()
        ARMS[name].apply(model, texts if ARMS[name].reads else ())
        seconds = time.perf_counter() - started
        save_gguf(model, tokenizer, folder / "mine.gguf", "Q4_0")
        size = (folder / "mine.gguf").stat().st_size
        found = score(model, rows, folder / "reference.npy")
        facts = {"seconds": seconds, "tensor_bytes": size_of(model), "settings": ARMS[name].model_dump()}
        yield name, {**found, "bytes": size, **facts}


def loaded(folder: Path) -> tuple[Decoder, Tokenizer]:
    model, tokenizer = load_model(folder)
    assert isinstance(model, Decoder)
    assert tokenizer is not None
    return model, tokenizer


def theirs(options: argparse.Namespace, folder: Path, rows: Tensor) -> Iterator[tuple[str, Result]]:
    """llama.cpp's types, made from the float16 file."""
    reference = str(folder / "reference.npy")
    for name in options.peer_arms:
        target = str(folder / f"{name}.gguf")
        words = [
            {"source": str(folder / "F16.gguf"), "target": target, "type": name},
            {"path": target, "rows": rows.tolist(), "reference": reference},
        ]
        done = subprocess.run(
            [str(options.peers), str(BENCH / "peers/quantize_llama.py")],
            input="\n".join(map(json.dumps, words)),
            capture_output=True,
            text=True,
            check=True,
        )
        yield f"llama.cpp {name}", dict(json.loads(done.stdout.splitlines()[-1]))


def summary(found: Result, original: Result, tokens: int, text_bytes: int, parameters: int) -> Result:
    """What the sums of one arm say."""
    rises = [
        (one - two) * len(original["nll"]) / tokens
        for one, two in zip(found["nll"], original["nll"], strict=True)
    ]
    error = stdev(rises) / math.sqrt(len(rises)) if len(rises) > 1 else None
    nats = sum(found["nll"])
    return {
        **found,
        "megabytes": found["bytes"] / 1e6,
        "bits_per_weight": 8 * found["bytes"] / parameters,
        "perplexity": math.exp(nats / tokens),
        "bits_per_byte": nats / math.log(2) / text_bytes,
        "perplexity_over_original": math.exp(mean(rises)),
        "rise": {"mean": mean(rises), "standard_error": error},
        "divergence_per_token": sum(found["divergence"]) / tokens,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--data", type=Path, default=BENCH.parent / "../shared/data")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--calibration-rows", type=int, default=64)
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--peer-arms", nargs="*", choices=LLAMA, default=list(LLAMA))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python with llama_cpp")
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model, tokenizer = loaded(options.model)
    text = read_gz(options.data / "lm/wikitext2_valid.raw.txt.gz")
    rows = rows_of(list(tokenizer.encode(text)), options.windows, options.length)
    text_bytes = sum(len(tokenizer.decode(row[1:]).encode()) for row in rows.tolist())
    arms: dict[str, Result] = {}
    told = {k: v for k, v in vars(options).items() if k not in ("peers", "save", "model", "data")}
    with tempfile.TemporaryDirectory() as folder:
        for name, found in chain(*(run(options, Path(folder), rows) for run in (ours, theirs))):
            first, tokens = next(iter(arms.values()), found), rows[:, 1:].numel()
            arms[name] = summary(found, first, tokens, text_bytes, model.config.num_parameters)
            shown = {key: round(arms[name][key], 4) for key in SHOWN}
            print(f"{name}: {shown}", file=sys.stderr, flush=True)
            facts = {"load_average": os.getloadavg(), **environment()}
            result = {"program": "compression", "arms": arms, "arguments": told, "environment": facts}
            if options.save:
                write_json(options.save, result)
    print(json.dumps(result))


SHOWN = (
    "megabytes", "bits_per_weight", "perplexity", "bits_per_byte", "perplexity_over_original",
    "divergence_per_token",
)  # fmt: skip

if __name__ == "__main__":
    main()
