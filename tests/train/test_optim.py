"""The optimizers against torch's own and against the update written out in float64."""

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.layout import role
from hasten.model.transformer import Decoder, build
from hasten.train.muon import Muon
from hasten.train.optim import AdamWConfig, MuonConfig, Optimizer, Rates

YES, NO = torch.tensor(True), torch.tensor(False)


def tiny() -> Decoder:
    shape = {"vocab_size": 13, "dim": 16, "num_layers": 2, "num_heads": 2, "ffn_bias": True}
    return build(ModelConfig.model_validate(shape), seed=0)


def set_gradients(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=random).to(parameter.dtype)


def test_adamw_is_torchs_adamw_with_a_rate_and_a_decay_for_each_role() -> None:
    """Against the unfused loop in float64, ten steps with a moving multiplier."""
    config = AdamWConfig(learning_rate=1e-2, embedding_learning_rate=3e-2, vector_learning_rate=2e-3)
    ours, theirs = tiny().double(), tiny().double()
    groups = [
        {
            "params": [parameter],
            "rate": {"embedding": 3e-2, "vector": 2e-3}.get(role(name), 1e-2),
            "weight_decay": 0.0 if role(name) == "vector" else 0.1,
        }
        for name, parameter in theirs.named_parameters()
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    optimizer = Optimizer(ours, config)
    for step in range(10):
        for model in (ours, theirs):
            set_gradients(model, step)
        for group in reference.param_groups:
            group["lr"] = group["rate"] * (1 - step / 10)
        reference.step()
        optimizer.step(1 - step / 10, YES)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def written_out_muon(
    weight: Tensor, gradients: list[Tensor], lr: float, momentum: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Muon in float64 with the orthogonal factor from an SVD, U V^T, instead of an iteration."""
    average = torch.zeros_like(weight, dtype=torch.float64)
    weight = weight.double()
    rows, cols = weight.shape
    for gradient in gradients:
        average = momentum * average + gradient.double()
        u, _, v = torch.linalg.svd(gradient.double() + momentum * average, full_matrices=False)
        weight = (1 - lr * decay) * weight - lr * max(1, rows / cols) ** 0.5 * (u @ v)
    return weight, average


@pytest.mark.parametrize("shape", [(12, 12), (24, 6), (6, 24)])
def test_muon_is_the_written_out_update_up_to_what_the_iteration_leaves(shape: tuple[int, int]) -> None:
    """Five quintic steps bring singular values near 1, not to it, and bfloat16 may lose one of six.

    So the update has the reference's direction (a cosine above sqrt(5 / 6)) and its size within 20%;
    momentum and decay are exact.
    """
    torch.manual_seed(0)
    start = torch.randn(shape)
    gradients = [torch.randn(shape) for _ in range(3)]
    weight = nn.Parameter(start.clone())
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.2)
    for i, gradient in enumerate(gradients):
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        optimizer.step()
        expected, average = written_out_muon(start, gradients[: i + 1], 0.1, 0.9, 0.2)
        momentum = optimizer.state[weight]["momentum"].double()
        torch.testing.assert_close(momentum, average, rtol=1e-5, atol=1e-6)
        previous = written_out_muon(start, gradients[:i], 0.1, 0.9, 0.2)[0]
        ours = (weight.detach() - (1 - 0.1 * 0.2) * before).double()
        theirs = expected - (1 - 0.1 * 0.2) * previous
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9
        assert 0.8 < ours.norm() / theirs.norm() < 1.2


def test_muon_with_the_exact_factor_is_the_written_out_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an SVD in place of the iteration, nothing is left but rounding."""

    def exact(batch: Tensor) -> Tensor:
        u, _, v = torch.linalg.svd(batch, full_matrices=False)
        return u @ v

    monkeypatch.setattr("hasten.train.muon.orthogonalize", exact)
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(8, 4, dtype=torch.float64)) for _ in range(3)]
    starts = [weight.detach().clone() for weight in weights]
    gradients = [[torch.randn(8, 4, dtype=torch.float64) for _ in range(4)] for _ in weights]
    optimizer = Muon(weights, lr=0.05, momentum=0.95, weight_decay=0.1)
    for step in range(4):
        for weight, own in zip(weights, gradients, strict=True):
            weight.grad = own[step].clone()
        optimizer.step()
    for weight, start, own in zip(weights, starts, gradients, strict=True):
        expected, _ = written_out_muon(start, own, 0.05, 0.95, 0.1)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-10, atol=1e-12)


def test_matrices_in_a_batch_are_updated_as_each_would_be_alone() -> None:
    """Three shapes, several of each; a batched matrix product may round the last bits of bf16 otherwise."""
    torch.manual_seed(0)
    shapes = [(8, 8), (16, 8), (8, 8), (8, 16), (16, 8), (8, 8)]
    together = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = [nn.Parameter(weight.detach().clone()) for weight in together]
    batched = Muon(together, lr=0.1)
    singles = [Muon([weight], lr=0.1) for weight in alone]
    for _ in range(3):
        for a, b in zip(together, alone, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        batched.step()
        for single in singles:
            single.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.1 * 3 * 2**-7)


def test_matrices_that_take_turns_move_at_every_kth_step_k_times_as_far() -> None:
    """Four matrices of two shapes; the momenta go on at every step, as those of matrices that always move."""
    torch.manual_seed(0)
    start = [torch.randn(4, 6), torch.randn(4, 6), torch.randn(6, 4), torch.randn(6, 4)]
    taking_turns, always = ([m.clone().requires_grad_() for m in start] for _ in range(2))
    slow, quick = Muon(taking_turns, lr=0.01, turns=2), Muon(always, lr=0.02)
    moved: list[list[int]] = []
    for turn in range(4):
        for a, b in zip(taking_turns, always, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        before, reference = [m.clone() for m in taking_turns], [m.clone() for m in always]
        slow.turn = turn
        slow.step()
        quick.step()
        moved.append([i for i, m in enumerate(taking_turns) if not torch.equal(m, before[i])])
        for i in moved[-1]:  # the same step, rounded at another place
            mine, theirs = taking_turns[i] - before[i], always[i] - reference[i]
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0.02 * 2**-6)
    assert moved == [[0, 2], [1, 3], [0, 2], [1, 3]]
    for a, b in zip(taking_turns, always, strict=True):
        torch.testing.assert_close(slow.state[a]["momentum"], quick.state[b]["momentum"], rtol=0, atol=0)


def test_whose_turn_it_is_has_to_be_said() -> None:
    config = MuonConfig()
    optimizer = Optimizer(tiny(), config, Rates(Rates.written(config).each, turns=2))
    set_gradients(tiny(), 0)
    with pytest.raises(AssertionError, match="say which step"):
        optimizer.step(1.0, YES)


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    optimizer = Optimizer(tiny(), MuonConfig())
    taken = dict(full.rsplit("/", 1) for full in optimizer.state_dict())
    for name, key in taken.items():
        assert (key == "momentum") == (role(name) == "matrix"), name
    assert set(taken) == {name for name, _ in tiny().named_parameters()}
    rates = {group["role"]: group["lr"] for group in optimizer.groups}
    assert rates == {"matrix": 0.02, "embedding": 0.1, "head": 0.008, "vector": 0.01}


def test_a_frozen_parameter_is_no_ones() -> None:
    model = tiny()
    model.embedding.requires_grad_(False)
    assert not any(name.startswith("embedding") for name in Optimizer(model, MuonConfig()).state_dict())


@pytest.mark.parametrize("config", [MuonConfig(weight_decay=0.1), AdamWConfig()], ids=["muon", "adamw"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_no_bit(config: MuonConfig | AdamWConfig, poison: float) -> None:
    """Not even the sign of a zero: the bytes are compared."""
    model = tiny()
    optimizer = Optimizer(model, config)
    with torch.no_grad():
        model.layers["0"].attention.query.weight[0, 0] = -0.0
    set_gradients(model, 0)
    optimizer.step(1.0, YES)
    before = all_bytes(model, optimizer)
    set_gradients(model, 1, scale=poison)
    optimizer.step(1.0, NO)
    assert all_bytes(model, optimizer) == before
    set_gradients(model, 2)
    optimizer.step(1.0, YES)
    assert all_bytes(model, optimizer) != before


def all_bytes(model: nn.Module, optimizer: Optimizer) -> dict[str, bytes]:
    tensors = {**model.state_dict(), **optimizer.state_dict()}
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("config", [MuonConfig(), AdamWConfig()], ids=["muon", "adamw"])
def test_a_saved_state_continues_as_if_never_interrupted(config: MuonConfig | AdamWConfig) -> None:
    straight, resumed = tiny(), tiny()
    first, second = Optimizer(straight, config), Optimizer(resumed, config)
    for step in range(2):
        set_gradients(straight, step)
        first.step(1.0, YES)
    saved = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    resumed.load_state_dict(straight.state_dict())
    second.load_state_dict(saved)
    for model, optimizer in ((straight, first), (resumed, second)):
        set_gradients(model, 9)
        optimizer.step(0.5, YES)
    assert all_bytes(straight, first) == all_bytes(resumed, second)


@pytest.mark.parametrize("change", ["drop", "add", "shape"])
def test_a_state_of_something_else_is_refused_by_name_and_nothing_is_loaded(change: str) -> None:
    optimizer = Optimizer(tiny(), AdamWConfig())
    saved = {name: torch.ones_like(tensor) for name, tensor in optimizer.state_dict().items()}
    key = "head.weight/exp_avg"
    if change == "drop":
        del saved[key]
    elif change == "add":
        key = "another.weight/momentum"
        saved[key] = torch.ones(2)
    else:
        saved[key] = torch.ones(2, 3)
    with pytest.raises(CheckpointError, match=f"optimizer state '{key}' .*; resume with the"):
        optimizer.load_state_dict(saved)
    assert not any(tensor.any() for tensor in optimizer.state_dict().values())


def test_gradients_are_forgotten_between_steps() -> None:
    model = tiny()
    optimizer = Optimizer(model, MuonConfig())
    set_gradients(model, 0)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in optimizer.parameters.values())
