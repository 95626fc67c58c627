"""A loss over a vocabulary that is divided, against the loss over all of it."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from processes import together
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode

from hasten.core.batch import IGNORE
from hasten.core.runtime import Runtime
from hasten.ops import loss
from hasten.ops.loss import linear_cross_entropy
from hasten.parallel.vocabulary import Share, whole_cross_entropy, whole_scores

TOKENS, DIM, VOCAB = 40, 16, 203
CHUNKS, Z, SMOOTHING, CAPS = (None, 7), (0.0, 1e-2), (0.0, 0.1), (None, 3.0)
OPTIONS = [
    {"chunk_tokens": chunk, "z_loss": z, "label_smoothing": smoothing, "soft_cap": cap}
    for chunk, z, smoothing, cap in product(CHUNKS, Z, SMOOTHING, CAPS)
]


class Largest(TorchDispatchMode):
    """The most numbers that any result within has."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden [N, D], weight [V, D], targets [N] and bias [V]."""
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(TOKENS, DIM, generator=random), torch.randn(VOCAB, DIM, generator=random)
    targets = torch.randint(VOCAB, (TOKENS,), generator=random)
    targets[3:9] = IGNORE
    targets[0], targets[1] = 0, VOCAB - 1
    return hidden, weight, targets, torch.randn(VOCAB, generator=random)


def gradients(function: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """The loss and its gradients times 0.3."""
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    found = function(*leaves)
    (found * 0.3).backward()
    return [found.detach(), *(leaf.grad for leaf in leaves)]


def differences(runtime: Runtime) -> list[float]:
    """How far loss and gradients here are from those of the whole, for all options."""
    loss.SLICE_NUMBERS["cpu"] = 500  # several slices in a chunk
    share = Share(VOCAB, distributed.group.WORLD)
    mine = slice(share.start, share.start + share.length)
    hidden, weight, targets, bias = inputs()
    found = []
    for options in OPTIONS:
        for b in (bias, None):
            whole = gradients(
                lambda h, w, b=None, o=options: linear_cross_entropy(h, w, targets, b, **o), hidden, weight, b
            )
            here = gradients(
                lambda h, w, b=None, o=options: whole_cross_entropy(h, w, targets, b, share=share, **o),
                hidden, weight[mine], None if b is None else b[mine],
            )  # fmt: skip
            wanted = [whole[0], whole[1], *(x[mine] for x in whole[2:])]
            found += [((x - y).abs().max() / y.abs().max()).item() for x, y in zip(here, wanted, strict=True)]
        with torch.no_grad():
            plain = whole_cross_entropy(hidden, weight[mine], targets, bias[mine], share=share, **options)
            found.append(
                (plain / linear_cross_entropy(hidden, weight, targets, bias, **options) - 1).abs().item()
            )
    return found


def others(runtime: Runtime) -> dict[str, Any]:
    """Scores, targets of which none counts, numbers that are not finite, and the largest tensor."""
    share = Share(VOCAB, distributed.group.WORLD)
    mine = slice(share.start, share.start + share.length)
    hidden, weight, targets, _ = inputs()
    hidden = hidden.requires_grad_()
    own = weight[mine].clone().requires_grad_()
    scores = whole_scores(lambda x: x @ own.t(), hidden, share=share)
    scores.square().sum().backward()
    spoiled = weight.clone()
    spoiled[2] = float("nan")
    found = {
        "scores": (scores.detach() - hidden.detach() @ weight.t()).abs().max().item(),
        "hidden": (hidden.grad / 2 - scores.detach() @ weight).abs().max().item(),
        "weight": (own.grad / 2 - scores.detach()[:, mine].t() @ hidden.detach()).abs().max().item(),
        "none": whole_cross_entropy(hidden, own, targets.fill_(IGNORE), share=share).item(),
        "nan": whole_cross_entropy(hidden, spoiled[mine], inputs()[2], share=share).item(),
    }
    with Largest() as largest:
        whole_cross_entropy(hidden, own, inputs()[2], share=share, chunk_tokens=None).backward()
    return {**found, "largest": largest.numbers}


def everything(runtime: Runtime) -> tuple[list[float], dict[str, Any]]:
    return differences(runtime), others(runtime) if runtime.world_size == 2 else {}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_the_loss_is_that_of_the_whole_vocabulary(processes: int) -> None:
    """Scores are gathered where they are asked for; the loss never holds those of all words."""
    for off, found in together(processes, everything):
        assert len(off) == len(OPTIONS) * 8 and max(off) < 1e-5
        if processes == 2:
            assert max(found[name] for name in ("scores", "hidden", "weight")) < 1e-4
            assert found["none"] == 0 and math.isnan(found["nan"])
            assert found["largest"] <= TOKENS * 128  # rows are apart by a multiple of 64
