"""The program that times writing: its figures, and a run with one library that is not there."""

import json
from pathlib import Path

import pytest
from generate import agreement, config_of, main, matrix_bytes


def test_agreement_counts_tokens_before_the_first_difference():
    tokens = {"a": [[1, 2, 3], [4, 5, 6]], "b": [[1, 2, 3], [4, 0, 6]], "c": [[9, 2, 3], [4, 5, 6]]}
    assert agreement(tokens) == {"a": [3, 3], "b": [3, 1], "c": [0, 3]}


def test_every_matrix_but_the_embedding_is_read_for_a_token():
    config = config_of("tiny")
    tables_and_norms = config.dim * config.vocabulary + (2 * config.num_layers + 1) * config.dim
    assert matrix_bytes("tiny") == 2 * (config.num_parameters - tables_and_norms)


@pytest.mark.slow
def test_a_run_has_every_repeat_and_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = "--shapes tiny --rows 2 --prompt-tokens 4 --new-tokens 6 --repeats 2 --threads 1 --arms"
    arms = ["hasten fp32", "llama.cpp f16"]
    main([*words.split(), *arms, "--peers", str(tmp_path / "nothing"), "--save", str(tmp_path / "out.json")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert list(result["missing"]) == ["llama.cpp f16"]
    [case] = result["results"]
    assert [len(speeds) for speeds in case["repeats"]["decode"].values()] == [2]
    assert case["tokens_like_the_first"] == {"hasten fp32": [6, 6]}
