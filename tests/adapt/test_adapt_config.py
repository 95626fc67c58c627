"""What `adapt:` may say, the rank that it leaves to a rule, and meshes that it cannot go with."""

from typing import Any

import pytest

from hasten.adapt.config import LoraConfig, choose_rank
from hasten.core.config import dump, override, parse, read_yaml
from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig

SMALL = ModelConfig.model_validate({"preset": "smollm2-135m"})


def parsed(*words: str) -> LoraConfig:
    return parse(LoraConfig, override({"kind": "lora"}, words), "adapt")


def test_defaults_adapt_every_linear_by_a_rule() -> None:
    config = parsed()
    assert (config.rank, config.alpha, config.targets, config.base) == (
        "auto",
        32.0,
        ("all-linear",),
        "model",
    )
    assert parsed("targets=['*.query','*.value']").targets == ("*.query", "*.value")
    assert parsed("targets='*.query'").targets == ("*.query",)
    assert parse(LoraConfig, read_yaml(dump(config)), "again") == config


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("rank=0", "rank"),
        ("rank=many", "rank"),
        ("alpha=0", "alpha should be greater than 0"),
        ("dropout=1", "dropout should be less than 1"),
        ("base=int4", "base cannot be 'int4'.*Choose from 'model' or 'nf4'"),
        ("targets=[]", "targets: is empty.*write a pattern, or all-linear"),
        ("targets=3", "targets should be a list, got 3"),
        ("ranks=4", "has no field 'ranks'. Did you mean 'rank'"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(word: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parsed(word)


def pair_parameters(rank: int) -> int:
    """Parameters of all pairs of SmolLM2-135M, by hand: 30 layers of q, k, v, out, gate, up, down."""
    sides = [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)]
    return 30 * rank * sum(a + b for a, b in sides)


@pytest.mark.parametrize("tokens", [1, 10**5, 10**6, 10**7, 3 * 10**7, 10**8, 10**10])
def test_the_rank_has_room_for_the_data_and_no_more_than_it_needs(tokens: int) -> None:
    rank = choose_rank(tokens, SMALL)
    assert rank in (8, 16, 32, 64, 128, 256)
    assert rank == 256 or pair_parameters(rank) >= tokens
    assert rank == 8 or pair_parameters(rank // 2) < tokens


def test_the_rank_stays_below_what_a_small_model_could_use() -> None:
    for dim in (16, 32, 64, 384):
        config = ModelConfig(vocab_size=64, dim=dim, num_layers=1)
        assert choose_rank(10**10, config) == max(8, min(256, {384: 128}.get(dim, dim // 2)))


@pytest.mark.parametrize(
    ("options", "degrees", "precision", "words"),
    [
        ({"base": "nf4"}, {"tensor": 2}, "fp32", "adapt.base is nf4.*write parallel.tensor: 1 and more data"),
        ({"base": "nf4"}, {"shard": 2}, "fp32", "adapt.base is nf4.*write parallel.shard: 1 and more data"),
        ({"dora": True}, {"tensor": 2}, "fp32", "adapt.dora needs the lengths of whole rows"),
        ({"dora": True}, {"shard": 2}, "bf16", "adapt.dora needs exact rows.*train.precision is bf16"),
        ({"dropout": 0.1}, {"tensor": 2}, "fp32", "adapt.dropout is 0.1.*write adapt.dropout: 0"),
    ],
)  # fmt: skip
def test_a_mesh_that_cannot_share_it_is_refused_with_the_reason(
    options: dict[str, Any], degrees: dict[str, int], precision: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        LoraConfig.model_validate(options).check_mesh(degrees, precision)


def test_other_meshes_pass() -> None:
    whole = {"data": 4, "pipeline": 2, "context": 2, "tensor": 1, "shard": 1}
    for options in ({"base": "nf4", "dora": True, "dropout": 0.1}, {}):
        LoraConfig.model_validate(options).check_mesh(whole, "bf16")
    LoraConfig().check_mesh({"tensor": 2, "shard": 2}, "bf16")
    LoraConfig(dora=True).check_mesh({"shard": 2}, "fp32")
