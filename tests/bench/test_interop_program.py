"""The program that holds imports and exports against transformers, for one family and a real checkpoint."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")
interop = pytest.importorskip("interop")

MODELS = Path(__file__).parents[2] / "../shared/data/models"


@pytest.mark.slow
def test_a_family_comes_in_and_goes_out(tmp_path, capsys):
    models = ["--models", str(MODELS)] if MODELS.exists() else []
    assert interop.main(["--families", "llama", *models, "--save", str(tmp_path / "out.json")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    for figures in (*result["families"].values(), *result["checkpoints"].values()):
        assert figures["tensors_kept_bit_for_bit"] == figures["tensors"]
        assert figures["export_difference"] == 0


def test_what_differs_or_fails_does_not_hold():
    fine = {"import_difference": 1e-6, "export_difference": 0.0, "largest_output": 1.0}
    assert interop.holds(fine)
    assert not interop.holds({**fine, "import_difference": 2e-5})
    assert interop.holds({**fine, "import_difference": 2e-5, "largest_output": 10.0})
    assert not interop.holds({"error": "no"})


def test_a_family_that_does_not_load_is_told(capsys):
    assert interop.main(["--families", "no-such-family"]) == 1
    assert "no-such-family" in json.loads(capsys.readouterr().out)["families"]["no-such-family"]["error"]
