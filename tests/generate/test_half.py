"""Float16 weights for decoding: the same products to float16's rounding, and nothing left behind."""

import copy

import pytest
import torch
from torch import nn

from hasten.generate import half
from hasten.generate.cache import KeyValueCache
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate, ready
from hasten.generate.half import HalfLinear, can_be_halved, half_weights, worth_halving

pytestmark = pytest.mark.skipif(
    torch.backends.quantized.engine not in {"x86", "fbgemm"}, reason="FBGEMM is for x86 processors"
)
shapes = pytest.mark.parametrize(
    "shape",
    [
        {},
        {"tied": True},
        {"attention_bias": True, "ffn_bias": True, "out_bias": True},
        {"activation": "swiglu"},
    ],
    ids=["plain", "tied", "biased", "gated"],
)


@pytest.mark.parametrize("rows", [1, 2, 5, 33])
@pytest.mark.parametrize("biased", [False, True])
def test_one_token_a_row_is_multiplied_with_the_weights_as_float16(rows, biased):
    torch.manual_seed(0)
    layer, x = nn.Linear(70, 90, bias=biased), torch.randn(rows, 1, 70)
    expected = x.double() @ layer.weight.half().double().T + (layer.bias.double() if biased else 0)
    result = HalfLinear(layer.weight, layer.bias)(x)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_prompt_is_multiplied_with_the_weights_themselves():
    layer, x = nn.Linear(70, 90), torch.randn(2, 3, 70)
    assert torch.equal(HalfLinear(layer.weight, layer.bias)(x), layer(x))


@shapes
def test_decoding_equals_that_of_a_model_whose_matrices_were_rounded(small_model, shape):
    model = small_model(**shape)
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for module in rounded.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(module.weight.half())
    following = torch.randint(0, 257, (2, 6), generator=torch.Generator().manual_seed(0))
    outputs = []
    for each, context in ((model, half_weights(model)), (rounded, torch.no_grad())):
        with torch.no_grad(), context, KeyValueCache(each, padding=[0, 0], capacity=6) as cache:
            hidden = [cache.read(following[:, i : i + 1]) for i in range(6)]
            outputs.append((torch.cat(hidden, dim=1), torch.cat([each.logits(h) for h in hidden], dim=1)))
    torch.testing.assert_close(outputs[0][0], outputs[1][0], rtol=1e-4, atol=1e-4)
    # A tied head is rounded for decoding only: to float16's eleven bits of the largest product.
    torch.testing.assert_close(outputs[0][1], outputs[1][1], rtol=2**-9, atol=0.02)


@shapes
def test_the_model_is_itself_again_even_after_an_error(small_model, shape):
    model = small_model(**shape)
    before = dict(model.named_modules())
    with pytest.raises(KeyError), half_weights(model):
        assert any(isinstance(module, HalfLinear) for module in model.modules())
        raise KeyError
    assert dict(model.named_modules()) == before
    assert (model.head is None) == model.config.tied


def test_only_long_texts_from_large_float32_models_on_a_cpu_are_worth_it(small_model, monkeypatch):
    model = small_model()
    assert not worth_halving(model, new_tokens=1000)  # too small
    monkeypatch.setattr(half, "WORTHWHILE_PARAMETERS", 1000)
    assert worth_halving(model, new_tokens=64)
    assert not worth_halving(model, new_tokens=63)
    assert not worth_halving(copy.deepcopy(model).bfloat16(), new_tokens=1000)
    with torch.no_grad():
        model.norm.weight[0] = 1e6
    assert not can_be_halved(list(model.parameters()))  # beyond float16


def test_auto_decodes_in_half_precision_where_that_is_worth_it(small_model, bytes_only, monkeypatch):
    monkeypatch.setattr(half, "WORTHWHILE_PARAMETERS", 1000)
    model, config = small_model(max_positions=256), GenerateConfig(max_new_tokens=80, seed=1)
    with ready(model, config) as prepared:
        assert isinstance(prepared.head, HalfLinear)
    with ready(model, config.model_copy(update={"precision": "model"})) as prepared:
        assert isinstance(prepared.head, nn.Linear)
    prompts = ["a", "longer", "床前明月光"]
    together = generate(model, bytes_only, prompts, config)
    assert together == [generate(model, bytes_only, [prompt], config)[0] for prompt in prompts]
