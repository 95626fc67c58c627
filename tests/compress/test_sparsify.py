"""Zeros: how many, where, and that they survive a file and further training."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_quantized import make, texts

from hasten.compress.sparsegpt import sparsegpt
from hasten.compress.sparsify import Sparsify
from hasten.compress.statistics import linear_layers
from hasten.core.config import parse
from hasten.core.errors import ConfigError, DataError
from hasten.model.factored import put_factored
from hasten.objective.cross_entropy import CrossEntropy


def kept_per_group(weight, size):
    return (weight != 0).unflatten(1, (-1, size)).sum(-1)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_a_pattern_is_exact_in_every_group_after_a_file(kind, method, tmp_path):
    model = Sparsify(method=method, pattern="2:4").apply(make(kind), texts(make(kind)))
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, tmp_path / "it")
    again = load_file(tmp_path / "it")
    for name in linear_layers(model):
        assert (kept_per_group(again[f"{name}.weight"], 4) == 2).all()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_a_share_is_exact_in_every_row(sparsity, method):
    shape = {"ffn_dim": 300}  # more than one stretch of SparseGPT
    model = make("llama", **shape)
    Sparsify(sparsity=sparsity, method=method).apply(model, texts(model))
    for layer in linear_layers(model).values():
        zeros = (layer.weight == 0).sum(1)
        assert (zeros == round(sparsity * layer.in_features)).all()


def test_all_else_stays_to_the_bit():
    before, model = make("gpt2"), make("gpt2")
    Sparsify(skip=("*.down", "layers.0.*")).apply(model, texts(model))
    pruned = {f"{n}.weight" for n in linear_layers(model) if not n.endswith(".down") and "s.1." in n}
    for (name, ours), theirs in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs) == (name not in pruned)
        assert torch.equal(ours, theirs.where(ours != 0, 0))


@torch.no_grad()
def test_wanda_compares_a_row_by_weight_times_norm_of_input_through_the_pruned_blocks_before():
    model, original = make("llama"), make("llama")
    batches = texts(model)
    Sparsify(sparsity=0.5).apply(model, batches)
    name = "layers.1.ffn.up"
    original.layers["0"] = model.layers["0"]  # what the second block reads has been through the pruned first
    seen = []
    handle = original.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    inputs = []
    for batch in batches:
        original(**CrossEntropy().inputs(batch))
        inputs.append(seen.pop()[batch.segments > 0].double())
    handle.remove()
    weight = original.get_submodule(name).weight.double()
    scores = weight.abs() * torch.cat(inputs).norm(dim=0)
    stays = torch.zeros_like(scores, dtype=torch.bool)
    for row, values in enumerate(scores):
        stays[row, values.argsort()[16:]] = True
    assert torch.equal(model.get_submodule(name).weight != 0, stays)


def correlated(inputs, tokens, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=draw) * torch.logspace(0, -1.5, inputs)
    return (torch.randn(tokens, inputs, generator=draw) @ mix.t()).double()  # [N, I]


@pytest.mark.parametrize(("count", "size"), [(128, 256), (2, 4)], ids=["half", "2:4"])
def test_sparsegpt_loses_less_than_wanda_and_wanda_less_than_magnitude(count, size):
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    x = correlated(256, 2000) * torch.logspace(-0.5, 0.5, 256).flip(0)
    step = Sparsify(pattern="2:4") if size == 4 else Sparsify()
    made = {
        "sparsegpt": sparsegpt(weight, (x.t() @ x).float(), count, size),
        "wanda": step.without(weight, weight.abs() * x.float().norm(dim=0)),
        "magnitude": step.without(weight, weight.abs()),
    }
    losses = {name: float(((one - weight).double() @ x.t()).norm()) for name, one in made.items()}
    assert losses["sparsegpt"] < losses["wanda"] < losses["magnitude"]
    assert all((kept_per_group(one, size) == size - count).all() for one in made.values())


def test_sparsegpt_is_the_written_out_update():
    """One row: each weight that goes is made up for by the least squares step of all that are left."""
    weight, x = torch.randn(1, 12, generator=torch.Generator().manual_seed(1)), correlated(12, 100)
    hessian = x.t() @ x
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(12)
    left = weight[0].double().clone()
    for first in range(0, 12, 4):
        # The diagonal of the Cholesky factor of the inverse: what is left of it after each step.
        steps = torch.stack([hessian[i:, i:].inverse()[0, 0] for i in range(first, first + 4)])
        goes = (left[first : first + 4].square() / steps).argsort()[:2] + first
        for i in range(first, first + 4):
            rest = hessian[i:, i:].inverse()
            if i in goes:
                left[i:] -= left[i] / rest[0, 0] * rest[:, 0]
                left[i] = 0
    found = sparsegpt(weight, hessian_of(x), 2, 4)
    torch.testing.assert_close(found[0].double(), left, rtol=1e-4, atol=1e-5)


def hessian_of(x):
    return (x.t() @ x).float()


def test_magnitude_needs_no_text_and_wanda_does():
    Sparsify(method="magnitude").apply(make("llama"), [])
    with pytest.raises(DataError, match="no token to calibrate with"):
        Sparsify().apply(make("llama"), [])


def test_thin_pairs_can_be_pruned_too():
    model = make("llama")
    put_factored(model, {"layers.0.ffn.up": 8})
    Sparsify(pattern="2:4").apply(model, texts(model))
    up = model.layers["0"].ffn.up
    for half in (up.up.weight, up.down.weight):
        assert (kept_per_group(half, 4) == 2).all()


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"pattern": "4:2"}, "'4:2' does not say how many of how many stay; write 2:4"),
        ({"pattern": "half"}, "'half' does not say how many of how many stay; write 2:4"),
        ({"pattern": "1:4", "sparsity": 0.5}, "pattern 1:4 is a sparsity of 0.75, not 0.5; leave it out"),
    ],
    ids=["upside down", "words", "both"],
)
def test_a_pattern_that_is_none_is_one_sentence(step, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse(Sparsify, {"kind": "sparsify", **step}, "recipe")


def test_rows_without_whole_groups_are_one_sentence():
    model = make("llama", ffn_dim=42)
    with pytest.raises(ConfigError, match=r"layers\.0\.ffn\.down has 42 numbers, no whole groups of 2:4"):
        Sparsify(pattern="2:4").apply(model, texts(model))
    Sparsify(pattern="2:4", skip=("*.down",)).apply(model, texts(model))
    with pytest.raises(ConfigError, match="leaves no layer"):
        Sparsify(skip=("*",)).apply(model, texts(model))


def test_one_line_says_how_much_is_zero(capsys):
    model = make("llama")
    Sparsify().apply(model, texts(model))
    zeros = sum(int((layer.weight == 0).sum()) for layer in linear_layers(model).values())
    line = capsys.readouterr().out
    assert line.startswith(f"sparsify: {zeros:,} of {model.config.num_parameters:,} parameters are zero")
    assert line.count("\n") == 1
