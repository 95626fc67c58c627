"""`hasten translate`: files and standard streams, line by line."""

import io
import sys

import pytest
import torch
import transformers

from hasten.cli import main

LINES = ["a man runs\n", "\n", "two dogs\n"]
FEW = "generate.max_new_tokens=5"


@pytest.fixture
def folder(byte_tokenizer, tmp_path):
    """A Marian with a byte tokenizer beside it."""
    torch.manual_seed(0)
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 258}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ffn = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32}
    ids = {"pad_token_id": 257, "eos_token_id": 256, "decoder_start_token_id": 257}
    model = transformers.MarianMTModel(transformers.MarianConfig(**shape, **heads, **ffn, **ids))
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer("<|endoftext|>", "<|pad|>").save(tmp_path / "model")
    (tmp_path / "in.txt").write_text("".join(LINES), encoding="utf-8")
    return tmp_path


def test_a_file_and_the_standard_streams_give_the_same_lines(folder, monkeypatch, capsys):
    source, target = str(folder / "in.txt"), folder / "out.txt"
    assert main(["translate", str(folder / "model"), source, str(target), FEW]) == 0
    written = target.read_text(encoding="utf-8")
    assert written.count("\n") == len(LINES) and written.split("\n")[1] == ""
    assert "3 lines, " in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(LINES)))
    assert main(["translate", str(folder / "model"), FEW]) == 0
    assert capsys.readouterr().out == written


@pytest.mark.parametrize(
    "words, complaint",
    [
        (
            ["none.txt"],
            "none.txt: cannot be read as UTF-8 text (No such file or directory); name another file",
        ),
        (["a", "b", "c"], "hasten translate takes one input and one output, got a, b, c"),
    ],
)
def test_mistakes_are_said(folder, words, complaint, capsys):
    assert main(["translate", str(folder / "model"), *words]) == 2
    assert complaint in capsys.readouterr().err


def test_a_file_that_is_no_utf8_and_an_empty_one_are_refused(folder, capsys):
    (folder / "in.txt").write_bytes(b"ab\xff\n")
    assert main(["translate", str(folder / "model"), str(folder / "in.txt")]) == 2
    assert "in.txt: cannot be read as UTF-8 text" in capsys.readouterr().err
    (folder / "in.txt").write_bytes(b"")
    assert main(["translate", str(folder / "model"), str(folder / "in.txt")]) == 2
    assert "in.txt: holds no line to translate" in capsys.readouterr().err
