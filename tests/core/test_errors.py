"""Errors that tell a user what to do."""

import pytest

from hasten.core import errors


@pytest.mark.parametrize(
    "word, known, hint",
    [
        ("stpes", ["steps", "seed"], " Did you mean 'steps'?"),
        ("zzz", ["steps", "seed"], ""),
        ("steps", [], ""),
    ],
)
def test_a_near_match_is_offered_and_a_far_one_is_not(word, known, hint):
    assert errors.did_you_mean(word, known) == hint


def test_a_missing_package_says_how_to_get_it():
    error = errors.MissingExtraError("pyarrow", "parquet", "reading a.parquet")
    assert str(error) == "reading a.parquet needs the package pyarrow: pip install 'hasten[parquet]'"


def test_one_except_clause_catches_all_that_a_user_can_mend():
    kinds = [errors.ConfigError, errors.DataError, errors.CheckpointError, errors.MissingExtraError]
    assert all(issubclass(kind, errors.HastenError) for kind in kinds)
    assert not issubclass(AssertionError, errors.HastenError)
