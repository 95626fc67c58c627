"""What is made again: the same gradients bit for bit, in fewer bytes, as many as the formula says."""

import copy

import pytest
import torch
from alive import Alive
from processes import together
from torch import Tensor

from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, assemble, build
from hasten.ops.kernels.library import library
from hasten.parallel.apply import set_first_weights
from hasten.parallel.arrangement import Arrangement, local
from hasten.parallel.config import ParallelConfig
from hasten.parallel.fsdp import shard
from hasten.parallel.grid import Grid
from hasten.parallel.recompute import recompute

ROWS, TOKENS, DIM, LAYERS = 2, 64, 64, 3
KINDS = {
    "gelu": {},
    "swiglu with dropout": {"activation": "swiglu", "dropout": 0.1},
    "relu squared and qk norm": {"activation": "relu_squared", "qk_norm": True},
    "encoder with norms after": {"kind": "encoder", "norm_place": "after", "position": "learned"},
    "seq2seq": {"kind": "seq2seq", "position": "relative", "dropout": 0.2},
    "parallel block": {"parallel_block": True, "norm": "layer"},
    "norms on both sides": {"norm_place": "both", "activation": "geglu", "num_kv_heads": 2},
}


def config(layers: int = LAYERS, **given) -> ModelConfig:
    """A small model."""
    return ModelConfig(vocab_size=128, dim=DIM, num_layers=layers, num_heads=4, max_positions=TOKENS, **given)


def hidden_of(model: Transformer) -> Tensor:
    """Hidden states of some tokens."""
    tokens = torch.randint(128, (ROWS, TOKENS), generator=torch.Generator().manual_seed(2))
    return model(tokens, **({"source": tokens.flip(0)} if model.config.kind == "seq2seq" else {}))


def step(model: Transformer, *, half: bool = False) -> dict[str, Tensor]:
    """The gradients of a loss, and the loss."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model.logits(hidden_of(model)).float().logsumexp(-1).sum()
    loss.backward()
    held = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **{name: local(grad) for name, grad in held.items()}}


def arranged(mode: str, layers: int | None = None, **given) -> Transformer:
    """A model that keeps what `mode` says."""
    model = build(config(**given), seed=0)
    recompute(model, mode, layers)
    return model.train()


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same_bit_for_bit(kind, half):
    plain = step(arranged("none", **KINDS[kind]), half=half)
    for mode, layers in (("selective", None), ("full", None), ("full", 2), ("selective", 1)):
        again = step(arranged(mode, layers, **KINDS[kind]), half=half)
        assert again.keys() == plain.keys()
        assert all(torch.equal(again[name], plain[name]) for name in plain), (mode, layers)


def test_without_our_kernels_too(monkeypatch):
    monkeypatch.setattr("hasten.ops.kernels.call.on_cpu", lambda *_: False)
    plain = step(arranged("none", activation="swiglu", dropout=0.1))
    for mode in ("selective", "full"):
        again = step(arranged(mode, activation="swiglu", dropout=0.1))
        assert all(torch.equal(again[name], plain[name]) for name in plain), mode


def kept(mode: str, layers: int, **given) -> int:
    """Bytes of tensors that wait for the backward pass."""
    model = build(config(layers, **given), seed=0).train()
    recompute(model, mode)
    with Alive() as alive:
        hidden = hidden_of(model)
        now = alive.now
    del hidden
    return now


def per_layer(mode: str, **given) -> float:
    """Numbers of float32 per token that one more layer keeps."""
    return (kept(mode, 3, **given) - kept(mode, 2, **given)) / (4 * ROWS * TOKENS)


@pytest.mark.skipif(library() is None, reason="the formulas are those of our kernels, which are not here")
@pytest.mark.parametrize(
    ("given", "plain", "dropped"),
    [  # inputs of two norms and four of products, rotated queries and keys, values, attention; feed-forward
        ({}, 8 * DIM + 8 * DIM, 2 * DIM + 4 * DIM),
        ({"activation": "swiglu"}, 8 * DIM + 3 * 192, 2 * DIM + 192),
        ({"activation": "swiglu", "num_kv_heads": 2}, 7 * DIM + 3 * 192, 2 * DIM + 192),
        ({"activation": "relu_squared"}, 8 * DIM + 4 * DIM, 2 * DIM),
        ({"norm_place": "after"}, 8 * DIM + 8 * DIM, DIM + 4 * DIM),
    ],
)
def test_what_is_kept_falls_as_the_formula_says(given, plain, dropped):
    rest = 2 + 2 * 2 + 4  # a norm's and the attention's few numbers a row
    assert plain <= per_layer("none", **given) <= plain + rest
    assert plain - dropped <= per_layer("selective", **given) <= plain - dropped + rest
    assert per_layer("full", **given) == DIM


def test_only_training_makes_anything_again():
    model = arranged("full")
    with torch.no_grad():
        still = hidden_of(model)
    assert still.grad_fn is None
    assert torch.equal(hidden_of(model.eval()), still)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_a_copy_is_whole_and_apart(mode):
    model = arranged(mode)
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in build(config(), seed=0).named_parameters()]
    other, wanted = copy.deepcopy(model), step(arranged("none"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = step(other)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_a_compiler_sees_one_block_and_the_gradients_are_the_same(mode):
    found = {}
    for each in ("none", mode):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = arranged(each, activation="swiglu")
        for block in model.blocks():
            block.compile(backend="aot_eager", dynamic=False)
        found[each] = step(model)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]
    assert all(torch.equal(found["none"][name], value) for name, value in found[mode].items())


def sharded_steps(runtime: Runtime) -> list[dict[str, Tensor]]:
    """Two steps of a model sharded over the processes, for each mode."""
    grid, found = Grid.make(runtime, ParallelConfig(shard=2)), []
    for mode in ("none", "selective", "full"):
        with torch.device("meta"):
            model = assemble(config(activation="swiglu", dropout=0.1))
        recompute(model, mode)
        shard(model, grid)
        model.to_empty(device="cpu")
        set_first_weights(model, Arrangement(grid), model.config, seed=0, given={})
        model.train()
        step(model)
        found.append(step(model))  # gradients of both: what was gathered for the first is gathered again
    return found


def test_a_sharded_model_makes_the_same_again():
    for plain, *others in together(2, sharded_steps):
        for again in others:
            assert all(torch.equal(again[name], plain[name]) for name in plain)
