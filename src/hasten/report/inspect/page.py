"""inspect.html: the heads of a model to look through, in one file that needs nothing but itself."""

import base64
import json
import zlib
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from hasten.report.frame import Language, page_environment, render_page
from hasten.report.inspect.expect import Expectation
from hasten.report.inspect.look import Look, View
from hasten.report.inspect.words import WORDS

SHARES = ("induction", "previous", "following", "own", "first", "last")
"""Figures of which the page names the heads that have most, the telling ones first."""
NAMED = 3  # heads
STEPS = 255
SUNK = 1 / 3  # of the attention goes to the first token: such heads have little else to show


def render(look: Look, name: str, parameters: int, language: Language) -> str:
    """The page as text; `name` is the model's."""
    folder = resources.files("hasten.report.inspect")
    environment = page_environment("hasten.report.inspect", WORDS)
    environment.globals |= {"most": most, "rows": rows, "shown": shown, "chance": chance, "words": WORDS}
    return render_page(
        environment,
        "inspect.html",
        language,
        styles=[folder / "inspect.css"],
        scripts=[folder / "inspect.js"],
        look=look,
        name=name,
        parameters=parameters,
        data=json.dumps([packed(view) for view in look.views]),  # numbers and base64: nothing to escape
        surprise=surprise(look.expected),
    )


def packed(view: View) -> dict[str, Any]:
    """What the page's script needs of a view: its size, and the square root of each probability in a byte."""
    layers, heads, queries, keys = view.weights.shape
    data = zlib.compress(rounded(view.weights).numpy().tobytes(), 4)
    return {
        "layers": layers,
        "heads": heads,
        "queries": queries,
        "keys": keys,
        "causal": view.kind == "decoder",
        "start": opening(view),
        "bytes": base64.b64encode(data).decode(),
    }


def rounded(weights: Tensor) -> Tensor:
    """Probabilities as bytes, p to within sqrt(p) / 255: small ones matter where there are many."""
    return (weights.clamp(0, 1).sqrt() * STEPS).round().to(torch.uint8)


def opening(view: View) -> int:
    """The head to open with, as one number: the sharpest of those that see more than the first token."""
    first, spread = view.figures["first"].flatten(), view.figures["entropy"].flatten()
    sunk = first > max(SUNK, first.min().item())
    return int(spread.masked_fill(sunk, float("inf")).argmin())


def rows(view: View) -> Iterator[dict[str, Any]]:
    """A line of the table of figures for each head."""
    for index, layer in enumerate(view.layers):
        for head in range(view.weights.shape[1]):
            cells = [(name, value[index, head].item()) for name, value in view.figures.items()]
            yield {"name": f"{layer}.{head}", "index": index * view.weights.shape[1] + head, "cells": cells}


def most(view: View) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each kind of share, the heads that have most of it."""
    heads = view.weights.shape[1]
    found = []
    for share in (name for name in SHARES if name in view.figures):
        values = view.figures[share].flatten()
        best = values.argsort(descending=True, stable=True)[:NAMED].tolist()
        named = [
            {"name": f"{view.layers[i // heads]}.{i % heads}", "index": i, "share": values[i].item()}
            for i in best
        ]
        found.append((share, named))
    return found


def shown(name: str, value: float) -> str:
    """A figure as the table has it."""
    return f"{value:.2f}" if name == "entropy" else f"{value:.1f}" if name == "distance" else f"{value:.1%}"


def chance(probability: float) -> str:
    """A candidate's probability, in few letters."""
    return "<0.1%" if probability < 0.0005 else f"{probability:.1%}"


def surprise(expected: Sequence[Expectation]) -> dict[str, float] | None:
    """Mean bits and the share of favourites, over what came; None where nothing did."""
    bits = [entry.bits for entry in expected if entry.bits is not None]
    ranks = [entry.rank for entry in expected if entry.rank is not None]
    if not bits:
        return None
    return {"bits": sum(bits) / len(bits), "favourites": ranks.count(1) / len(ranks), "most": max(bits)}
