"""The command line: quick help, exit codes, one sentence for each mistake."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hasten.cli import VERBS, main

BAD_CALLS = {
    "an unknown verb": (["trian"], "there is no verb 'trian'. Did you mean 'train'?"),
    "no recipe": (["train"], "hasten train needs a recipe first"),
    "an unknown recipe": (
        ["show", "dmeo"],
        "'dmeo' is no recipe file, no run's folder and no recipe that ships",
    ),
    "a near recipe": (["show", "dem"], "Did you mean 'demo'?"),
    "a missing file": (["show", "none.yaml"], "none.yaml: there is no such file"),
    "a misspelt key": (["show", "demo", "train.stps=3"], "train has no field 'stps'. Did you mean 'steps'?"),
    "a wrong type": (["show", "demo", "train.batch_tokens=many"], "train.batch_tokens should be"),
    "two horizons": (
        ["show", "demo", "train.steps=3"],
        "steps and minutes are both there; write exactly one",
    ),
    "an unknown kind": (["show", "demo", "train.optimizer={kind: moun}"], "Did you mean 'muon'?"),
    "an impossible shape": (
        ["show", "demo", "model.num_heads=5"],
        "dim (256) must be a multiple of num_heads (5)",
    ),
    "an unknown preset": (["show", "demo", "model.preset=gtp2"], "Did you mean 'gpt2'?"),
    "a missing source": (["prepare", "demo", "data.sources=[nowhere.txt]"], "nowhere.txt"),
    "a short context": (["train", "demo", "model.max_positions=16"], "data.row_tokens (512) is more than"),
    "an indivisible batch": (
        ["train", "demo", "train.batch_tokens=1000"],
        "must be a multiple of data.row_tokens",
    ),
    "init over a file": (["init", "demo", "taken.yaml"], "taken.yaml: is there already"),
    "words for recipes": (["recipes", "all"], "hasten recipes takes no words"),
    "an unknown technique": (["bench", "bench.techniques=[moun]"], "Did you mean 'muon'? Choose from bf16"),
    "no model": (["generate", "demo", "output=nothing"], "nothing"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a small text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.yaml").write_text("output: runs/mine\n")
    return tmp_path


@pytest.mark.parametrize("words, complaint", BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_mistake_ends_in_one_sentence_and_exit_code_2(words, complaint, folder, text_files, capsys):
    if words[0] == "train" and len(words) > 2:
        words = [*words, f"data.sources=[{text_files}]", "data.tokenizer.vocab_size=300"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.startswith("hasten: ") and error.count("\n") == 1
    assert not (folder / "runs/demo").exists(), "nothing half-written"


def test_help_names_every_verb_and_each_verb_has_its_own(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb} " in overview
        assert main([verb, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"hasten {verb}")


def test_help_needs_neither_torch_nor_pydantic():
    program = "import sys; from hasten.cli import main; main(['--help']); print([*sys.modules])"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    loaded = out.splitlines()[-1]
    assert not any(f"'{name}'" in loaded for name in ("torch", "pydantic", "numpy", "rich", "tokenizers"))


def test_help_starts_as_quickly_as_python_itself_almost():
    """A ratio, not a time: the help costs less than importing pydantic would."""

    def seconds(*words: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        return time.perf_counter() - began

    ours = min(seconds("-m", "hasten", "--help") for _ in range(5))
    assert ours < min(seconds("-c", "import pydantic.main, rich.console") for _ in range(5))


def test_show_counts_and_starts_nothing(folder, capsys):
    assert main(["show", "demo", "data.tokenizer.vocab_size=4096"]) == 0
    out = capsys.readouterr().out
    assert "# parameters            5,245,696" in out and "output: runs/demo" in out
    assert not (folder / "runs").exists()


def test_what_show_prints_is_itself_the_same_recipe(folder, capsys):
    main(["show", "demo"])
    first = capsys.readouterr().out
    (folder / "resolved.yaml").write_text(first)
    main(["show", "resolved.yaml"])
    assert capsys.readouterr().out == first


def test_init_copies_a_recipe_that_then_loads(folder, capsys):
    assert main(["init", "demo", "my.yaml"]) == 0
    assert (folder / "my.yaml").read_text().startswith("# From raw text")
    assert main(["show", "my.yaml"]) == 0


def test_the_schema_knows_every_section(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"data", "model", "train", "evaluate", "generate", "journey"} <= schema["properties"].keys()
    assert schema["additionalProperties"] is False


def test_a_reader_that_leaves_early_is_no_error():
    program = f"{sys.executable} -m hasten schema | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", program], capture_output=True, check=False, env=os.environ
    )
    assert b"Traceback" not in done.stderr
