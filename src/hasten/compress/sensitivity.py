"""How much a model's answers move when one of its layers is rounded, for all layers in a few passes back.

A change D of a layer's weight moves its outputs of a text by D x_t, and what the model says of it by a
divergence of 1/2 E[(sum_t g_t . D x_t)^2] nats, where g_t is the gradient of -log p(y) by the output at t and
the tokens y are drawn from the model's own distribution: the Fisher information along D (Martens 2020, 5).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.compress.statistics import check_batches, moved
from hasten.core.batch import Batch
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import CrossEntropy

LONGEST = 128
"""Tokens of a row that are looked at: many short texts say more than a few long ones."""
MOST_TOKENS = 1024
DRAWS = 4
"""Times that tokens are drawn for each text."""


def sensitivities(
    model: Transformer, changes: Mapping[str, Tensor], batches: Sequence[Batch], seed: int = 0
) -> dict[str, float]:
    """Nats a token by which the model's distribution moves when each layer alone changes by `changes` [O, I].

    Of a model without a head of tokens it is half the squared change of the hidden states.  Estimated from
    the beginnings of the first rows of `batches`; DataError where there is no token.
    """
    check_batches(batches)
    found, tokens = dict.fromkeys(changes, 0.0), 0
    draw = torch.Generator().manual_seed(seed)
    with tables_alone(model), hooked(model, changes, found):
        for batch in moved(list(beginnings(batches)), model):
            kept = torch.ones_like(batch.tokens) if batch.segments is None else batch.segments
            hidden = model(**CrossEntropy().inputs(batch))[kept > 0]
            tokens += len(hidden)
            for count in reversed(range(DRAWS)):
                surprise(model, hidden, draw).backward(retain_graph=count > 0)
    return {name: value / (2 * DRAWS * tokens) for name, value in found.items()}


def beginnings(batches: Sequence[Batch]) -> Iterator[Batch]:
    """The first tokens of each row, until there are enough."""
    tokens = 0
    for batch in batches:
        if tokens >= MOST_TOKENS:
            return
        cut = {name: t[:, :LONGEST] for name, t in batch.extra.items() if t.shape == batch.tokens.shape}
        yield replace(
            batch,
            tokens=batch.tokens[:, :LONGEST],
            targets=batch.targets[:, :LONGEST],
            segments=None if batch.segments is None else batch.segments[:, :LONGEST],
            positions=None if batch.positions is None else batch.positions[..., :LONGEST],
            extra={**batch.extra, **cut},
        )
        tokens += batch.tokens[:, :LONGEST].numel()


def surprise(model: Transformer, hidden: Tensor, draw: torch.Generator) -> Tensor:
    """-log p of tokens drawn from p, or hidden states [N, D] in random directions, summed: []."""
    if model.config.head != "vocabulary":
        return (hidden * torch.randn(hidden.shape, generator=draw).to(hidden.device)).sum()
    logits = model.logits(hidden).float()
    chosen = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=draw)[:, 0]
    return F.cross_entropy(logits, chosen.to(logits.device), reduction="sum")


@contextmanager
def tables_alone(model: Transformer) -> Iterator[None]:
    """Gradients reach every output, and of all weights tables of tokens alone keep theirs; then as before."""
    training, wanted = model.training, {p: p.requires_grad for p in model.parameters()}
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    model.eval()
    try:
        for parameter in wanted:
            parameter.requires_grad_(parameter in tables)
        with torch.enable_grad():
            yield
    finally:
        model.train(training)
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
            parameter.grad = None


@contextmanager
def hooked(model: Transformer, changes: Mapping[str, Tensor], found: dict[str, float]) -> Iterator[None]:
    """Within this, every pass back adds (sum_t g_t . D x_t)^2 of each layer to `found`, row by row."""

    def hook(name: str, change: Tensor) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, output: Tensor) -> None:
            moved_by = args[0].detach() @ change.t()  # [B, T, O]

            def add(gradient: Tensor) -> None:
                found[name] += float((gradient * moved_by).flatten(1).sum(1).square().sum())

            output.register_hook(add)

        return see

    layers = {name: model.get_submodule(name) for name in changes}
    handles = [layer.register_forward_hook(hook(name, changes[name])) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
