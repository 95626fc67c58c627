"""The predicted loss of each layer's rounding, against the divergence that is measured when it is rounded."""

import pytest
import torch
import torch.nn.functional as F
from tiny_quantized import make, texts

from hasten.compress.rtn import nearest
from hasten.compress.sensitivity import sensitivities
from hasten.compress.statistics import linear_layers
from hasten.core.errors import DataError
from hasten.objective.cross_entropy import CrossEntropy

SHAPES = ["llama", "bert", "t5"]


def changes_of(model, share=1.0):
    layers = linear_layers(model)
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    return {name: share * (nearest(weight, 4, None).weight - weight) for name, weight in weights.items()}


@torch.no_grad()
def said(model, batches):
    """Log-probabilities, or hidden states where there are none, at places that are no padding."""
    hidden = torch.cat([model(**CrossEntropy().inputs(b))[b.segments > 0] for b in batches]).double()
    if model.config.head == "none":
        return hidden
    return model.logits(hidden.float()).double().log_softmax(-1)


def apart(true, found, head):
    if head == "none":
        return float((true - found).square().sum(-1).mean() / 2)
    return float(F.kl_div(found, true, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_predicted_divergence_is_the_one_that_is_measured(shape):
    model = make(shape)
    batches = texts(model, count=1, rows=90)  # as many as are looked at
    changes = changes_of(model, share=0.2)  # small, so that second order is all there is
    found, before = sensitivities(model, changes, batches), said(model, batches)
    for name, change in changes.items():
        weight = model.get_submodule(name).weight
        with torch.no_grad():
            weight.add_(change)
            measured = apart(before, said(model, batches), model.config.head)
            weight.sub_(change)
        # Squares of nearly normal numbers, 4 draws for each of some ninety rows: 2 in 100 at least, and more
        # where a few rows matter most.
        assert 0.6 * measured < found[name] < 1.6 * measured, name
    assert len(found) == len(linear_layers(model))


def test_the_model_is_left_as_it_was():
    model = make("llama").train()
    model.embedding.weight.requires_grad_(False)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    first = sensitivities(model, changes_of(model), texts(model))
    assert model.training
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(p.grad is None for p in model.parameters())
    assert sensitivities(model, changes_of(model), texts(model)) == first


def test_no_token_is_refused():
    with pytest.raises(DataError, match="no token to calibrate with"):
        sensitivities(make("llama"), {}, [])
