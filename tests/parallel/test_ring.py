"""Ring attention against attention of whole rows: outputs, gradients, whole models, messages, memory."""

from typing import Any, cast

import pytest
import torch
from processes import together
from torch import Tensor, distributed, nn
from torch.autograd.graph import saved_tensors_hooks
from wire import Wire, bytes_of, kinds

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError
from hasten.core.runtime import Runtime
from hasten.model.attention import Attention
from hasten.model.config import ModelConfig
from hasten.model.position import RelativeBias
from hasten.model.transformer import Transformer, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.ops.attention import attend, reference_attention
from hasten.parallel.config import ParallelConfig
from hasten.parallel.context import own, split_batch
from hasten.parallel.grid import Grid
from hasten.parallel.ring import Ring, fill_sockets
from hasten.parallel.zigzag import places

CPU = torch.device("cpu")
ROWS, TOKENS, SOURCES, HEADS, GROUPS, WIDTH = 2, 48, 24, 4, 2, 16
DOCUMENTS = torch.tensor([[1] * 5 + [2] * 30 + [3] * 9 + [0] * 4, [1] * 20 + [2] * 28])
CASES: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "documents": {"causal": True, "segments": DOCUMENTS},
    "window": {"causal": True, "window": 7},
    "wide window": {"causal": True, "window": 17, "segments": DOCUMENTS},
    "both ways": {"causal": False, "soft_cap": 2.0},
    "both ways in documents": {"causal": False, "segments": DOCUMENTS, "scale": 0.4},
    "both ways in a window": {"causal": False, "window": 9},
    "bias": {"causal": True, "bias": True},
    "bias both ways": {"causal": False, "bias": True, "segments": DOCUMENTS},
    "memory": {"causal": False, "memory": True},
    "memory of documents": {"causal": False, "segments": DOCUMENTS, "memory": True,
                            "key_segments": torch.tensor([[1] * 10 + [2] * 4 + [0] * 10, [2] * 24])},
}  # fmt: skip


def make_heads(dtype: torch.dtype, memory: bool) -> list[Tensor]:
    """Query, key, value of whole rows and the gradient of an output, in numbers that bfloat16 has."""
    random = torch.Generator().manual_seed(3)
    keys = SOURCES if memory else TOKENS
    shapes = [(TOKENS, HEADS), (keys, GROUPS), (keys, GROUPS), (TOKENS, HEADS)]
    return [torch.randn(ROWS, *s, WIDTH, generator=random).bfloat16().to(dtype) for s in shapes]


def make_bias(dtype: torch.dtype, causal: bool) -> RelativeBias:
    table = nn.Embedding(8, HEADS, dtype=dtype)
    with torch.no_grad():
        table.weight.copy_(torch.randn(8, HEADS, generator=torch.Generator().manual_seed(4)))
    return RelativeBias(table, 20, causal=causal)


def by_ring(ring: Ring, name: str, dtype: torch.dtype) -> list[Tensor]:
    """This process's part of the output and of the gradients of query, key and value; and the bias's."""
    options = dict(CASES[name])
    heads = [own(x, ring.place, ring.degree) for x in make_heads(dtype, options.pop("memory", False))]
    leaves, grad = [x.requires_grad_() for x in heads[:3]], heads[3]
    for numbers in ("segments", "key_segments"):
        if numbers in options:
            options[numbers] = own(options[numbers], ring.place, ring.degree)
    if "bias" in options:
        options["bias"] = make_bias(dtype, options["causal"])
        leaves.append(options["bias"].table.weight)
    out = ring(*leaves[:3], **options)
    return [out, *torch.autograd.grad(out, leaves, grad)]


def by_formula(name: str) -> list[Tensor]:
    """The same of whole rows, pair by pair, in float64."""
    options = dict(CASES[name])
    heads = make_heads(torch.float64, options.pop("memory", False))
    leaves, grad = [x.requires_grad_() for x in heads[:3]], heads[3]
    bias = make_bias(torch.float64, options["causal"]) if options.pop("bias", False) else None
    if bias is not None:
        leaves.append(bias.table.weight)
        at = torch.arange(TOKENS)
        options["bias"] = bias(TOKENS, TOKENS).double()
        assert options["bias"].shape == (HEADS, len(at), len(at))
    out = reference_attention(*leaves[:3], **options)
    return [out, *torch.autograd.grad(out, leaves, grad)]


def put_together(parts: list[list[Tensor]], like: list[Tensor]) -> list[Tensor]:
    """Whole rows from all processes' parts; of a bias, the sum."""
    degree, whole = len(parts), [torch.zeros_like(x) for x in like]
    for place, part in enumerate(parts):
        for total, x in zip(whole, part, strict=True):
            if x.dim() == 2:
                total.add_(x)
            else:
                total[:, places(place, degree, x.shape[1] // 2, CPU)] = x.to(total.dtype)
    return whole


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for mine, exact in zip(found, expected, strict=True):
        assert (mine - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)]
)
def test_a_ring_of_one_is_attention(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """In float64 too, but for a bias, which is made in float32."""
    exact = by_formula(name)
    tolerance = max(tolerance, 1e-6) if "bias" in name else tolerance
    assert_near(put_together([by_ring(Ring(None, 0, 1), name, dtype)], exact), exact, tolerance)


def test_a_ring_of_one_does_in_autocast_as_attention_does() -> None:
    query, key, value, _ = make_heads(torch.float32, memory=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = Ring(None, 0, 1)(query, key, value, causal=True)
        expected = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), causal=True)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


SHAPE = {"vocab_size": 37, "dim": 32, "num_heads": 4, "num_layers": 2, "ffn_dim": 48, "max_positions": 64}
MODELS: dict[str, tuple[dict[str, Any], int, bool]] = {  # shape, tokens, whether there are documents
    "plain": ({"num_kv_heads": 2}, 16, False),
    "ragged": ({"position": "learned", "max_positions": 21}, 21, False),
    "packed": ({"qk_norm": True, "tied": True}, 30, True),
    "windows": ({"sliding_window": 5, "window_layers": [1], "attention_soft_cap": 3.0}, 26, True),
    "encoder": ({"kind": "encoder", "position": "sinusoidal"}, 19, False),
    "relative": ({"kind": "encoder", "position": "relative", "relative_buckets": 8}, 16, True),
    "translator": ({"kind": "seq2seq", "num_encoder_layers": 2, "tied": True}, 14, True),
    "t5": ({"kind": "seq2seq", "position": "relative", "relative_buckets": 8}, 13, False),
}
FEW = ("ragged", "windows", "translator")


def make_model(name: str) -> Transformer:
    return build(ModelConfig.model_validate({**SHAPE, **MODELS[name][0]}), seed=0)


def make_batch(name: str) -> Batch:
    """Rows with few targets, most of them in one document; an encoder's places are `scored`."""
    shape, length, packed = MODELS[name]
    random = torch.Generator().manual_seed(5)
    tokens, targets = torch.randint(37, (2, 3, length), generator=random)
    targets[torch.rand(targets.shape, generator=random) < 0.4] = IGNORE
    targets[0, 3:] = IGNORE
    segments, positions = documents(length, length // 3) if packed else (None, None)
    if segments is not None:
        targets[segments == 0] = IGNORE
    extra = dict[str, Tensor]()
    if shape.get("kind") == "encoder":
        targets[1:, 2:] = IGNORE  # none of them is at some process
        extra["scored"] = torch.cat(
            [(targets != IGNORE).flatten().nonzero().flatten(), torch.tensor([length - 1])]
        )
    if shape.get("kind") == "seq2seq":
        extra["source"] = torch.randint(37, (3, 18), generator=random)
        if packed:
            extra["source_segments"], extra["source_positions"] = documents(18, 11)
    return Batch(tokens, targets, segments, positions, extra=extra)


def documents(length: int, cut: int) -> tuple[Tensor, Tensor]:
    """Segments and positions of rows of two documents and some padding."""
    at = torch.arange(length).repeat(3, 1)
    segments = 1 + (at >= cut).long()
    segments[1, -2:] = 0
    return segments, torch.where(at < cut, at, at - cut)


def loss_and_gradients(model: Transformer, batch: Batch) -> dict[str, Tensor]:
    """Of one backward pass, in float32; and how many guesses are right."""
    objective = CrossEntropy()
    hidden = model(**objective.inputs(batch))
    loss = objective.loss(model, hidden, batch)
    loss.backward()
    found = {"loss": loss.detach(), "correct": objective.correct(model, hidden, batch).float()}
    return {**found, **{name: cast(Tensor, p.grad) for name, p in model.named_parameters()}}


def by_ring_model(name: str, grid: Grid, *, compiled: bool = False) -> dict[str, Tensor]:
    """Summed over the processes."""
    model = make_model(name)
    fill_sockets(model, grid)
    if compiled:
        for block in model.blocks():
            block.compile(backend="eager", dynamic=False)
    found = loss_and_gradients(
        model, split_batch(make_batch(name), grid.place["context"], grid.degrees["context"])
    )
    for tensor in found.values():
        distributed.all_reduce(tensor)
    return found


def bytes_kept(ring: Ring) -> int:
    """What a causal attention keeps for its backward pass."""
    kept = []

    def note(x: Tensor) -> Tensor:
        kept.append(x.nbytes)
        return x

    with saved_tensors_hooks(note, lambda x: x):
        by_ring(ring, "causal", torch.float32)
    return sum(kept)


def messages(ring: Ring) -> tuple[int, int, int]:
    """Bytes that a process sends forward and back, and the number of messages."""
    query, key, value, grad = (own(x, ring.place, ring.degree) for x in make_heads(torch.bfloat16, False))
    with Wire() as forward:
        out = ring(query.requires_grad_(), key.requires_grad_(), value.requires_grad_(), causal=True)
    with Wire() as back:
        torch.autograd.grad(out, [query, key, value], grad)
    sent = kinds([*forward.messages, *back.messages])["send"]
    return int(bytes_of(forward.messages)), int(bytes_of(back.messages)), sent


def work(runtime: Runtime, models: tuple[str, ...]) -> dict[str, Any]:
    """All that is asked of a ring of these processes."""
    torch.manual_seed(0)
    grid = Grid.make(runtime, ParallelConfig(context=runtime.world_size))
    ring = Ring(grid.group("context"), runtime.rank, runtime.world_size)
    return {
        **{
            (name, dtype): by_ring(ring, name, dtype)
            for name in CASES
            for dtype in (torch.float32, torch.bfloat16)
        },
        **{name: by_ring_model(name, grid) for name in models},
        "compiled": by_ring_model("packed", grid, compiled=True) if runtime.world_size == 2 else {},
        "kept": bytes_kept(ring),
        "messages": messages(ring),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("degree", "models"), [(2, tuple(MODELS)), (4, FEW)], ids=["2", "4"])
def test_a_ring_of_processes_is_one_process(degree: int, models: tuple[str, ...]) -> None:
    """Outputs and gradients, loss and gradients of whole models, kept and sent bytes."""
    found = together(degree, work, models)
    for name in CASES:
        exact = by_formula(name)
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
            parts = [part[name, dtype] for part in found]
            assert_near(put_together(parts, exact), exact, tolerance)
    for name in models:
        check_model(found[0][name], name)
    if degree == 2:
        check_model(found[0]["compiled"], "packed")
    assert found[0]["kept"] == bytes_kept(Ring(None, 0, 1)) // degree
    heads = 2 * ROWS * TOKENS // degree * GROUPS * WIDTH  # keys and values of a process
    sent = (degree - 1) * 2 * heads, (degree - 1) * (2 + 4) * heads, 3 * (degree - 1)
    assert all(part["messages"] == sent for part in found)


def check_model(found: dict[str, Tensor], name: str) -> None:
    """Against one process."""
    expected = loss_and_gradients(make_model(name), make_batch(name))
    assert found.keys() == expected.keys()
    for key, exact in expected.items():
        torch.testing.assert_close(
            found[key], exact, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{name} {k}: {m}"
        )


def make_grid(degree: int) -> Grid:
    """That of the first of some processes, without groups."""
    config = ParallelConfig(context=degree)
    return Grid(
        config, {**Grid.make(Runtime(CPU)).degrees, "context": degree}, Grid.make(Runtime(CPU)).place, CPU
    )


def test_dropped_weights_are_refused() -> None:
    shape = {**SHAPE, "attention_dropout": 0.1}
    model = build(ModelConfig.model_validate(shape), seed=0)
    fill_sockets(model, make_grid(1))
    with pytest.raises(ConfigError, match=r"model.attention_dropout is 0.1 and parallel.context more than 1"):
        fill_sockets(model, make_grid(2))


def test_one_process_attends_as_it_did() -> None:
    model = make_model("plain")
    fill_sockets(model, make_grid(1))
    assert all(block.attention.attend is attend for block in model.blocks())


def test_all_layers_share_a_ring() -> None:
    model = make_model("translator")
    degrees = {**make_grid(2).degrees}
    grid = Grid(
        ParallelConfig(context=2), degrees, make_grid(2).place, CPU, {("context",): cast(Any, object())}
    )
    fill_sockets(model, grid)
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    assert len(attentions) == 6 and len({id(attention.attend) for attention in attentions}) == 1
