"""Narrower models: they equal the original with what went set to zero, and what went mattered least."""

from types import MethodType

import pytest
import torch
from tiny_quantized import make, texts
from torch import nn

from hasten.compress.axes import axes
from hasten.compress.importance import channel_importance, stream_importance
from hasten.compress.width import Width, choose
from hasten.core.config import parse
from hasten.core.errors import ConfigError
from hasten.model.interop import save_hugging_face
from hasten.model.norm import LayerNorm
from hasten.objective.cross_entropy import CrossEntropy

KINDS = {
    "llama": ("llama", {"head_dim": 8}),
    "one key head": ("llama", {"num_kv_heads": 1}),
    "gemma2": ("gemma2", {"num_kv_heads": 2}),
    "gpt2": ("gpt2", {}),
    "hasten": ("squared", {"embedding_norm": True, "qk_norm": True, "tied": True}),
    "hasten, offset": ("squared", {"embedding_norm": True, "norm_offset": True}),
    "bert": ("bert", {"embedding_norm": "learned", "pooler": "tanh"}),
    "bert, head": ("bert", {"head": "vocabulary", "head_transform": True, "head_bias": True}),
    "t5": ("t5", {}),
    "t5, own tables": ("t5", {"shared_embeddings": False, "source_vocab_size": 50, "tied": False}),
}
WIDTHS = {
    "heads": {"num_heads": 2},
    "channels": {"ffn_dim": 40},
    "stream": {"dim": 24},
    "all": {"num_heads": 2, "ffn_dim": 40, "dim": 16},
}


def outputs(model, batch):
    hidden = model(**CrossEntropy().inputs(batch))
    found = [] if model.config.head == "none" else [model.logits(hidden)]
    return found if model.pooler is None else [*found, model.pooled(hidden)]


def masked(model, kept):
    """The model with all that did not stay set to zero, by hand: readers and writers of each part."""
    for name, module in model.named_modules():
        heads, channels = kept.get((name, "queries")), kept.get((name, "inner"))
        if heads is not None:
            zero_all_but(module.out.weight, 1, heads)
        if channels is not None:
            zero_all_but(module.down.weight, 1, channels)
    if (stay := kept.get(("", "stream"))) is not None:
        for name, parameter in model.named_parameters():
            for dim, axis in enumerate(axes(name)):
                if axis == "stream":
                    zero_all_but(parameter, dim, stay)
            if axes(name) == ("stream",) and model.config.norm_offset and name.endswith("norm.weight"):
                parameter.masked_fill_(~chosen(parameter, stay), -1.0)
        for module in model.modules():
            if isinstance(module, LayerNorm):  # its mean and variance are those of what is left
                module.forward = MethodType(lambda self, x, stay=stay: over(self, x, stay), module)
    return model


def over(norm, x, stay):
    left = nn.functional.layer_norm(x[..., stay], (len(stay),), norm.weight[stay], norm.bias[stay], norm.eps)
    return torch.zeros_like(x).index_copy_(-1, stay, left)


def chosen(vector, stay):
    return torch.zeros_like(vector, dtype=torch.bool).index_fill_(0, stay, True)


def zero_all_but(parameter, dim, stay):
    gone = torch.ones(parameter.shape[dim], dtype=torch.bool).index_fill_(0, stay, False)
    parameter.index_fill_(dim, gone.nonzero().flatten(), 0.0)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_narrower_model_equals_the_original_with_what_went_set_to_zero(kind, widths, monkeypatch):
    name, options = KINDS[kind]
    monkeypatch.setattr("hasten.compress.width.check_family", lambda before, after: None)
    model = make(name, **options)
    batches = texts(model)
    smaller = Width(**WIDTHS[widths]).apply(model, batches)
    kept = choose(model, batches, smaller.config)
    model = masked(model, kept)
    for batch in batches:
        for ours, theirs in zip(outputs(smaller, batch), outputs(model, batch), strict=True):
            whole = theirs if ours.shape == theirs.shape else theirs[..., kept["", "stream"]]
            torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
@torch.no_grad()
def test_the_configuration_counts_what_is_there(kind):
    model = make(kind)
    smaller = Width(num_heads=2, ffn_dim=40, **({"dim": 16} if kind != "t5" else {})).apply(
        model, texts(model)
    )
    assert smaller.config.num_parameters == sum(p.numel() for p in smaller.parameters())
    assert smaller.config.num_kv_heads == {"llama": 1, "t5": 1}.get(kind, 2)
    assert smaller.config.head_dim == model.config.head_dim


@torch.no_grad()
def test_channels_matter_by_their_mean_square():
    model = make("llama")
    found = channel_importance(model, texts(model))["layers.0.ffn.down"]
    expected, count = torch.zeros(64).double(), 0
    seen = []
    handle = model.layers["0"].ffn.down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in texts(model):
        model(**CrossEntropy().inputs(batch))
        for vector in seen.pop()[batch.segments > 0].double():
            expected, count = expected + vector.square(), count + 1
    handle.remove()
    torch.testing.assert_close(found.double(), expected / count, rtol=1e-5, atol=0)


@torch.no_grad()
def test_the_stream_matters_as_branches_read_it():
    model = make("bert")
    seen = []
    readers = [m for b in model.blocks() for m in (b.attention.query, b.ffn.up)]
    handles = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for m in readers]
    total, count = torch.zeros(32).double(), 0
    for batch in texts(model):
        model(**CrossEntropy().inputs(batch))
        total += sum(x[batch.segments > 0].double().square().sum(0) for x in seen)
        count += int((batch.segments > 0).sum())
        seen.clear()
    for handle in handles:
        handle.remove()
    found = stream_importance(model, texts(model))
    torch.testing.assert_close(found.double(), total / count, rtol=1e-5, atol=0)


@torch.no_grad()
def test_what_is_nothing_goes_first():
    model = make("llama")
    model.layers["1"].attention.value.weight[:8] = 0  # the first head of keys, with its two of queries
    model.layers["0"].ffn.up.weight[::2] = 0
    stays = choose(model, texts(model), Width(num_heads=2, ffn_dim=32).target(model.config))
    assert stays["layers.1.attention", "queries"].tolist() == list(range(16, 32))
    assert stays["layers.1.attention", "keys"].tolist() == list(range(8, 16))
    assert stays["layers.0.ffn", "inner"].tolist() == list(range(1, 64, 2))


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_a_share_is_met_to_half_of_a_step_of_channels(kind, share):
    options = {"embedding_norm": "learned", "norm_eps": 1e-12} if kind == "bert" else {}
    config = make(kind, dim=64, ffn_dim=256, num_layers=3, **options).config
    after = Width(share=share, multiple=8).target(config)
    layers = after.encoder_layers + after.decoder_layers
    step = 8 * (2 + config.gated) * config.dim * layers
    left = after.num_matrix_parameters - (1 - share) * config.num_matrix_parameters
    assert abs(left) <= step / 2
    assert after.ffn_dim % 8 == 0 and after.dim == config.dim
    # Heads go where half of the channels would not do, and not in the families of GPT-2 and BERT, whose
    # heads are as wide as the stream together.
    assert after.num_heads == (2 if share > 0.5 and kind not in ("gpt2", "bert") else 4)


@pytest.mark.parametrize(
    ("kind", "widths", "sentence"),
    [
        ("llama", {"num_heads": 3}, "2 query heads share each head of keys; it can be 2"),
        ("llama", {"ffn_dim": 65}, "width.ffn_dim is 65, more than the model's 64"),
        ("llama", {"ffn_dim": 64}, "as narrow as that already"),
        ("llama", {"share": 0.9}, "would leave 0 of 64 inner channels; write another share, or a smaller"),
        ("gpt2", {"num_heads": 2}, "write num_heads: 2 with dim: 16, or leave out both"),
        ("gpt2", {"dim": 16}, "write num_heads: 4 with dim: 32, or leave out both"),
    ],
    ids=["groups", "more", "same", "share", "heads alone", "stream alone"],
)
def test_widths_that_cannot_be_are_one_sentence(kind, widths, sentence):
    model = make(kind)
    with pytest.raises(ConfigError, match=sentence):
        Width(**widths).apply(model, texts(model))


def test_a_stream_that_positions_are_made_for_stays():
    model = make("bert", position="sinusoidal")
    with pytest.raises(ConfigError, match="sinusoidal positions are made for a whole stream"):
        Width(dim=16, num_heads=2).apply(model, texts(model))


@pytest.mark.parametrize("step", [{}, {"share": 0.5, "dim": 16}], ids=["nothing", "both"])
def test_an_amount_is_given_in_one_way(step):
    with pytest.raises(ConfigError, match=r"write either share, such as 0\.25, or some of num_heads"):
        parse(Width, {"kind": "width", **step}, "recipe")


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("llama", Width(num_heads=2, ffn_dim=40, dim=24)),
        ("gpt2", Width(num_heads=3, ffn_dim=40, dim=24)),
        ("bert", Width(num_heads=2, ffn_dim=40, dim=16)),
    ],
    ids=["llama", "gpt2", "bert"],
)
@torch.no_grad()
def test_transformers_loads_what_is_left_with_equal_outputs(kind, step, tmp_path):
    transformers = pytest.importorskip("transformers")
    options = {"bert": {"embedding_norm": "learned", "norm_eps": 1e-12}, "gpt2": {"tied": True}}
    model = make(kind, **options.get(kind, {}))
    smaller = step.apply(model, texts(model))
    save_hugging_face(smaller, tmp_path)
    cls = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM
    theirs = cls.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(theirs).__name__.lower().startswith(kind)
    tokens = texts(model)[0].tokens
    ours = smaller(tokens) if kind == "bert" else smaller.logits(smaller(tokens))
    found = theirs(tokens)[0]
    torch.testing.assert_close(ours, found, rtol=0, atol=1e-5 * float(found.abs().max()))
