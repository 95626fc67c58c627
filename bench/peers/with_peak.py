"""The matrix peak of the machine: the best rate of a few matrix products in bf16."""

import sys
import time

import torch
from peers.shapes import Shape
from peers.turns import Voice

SECONDS = 0.3
"""For each size."""


def products(shape: Shape) -> list[tuple[int, int, int]]:
    """Rows, inner and columns: two squares and the layers' own."""
    tokens, dim = shape.batch_tokens, shape.dim
    return [(512, 512, 512), (1024, 1024, 1024), (tokens, dim, 3 * dim), (tokens, 4 * dim, dim)]


def best_rate(rows: int, inner: int, columns: int) -> float:
    """FLOP/s of the quickest of all repeats within SECONDS; the result's memory is used again."""
    a, b = torch.ones(rows, inner, dtype=torch.bfloat16), torch.ones(inner, columns, dtype=torch.bfloat16)
    out = torch.empty(rows, columns, dtype=torch.bfloat16)
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


def train(shape: Shape, voice: Voice) -> None:
    """A turn is a reading: the best rate over all sizes."""
    voice.tell(parameters=0)
    for _ in sys.stdin:
        began = time.perf_counter()
        rates = {"x".join(map(str, size)): best_rate(*size) for size in products(shape)}
        voice.tell(seconds=time.perf_counter() - began, steps=1, updates=1, rates=rates)
