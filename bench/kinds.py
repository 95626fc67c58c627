"""Throughput per FLOP of encoders and encoder-decoders beside the decoder's: python bench/kinds.py

Equal width, equal blocks and equal rows a step (of an encoder-decoder as many rows of sources come with them:
3 + 3 layers then do about the work of the decoder's 6), whole training steps with forward, backward, clipping
and update, in turns within one process.  A step's FLOPs are counted from what it had to compute: the matrix
products of the tokens that go through them, padding not, and of attention the pairs of query and key that see
each other, so that skipping the rest is no merit.  The update of the weights counts nothing, but takes time.

    python bench/kinds.py --save bench/results/kinds.json

Prints one JSON object with every turn; RATIO is FLOP/s over the decoder's.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.core.files import write_json
from hasten.core.runtime import environment, start
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.train.engine import Whole
from hasten.train.optim import MuonConfig, Optimizer, Rates
from hasten.train.step import train_step

SIZE: dict[str, Any] = {"vocab_size": 8192, "dim": 384, "num_heads": 6, "max_positions": 256}
HASTEN: dict[str, Any] = {"preset": "hasten-small", **SIZE, "num_layers": 6}
CLASSIC: dict[str, Any] = {
    **SIZE,
    **dict.fromkeys(("attention_bias", "out_bias", "ffn_bias", "tied", "head_bias"), True),
    "norm": "layer",
    "norm_place": "after",
}
MODELS: dict[str, dict[str, Any]] = {
    "decoder": {**HASTEN, "kind": "decoder"},
    "encoder": {**HASTEN, "kind": "encoder"},
    "seq2seq": {**HASTEN, "kind": "seq2seq", "num_layers": 3},
    "bert": {
        **CLASSIC, "kind": "encoder", "num_layers": 6, "position": "learned", "embedding_norm": "learned",
        "head_transform": True,
    },
    "marian": {
        **CLASSIC, "kind": "seq2seq", "num_layers": 3, "position": "sinusoidal", "activation": "relu",
        "dropout": 0.1,
    },
    "t5": {
        **SIZE, "kind": "seq2seq", "num_layers": 3, "position": "relative", "activation": "geglu_tanh",
        "attention_scale": 1.0, "dropout": 0.1,
    },
}  # fmt: skip
"""The first three have the same blocks; the others are what the literature has."""
MASKED = 0.15
TEXTS, SENTENCES = (32, 256), (20, 40)
"""Shortest and longest document of an encoder, and sentence of a pair, in tokens; any length is as likely."""


@dataclass(frozen=True)
class Work:
    """A batch and what it holds."""

    batch: Batch
    tokens: int  # that are no padding, sources included
    flops: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rows", type=int, default=16, help="of 256 tokens, a step")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    arms = {kind: Arm(kind, given.rows) for kind in given.kinds}
    for arm in arms.values():
        arm.take(2)
    seconds: dict[str, list[float]] = {kind: [] for kind in arms}
    for _ in range(given.turns):
        for kind, arm in arms.items():
            seconds[kind].append(arm.take(given.steps) / given.steps)
    found = {kind: arm.figures(seconds[kind]) for kind, arm in arms.items()}
    if "decoder" in found:
        for figures in found.values():
            figures["ratio"] = round(figures["flops_per_second"] / found["decoder"]["flops_per_second"], 3)
    result = {"program": "kinds", "rows": given.rows, "kinds": found, "environment": environment()}
    if given.save:
        write_json(given.save, result)
    print(json.dumps(result))


class Arm:
    """One model in training, idle but in its turns."""

    def __init__(self, kind: str, rows: int) -> None:
        runtime, self.step = start("cpu"), 0
        self.config = ModelConfig.model_validate(MODELS[kind])
        model = build(self.config, seed=0, device=runtime.device)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.engine = Whole(model, CrossEntropy(), runtime, precision="bf16", compiled=False)
        self.work = [work(self.config, rows, seed) for seed in range(4)]
        rates = Rates.at(MuonConfig(), self.config, rows * self.config.max_positions)
        self.optimizer = Optimizer(model, MuonConfig(), rates)

    def take(self, steps: int) -> float:
        """So many steps; seconds of this thread where there is one, else of the clock."""
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        began = clock()
        for _ in range(steps):
            batch = self.work[self.step % len(self.work)].batch
            outcome = train_step(self.engine, self.optimizer, [batch], max_norm=1.0, turn=self.step)
            assert outcome.finite
            self.step += 1
        return clock() - began

    def figures(self, seconds: list[float]) -> dict[str, Any]:
        """Of the median turn, and of the fastest, in which nobody else was at work."""
        tokens, flops = (
            sum(getattr(x, name) for x in self.work) / len(self.work) for name in ("tokens", "flops")
        )
        return {
            "parameters": self.parameters,
            "tokens_per_step": round(tokens),
            "flops_per_token": round(flops / tokens),
            "step_seconds": round(median(seconds), 4),
            "fastest_seconds": round(min(seconds), 4),
            "all_seconds": [round(each, 4) for each in seconds],
            "tokens_per_second": round(tokens / min(seconds)),
            "flops_per_second": round(flops / min(seconds)),
        }


def work(config: ModelConfig, rows: int, seed: int) -> Work:
    """A packed batch of `rows` in all, and what it takes."""
    torch.manual_seed(seed)
    maker: Callable[[ModelConfig, int], Work] = {
        "decoder": continued, "encoder": masked, "seq2seq": paired
    }[config.kind]  # fmt: skip
    return maker(config, rows)


def continued(config: ModelConfig, rows: int) -> Work:
    """Whole rows in which each token predicts the next: as `bench/compare.py` trains."""
    length = config.max_positions
    tokens = torch.randint(config.vocabulary, (rows, length + 1))
    pairs = rows * length * (length + 1) // 2
    flops = stack_flops(config, config.num_layers, rows * length, pairs) + head_flops(config, rows * length)
    return Work(Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()), rows * length, 3 * flops)


def masked(config: ModelConfig, rows: int) -> Work:
    """Texts side by side, of which a share of the tokens is to be guessed."""
    segments, positions = packed(rows, config.max_positions, TEXTS)
    tokens = torch.randint(config.vocabulary, segments.shape)
    hidden = (torch.rand(segments.shape) < MASKED) & (segments > 0)
    scored = hidden.flatten().nonzero()[:, 0]
    batch = Batch(tokens, tokens.masked_fill(~hidden, IGNORE), segments, positions, extra={"scored": scored})
    read = int((segments > 0).sum())
    flops = stack_flops(config, config.num_layers, read, seen(segments, segments)) + head_flops(
        config, len(scored)
    )
    return Work(batch, read, 3 * flops)


def paired(config: ModelConfig, rows: int) -> Work:
    """Pairs of sentences: as many rows of sources as of targets."""
    length = config.max_positions
    segments, positions = packed(rows, length, SENTENCES)
    source_segments, source_positions = packed(rows, length, SENTENCES)
    both = torch.minimum(segments.amax(dim=1), source_segments.amax(dim=1))[:, None]
    segments, source_segments = (x.masked_fill(x > both, 0) for x in (segments, source_segments))
    tokens, source = (torch.randint(config.vocabulary, segments.shape) for _ in range(2))
    extra = {"source": source, "source_segments": source_segments, "source_positions": source_positions}
    batch = Batch(tokens, tokens.masked_fill(segments == 0, IGNORE), segments, positions, extra=extra)
    read, written = int((source_segments > 0).sum()), int((segments > 0).sum())
    causal = seen(segments, segments, causal=True)
    flops = stack_flops(config, config.encoder_layers, read, seen(source_segments, source_segments))
    flops += stack_flops(config, config.decoder_layers, written, causal)
    flops += config.decoder_layers * cross_flops(config, written, read, seen(segments, source_segments))
    return Work(batch, read + written, 3 * (flops + head_flops(config, written)))


def packed(rows: int, length: int, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Segments and positions [rows, length] of documents of such sizes, as many as fit, then padding."""
    laid = [list(pieces(length, sizes)) for _ in range(rows)]
    segments, positions = torch.zeros(2, rows, length, dtype=torch.long).unbind()
    for row, lengths in enumerate(laid):
        numbers = torch.repeat_interleave(torch.arange(len(lengths)) + 1, torch.tensor(lengths))
        segments[row, : len(numbers)] = numbers
        positions[row, : len(numbers)] = torch.cat([torch.arange(n) for n in lengths])
    return segments, positions


def pieces(length: int, sizes: tuple[int, int]) -> Iterator[int]:
    """Sizes of documents until the row is full; the last is shortened to what is left if that is enough."""
    left = length
    while left >= sizes[0]:
        size = min(int(torch.randint(sizes[0], sizes[1] + 1, ())), left)
        yield size
        left -= size


def seen(segments: Tensor, key_segments: Tensor, causal: bool = False) -> int:
    """How many pairs of a query and a key see each other, padding not counted."""
    same = (segments[:, :, None] == key_segments[:, None, :]) & (segments[:, :, None] > 0)
    return int((same.tril() if causal else same).sum())


def stack_flops(config: ModelConfig, num_layers: int, tokens: int, pairs: int) -> int:
    """Of the blocks' forward pass, without cross-attention."""
    matrices = sum(inputs * outputs for inputs, outputs in config.block_shapes)
    return num_layers * (2 * matrices * tokens + 4 * config.num_heads * config.head_dim * pairs)


def cross_flops(config: ModelConfig, written: int, read: int, pairs: int) -> int:
    """Of one layer's look at what the encoder read."""
    query, key, value, out = (inputs * outputs for inputs, outputs in config.attention_shapes)
    products = (query + out) * written + (key + value) * read
    return 2 * products + 4 * config.num_heads * config.head_dim * pairs


def head_flops(config: ModelConfig, tokens: int) -> int:
    """Of the tokens that go through the head."""
    return 2 * config.dim * tokens * (config.vocabulary + config.head_transform * config.dim)


if __name__ == "__main__":
    main()
