"""hasten import and hasten export with GGUF files, as a user gives them."""

from pathlib import Path

import pytest
import torch
from tiny_gguf import BASE, TEXT, make_bytewise, make_model

from hasten.cli import main
from hasten.model.config import ModelConfig
from hasten.model.gguf import load_gguf, save_gguf
from hasten.model.interop import save_hugging_face
from hasten.model.transformer import build
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig, train

TEMPLATE = "{% for message in messages %}<|im_end|>{{ message['content'] }}{% endfor %}"


def folder_of(tokenizer: Tokenizer, folder: Path) -> Path:
    """A Hugging Face folder with a random Llama."""
    model = build(ModelConfig.model_validate({**BASE, "vocab_size": tokenizer.vocab_size}), seed=0)
    save_hugging_face(model, folder)
    tokenizer.save(folder)
    return folder


def test_a_file_goes_in_and_out_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_gguf(make_model("llama"), make_bytewise(), "their.gguf", "F32", TEMPLATE)
    assert main(["import", "their.gguf", "output=models/mine"]) == 0
    assert main(["export", "models/mine", "to=gguf", "dtype=float32", "output=again.gguf"]) == 0
    before, after = load_gguf("their.gguf"), load_gguf("again.gguf")
    assert all(torch.equal(a, b) for a, b in zip(before[0].parameters(), after[0].parameters(), strict=True))
    assert before[1].encode(TEXT) == after[1].encode(TEXT)
    assert before[2] == after[2] == TEMPLATE


def test_hastens_own_way_to_cut_text_is_refused_until_the_nearest_is_accepted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of(train([TEXT] * 4, TokenizerConfig(vocab_size=300), progress=False), tmp_path / "mine")
    assert main(["export", "mine", "to=gguf"]) == 2
    assert "nearest_split=true accepts that" in capsys.readouterr().err
    assert not list(Path("exports").glob("*")) if Path("exports").exists() else True
    assert main(["export", "mine", "to=gguf", "nearest_split=true"]) == 0
    assert "of the tokens of a mixed sample become others" in capsys.readouterr().out
    assert load_gguf("exports/mine.gguf")[0].config.vocab_size == 300


@pytest.mark.parametrize("words", [["to=hf", "nearest_split=true"], ["to=gguf", "dtype=bfloat16"]])
def test_options_of_the_other_kind_are_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of(make_bytewise(), tmp_path / "mine")
    assert main(["export", "mine", *words]) == 2
    assert words[-1].split("=")[0] in capsys.readouterr().err
