"""What layers read, against the same sums written out in float64, and block by block against all at once."""

from typing import Any

import pytest
import torch
from tiny_quantized import SHAPES, make, texts
from torch import Tensor, nn

from hasten.compress.statistics import block_by_block, linear_layers, moments
from hasten.core.batch import Batch
from hasten.core.errors import DataError
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import CrossEntropy


def read_by(model: Transformer, batches: list[Batch], name: str) -> Tensor:
    """What the layer `name` reads at places that are no padding, [N, I] in float64."""
    rows: list[Tensor] = []
    source_side = name.startswith("encoder.") or name.endswith(("cross.key", "cross.value"))

    def keep(module: nn.Module, args: Any) -> None:
        batch = batches[len(rows)]
        segments = batch.extra["source_segments"] if source_side else batch.segments
        x = args[0]
        rows.append(torch.cat([x[b, t][None] for b, t in (segments > 0).nonzero().tolist()]))

    handle = model.get_submodule(name).register_forward_pre_hook(keep)
    with torch.no_grad():
        for batch in batches:
            model(**CrossEntropy().inputs(batch))
    handle.remove()
    return torch.cat(rows).double()


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_moments_are_sums_over_tokens_that_are_no_padding(shape):
    model = make(shape)
    batches = texts(model)
    found = moments(model, batches)
    assert set(found) == set(linear_layers(model))
    for name, moment in found.items():
        x = read_by(model, batches, name)
        assert moment.count == len(x)
        torch.testing.assert_close(moment.gram.double(), x.T @ x, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(moment.square.double(), x.square().sum(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moment.absolute.double(), x.abs().sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_blocks_one_by_one_read_what_they_read_in_the_whole(shape):
    model = make(shape)
    batches = texts(model)
    whole = moments(model, batches)
    for at in block_by_block(model, batches):
        for name, moment in at.moments().items():
            assert moment.count == whole[name].count
            torch.testing.assert_close(moment.gram, whole[name].gram, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", ["llama", "bert", "t5"])
def test_later_blocks_read_what_changed_blocks_give(shape):
    model = make(shape)
    batches = texts(model)
    found = {}
    for at in block_by_block(model, batches):
        found |= at.moments()
        with torch.no_grad():
            at.block.ffn.down.weight.mul_(0.5)
    again = moments(model, batches)  # all blocks changed: what each reads does not depend on itself
    last = [name for name in again if "layers.1." in name and not name.endswith("down")]
    assert last
    for name in last:
        torch.testing.assert_close(found[name].gram, again[name].gram, rtol=1e-5, atol=1e-4)


def test_only_the_layers_asked_for_and_without_the_large_sums():
    model = make("llama")
    found = moments(model, texts(model), names=["layers.1.ffn.up"], gram=False)
    assert list(found) == ["layers.1.ffn.up"]
    assert found["layers.1.ffn.up"].gram is None


def test_layers_that_read_one_tensor_share_their_sums():
    found = moments(make("llama"), texts(make("llama")))
    attention = [found[f"layers.0.attention.{name}"] for name in ("query", "key", "value")]
    assert attention[0] is attention[1] is attention[2]
    assert found["layers.0.attention.out"] is not attention[0]


def test_dropout_is_off_and_the_model_is_left_as_it_was():
    model = make("gpt2", dropout=0.5)
    quiet = moments(model, texts(model))
    model.train()
    found = moments(model, texts(model))
    assert model.training
    assert torch.equal(found["layers.1.ffn.down"].gram, quiet["layers.1.ffn.down"].gram)


@pytest.mark.parametrize("batches", [[], "padding"], ids=["none", "padding alone"])
def test_no_token_to_learn_from_is_refused(batches):
    model = make("llama")
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    given = batches or []
    given = [Batch(tokens, tokens, segments=tokens)] if given else []
    with pytest.raises(DataError, match="no token to calibrate with; give a text"):
        moments(model, given)
    with pytest.raises(DataError, match="no token to calibrate with"):
        next(block_by_block(model, given))
