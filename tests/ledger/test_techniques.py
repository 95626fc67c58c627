"""Taking a technique out of a process takes it out: seen from where training uses it."""

import subprocess
import sys

import pytest

PROGRAMS = {
    "attention": """
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.ops.attention import fused_attention
from hasten.train import engine
import torch
model = build(ModelConfig(vocab_size=32, dim=16, num_layers=2, num_heads=2), 0)
assert all(block.attention.attend is fused_attention for block in model.layers.values())
assert not engine.can_skip_tiles(torch.device("cuda"))
""",
    "batched_muon": """
import torch
from hasten.train.muon import Muon
from hasten.train import muon as module
calls = []
whole = module.orthogonalize
module.orthogonalize = lambda matrices: calls.append(len(matrices)) or whole(matrices)
matrices = [torch.nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
muon = Muon(matrices, lr=0.1)
for matrix in matrices:
    matrix.grad = torch.randn(4, 4)
muon.step()
assert calls == [1, 1, 1], calls
""",
    "prefetch": """
import threading
from hasten.train.run import Prefetch
makers = []
with Prefetch(lambda step: makers.append(threading.current_thread()) or step, 5) as batches:
    assert makers == [] and [next(batches), next(batches)] == [5, 6]
assert set(makers) == {threading.main_thread()}
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_there_and_then_it_is_gone(name: str) -> None:
    take_out = f"from hasten.ledger.techniques import TECHNIQUES; TECHNIQUES[{name!r}].without()\n"
    for before, works in ((take_out, True), ("", False)):
        done = subprocess.run(
            [sys.executable, "-c", before + PROGRAMS[name]], capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) == works, done.stderr
        assert works or "AssertionError" in done.stderr, "it fails for the reason that it should"
