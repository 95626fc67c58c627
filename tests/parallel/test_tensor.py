"""Matrices and tokens divided over processes, against one process that holds all."""

from statistics import median
from typing import Any, NamedTuple

import pytest
import torch
from processes import together
from torch import Tensor, nn

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, assemble, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.parallel.arrangement import Arrangement
from hasten.parallel.config import ParallelConfig
from hasten.parallel.gradients import sum_gradients
from hasten.parallel.grid import Grid
from hasten.parallel.tensor import check, split_tensor

VOCAB, ROWS, TOKENS, SOURCE_TOKENS = 61, 2, 12, 8
SHAPE = {"vocab_size": VOCAB, "dim": 32, "num_heads": 4, "num_layers": 3, "ffn_dim": 48, "max_positions": 32}
BIASED = {"attention_bias": True, "out_bias": True, "ffn_bias": True}
CASES: dict[str, dict[str, Any]] = {
    "llama": {**SHAPE, "activation": "swiglu", "qk_norm": True, "num_kv_heads": 4, "head_bias": True},
    "gpt2": {**SHAPE, "preset": "gpt2"},
    "gemma": {
        **SHAPE, "tied": True, "norm_place": "both", "norm_offset": True, "embedding_scale": 5.0,
        "head_dim": 6, "activation": "geglu_tanh", "attention_soft_cap": 20.0, "logit_soft_cap": 10.0,
        "sliding_window": 5, "window_layers": [0, 2], "local_rope_theta": 100.0, "rope_theta": 10_000.0,
    },
    "neox": {**SHAPE, **BIASED, "parallel_block": True, "norm": "layer", "rotary_share": 0.25, "head_dim": 8},
    "bert": {
        **SHAPE, **BIASED, "kind": "encoder", "position": "learned", "norm": "layer", "norm_place": "after",
        "embedding_norm": "learned", "num_token_types": 2, "head_transform": True, "head_bias": True,
        "tied": True,
    },
    "classes": {**SHAPE, "kind": "encoder", "head": "token_classes", "num_classes": 3, "head_bias": True},
    "t5": {
        **SHAPE, "kind": "seq2seq", "num_layers": 2, "num_encoder_layers": 2, "position": "relative",
        "relative_buckets": 8, "shared_embeddings": False, "source_vocab_size": 53, "logit_scale": 0.3,
        "tied": True,
    },
    "marian": {
        **SHAPE, **BIASED, "kind": "seq2seq", "num_layers": 2, "num_encoder_layers": 1, "norm_place": "after",
        "position": "sinusoidal", "norm": "layer", "qk_norm": True, "head_bias": True,
    },
}  # fmt: skip


def config_of(case: str, **changes: object) -> ModelConfig:
    return ModelConfig.model_validate({**CASES[case], **changes})


def whole_model(config: ModelConfig) -> Transformer:
    """A model in which no bias is zero and no norm is one."""
    model = build(config, seed=0)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.05)
    return model


def split_model(whole: Transformer, grid: Grid, *, sequence: bool) -> tuple[Transformer, Arrangement]:
    """This process's part of it."""
    arrangement = Arrangement(grid)
    with torch.device("meta"):
        model = assemble(whole.config)
    split_tensor(model, arrangement, sequence=sequence)
    model.to_empty(device="cpu")
    values = dict(whole.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name][arrangement.piece(name, parameter).slices])
    arrangement.note(model)
    return model, arrangement


def batch_of(config: ModelConfig) -> Batch:
    """Rows of two documents, in which some tokens carry no loss."""
    random = torch.Generator().manual_seed(2)
    tokens = torch.randint(VOCAB, (ROWS, TOKENS), generator=random)
    targets = torch.randint(config.head_rows, (ROWS, TOKENS), generator=random)
    targets[0, 3:6] = IGNORE
    segments, positions = documents(TOKENS, 7)
    extra = dict[str, Tensor]()
    if config.kind == "seq2seq":
        extra["source"] = torch.randint(config.source_vocabulary, (ROWS, SOURCE_TOKENS), generator=random)
        extra["source_segments"], extra["source_positions"] = documents(SOURCE_TOKENS, 3)
    if config.head_transform:
        extra["scored"] = torch.tensor([1, 4, 5, 13, 20])
    return Batch(tokens, targets, segments, positions, extra=extra)


def documents(tokens: int, second: int) -> tuple[Tensor, Tensor]:
    """Segments and positions [B, T] of rows whose second document begins at `second`."""
    at = torch.arange(tokens).repeat(ROWS, 1)
    return 1 + (at >= second).long(), torch.where(at < second, at, at - second)


def run(model: Transformer, batch: Batch, objective: CrossEntropy) -> dict[str, Tensor]:
    """What comes out of a forward pass; gradients of the loss are left in the model."""
    hidden = model(**objective.inputs(batch))
    loss = objective.loss(model, hidden, batch)
    (loss / 10).backward()
    return {"hidden": hidden.detach(), "logits": model.logits(hidden).detach(), "loss": loss.detach()}


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest number."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


def compare(grid: Grid, config: ModelConfig, *, sequence: bool, bf16: bool = False) -> dict[str, float]:
    """How far each result and each part of a gradient here is from one process's."""
    whole, batch = whole_model(config), batch_of(config)
    objective = CrossEntropy(z_loss=1e-2, label_smoothing=0.1, chunk_tokens=5)
    model, arrangement = split_model(whole, grid, sequence=sequence)
    results = []
    for each in (whole, model):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            results.append(run(each, batch, objective))
    sum_gradients(model, arrangement)
    found = {name: off(results[1][name].float(), results[0][name].float()) for name in results[0]}
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in model.named_parameters():
        piece = arrangement.piece(name, parameter)
        found[name] = off(parameter.grad, gradients[name][piece.slices])
    return found


Run = tuple[str, bool, bool, dict[str, Any]]
"""A case, whether tokens are split and products in bf16, and changes of the configuration."""
BOTH = (False, True)
TWO: list[Run] = [(case, sequence, False, {}) for case in CASES for sequence in BOTH]
TWO += [("llama", sequence, False, {"num_kv_heads": 2}) for sequence in BOTH]
# With one seed everywhere what is dropped outside of branches is the same.
TWO += [("gpt2", False, False, {"dropout": 0.2, "attention_dropout": 0.0})]
FOUR: list[Run] = [(case, sequence, False, {}) for case in ("llama", "t5") for sequence in BOTH]
# One head of keys and values for two or four processes.
FOUR += [("llama", True, False, {"num_kv_heads": 2, "attention_bias": True})]
FOUR += [("marian", False, False, {"num_kv_heads": 1, "qk_norm": False})]
BF16: list[Run] = [(case, sequence, True, {}) for case in ("llama", "t5") for sequence in BOTH]


def compare_all(runtime: Runtime, runs: list[Run]) -> list[dict[str, float]]:
    grid = Grid.make(runtime, ParallelConfig(tensor=runtime.world_size))
    return [
        compare(grid, config_of(case, **changes), sequence=sequence, bf16=bf16)
        for case, sequence, bf16, changes in runs
    ]


def assert_equal(runs: list[Run], found: list[list[dict[str, float]]]) -> None:
    """Results and gradients are those of one process, and none is missing."""
    for rank, results in enumerate(found):
        for run_, result in zip(runs, results, strict=True):
            worst = max(result, key=lambda name: result[name])
            assert result[worst] < 1e-5, (rank, run_, worst, result[worst])
    for number, (case, *_, changes) in enumerate(runs):
        names = {name for name, _ in whole_model(config_of(case, **changes)).named_parameters()}
        assert names <= set().union(*(results[number] for results in found))


def middle(model: Transformer, hidden: Tensor) -> Tensor:
    """What blocks make of hidden states, as a stage of a pipeline has them: [B, T, D] -> [B, T, D]."""
    for block in model.layers.values():
        hidden = block(hidden, None, None)
    return hidden


def keep(model: Transformer, numbers: str) -> Transformer:
    """Leave some of the layers, as a pipeline does."""
    for number in [number for number in model.layers if number not in numbers]:
        del model.layers[number]
    return model


def stages(runtime: Runtime) -> dict[str, tuple[float, set[int]]]:
    """Some blocks of four: how far off they are, and how many tokens a feed-forward's norm sees."""
    grid, config = Grid.make(runtime, ParallelConfig(tensor=2)), config_of("gpt2", num_layers=4)
    hidden = torch.randn(ROWS, TOKENS, config.dim, generator=torch.Generator().manual_seed(4))
    found = {}
    for numbers in ("12", "013"):
        whole, model = (keep(whole_model(config), numbers) for _ in range(2))
        split_tensor(model, Arrangement(grid), sequence=True)
        counts = {number: note_tokens(block.ffn_norm) for number, block in model.layers.items()}
        difference = off(middle(model, hidden), middle(whole, hidden))
        found[numbers] = difference, {count for noted in counts.values() for count in noted}
    return found


def note_tokens(norm: nn.Module) -> list[int]:
    """How many tokens a norm will see."""
    noted = list[int]()
    norm.register_forward_hook(lambda _, args, __: noted.append(args[0].shape[1]))
    return noted


def draws(runtime: Runtime) -> dict[str, Tensor]:
    """Numbers drawn inside of the attention, beside it in a block, and after the model."""
    found = dict[str, Tensor]()
    for sequence in BOTH:
        config = config_of("gpt2", dropout=0.1)
        grid = Grid.make(runtime, ParallelConfig(tensor=2))
        model, _ = split_model(whole_model(config), grid, sequence=sequence)
        block = model.layers["1"]
        for name, place in {"out": block.attention.out, "ffn": block.ffn}.items():
            note_draw(place, found, f"{name} {sequence}")
        torch.manual_seed(5)
        model(batch_of(config).tokens)
        found[f"after {sequence}"] = torch.rand(())
        state = torch.get_rng_state()
        model.eval()(batch_of(config).tokens)
        found[f"measured {sequence}"] = (torch.get_rng_state() != state).any()
    return found


def note_draw(module: nn.Module, found: dict[str, Tensor], name: str) -> None:
    """Draw a number whenever a module has run, in training."""

    def note(*_: object) -> None:
        if module.training:
            found[name] = torch.rand(())

    module.register_forward_hook(note)


def odd_rows(runtime: Runtime) -> list[str]:
    """What is said of rows that do not divide, and what becomes of them without a split of tokens."""
    config, said = config_of("gpt2"), []
    grid = Grid.make(runtime, ParallelConfig(tensor=2))
    for sequence in (True, False):
        model, _ = split_model(whole_model(config), grid, sequence=sequence)
        try:
            said.append(str(list(model(torch.ones(1, 7, dtype=torch.long)).shape)))
        except ConfigError as error:
            said.append(str(error))
    return said


class Found(NamedTuple):
    """What one of two processes comes to."""

    equal: list[dict[str, float]]
    bf16: list[dict[str, float]]
    stages: dict[str, tuple[float, set[int]]]
    draws: dict[str, Tensor]
    odd_rows: list[str]


def everything(runtime: Runtime) -> Found:
    return Found(
        compare_all(runtime, TWO),
        compare_all(runtime, BF16),
        stages(runtime),
        draws(runtime),
        odd_rows(runtime),
    )


@pytest.fixture(scope="module")
def two() -> list[Found]:
    """Two processes are started once for all that they have to show."""
    return together(2, everything)


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(two: list[Found]) -> None:
    assert_equal(TWO, [found.equal for found in two])


@pytest.mark.slow
def test_four_processes_do_too() -> None:
    assert_equal(FOUR, together(4, compare_all, FOUR))


@pytest.mark.slow
def test_products_in_bf16_differ_by_their_rounding(two: list[Found]) -> None:
    for found in two:
        for run_, result in zip(BF16, found.bf16, strict=True):
            assert result["loss"] < 2e-3, run_
            assert median(result.values()) < 0.03 and max(result.values()) < 0.3, run_


@pytest.mark.slow
def test_a_stage_begins_and_ends_with_all_tokens(two: list[Found]) -> None:
    for found in two:
        assert len(found.stages) == 2
        for difference, inner in found.stages.values():
            assert difference < 1e-6 and inner == {TOKENS // 2}


@pytest.mark.slow
def test_processes_drop_alike_what_all_hold_and_differently_what_each_has(two: list[Found]) -> None:
    first, second = (found.draws for found in two)
    equal = {name for name in first if torch.equal(first[name], second[name])}
    assert first.keys() - equal == {"out False", "out True", "ffn True"}
    assert not first["measured False"] and not first["measured True"]


@pytest.mark.slow
def test_rows_that_do_not_divide_are_refused_where_tokens_are_split(two: list[Found]) -> None:
    for found in two:
        refused, taken = found.odd_rows
        assert "a row has 7; make it 8, or write sequence_parallel: false" in refused
        assert taken == "[1, 7, 32]"


@pytest.mark.parametrize(
    ("changes", "parts", "words"),
    [
        ({}, 3, r"parallel.tensor is 3, which does not divide model.num_heads \(4\); tensor can be 1, 2, 4"),
        (
            {"num_heads": 12, "head_dim": 4, "num_kv_heads": 6},
            4,
            r"does not divide model.num_kv_heads \(6\); tensor can be 1, 2, 3, 6$",
        ),
        ({"ffn_dim": 1022}, 4, r"does not divide model.ffn_dim \(1,022\); tensor can be 1, 2$"),
        ({"vocab_size": 3}, 4, "more than the vocabulary has words"),
    ],
)
def test_what_does_not_divide_is_refused(changes: dict[str, Any], parts: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(config_of("llama", **changes), parts)


def test_one_process_keeps_all() -> None:
    config = config_of("t5")
    model, arrangement = split_model(
        whole_model(config), Grid.make(Runtime(torch.device("cpu"))), sequence=True
    )
    assert not arrangement.splits and not arrangement.partial
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters
