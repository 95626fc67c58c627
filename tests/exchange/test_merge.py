"""`hasten merge`: an adapter in, a plain checkpoint out, compared before it is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_run import base_in, checkpoint_beside
from torch import Tensor

from hasten.adapt.lora import adapted_layers
from hasten.adapt.peft import load_adapter, save_adapter
from hasten.core.errors import CheckpointError, ConfigError
from hasten.core.files import damage
from hasten.model.interop import load_hugging_face, save_hugging_face
from hasten.model.transformer import Transformer
from hasten.train.load import load_adapted, load_model
from hasten.verbs.models import merge


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base in Hugging Face's layout in `base`, an adapter for it in PEFT's in `adapter`."""
    monkeypatch.chdir(tmp_path)
    model, _ = load_adapted(checkpoint_beside(base_in(tmp_path / "base"), tmp_path / "run"))
    save_adapter(tmp_path / "adapter", model, "base")
    return tmp_path


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    tokens = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(2))
    return model.logits(model(tokens))


def test_a_checkpoint_comes_out_that_does_the_same(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge(["adapter", "output=out"])
    said = capsys.readouterr().out
    assert "scores differ from base and adapter by" in said and "every verb takes this folder" in said
    assert damage(folders / "out") is None
    model, _ = load_model(folders / "out")
    expected = load_hugging_face(folders / "base").eval()
    load_adapter(folders / "adapter", expected)
    assert not adapted_layers(model)
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-6, atol=1e-6)
    record = json.loads((folders / "out" / "merge.json").read_text())
    assert record["merged"]["kl"] < 1e-7 and record["base"]["kl"] > 1e-4


def test_the_base_may_be_elsewhere_than_its_adapter_says(folders: Path) -> None:
    shutil.move("base", "moved")
    with pytest.raises(ConfigError, match="belongs to the base 'base', which is no folder here; write base="):
        merge(["adapter", "output=out"])
    merge(["adapter", "output=out", "base=moved"])
    assert damage(folders / "out") is None


def test_a_base_in_sixteen_bits_stays_so_and_its_rounding_is_measured(folders: Path) -> None:
    model = load_hugging_face(folders / "base")
    shutil.rmtree("base")
    save_hugging_face(model, Path("base"), types=dict.fromkeys(model.state_dict(), torch.bfloat16))
    merge(["adapter", "output=out"])
    record = json.loads(Path("out/merge.json").read_text())
    assert 1e-9 < record["merged"]["kl"] < record["base"]["kl"]
    with pytest.raises(
        CheckpointError, match=r"merged into weights of bfloat16 it differs by .* above bound=1e-10"
    ):
        merge(["adapter", "output=other", "bound=1e-10"])
    assert not Path("other").exists()


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"base": "nf4"}], ids=str)
def test_a_runs_adapter_is_merged_too(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = checkpoint_beside(base_in(tmp_path / "base"), tmp_path / "run", **options)
    merge([str(run), f"output={tmp_path / 'out'}"])
    assert ("four bits (NF4)" in capsys.readouterr().out) == ("base" in options)
    (plain, _), (model, _) = load_model(tmp_path / "out"), load_adapted(run)
    assert adapted_layers(model) and not adapted_layers(plain)
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-6, atol=1e-6)


def test_what_has_no_adapter_is_refused(folders: Path) -> None:
    with pytest.raises(ConfigError, match="base: has no adapter to merge; give a run with `adapt:`"):
        merge(["base", "output=out"])
    with pytest.raises(ConfigError, match="base: is no adapter of PEFT's, so base=x cannot matter"):
        merge(["base", "output=out", "base=x"])
    with pytest.raises(ConfigError, match="hasten merge needs an adapter first"):
        merge(["output=out"])
    with pytest.raises(ConfigError, match="hasten merge: bound should be greater than 0"):
        merge(["adapter", "bound=0"])
    Path("there").mkdir()
    Path("there/file").write_text("x")
    with pytest.raises(ConfigError, match="there: is there already"):
        merge(["adapter", "output=there"])
    assert not Path("out").exists()
