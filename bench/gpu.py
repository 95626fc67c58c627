"""Train GPT-2 124M and a Llama of 1B with hasten and with transformers' Trainer on one GPU, and compare.

    python bench/gpu.py --save bench/results/gpu.json
    python bench/gpu.py --shapes gpt2 --arms 'hasten*' --rounds 3
    python bench/gpu.py --device cpu --tiny                         the whole program in small, without a GPU

Needs hasten's own dependencies, transformers and accelerate.  Every arm runs in a process of its own, one
after the other, round after round: a warm or throttled GPU meets all alike, and from the second round on
code comes from the compiler's cache.  An arm that runs out of memory tries again with half the rows at a
time; the tokens of a step stay the same.  MFU is a share of the matrix peak in bf16 that is measured beside
each arm, of eight-bit arms too.

The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hasten.core.files import write_json
from hasten.core.runtime import environment, has_float8
from hasten.model.config import ModelConfig

WORKER = Path(__file__).with_name("gpu_worker.py")
ARM_SECONDS = 1800
"""More than the longest arm takes: compiling 1B from nothing, and its steps."""
REFERENCE = "trainer"


@dataclass(frozen=True)
class Shape:
    """A model, and how much of it to train at a time."""

    model: dict[str, Any]
    row_tokens: int
    rows: int  # of a step
    micro_rows: int  # to begin with
    window_steps: int


SHAPES = {
    "gpt2": Shape({"preset": "gpt2"}, row_tokens=1024, rows=128, micro_rows=64, window_steps=10),
    "llama-1b": Shape(
        # Its stretched positions cost nothing and mean nothing at 2,048 tokens.
        {"preset": "llama3.2-1b", "max_positions": 2048, "rope_scaling": None},
        row_tokens=2048,
        rows=32,
        micro_rows=8,
        window_steps=5,
    ),
}
SMALL = {"dim": 64, "num_layers": 4, "num_heads": 4, "vocab_size": 256, "max_positions": 64}
TINY = {
    "gpt2": Shape({"preset": "gpt2", **SMALL}, row_tokens=64, rows=4, micro_rows=2, window_steps=2),
    "llama-1b": Shape(
        {**SHAPES["llama-1b"].model, **SMALL, "num_kv_heads": 2, "ffn_dim": 128},
        row_tokens=64,
        rows=4,
        micro_rows=2,
        window_steps=2,
    ),
}
ARMS: dict[str, dict[str, Any]] = {
    "hasten": {"library": "hasten", "precision": "bf16", "documents": False},
    "hasten fp8": {"library": "hasten", "precision": "fp8", "documents": False},
    "hasten documents": {"library": "hasten", "precision": "bf16", "documents": True},
    "trainer": {"library": "transformers", "precision": "bf16", "documents": False},
}


@dataclass
class Arm:
    """An arm on a shape, and what is known of it so far."""

    name: str
    shape_name: str
    shape: Shape
    micro_rows: int
    answers: list[dict[str, Any]] = field(default_factory=list)
    missing: str | None = None

    def job(self, options: argparse.Namespace) -> dict[str, Any]:
        """What its worker is told."""
        shape, gpu = self.shape, options.device.startswith("cuda")
        compiled = gpu if options.compile == "auto" else options.compile == "on"
        return {
            **ARMS[self.name],
            "device": options.device,
            "model": shape.model,
            "row_tokens": shape.row_tokens,
            "rows": shape.rows,
            "micro_rows": self.micro_rows,
            "compiled": compiled,
            "warm_steps": options.warm_steps,
            "windows": options.windows,
            "window_steps": shape.window_steps,
        }

    def run(self, options: argparse.Namespace) -> None:
        """One round of it, with fewer rows at a time until they fit."""
        while self.missing is None:
            answer = ask(self.job(options))
            if not answer.get("out_of_memory"):
                self.missing = answer.get("missing")
                self.answers += [] if self.missing else [answer]
                return
            if self.micro_rows == 1:
                self.missing = "one row at a time does not fit into the memory"
            self.micro_rows //= 2

    def result(self) -> dict[str, Any]:
        """Its figures over all rounds."""
        seconds = [s for answer in self.answers for s in answer["step_seconds"]]
        step, tokens = median(seconds), self.shape.rows * self.shape.row_tokens
        peak = median(answer["peak_flops"] for answer in self.answers)
        flops = ModelConfig.model_validate(self.shape.model).flops_per_token(self.shape.row_tokens)
        return {
            "shape": self.shape_name,
            "arm": self.name,
            "micro_rows": self.micro_rows,
            "tokens_per_second": round(tokens / step, 1),
            "spread": round((max(seconds) - min(seconds)) / step, 4),
            "mfu": round(tokens * flops / step / peak, 4),
            "matrix_peak_flops": peak,
            "peak_bytes": max(answer["peak_bytes"] for answer in self.answers),
            "parameters": self.answers[0]["parameters"],
            "first_step_seconds": [round(answer["first_step_seconds"], 1) for answer in self.answers],
            "rounds": self.answers,
        }


def ask(job: dict[str, Any]) -> dict[str, Any]:
    """What the worker says at its end."""
    done = subprocess.run(
        [sys.executable, WORKER, json.dumps(job)],
        capture_output=True,
        text=True,
        timeout=ARM_SECONDS,
        check=False,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["it ended without a word"]
        return {"missing": f"exit {done.returncode}: {words[-1][:300]}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def ratios(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times Trainer's tokens/s, and what part of its memory, each arm of ours has on each shape."""
    found: dict[str, dict[str, float]] = {}
    for theirs in (r for r in results if r["arm"] == REFERENCE):
        for ours in (r for r in results if r["shape"] == theirs["shape"] and r is not theirs):
            found[f"{ours['shape']}: {ours['arm']}"] = {
                "tokens_per_second": round(ours["tokens_per_second"] / theirs["tokens_per_second"], 3),
                "peak_bytes": round(ours["peak_bytes"] / theirs["peak_bytes"], 3),
                "same_parameters": ours["parameters"] == theirs["parameters"],
            }
    return found


def chosen_arms(options: argparse.Namespace) -> list[Arm]:
    """The arms asked for; eight bits only where they can be."""
    shapes = TINY if options.tiny else SHAPES
    arms = []
    for shape_name in options.shapes:
        for name in (name for name in ARMS if any(fnmatch(name, p) for p in options.arms)):
            arms.append(Arm(name, shape_name, shapes[shape_name], shapes[shape_name].micro_rows))
            if ARMS[name]["precision"] == "fp8" and not has_float8(torch.device(options.device)):
                arms[-1].missing = f"{options.device} has no products in eight bits"
    return arms


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """What was asked for; refused where it cannot be done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--arms", nargs="+", default=["*"], help=f"patterns; there are {', '.join(ARMS)}")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="models of a few thousand weights")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="auto: on a GPU")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--windows", type=int, default=4, help="timed in each round")
    parser.add_argument("--warm-steps", type=int, default=5)
    parser.add_argument("--save", type=Path, help="write the result here too")
    options = parser.parse_args(words)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; try the program with --device cpu --tiny")
    if options.device == "cpu" and not options.tiny:
        parser.error("these models would take days on a CPU; add --tiny, or use bench/compare.py")
    return options


def main() -> None:
    options = parse()
    arms = chosen_arms(options)
    for number in range(options.rounds):
        for arm in arms:
            arm.run(options)
            said = arm.missing or f"{arm.result()['tokens_per_second']:,.0f} tokens/s"
            print(f"round {number + 1}  {arm.shape_name:<9} {arm.name:<17} {said}", flush=True)
    results = [arm.result() for arm in arms if arm.answers]
    report = {
        "program": "gpu",
        "results": results,
        "ratios_to_trainer": ratios(results),
        "missing": {f"{arm.shape_name}: {arm.name}": arm.missing for arm in arms if arm.missing},
        "environment": environment(),
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
    }
    if options.save:
        write_json(options.save, report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
