"""The program that times weights of small integers: its ratios, and a run without one of the libraries."""

import json
from pathlib import Path

import pytest
from quantized import ALL, main, ratios

from hasten.model.quantized import Quantization


def test_every_arm_of_ours_is_a_quantization():
    for name, (family, settings) in ALL.items():
        if family == "hasten" and "quantization" in settings:
            assert Quantization.model_validate(settings["quantization"]).bits == int(name.split()[1][3:])


def test_ratios_are_medians_of_ratios_within_a_repeat():
    speeds = {
        "hasten int4 g32": [30.0, 10.0, 60.0],
        "llama.cpp q4_0": [10.0, 10.0, 20.0],
        "hasten bf16": [10.0] * 3,
    }
    assert ratios(speeds) == {"hasten int4 g32": {"llama.cpp q4_0": 3.0, "hasten bf16": 3.0}}


@pytest.mark.slow
def test_a_run_has_every_repeat_and_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = "--shapes tiny --rows 2 --prompt-tokens 4 --new-tokens 6 --repeats 2 --threads 1 --arms"
    arms = ["hasten int8 g32", "hasten bf16", "llama.cpp q8_0"]
    main([*words.split(), *arms, "--peers", str(tmp_path / "nothing"), "--save", str(tmp_path / "out.json")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert list(result["missing"]) == ["llama.cpp q8_0"]
    [case] = result["results"]
    assert [len(speeds) for speeds in case["repeats"]["decode"].values()] == [2, 2]
    assert list(case["decode_over"]) == ["hasten int8 g32"]
