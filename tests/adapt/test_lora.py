"""Thin pairs beside frozen matrices: nothing at first, the written-out sum later, and trained alone."""

from typing import Any

import pytest
import torch
from tiny_adapted import KINDS, disturb, fresh_adapted, inputs_of, plain_model, scores, shape_of
from torch import Tensor, nn

from hasten.adapt.config import LoraConfig
from hasten.adapt.float8 import use_float8
from hasten.adapt.linear import LoraLinear
from hasten.adapt.lora import adapt, adapted_layers, settle, switched_off, trained_names
from hasten.core.errors import ConfigError
from hasten.model.initial import first_value
from hasten.model.layout import role
from hasten.model.transformer import Transformer, assemble
from hasten.parallel.recompute import recompute

WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True, "alpha": 8.0},
    "dora": {"dora": True},
    "nf4": {"base": "nf4"},
    "nf4 dora": {"base": "nf4", "dora": True, "double_quantization": False},
}


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("way", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("kind", KINDS)
def test_at_first_nothing_changes_to_the_bit(kind: str, way: str, bf16: bool) -> None:
    base = plain_model(kind)
    model = fresh_adapted(base, **WAYS[way])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert torch.equal(scores(model), scores(base))
        with switched_off(model):
            assert torch.equal(scores(model), scores(base))


def written_out(layer: LoraLinear, weight: Tensor, x: Tensor) -> Tensor:
    """What a layer should give, in float64, with the full matrix made."""
    w, a, b = (tensor.double() for tensor in (weight, layer.lora_a, layer.lora_b))
    changed = w + layer.scale * b @ a
    if layer.lora_magnitude is not None:
        changed = changed * (layer.lora_magnitude.double() / changed.norm(dim=1).detach())[:, None]
    return x.double() @ changed.T + (0 if layer.bias is None else layer.bias.double())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_and_its_gradients_are_those_of_the_written_out_sum(way: str, bias: bool) -> None:
    model = disturb(fresh_adapted(plain_model("llama", attention_bias=bias), **WAYS[way]))
    layer = adapted_layers(model)["layers.1.attention.query"]
    x = torch.randn(3, 5, 32, requires_grad=True)
    slope = torch.randn(3, 5, 32)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    found = layer(x)
    expected = written_out(layer, layer.base_weight(), x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(found, [x, *parameters], slope)
    theirs = torch.autograd.grad(expected, [x, *parameters], slope.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "scale"), [({}, 32 / 4), ({"alpha": 6.0}, 6 / 4), ({"alpha": 6.0, "rslora": True}, 6 / 2)]
)
def test_the_scale_follows_alpha_and_rank(options: dict[str, Any], scale: float) -> None:
    model = fresh_adapted(plain_model("gpt2"), rank=4, **options)
    assert {layer.scale for layer in adapted_layers(model).values()} == {scale}


@pytest.mark.parametrize("kind", KINDS)
def test_all_linears_of_blocks_are_adapted_and_heads_of_classes_trained_whole(kind: str) -> None:
    model = fresh_adapted(plain_model(kind))
    layers = adapted_layers(model)
    blocks = {id(m) for block in model.blocks() for m in block.modules() if isinstance(m, nn.Linear)}
    assert {id(layer) for layer in layers.values()} == blocks
    pairs = {f"{name}.{part}" for name in layers for part in ("lora_a", "lora_b")}
    whole = {"head.weight", "head_bias", "pooler.weight", "pooler.bias"} if kind == "bert" else set()
    assert set(trained_names(model)) == pairs | whole


@pytest.mark.parametrize("way", WAYS)
def test_only_what_is_trained_gets_a_gradient(way: str) -> None:
    model = disturb(fresh_adapted(plain_model("bert"), **WAYS[way]))
    scores(model).square().sum().backward()
    trained = set(trained_names(model))
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in trained), name


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps of a forward pass beside parameters and input."""
    kept = dict[int, int]()
    own = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    return sum(kept.values())


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("base", ["model", "nf4"])
def test_a_forward_pass_keeps_thin_tensors_alone(base: str, bf16: bool) -> None:
    model = fresh_adapted(plain_model("llama", ffn_dim=512), base=base)
    layer, x = adapted_layers(model)["layers.0.ffn.up"], torch.randn(8, 32)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        thin = (32 + 512) * 4 + 8 * (32 + 4)  # the pair, the input and what is between, in 16 bits
        assert saved_bytes(layer, x) <= 4 * thin < 2 * 512 * 32, "a weight is not kept in another form"


def test_switching_off_is_undone_even_after_an_error() -> None:
    base = plain_model("gpt2")
    model = disturb(fresh_adapted(base, dora=True))
    changed = scores(model)
    with pytest.raises(RuntimeError, match="inside"), switched_off(model):
        torch.testing.assert_close(scores(model), scores(base), rtol=0, atol=0)
        raise RuntimeError("inside")
    assert torch.equal(scores(model), changed) and not torch.equal(changed, scores(base))


def test_dropout_falls_on_what_the_pair_reads_in_training_alone() -> None:
    model = disturb(fresh_adapted(plain_model("gpt2"), dropout=0.5))
    layer, x = adapted_layers(model)["layers.0.ffn.up"], torch.randn(64, 32, requires_grad=True)
    plain = layer.eval()(x)
    base = nn.functional.linear(x, layer.weight, layer.bias)
    torch.manual_seed(0)
    dropped = layer.train()(x)
    assert not torch.equal(dropped, plain)
    torch.manual_seed(0)
    assert torch.equal(layer(x), dropped), "random numbers are torch's"
    mask_of = torch.linalg.lstsq(layer.lora_b, (dropped - base).T / layer.scale).solution  # A x, dropped
    mean = torch.stack([layer(x) for _ in range(2000)]).mean(dim=0)
    assert mask_of.shape == (4, 64)
    # Standard error of a mean of 2,000 whose spread is about that of what the pair gives.
    assert (mean - plain).std() < 0.05 * (plain - base).std()
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    assert slope.shape == x.shape and slope.isfinite().all()


@pytest.mark.parametrize("way", ["lora", "dora", "nf4"])
def test_a_compiled_layer_is_the_same(way: str) -> None:
    model = disturb(fresh_adapted(plain_model("llama"), **WAYS[way]))
    layer, x = adapted_layers(model)["layers.0.attention.key"], torch.randn(2, 3, 32, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    parameters = [x, *(p for p in layer.parameters() if p.requires_grad)]
    ours, theirs = (torch.autograd.grad(each(x).square().sum(), parameters) for each in (compiled, layer))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activations_made_again_give_the_same_gradients(mode: Any) -> None:
    found = []
    for again in (False, True):
        model = disturb(fresh_adapted(plain_model("llama"), dropout=0.5)).train()
        if again:
            recompute(model, mode)
        torch.manual_seed(0)
        scores(model).square().sum().backward()
        found.append({name: model.get_parameter(name).grad for name in trained_names(model)})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_first_values_are_pefts_and_depend_on_seed_and_name_alone() -> None:
    config, size = shape_of("gpt2"), torch.Size([64, 400])
    a = first_value("layers.0.ffn.up.lora_a", size, config, seed=1)
    limit = 400**-0.5  # of Kaiming's uniform of slope sqrt(5)
    assert a.abs().max() <= limit and a.abs().max() > 0.99 * limit
    assert a.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    assert torch.equal(a, first_value("layers.0.ffn.up.lora_a", size, config, seed=1))
    assert not torch.equal(a, first_value("layers.1.ffn.up.lora_a", size, config, seed=1))
    assert not first_value("layers.0.ffn.up.lora_b", torch.Size([400, 64]), config, seed=1).any()


def test_magnitudes_are_the_lengths_of_the_bases_rows() -> None:
    base = plain_model("bert")
    model = fresh_adapted(base, dora=True)
    for name, layer in adapted_layers(model).items():
        lengths = base.get_parameter(f"{name}.weight").double().norm(dim=1)
        torch.testing.assert_close(layer.lora_magnitude.double(), lengths, rtol=1e-6, atol=0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    settle(disturb(model, seed=1))
    assert torch.equal(before["layers.0.ffn.up.lora_magnitude"], model.layers["0"].ffn.up.lora_magnitude)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lora_a", "matrix"), ("lora_b", "matrix"), ("lora_magnitude", "vector")],
)
def test_new_parameters_have_a_role(name: str, expected: str) -> None:
    assert role(f"layers.0.attention.out.{name}") == expected


def names_of(*targets: str) -> list[str]:
    with torch.device("meta"):
        model: Transformer = assemble(shape_of("seq2seq", num_layers=1, num_encoder_layers=1))
        adapt(model, LoraConfig.model_validate({"targets": targets}), 2)
    return list(adapted_layers(model))


def test_patterns_choose_among_the_linears_of_blocks() -> None:
    assert names_of("*.cross.query") == ["decoder.layers.0.cross.query"]
    assert names_of("*.value", "encoder.*.down") == [
        "encoder.layers.0.attention.value", "encoder.layers.0.ffn.down",
        "decoder.layers.0.attention.value", "decoder.layers.0.cross.value",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("*.querry", r"'\*.querry' matches no linear layer of a block. Did you mean '\*.query'\? There"),
        ("all", r"'all' matches no linear layer of a block.*, and all-linear for every one"),
        ("head", r"'head' matches no linear layer"),
        ("embedding", r"matches no linear layer of a block.*such as encoder.layers.0.attention.query"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        names_of("*.query", pattern)


def test_eight_bits_are_refused_beside_an_adapter() -> None:
    model = fresh_adapted(plain_model("gpt2", num_layers=4))
    with pytest.raises(ConfigError, match=r"precision: fp8 is for matrices that are trained.*write bf16"):
        use_float8(model)


def test_inputs_of_another_kind_of_model_go_through() -> None:
    model = disturb(fresh_adapted(plain_model("seq2seq")))
    assert scores(model, **inputs_of(model.config)).isfinite().all()
