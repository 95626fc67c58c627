"""What is sent, counted call by call, against the formulas."""

from collections import Counter
from fractions import Fraction

import pytest
import torch
from processes import together
from wire import Message, Wire, bytes_of, kinds

from hasten.core.batch import Batch
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.parallel.apply import parallelize
from hasten.parallel.arrangement import Arrangement
from hasten.parallel.config import ParallelConfig
from hasten.parallel.gradients import sum_gradients
from hasten.parallel.grid import Grid
from hasten.parallel.tensor import split_tensor

ROWS, TOKENS, DIM, VOCAB, P = 3, 8, 32, 64, 2
NUMBER = 4  # bytes in float32
STATES = NUMBER * ROWS * TOKENS * DIM
SHAPE = {"vocab_size": VOCAB, "dim": DIM, "num_heads": 4, "activation": "swiglu", "max_positions": TOKENS}


def config_of(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate({**SHAPE, **changes})


def batch_of(config: ModelConfig) -> Batch:
    tokens = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    return Batch(tokens, tokens, extra={"source": tokens} if config.kind == "seq2seq" else {})


def pass_through(model: Transformer) -> list[Message]:
    """The messages of a forward and a backward pass."""
    objective, batch = CrossEntropy(), batch_of(model.config)
    with Wire() as wire:
        objective.loss(model, model(**objective.inputs(batch)), batch).backward()
    return wire.messages


def tensor(grid: Grid, sequence: bool, **changes: object) -> list[Message]:
    """What a model says to those that have the other parts of its matrices."""
    model = build(config_of(**changes), seed=0)
    split_tensor(model, Arrangement(grid), sequence=sequence)
    return pass_through(model)


def sent(runtime: Runtime) -> dict[str, list[Message]]:
    """The messages of every way to train on two processes."""
    by = {axis: Grid.make(runtime, ParallelConfig(**{axis: P})) for axis in ("tensor", "data", "shard")}
    found = {}
    for sequence in (False, True):
        for layers in (1, 2):
            found[f"tensor {sequence} {layers}"] = tensor(by["tensor"], sequence, num_layers=layers)
        crossed = {"kind": "seq2seq", "num_encoder_layers": 1}
        for layers in (1, 2):
            found[f"crossed {sequence} {layers}"] = tensor(
                by["tensor"], sequence, num_layers=layers, **crossed
            )
    for axis in ("data", "shard"):
        model, arrangement = parallelize(config_of(num_layers=2), 0, by[axis])
        found[axis] = pass_through(model)
        with Wire() as wire:
            sum_gradients(model, arrangement)
        found[axis] += wire.messages
    return found


def layer(found: dict[str, list[Message]], name: str) -> tuple[Fraction, Counter[str]]:
    """What one more layer costs."""
    one, two = found[f"{name} 1"], found[f"{name} 2"]
    return bytes_of(two) - bytes_of(one), kinds(two) - kinds(one)


def assert_tensor(found: dict[str, list[Message]]) -> None:
    """Korthikanti et al. 2022, 4.2.2: as many bytes with tokens divided as without."""
    formula = 8 * Fraction(P - 1, P) * STATES  # four all-reduces
    assert layer(found, "tensor False") == (formula, Counter(all_reduce=4))
    assert layer(found, "tensor True") == (formula, Counter(all_gather=4, reduce_scatter=4))
    # A third branch, and the gradient of the memory.
    assert layer(found, "crossed False") == (14 * Fraction(P - 1, P) * STATES, Counter(all_reduce=7))
    assert layer(found, "crossed True")[0] == 14 * Fraction(P - 1, P) * STATES


def assert_ends(found: dict[str, list[Message]]) -> None:
    """Beside the layers: what the embedding finds, three numbers and one a token, the head's gradient."""
    loss = [NUMBER * ROWS * TOKENS, 3 * NUMBER * ROWS * TOKENS]
    ends = sorted([STATES, *loss, STATES])
    plain = found["tensor False 1"]
    assert sorted(message.size for message in plain) == sorted(ends + 4 * [STATES])
    # The states of all tokens once behind the last block, and their gradient once before the first.
    extra = kinds(found["tensor True 1"]) - Counter(all_gather=4, reduce_scatter=4)
    assert extra == Counter(all_reduce=4, all_gather=2)


@pytest.mark.slow
def test_bytes_are_those_of_the_formulas() -> None:
    parameters = config_of(num_layers=2).num_parameters
    share = Fraction(P - 1, P)
    for found in together(P, sent):
        assert_tensor(found)
        assert_ends(found)
        assert bytes_of(found["data"]) == 2 * share * NUMBER * parameters
        assert set(kinds(found["data"])) == {"all_reduce"}
        # Blocks are gathered again in the backward pass, the rest stays whole in between.
        layers = 2 * config_of().num_layer_parameters
        gathered = NUMBER * (parameters + layers)
        assert bytes_of(found["shard"]) == share * (gathered + NUMBER * parameters)
