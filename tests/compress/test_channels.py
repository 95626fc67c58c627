"""AWQ's factors: folded away exactly, wherever that can be; chosen by the error of what comes out."""

import pytest
import torch
from tiny_quantized import SHAPES, make, texts
from torch import Tensor

from hasten.compress.awq import best_factors, folds_of, put_factors, scale_block, scaled
from hasten.compress.rtn import nearest, output_error
from hasten.compress.statistics import linear_layers, moments
from hasten.core.batch import Batch
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import CrossEntropy

FOLDS = {
    "llama": {"attention_norm", "ffn_norm", "attention.value", "ffn.up"},
    "gemma2": {"attention_norm", "ffn_norm", "attention.value", "ffn.up"},
    "gpt2": {"attention_norm", "ffn_norm", "attention.value"},  # GELU of a product is no product
    "squared": {"attention_norm", "ffn_norm", "attention.value", "ffn.up"},
    "parallel": {"attention_norm", "ffn_norm", "attention.value", "ffn.up"},
    "bert": {"attention.value"},  # the norm before a layer is the stream there
    "t5": {"attention_norm", "ffn_norm", "attention.value", "ffn.up", "cross_norm", "cross.value"},
}


def outputs(model: Transformer, batches: list[Batch]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**CrossEntropy().inputs(batch)).flatten() for batch in batches])


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_factors_are_folded_away_exactly(shape):
    model = make(shape)
    batches, draw = texts(model), torch.Generator().manual_seed(0)
    before, changed = outputs(model, batches), set()
    for block in model.blocks():
        for fold in folds_of(block):
            reader = block.get_submodule(fold.readers[0])
            channels = fold.gathered(torch.zeros(reader.in_features)).shape
            weight = reader.weight.clone()
            put_factors(block, fold, torch.rand(channels, generator=draw) * 4 + 0.25)
            assert not torch.equal(reader.weight, weight)
            changed.add(fold.giver)
    assert changed == FOLDS[shape]
    torch.testing.assert_close(outputs(model, batches), before, rtol=1e-4, atol=1e-4)


def test_the_moments_after_scaling_are_those_that_are_measured():
    model = make("llama")
    batches = texts(model)
    before = moments(model, batches)
    fold = next(iter(folds_of(model.blocks()[0])))
    factors = torch.rand(32, generator=torch.Generator().manual_seed(0)) + 0.5
    put_factors(model.blocks()[0], fold, factors)
    name = "layers.0.attention.key"
    found, expected = scaled(before[name], factors), moments(model, batches)[name]
    torch.testing.assert_close(found.gram, expected.gram, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.square, expected.square, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.absolute, expected.absolute, rtol=1e-4, atol=1e-4)


def test_channels_that_carry_more_become_larger_and_the_error_smaller():
    model = make("llama")
    block = model.blocks()[0]
    with torch.no_grad():
        block.ffn_norm.weight[3] = (
            40  # what LLM.int8() found in large models: one channel far above the others
        )
    moment = moments(model, texts(model))["layers.0.ffn.up"]
    fold = next(fold for fold in folds_of(block) if fold.giver == "ffn_norm")
    weights, grids = [block.ffn.gate.weight, block.ffn.up.weight], [(4, None)] * 2
    factors = best_factors(weights, grids, moment, fold)
    assert factors is not None
    assert factors.argmax() == 3

    def error(by: Tensor) -> float:
        return sum(output_error(nearest(w * by, 4, None).weight / by - w, moment.gram) for w in weights)

    assert error(factors) < 0.5 * error(torch.ones(32))


def test_layers_that_are_to_stay_are_scaled_with_the_others_but_do_not_choose():
    model = make("llama")
    batches, block = texts(model), model.blocks()[0]
    with torch.no_grad():
        block.attention_norm.weight[3] = 40
    before = outputs(model, batches)
    keys = {"layers.0.attention.key": (4, None)}
    after = scale_block(block, "layers.0", moments(model, batches), keys)
    assert set(after) == set(linear_layers(model))
    torch.testing.assert_close(outputs(model, batches), before, rtol=1e-4, atol=1e-4)
