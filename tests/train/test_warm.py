"""What the compiler's cache is known to hold."""

from pathlib import Path

import pytest
import torch

from hasten.model.config import ModelConfig
from hasten.train import warm
from hasten.train.warm import INDUCTOR_FOLDER, is_warm, keep_compiled_code, note_of, remember

CPU = torch.device("cpu")
MODEL = ModelConfig.model_validate({"vocab_size": 32, "dim": 16, "num_layers": 2, "num_heads": 2})


def test_the_cache_outlives_a_restart_unless_the_environment_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INDUCTOR_FOLDER, "elsewhere")
    assert keep_compiled_code() == Path("elsewhere")
    monkeypatch.delenv(INDUCTOR_FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep_compiled_code() == tmp_path / "hasten" / "inductor"
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert Path(cache_dir()) == keep_compiled_code(), "PyTorch must look there"


def test_a_run_is_warm_once_its_like_was_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INDUCTOR_FOLDER, str(tmp_path))
    assert not is_warm("one")
    remember("one")
    remember("one")
    assert is_warm("one") and not is_warm("another")


def test_a_cache_that_cannot_be_written_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hasten").write_text("in the way")
    monkeypatch.setenv(INDUCTOR_FOLDER, str(tmp_path))
    remember("one")
    assert not is_warm("one")


def test_whatever_changes_the_graphs_changes_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = {
        note_of(MODEL, (4, 16), "bf16", CPU),
        note_of(MODEL, (2, 16), "bf16", CPU),
        note_of(MODEL, (4, 16), "fp32", CPU),
        note_of(MODEL.model_copy(update={"dim": 32}), (4, 16), "bf16", CPU),
    }
    assert note_of(MODEL, (4, 16), "bf16", CPU) in notes
    monkeypatch.setattr(warm, "source", lambda: "other code")
    notes.add(note_of(MODEL, (4, 16), "bf16", CPU))
    assert len(notes) == 5
