"""The program that measures translation reads what a journey leaves."""

import json
import runpy
from pathlib import Path

from hasten.core.files import write_json

PROGRAM = Path(__file__).parents[2] / "bench/translate.py"


def test_figures_of_a_finished_journey(tmp_path, capsys):
    overlap = {"score": 31.5, "interval": 1.2, "signature": "nrefs:1|tok:13a"}
    translation = {
        "split": "test", "beams": 5, "bleu": overlap, "chrf": overlap, "pairs": 1014, "unfinished": 0,
        "tokens_per_second": 900.0, "seconds": 16.0, "examples": [],
    }  # fmt: skip
    write_json(tmp_path / "evaluation.json", {"translation": translation, "test": {"loss": 1.5}})
    write_json(tmp_path / "summary.json", {"parameters": 9, "tokens": 1000, "seconds": 10.0})
    write_json(tmp_path / "journey.json", {"prepare": {"seconds": 2.5}, "train": {"seconds": 10.0}})
    runpy.run_path(str(PROGRAM))["main"](["--run", str(tmp_path), "--save", str(tmp_path / "out.json")])
    printed = json.loads(capsys.readouterr().out)
    assert printed["bleu"] == overlap and printed["beams"] == 5
    assert (printed["seconds"], printed["training_tokens_per_second"]) == (12.5, 100.0)
    assert printed["environment"]["load_average"]
    assert json.loads((tmp_path / "out.json").read_text()) == printed
