"""What a recipe may say about training, and the recipes that are refused before anything starts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.config import dump, parse
from hasten.core.errors import ConfigError
from hasten.train.config import HORIZONS, TrainConfig
from hasten.train.optim import AdamWConfig, MuonConfig


def config(**fields: object) -> TrainConfig:
    return parse(TrainConfig, fields, "a.yaml")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "nothing says how long to train; write exactly one of steps, tokens, epochs, minutes"),
        ({"steps": 5, "minutes": 2.0}, "steps and minutes are both there"),
        ({"steps": 0}, "steps should be greater than 0, got 0"),
        ({"minutes": 0.0}, "minutes should be greater than 0, got 0"),
        ({"steps": 1, "batch_tokens": 0}, "batch_tokens should be greater than 0"),
        ({"steps": 1, "batch_tokens": 64, "micro_batch_tokens": 128}, "more than batch_tokens"),
        ({"steps": 1, "optimizer": {"kind": "mun"}}, "optimizer.kind cannot be 'mun'. Did you mean 'muon'"),
        ({"steps": 1, "optimizer": {"kind": "adamw", "momentum": 0.9}}, "optimizer has no field 'momentum'"),
        ({"steps": 1, "optimizer": {"kind": "adamw", "betas": [0.9, 1.0]}}, "betas"),
        ({"steps": 1, "stpes": 1}, "Did you mean 'steps'"),
        ({"steps": 1, "compile": "yes"}, "compile cannot be 'yes'"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_in_one_sentence(
    fields: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError) as error:
        config(**fields)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("batch_tokens", "row_tokens", "processes", "nearest"),
    [(1000, 256, 1, "1024"), (100, 256, 1, "256"), (768, 256, 2, "1024"), (256, 256, 4, "1024")],
)
def test_a_batch_of_part_rows_is_refused_with_the_nearest_that_works(
    batch_tokens: int, row_tokens: int, processes: int, nearest: str
) -> None:
    with pytest.raises(ConfigError, match=f"batch_tokens .*; the nearest is {nearest}"):
        config(steps=1, batch_tokens=batch_tokens).batch_rows(row_tokens, processes)


@given(rows=st.integers(1, 64), row_tokens=st.integers(1, 512), processes=st.integers(1, 8))
def test_the_nearest_batch_that_a_refusal_names_is_accepted(
    rows: int, row_tokens: int, processes: int
) -> None:
    whole = config(steps=1, batch_tokens=rows * row_tokens)
    try:
        assert whole.batch_rows(row_tokens, processes) == rows
    except ConfigError as error:
        nearest = int(str(error).rpartition(" ")[2])
        assert (
            config(steps=1, batch_tokens=nearest).batch_rows(row_tokens, processes) == nearest // row_tokens
        )


def test_micro_batches_are_whole_rows() -> None:
    assert config(steps=1).micro_rows(256) is None
    assert config(steps=1, micro_batch_tokens=512).micro_rows(256) == 2
    with pytest.raises(ConfigError, match=r"micro_batch_tokens \(300\) .* the nearest is 256"):
        config(steps=1, micro_batch_tokens=300).micro_rows(256)


def test_every_horizon_but_the_clock_is_a_number_of_steps() -> None:
    assert config(steps=7).num_steps(4, 100) == 7
    assert config(tokens=1001, batch_tokens=100).num_steps(4, 100) == 11
    assert config(epochs=1.0).num_steps(8, 100) == 13
    assert config(epochs=0.5).num_steps(10, 100) == 5
    assert config(minutes=2.0).num_steps(4, 100) is None


@pytest.mark.parametrize("optimizer", [MuonConfig(weight_decay=0.1), AdamWConfig(head_learning_rate=1e-4)])
@pytest.mark.parametrize("horizon", HORIZONS)
def test_a_recipe_survives_being_written_and_read(horizon: str, optimizer: MuonConfig | AdamWConfig) -> None:
    import yaml

    before = TrainConfig.model_validate({horizon: 3, "optimizer": optimizer})
    assert config(**yaml.safe_load(dump(before))) == before


def test_rates_that_are_not_given_follow_the_main_one() -> None:
    rates = AdamWConfig(learning_rate=2e-3, head_learning_rate=1e-4)
    assert [rates.rate(role) for role in ("matrix", "embedding", "head", "vector")] == [
        2e-3,
        2e-3,
        1e-4,
        2e-3,
    ]
