"""Tokenizers in the files of before tokenizer.json give the ids that transformers gives."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, trainers

from hasten.core.errors import DataError
from hasten.tokenizer.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = [
    "The cat catches mice; the mice catch nothing. It's 2024!",
    "Ünïcödé ÀÉÎ naïve façade — “quotes” …\tand\ttabs\r\n",
    "我们今天去北京,明天回来。猫抓老鼠。",
    " <mask> is [MASK] not </s> special <|endoftext|> here",
    "x" * 120,
    "",
]
SPECIAL = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "gpt2": ["<|endoftext|>"]}
SPECIAL["roberta"] = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def byte_pairs(folder: Path, special: list[str]) -> None:
    """vocab.json and merges.txt learnt from the texts."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    inner.model.save(str(folder))


def words(folder: Path, special: list[str]) -> None:
    """vocab.txt learnt from the texts."""
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    inner.train_from_iterator([text.lower() for text in TEXTS], trainer)
    inner.model.save(str(folder))


CASES = {
    "bert": (words, {"tokenizer_class": "BertTokenizer"}),
    "bert without a word of its class": (words, {}),
    "bert cased": (words, {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}),
    "bert accents": (words, {"tokenizer_class": "BertTokenizer", "strip_accents": False}),
    "bert chinese": (words, {"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False}),
    "gpt2": (byte_pairs, {"tokenizer_class": "GPT2Tokenizer"}),
    "gpt2 prefixed": (byte_pairs, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}),
    "roberta": (byte_pairs, {"tokenizer_class": "RobertaTokenizer"}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_ids_are_those_of_transformers(name, tmp_path):
    kind, (write, settings) = name.split()[0], CASES[name]
    write(tmp_path, SPECIAL[kind])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    classes = {"bert": "BertTokenizer", "gpt2": "GPT2Tokenizer", "roberta": "RobertaTokenizer"}
    theirs = getattr(transformers, classes[kind]).from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    for text in TEXTS:
        plain = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == plain, text
        ours.inner.encode_special_tokens = False
        assert ours.inner.encode(text, "a pair").ids == theirs(text, "a pair")["input_ids"], text
        ours.inner.encode_special_tokens = True
    assert ours.inner.token_to_id(SPECIAL[kind][0]) == theirs.convert_tokens_to_ids(SPECIAL[kind][0])


def test_the_roles_of_the_older_map_are_read_and_the_newer_file_has_the_last_word(tmp_path):
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "<x>": 1, "<y>": 2}, unk_token="a"))
    inner.add_special_tokens([AddedToken("<x>"), AddedToken("<y>")])
    inner.save(str(tmp_path / "tokenizer.json"))
    old = {"eos_token": {"content": "<x>"}, "bos_token": "<y>", "additional_special_tokens": ["<y>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(old))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eot_id, tokenizer.bos_id) == (1, 2)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<y>"}')
    assert Tokenizer.load(tmp_path).eot_id == 2


def test_every_end_that_the_generation_config_names_ends_a_text(tmp_path):
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<|im_end|>": 2}, unk_token="a"))
    inner.add_special_tokens(["</s>", "<|im_end|>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).end_ids == {1}
    settings = tmp_path / "generation_config.json"
    for ends, expected in ([1, 2], {1, 2}), (2, {1, 2}), (None, {1}):
        settings.write_text(json.dumps({"eos_token_id": ends}))
        assert Tokenizer.load(tmp_path).end_ids == expected
    for ends in (3, -1, "2", [True]):
        settings.write_text(json.dumps({"eos_token_id": ends}))
        with pytest.raises(DataError, match=r"generation_config\.json: ends texts with the token"):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize("model", ["spiece.model", "source.spm", "tokenizer.model"])
def test_a_sentencepiece_model_is_refused_by_name(model, tmp_path):
    (tmp_path / model).write_bytes(b"\n\x0e\n\x05<unk>")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(
        DataError, match=rf"its tokenizer is {model}, a SentencePiece model.* put its tokenizer"
    ):
        Tokenizer.load(tmp_path)


FAULTS = {
    "another class": (
        {"tokenizer_config.json": '{"tokenizer_class": "Qwen2Tokenizer"}'},
        "files of a Qwen2Tok",
    ),
    "no merges": ({"merges.txt": None}, "there is no tokenizer.json here|no merges.txt"),
    "a vocabulary that is none": ({"vocab.json": "[1]"}, "do not make a tokenizer"),
    "ids that are none": ({"vocab.json": '{"a": -1}'}, "do not make a tokenizer"),
    "a merge of one": ({"merges.txt": "#version\na\n"}, "do not make a tokenizer"),
    "another place": (
        {"added_tokens.json": '{"<new>": 99999}'},
        "has the id 99999, and the vocabulary has room",
    ),
    "no number": ({"added_tokens.json": '{"<new>": "x"}'}, "do not make a tokenizer"),
}


@pytest.mark.parametrize("files, message", FAULTS.values(), ids=FAULTS)
def test_files_that_do_not_fit_together_are_refused(files, message, tmp_path):
    byte_pairs(tmp_path, SPECIAL["gpt2"])
    for name, text in files.items():
        (tmp_path / name).unlink(missing_ok=True)
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        Tokenizer.load(tmp_path)


def test_a_word_in_two_lines_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[SEP]\na\na\n")
    with pytest.raises(DataError, match="the same word in two lines"):
        Tokenizer.load(tmp_path)
