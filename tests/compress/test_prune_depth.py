"""Fewer layers: which ones go, and that the others do what they did."""

import pytest
import torch
from tiny_quantized import make, texts
from torch import nn

from hasten.compress.depth import Depth
from hasten.compress.importance import block_influence
from hasten.core.config import parse
from hasten.core.errors import ConfigError, DataError
from hasten.model.fewer import with_layers
from hasten.model.interop import save_hugging_face
from hasten.objective.cross_entropy import CrossEntropy


def inputs_of(batch):
    return CrossEntropy().inputs(batch)


class Passing(nn.Module):
    """A block that changes nothing."""

    def forward(self, x, *_):
        return x


def sides_of(model):
    if model.config.kind == "seq2seq":
        return {"encoder.": model.encoder, "decoder.": model.decoder}
    return {"": model}


@pytest.mark.parametrize("run", [1, 2])
@pytest.mark.parametrize("kind", ["llama", "bert"])
@torch.no_grad()
def test_influence_is_one_minus_the_mean_cosine_over_tokens_that_are_no_padding(kind, run):
    model = make(kind, num_layers=4)
    batches, expected = texts(model), torch.zeros(5 - run).double()
    count = 0
    for batch in batches:
        states = [model.enter(model.words(batch.tokens, **batch.extra), torch.arange(12))]
        for layer in range(4):
            states.append(model.through(states[-1], torch.arange(12), batch.segments, layers=[str(layer)]))
        for row, place in (batch.segments > 0).nonzero().tolist():
            count += 1
            for first in range(5 - run):
                a, b = states[first][row, place].double(), states[first + run][row, place].double()
                expected[first] += 1 - a @ b / (a.norm() * b.norm())
    found = block_influence(model, batches, {"": run})[""]
    torch.testing.assert_close(found, expected / count, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5", "squared"])
@torch.no_grad()
def test_what_is_left_equals_the_original_that_skips_what_went(kind):
    model = make(kind, num_layers=4)
    batches = texts(model)
    smaller = Depth(share=0.5).apply(model, batches)
    influences = block_influence(model, batches, dict.fromkeys(sides_of(model), 1))
    for side, stack in sides_of(model).items():
        for layer in influences[side].argsort()[:2].tolist():
            stack.layers[str(layer)] = Passing()
    for batch in batches:
        torch.testing.assert_close(smaller(**inputs_of(batch)), model(**inputs_of(batch)))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_the_configuration_counts_what_is_there(kind):
    model = make(kind, num_layers=4)
    smaller = Depth(layers=1).apply(model, texts(model))
    assert smaller.config.num_layers == 3
    assert smaller.config.encoder_layers == {"t5": 4, "bert": 3}.get(kind, 0)
    assert smaller.config.num_parameters == sum(p.numel() for p in smaller.parameters())
    assert type(smaller) is type(model)


def test_each_side_of_a_seq2seq_model_has_a_number_of_its_own():
    model = make("t5", num_layers=3, num_encoder_layers=4)
    smaller = Depth(layers=1, encoder_layers=2).apply(model, texts(model))
    assert (smaller.config.decoder_layers, smaller.config.encoder_layers) == (2, 2)
    shared = Depth(share=0.34).apply(model, texts(model))
    assert (shared.config.decoder_layers, shared.config.encoder_layers) == (2, 3)


@torch.no_grad()
def test_a_layer_that_does_nothing_goes_first_even_if_it_is_the_last():
    model = make("llama", num_layers=4)
    for branch in (model.layers["3"].attention.out, model.layers["3"].ffn.down):
        branch.weight.zero_()
    batches = texts(model)
    smaller = Depth(layers=1).apply(model, batches)
    for batch in batches:
        torch.testing.assert_close(smaller(batch.tokens), model(batch.tokens))


def test_a_run_of_neighbours_is_the_one_between_whose_ends_the_stream_turns_least():
    model = make("llama", num_layers=5)
    batches = texts(model)
    first = int(block_influence(model, batches, {"": 2})[""].argmin())
    smaller = Depth(layers=2, contiguous=True).apply(model, batches)
    left = [layer for layer in range(5) if layer not in (first, first + 1)]
    for new, old in enumerate(left):
        assert torch.equal(smaller.layers[str(new)].ffn.up.weight, model.layers[str(old)].ffn.up.weight)


def test_windows_go_with_their_layers():
    config = make("squared", num_layers=4, window_layers=[0, 2, 3], local_rope_theta=100.0).config
    some, all_, none = (with_layers(config, {"": stay}) for stay in ([0, 1, 3], [2, 3], [1]))
    assert some.window_layers == (0, 2) and some.sliding_window == 5
    assert all_.window_layers is None and all_.sliding_window == 5
    assert (none.sliding_window, none.window_layers, none.local_rope_theta) == (None, None, None)


@pytest.mark.parametrize(
    ("step", "kind", "sentence"),
    [
        ({"layers": 2}, "llama", "2 layers would go of 2; take away at most 1"),
        ({"share": 0.1}, "llama", "depth.share 0.1 of 2 layers is none; write more than 0.25"),
        ({"encoder_layers": 1}, "llama", "encoder_layers is for kind: seq2seq, and this is a decoder"),
    ],
    ids=["all", "none", "no encoder"],
)
def test_an_amount_that_cannot_be_is_one_sentence(step, kind, sentence):
    model = make(kind)
    with pytest.raises(ConfigError, match=sentence):
        Depth(**step).apply(model, texts(model))


@pytest.mark.parametrize("step", [{}, {"share": 0.5, "layers": 1}], ids=["nothing", "both"])
def test_an_amount_is_given_in_one_way(step):
    with pytest.raises(ConfigError, match=r"write either share, such as 0\.25, or how many layers"):
        parse(Depth, {"kind": "depth", **step}, "recipe")


def test_no_text_is_refused():
    model = make("llama")
    with pytest.raises(DataError, match="no token to calibrate with"):
        Depth(layers=1).apply(model, [])


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_one_line_says_what_went_and_what_is_left(kind, capsys):
    model = make(kind, num_layers=4)
    before = model.config.num_parameters
    smaller = Depth(layers=1).apply(model, texts(model))
    line = capsys.readouterr().out
    assert line.startswith("depth: took layers.") and line.count("\n") == 1
    assert f"{before:,} -> {smaller.config.num_parameters:,} parameters" in line


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5", "windows"])
@torch.no_grad()
def test_transformers_loads_what_is_left_with_equal_outputs(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    options = {
        "bert": {"embedding_norm": "learned", "norm_eps": 1e-12},
        "gpt2": {"tied": True},
        "t5": {"num_kv_heads": 4, "attention_scale": 1.0, "logit_scale": 32**-0.5, "start_id": 0},
        "windows": {"attention_bias": True, "sliding_window": 5, "window_layers": (0, 2)},
    }
    model = make("llama" if kind == "windows" else kind, num_layers=4, **options.get(kind, {}))
    batch = texts(model)[0]
    smaller = Depth(share=0.5).apply(model, texts(model))
    save_hugging_face(smaller, tmp_path)
    cls = {"bert": "AutoModel", "t5": "AutoModelForSeq2SeqLM"}.get(kind, "AutoModelForCausalLM")
    theirs = getattr(transformers, cls).from_pretrained(tmp_path, attn_implementation="eager").eval()
    if kind == "t5":
        found = theirs(input_ids=batch.extra["source"], decoder_input_ids=batch.tokens).logits
        ours = smaller.logits(smaller(batch.tokens, source=batch.extra["source"]))
    else:
        found = theirs(batch.tokens)[0]
        ours = smaller(batch.tokens)
        ours = ours if kind == "bert" else smaller.logits(ours)
    torch.testing.assert_close(ours, found, rtol=0, atol=1e-5 * float(found.abs().max()))
