"""The decoder: what a token may know, precision, dropout, sockets, and graphs without a break."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.ops.blockwise import blockwise_attention

VARIANTS = {
    "rotary": {"num_kv_heads": 2},
    "learned": {
        "position": "learned",
        "norm": "layer",
        "attention_bias": True,
        "ffn_bias": True,
        "tied": True,
    },
    "hasten": {"activation": "relu_squared", "qk_norm": True, "embedding_norm": True},
    "gated": {"activation": "swiglu", "head_dim": 10, "logit_soft_cap": 15.0},
    "no positions": {"position": "none"},
}


def make(name: str = "rotary", dtype: torch.dtype = torch.float32, **more: object) -> Decoder:
    """A tiny decoder with weights large enough for everything to matter."""
    shape = {
        "vocab_size": 50,
        "dim": 32,
        "num_layers": 2,
        "num_heads": 4,
        "max_positions": 64,
        "init_std": 0.2,
    }
    return build(ModelConfig.model_validate({**shape, **VARIANTS[name], **more}), seed=0).to(dtype)


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(1))


def written_out(model: Decoder, tokens: Tensor) -> Tensor:
    """Hidden states in float64 from the formulas of the papers, one position at a time, no module called."""
    config, state = model.config, {n: p.detach().double() for n, p in model.named_parameters()}

    def linear(x: Tensor, name: str) -> Tensor:
        bias = state.get(f"{name}.bias")
        return x @ state[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(x: Tensor, name: str, kind: str = config.norm) -> Tensor:
        if kind == "rms":
            return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * state[f"{name}.weight"]
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def heads(x: Tensor, name: str, kind: str) -> Tensor:
        split = linear(x, f"{name}.{kind}").view(len(tokens), -1, config.head_dim)
        if config.qk_norm and kind != "value":
            split = norm(split, f"{name}.{kind}_norm", "rms")
        return split

    def turned(x: Tensor, t: int) -> Tensor:
        if config.position != "rotary":
            return x
        half = config.head_dim // 2
        angle = t / config.rope_theta ** (torch.arange(half, dtype=torch.float64) / half)
        turns = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turns.real, turns.imag), dim=-1)

    def feed_forward(x: Tensor, name: str) -> Tensor:
        up = linear(x, f"{name}.up")
        match config.activation:
            case "swiglu":
                gate = linear(x, f"{name}.gate")
                up = gate / (1 + (-gate).exp()) * up
            case "relu_squared":
                up = up.clamp(min=0) ** 2
            case _:
                up = up * (1 + torch.erf(up / 2**0.5)) / 2
        return linear(up, f"{name}.down")

    x = state["embedding.weight"][tokens]  # [B, T, D]
    if config.position == "learned":
        x = x + state["positions.weight"][: tokens.shape[1]]
    if config.embedding_norm:
        x = x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt()
    for i in range(config.num_layers):
        name, y = f"layers.{i}.attention", norm(x, f"layers.{i}.attention_norm")
        times = range(tokens.shape[1])
        query = [turned(heads(y[:, t], name, "query"), t) for t in times]
        key = [turned(heads(y[:, t], name, "key"), t) for t in times]
        value = [heads(y[:, t], name, "value") for t in times]
        mixed = []
        for t in times:
            out = torch.zeros_like(query[t])
            for h in range(config.num_heads):
                g = h * config.num_kv_heads // config.num_heads
                scores = [
                    (query[t][:, h] * key[s][:, g]).sum(-1) / config.head_dim**0.5 for s in range(t + 1)
                ]
                weights = torch.stack(scores).softmax(dim=0)
                out[:, h] = sum(weights[s][:, None] * value[s][:, g] for s in range(t + 1))
            mixed.append(out.flatten(1))
        x = x + linear(torch.stack(mixed, dim=1), f"{name}.out")
        x = x + feed_forward(norm(x, f"layers.{i}.ffn_norm"), f"layers.{i}.ffn")
    return norm(x, "norm")


@pytest.mark.parametrize("name", VARIANTS)
def test_hidden_states_are_those_of_the_formulas(name):
    model, tokens = make(name), random_tokens(2, 7)
    torch.testing.assert_close(model(tokens).double(), written_out(model, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_products_with_the_head_or_the_embedding(name):
    model = make(name)
    hidden = torch.randn(3, 32)
    table = model.embedding.weight if model.head is None else model.head.weight
    expected = hidden @ table.T
    if model.config.logit_soft_cap:
        expected = 15 * torch.tanh(expected / 15)
    torch.testing.assert_close(model.logits(hidden), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_token_knows_what_comes_after_it(name):
    model, tokens = make(name), random_tokens(1, 9)
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def packed_row(cuts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and segments of one row of documents, the last of them padding."""
    numbers = [*range(1, len(cuts)), 0] if len(cuts) > 1 else [1]
    segments = torch.repeat_interleave(torch.tensor(numbers), torch.tensor(cuts))[None]
    positions = torch.cat([torch.arange(n) for n in cuts])[None]
    return random_tokens(1, sum(cuts)), positions, segments


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 9), min_size=2, max_size=5), name=st.sampled_from(sorted(VARIANTS)))
def test_documents_packed_in_a_row_give_the_hidden_states_they_have_alone(cuts, name):
    model = make(name, torch.float64)
    tokens, positions, segments = packed_row(cuts)
    together = model(tokens, positions, segments)
    alone = torch.cat([model(piece) for piece in tokens.split(cuts, dim=1)], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)  # rotary angles are float32


@pytest.mark.parametrize("attend", [None, blockwise_attention])
@pytest.mark.parametrize("name", VARIANTS)
def test_no_document_reaches_the_logits_or_gradients_of_another(name, attend):
    """Exactly zero: what is masked has weight zero, not a small one."""
    model = make(name)
    for layer in model.layers.values():
        layer.attention.attend = attend or layer.attention.attend
    tokens, positions, segments = packed_row([4, 6, 3])
    changed = tokens.clone()
    changed[:, 4:10] = (changed[:, 4:10] + 7) % 50
    outside = segments[0] != 2
    before, after = model(tokens, positions, segments), model(changed, positions, segments)
    assert torch.equal(before[:, outside], after[:, outside])

    inputs: list[Tensor] = []

    def remember(module: object, args: tuple[Tensor, ...]) -> None:
        args[0].retain_grad()
        inputs.append(args[0])

    model.layers["0"].register_forward_pre_hook(remember)
    model(tokens, positions, segments)[:, ~outside].square().sum().backward()
    assert inputs[0].grad is not None
    assert not inputs[0].grad[:, outside].any()
    assert inputs[0].grad[:, ~outside].any()


def test_positions_count_from_zero_unless_told():
    model, tokens = make(), random_tokens(2, 6)
    assert torch.equal(model(tokens), model(tokens, positions=torch.arange(6)))
    assert torch.equal(model(tokens), model(tokens, positions=torch.arange(6).expand(2, 6)))


def test_the_attend_socket_is_what_attention_calls():
    model, calls = make(), []
    original = model.layers["0"].attention.attend

    def spy(*args: Tensor, **options: object) -> Tensor:
        calls.append((args[0].shape, args[1].shape, options["causal"]))
        return original(*args, **options)

    for layer in model.layers.values():
        layer.attention.attend = spy
    model(random_tokens(2, 5))
    assert calls == [(torch.Size([2, 5, 4, 8]), torch.Size([2, 5, 2, 8]), True)] * 2


def test_under_autocast_the_stream_is_bfloat16_and_near_float32():
    model, tokens = make("hasten", init_std=None), random_tokens(2, 16)
    exact = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(tokens)
    assert model.enter(model.embedding(tokens), torch.arange(16)).dtype == torch.float32
    # Hidden states are about one; a few bfloat16 roundings (2^-8) per layer.
    assert (rough.float() - exact).abs().max() < 0.1
    assert not torch.equal(rough.float(), exact)


def test_dropout_acts_in_training_only_and_follows_torchs_seed():
    model, tokens = make(dropout=0.3), random_tokens(2, 8)

    def with_seed(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(tokens)

    assert torch.equal(with_seed(1), with_seed(1))
    assert not torch.equal(with_seed(1), with_seed(2))
    model.eval()
    assert torch.equal(with_seed(1), with_seed(2))


def test_a_batch_can_be_memorised():
    model, tokens = make("hasten", init_std=None), random_tokens(4, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        logits = model.logits(model(tokens[:, :-1]))
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_each_block_compiles_into_one_graph_that_all_layers_share(packed):
    torch._dynamo.reset()
    model = make("hasten", num_layers=3)
    tokens, positions, segments = packed_row([4, 6, 3])
    inputs = (tokens, positions, segments if packed else None)
    expected = model(*inputs)
    graphs = count_graphs(model)
    torch.testing.assert_close(model(*inputs), expected, rtol=1e-4, atol=1e-5)
    assert graphs() == 1


def count_graphs(model: Decoder) -> Callable[[], int]:
    """Compile every block in place; the answer counts the graphs made so far."""
    made = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable:
        made.append(graph)
        return graph.forward

    for layer in model.layers.values():
        layer.compile(backend=backend, fullgraph=True, dynamic=False)
    return lambda: len(made)
