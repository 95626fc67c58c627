"""A run's adapter for others: what `peft` loads beside the same base gives the same logits."""

from pathlib import Path

import pytest
import torch
from adapted_run import base_in, checkpoint_beside

from hasten.adapt.lora import adapted_layers
from hasten.adapt.peft import adapter_base
from hasten.core.errors import ConfigError
from hasten.exchange.adapter import send_adapter
from hasten.train.load import load_adapted

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


@torch.no_grad()
def test_a_runs_adapter_gives_the_same_logits_in_peft_and_back(tmp_path: Path) -> None:
    model, _ = load_adapted(checkpoint_beside(base_in(tmp_path / "base"), tmp_path / "run"))
    send_adapter(tmp_path / "run", tmp_path / "out")
    tokens = torch.arange(20)[None]
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    ours = model.logits(model(tokens))
    torch.testing.assert_close(theirs(tokens).logits, ours, rtol=1e-5, atol=1e-5)
    again, _ = load_adapted(tmp_path / "out")
    assert len(adapted_layers(again)) == len(adapted_layers(model))
    torch.testing.assert_close(again.logits(again(tokens)), ours, rtol=1e-6, atol=1e-6)


def test_what_peft_could_not_load_is_refused(tmp_path: Path) -> None:
    checkpoint_beside(base_in(tmp_path / "base"), tmp_path / "run")
    with pytest.raises(ConfigError, match="base: has no adapter; give a run with `adapt:`"):
        send_adapter(tmp_path / "base", tmp_path / "out")
    send_adapter(tmp_path / "run", tmp_path / "out", base="owner/name")
    assert adapter_base(tmp_path / "out") == "owner/name"
    with pytest.raises(ConfigError, match="out: is in PEFT's format already"):
        send_adapter(tmp_path / "out", tmp_path / "other")
    with pytest.raises(ConfigError, match="out: is there already"):
        send_adapter(tmp_path / "run", tmp_path / "out")
    (tmp_path / "base" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"was trained beside .*base, which peft cannot load; write base="):
        send_adapter(tmp_path / "run", tmp_path / "other")
    assert not (tmp_path / "other").exists()
