"""Time greedy writing with hasten, transformers and llama.cpp: equal Llama shapes, equal weights, in turn.

    make bench-peers                                              an environment with the other libraries
    python bench/generate.py --shapes 110m --rows 1 16 --save bench/results/generate.json

Every arm has a process of its own that loads the same random weights and waits for its turns; each repeat
gives one turn to each arm, so that a busy machine meets them alike.  A turn continues the same random prompts
twice, by one token and by many; what the many took longer is the time of decoding.  "hasten auto" is what
users get from float32 weights, packed as float16 while loading; the other arms are named after their
precision, and "hasten bf16" reads bfloat16 in twelve bits, exactly.  llama.cpp is called without the copies
and samplers of its Python binding.

The bound is the bandwidth at which memory can be read, measured between the repeats, over the bytes of the
matrices in 16 bits.  The JSON on the last line has all repeats, medians, ratios, the arms whose packages are
missing, and how many tokens each arm chose like the first: rounding may part them at a near tie.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hasten.core.allocator import allocator_environment
from hasten.core.files import write_json
from hasten.core.runtime import environment
from hasten.ledger.machine import bandwidth
from hasten.model.config import ModelConfig
from hasten.model.interop import save_hugging_face
from hasten.model.transformer import build

BENCH = Path(__file__).parent
PEERS = BENCH.parent / ".venv-peers/bin/python"
SHAPES = {
    "tiny": {
        "dim": 64,
        "ffn_dim": 192,
        "num_layers": 5,
        "num_heads": 8,
        "num_kv_heads": 4,
        "vocab_size": 512,
    },
    "110m": {"dim": 768, "ffn_dim": 2048, "num_layers": 12, "num_heads": 12, "vocab_size": 32_000},
}
Arm = tuple[str, dict[str, Any]]
"""A module `peers/write_FAMILY.py`, and what to open it with."""
ARMS: dict[str, Arm] = {
    "hasten auto": ("hasten", {"precision": "auto"}),
    "hasten fp32": ("hasten", {"precision": "model"}),
    "hasten bf16": ("hasten", {"precision": "bf16"}),
    "transformers fp32": ("transformers", {"dtype": "float32", "static": False}),
    "transformers bf16": ("transformers", {"dtype": "bfloat16", "static": False}),
    "transformers bf16 static": ("transformers", {"dtype": "bfloat16", "static": True}),
    "llama.cpp f16": ("llama", {"kind": "f16"}),
    "llama.cpp bf16": ("llama", {"kind": "bf16"}),
}
Ids = list[list[int]]
Words = Sequence[str] | None
"""Of the command line; None is the process's own."""


class GoneError(Exception):
    """An arm that cannot go on, with its last words."""


class Writer:
    """An arm in a process of its own, idle but in its turns."""

    def __init__(self, name: str, arm: Arm, folder: Path, options: argparse.Namespace) -> None:
        family, settings = arm
        python = sys.executable if family == "hasten" else str(options.peers)
        ours = allocator_environment(os.environ) if family == "hasten" else {}
        words = json.dumps({**settings, "folder": str(folder), "threads": options.threads})
        self.errors = folder / f"{name}.stderr"
        with self.errors.open("wb") as errors:
            try:
                self.process = subprocess.Popen(
                    [python, "-m", "peers.writing", family, words],
                    cwd=BENCH,
                    env={**os.environ, "OMP_NUM_THREADS": str(options.threads), **ours},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            except OSError as error:
                raise GoneError(str(error)) from None
        self.hello = self.answer()
        if "missing" in self.hello:
            raise GoneError(self.hello["missing"])

    def answer(self) -> dict[str, Any]:
        """The next line that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            said = self.errors.read_text(encoding="utf-8", errors="replace").strip()
            raise GoneError(said.rpartition("\n")[2][-300:] or "it ended without a word")
        return dict(json.loads(line))

    def write(self, prompts: Ids, count: int) -> dict[str, Any]:
        """Seconds, tokens and memory of one call."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "count": count}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass
class Case:
    """One shape and number of rows: the speed of every arm, in tokens per second over all rows."""

    shape: str
    rows: int
    decode: dict[str, list[float]] = field(default_factory=dict)
    read: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, Ids] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)

    def turn(self, name: str, writer: Writer, prompts: Ids, count: int) -> None:
        """One repeat of one arm."""
        first, whole = writer.write(prompts, 1), writer.write(prompts, count)
        decoding = max(whole["seconds"] - first["seconds"], 1e-9)
        self.decode.setdefault(name, []).append(self.rows * (count - 1) / decoding)
        self.read.setdefault(name, []).append(self.rows * len(prompts[0]) / first["seconds"])
        self.tokens[name], self.peak_bytes[name] = whole["tokens"], whole["peak_bytes"]

    def result(self) -> dict[str, Any]:
        """Medians, ratios, the bound, and everything they come from."""
        decode = {name: median(speeds) for name, speeds in self.decode.items()}
        bound = median(self.bandwidths) / matrix_bytes(self.shape)
        return {
            "shape": self.shape,
            "rows": self.rows,
            "decode_tokens_per_second": decode,
            "read_tokens_per_second": {name: median(speeds) for name, speeds in self.read.items()},
            "read_gigabytes_per_second": median(self.bandwidths) / 1e9,
            "matrix_bytes_in_16_bits": matrix_bytes(self.shape),
            "bound_tokens_per_second": bound * self.rows,
            "of_bound": {name: speed / bound / self.rows for name, speed in decode.items()},
            "hasten_over": over(decode),
            "tokens_like_the_first": agreement(self.tokens),
            "peak_bytes": self.peak_bytes,
            "repeats": {"decode": self.decode, "read": self.read, "bandwidth": self.bandwidths},
        }


def over(decode: dict[str, float]) -> dict[str, float]:
    """How many times as fast hasten is on weights of the same precision; "auto" reads float32 as float16."""
    ratios = {}
    for name, speed in decode.items():
        ours = "hasten bf16" if "bf16" in name and "hasten bf16" in decode else "hasten auto"
        if not name.startswith("hasten") and ours in decode:
            ratios[name] = decode[ours] / speed
    return ratios


def agreement(tokens: dict[str, Ids]) -> dict[str, list[int]]:
    """How many tokens of each row an arm chose before it parted from the first arm."""
    reference = next(iter(tokens.values()))
    return {
        name: [
            next((i for i, (a, b) in enumerate(zip(row, other, strict=True)) if a != b), len(row))
            for row, other in zip(rows, reference, strict=True)
        ]
        for name, rows in tokens.items()
    }


def config_of(shape: str) -> ModelConfig:
    """The architecture, a Llama."""
    llama = {"activation": "swiglu", "norm_eps": 1e-5, "max_positions": 1024, "init_std": 0.05}
    return ModelConfig.model_validate({**llama, **SHAPES[shape]})


def matrix_bytes(shape: str) -> int:
    """What every token must read, in 16 bits: the blocks' matrices and the head."""
    config = config_of(shape)
    return 2 * (config.num_matrix_parameters + config.dim * config.vocabulary)


def compare(
    shape: str, options: argparse.Namespace, missing: dict[str, str], arms: dict[str, Arm]
) -> list[Case]:
    """All cases of a shape."""
    with tempfile.TemporaryDirectory() as folder:
        save_hugging_face(build(config_of(shape), seed=0), Path(folder))
        writers = start(Path(folder), options, missing, arms)
        try:
            return [measure(Case(shape, rows), writers, options, missing) for rows in options.rows]
        finally:
            for writer in writers.values():
                writer.stop()


def start(
    folder: Path, options: argparse.Namespace, missing: dict[str, str], arms: dict[str, Arm]
) -> dict[str, Writer]:
    """Every arm that is asked for and can be had; the others enter `missing` with the reason."""
    writers = {}
    for name in options.arms:
        try:
            writers[name] = Writer(name, arms[name], folder, options)
        except GoneError as gone:
            missing[name] = str(gone)
    return writers


def measure(
    case: Case, writers: dict[str, Writer], options: argparse.Namespace, missing: dict[str, str]
) -> Case:
    """Every arm in turn, once to warm up, then `repeats` times."""
    vocabulary = SHAPES[case.shape]["vocab_size"]
    draw = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, vocabulary, (case.rows, options.prompt_tokens), generator=draw).tolist()
    for name in list(writers):
        try:
            writers[name].write(prompts, options.new_tokens)
        except GoneError as gone:
            missing[name] = str(gone)
            writers.pop(name).stop()
    for _ in range(options.repeats):
        case.bandwidths.append(bandwidth(torch.device("cpu"), 0.3)["read_all_threads"])
        for name, writer in writers.items():
            case.turn(name, writer, prompts, options.new_tokens)
    decode = {name: round(median(speeds), 1) for name, speeds in case.decode.items()}
    print(f"{case.shape}, {case.rows} rows, tokens/s: {decode}", file=sys.stderr, flush=True)
    return case


Tell = Callable[[Case], dict[str, Any]]
"""What of a case goes into the JSON."""


def run(
    program: str, parser: argparse.ArgumentParser, arms: dict[str, Arm], told: Tell, words: Words
) -> None:
    """Compare the arms as the command line says, print and save what is told of each case."""
    parser.add_argument("--arms", nargs="+", choices=arms, default=list(arms))
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python with the other libraries")
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    missing: dict[str, str] = {}
    results = [told(case) for shape in options.shapes for case in compare(shape, options, missing, arms)]
    given = {name: value for name, value in vars(options).items() if name not in ("peers", "save")}
    facts = {"load_average": os.getloadavg(), **environment()}
    result = {"program": program, "results": results, "missing": missing, "arguments": given}
    result["environment"] = facts
    if options.save:
        write_json(options.save, result)
    print(json.dumps(result))


def parser_of(doc: str | None, shapes: Sequence[str], rows: Sequence[int]) -> argparse.ArgumentParser:
    """With the cases, by default these."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(shapes))
    parser.add_argument("--rows", nargs="+", type=int, default=list(rows))
    return parser


def main(arguments: Words = None) -> None:
    """Compare, print, save."""
    run("generate", parser_of(__doc__, list(SHAPES), [1, 16]), ARMS, Case.result, arguments)


if __name__ == "__main__":
    main()
