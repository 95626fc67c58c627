"""Matrices of low rank: the loss that is predicted is the loss, and the budget is met."""

import pytest
import torch
from tiny_quantized import make, texts

from hasten.compress.depth import Depth
from hasten.compress.low_rank import LowRank, cut, shared_out, spectrum
from hasten.compress.statistics import linear_layers
from hasten.core.errors import ConfigError
from hasten.model.factored import factored_layers
from hasten.objective.cross_entropy import CrossEntropy


def correlated(inputs, tokens, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=draw) * torch.logspace(0, -1.5, inputs)
    return (mix @ torch.randn(inputs, tokens, generator=draw)).double()  # [I, N]


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("rank", [1, 7, 20, 23])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 24)], ids=["wide", "tall", "square"])
def test_the_predicted_loss_is_the_loss(shape, rank):
    weight, x = drawn(*shape), correlated(shape[1], 200)
    halves = cut(weight, spectrum(weight, x @ x.t()), rank)
    measured = float(((halves.up @ halves.down - weight) @ x).norm())
    assert halves.loss == pytest.approx(measured, rel=1e-5)
    assert halves.loss == pytest.approx(float(torch.linalg.svdvals(weight @ x)[rank:].norm()), rel=1e-4)


def test_it_is_the_least_loss_of_that_rank():
    weight, x = drawn(24, 40), correlated(40, 200)
    halves = cut(weight, spectrum(weight, x @ x.t()), 6)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    assert halves.loss < 0.9 * float(((u[:, :6] * s[:6] @ vt[:6] - weight) @ x).norm())
    for seed in range(5):  # no step away from it is better
        up = halves.up + 1e-3 * drawn(*halves.up.shape, seed=seed)
        assert float(((up @ halves.down - weight) @ x).norm()) > halves.loss


@pytest.mark.parametrize("tokens", [0, 5])
def test_fewer_tokens_than_inputs_still_give_a_matrix(tokens):
    weight, x = drawn(24, 40), correlated(40, max(tokens, 1)) * (tokens > 0)
    halves = cut(weight, spectrum(weight, x @ x.t()), 12)
    assert halves.up.isfinite().all() and halves.down.isfinite().all()
    assert float(((halves.up @ halves.down - weight) @ x).norm()) <= 1e-3 * float((weight @ x).norm())


def test_the_whole_rank_loses_nothing():
    weight, x = drawn(24, 40), correlated(40, 200)
    halves = cut(weight, spectrum(weight, x @ x.t()), 24)
    torch.testing.assert_close(halves.up @ halves.down, weight, rtol=0, atol=1e-8)


def best_of_all(spectra, shapes, room):
    """The least relative loss for a budget, by trying every choice of ranks for two layers."""

    def options(name):
        o, i = shapes[name]
        squares = spectra[name] / spectra[name].sum()
        yield o * i, 0.0, None
        for rank in range(1, min(o, i)):
            if rank * (o + i) < o * i:
                yield rank * (o + i), float(squares[rank:].sum()), rank

    a, b = spectra
    return min(
        (la + lb, ra, rb) for pa, la, ra in options(a) for pb, lb, rb in options(b) if pa + pb <= room
    )[0]


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_ranks_are_shared_out_nearly_as_well_as_can_be(share):
    shapes = {"a": (24, 40), "b": (40, 40)}
    spectra = {
        n: torch.linalg.svdvals(drawn(*s) @ correlated(s[1], 99, seed=5)).square() for n, s in shapes.items()
    }
    ranks = shared_out(spectra, shapes, share)
    sizes = {n: o * i for n, (o, i) in shapes.items()}
    spent = sum(ranks[n] * sum(shapes[n]) if n in ranks else sizes[n] for n in shapes)
    assert spent <= (1 - share) * sum(sizes.values())
    assert spent > (1 - share) * sum(sizes.values()) - max(map(sum, shapes.values()))
    loss = sum(float(spectra[n][ranks[n] :].sum() / spectra[n].sum()) for n in ranks)
    assert loss <= 1.1 * best_of_all(spectra, shapes, (1 - share) * sum(sizes.values()))


def test_a_layer_whose_rank_would_save_nothing_stays_whole():
    shapes = {"flat": (32, 32), "steep": (32, 32)}
    spectra = {"flat": torch.ones(32), "steep": torch.logspace(0, -12, 32)}
    assert set(shared_out(spectra, shapes, 0.3)) == {"steep"}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
@torch.no_grad()
def test_a_model_loses_the_share_of_its_matrices_and_runs(kind):
    model, whole = make(kind), make(kind)
    sizes = {name: layer.weight.numel() for name, layer in linear_layers(whole).items()}
    batches = texts(model, count=8)
    LowRank(share=0.3).apply(model, batches)
    layers = factored_layers(model)
    gone = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in model.parameters())
    assert 0.3 * sum(sizes.values()) <= gone < 0.3 * sum(sizes.values()) + 128 + 32
    assert all(
        layer.rank * (layer.in_features + layer.out_features) < sizes[n] for n, layer in layers.items()
    )
    for name, layer in layers.items():
        bias = whole.get_submodule(name).bias
        assert bias is None or torch.equal(layer.bias, bias)
    ours, theirs = (one(**CrossEntropy().inputs(batches[0])) for one in (model, whole))
    assert ours.isfinite().all() and float((ours - theirs).norm() / theirs.norm()) < 0.9


@torch.no_grad()
def test_each_block_is_fitted_to_what_the_factored_ones_before_it_give(capsys):
    model, whole = make("llama"), make("llama")
    batches = texts(model, count=8)
    LowRank(share=0.3).apply(model, batches)
    lost = total = 0.0
    for name, layer in factored_layers(model).items():
        number, seen, factored = name.split(".")[1], [], model.layers
        model.layers = factored.__class__({**factored, number: whole.layers[number]})
        handle = model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        for batch in batches:
            model(**CrossEntropy().inputs(batch))
        handle.remove()
        model.layers = factored
        x = torch.cat([x[b.segments > 0] for x, b in zip(seen, batches, strict=True)]).double()
        weight = whole.get_submodule(name).weight.double()
        lost += float((x @ (layer.weight.double() - weight).t()).square().sum())
        total += float((x @ weight.t()).square().sum())
    assert f"expected to lose {lost / total:.2%} of their outputs' squares" in capsys.readouterr().out


def test_what_cannot_be_is_one_sentence():
    model = make("llama")
    with pytest.raises(
        ConfigError, match=r"low_rank.share 0.99 leaves no rank to a layer; write at most 0\.9"
    ):
        LowRank(share=0.99).apply(model, texts(model))
    with pytest.raises(ConfigError, match="leaves no layer"):
        LowRank(skip=("*",)).apply(model, texts(model))
    LowRank().apply(model, texts(model))
    for step in (LowRank(), Depth(layers=1)):
        with pytest.raises(ConfigError, match="the model is in matrices of low rank; write low_rank after"):
            step.apply(model, texts(model))
