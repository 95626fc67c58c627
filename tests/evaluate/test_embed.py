"""Vectors of texts: pooling, special tokens, limits, files; the settings of a folder followed or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.numpy import load_file
from tokenizers import models, normalizers, pre_tokenizers, processors

from hasten.cli import main
from hasten.core.errors import CheckpointError, ConfigError, DataError
from hasten.evaluate.embed import EmbedConfig, embed
from hasten.evaluate.pooling import Settings, read_settings
from hasten.evaluate.vectors import cosines
from hasten.model.config import ModelConfig
from hasten.model.interop import save_hugging_face
from hasten.model.transformer import Transformer, build
from hasten.tokenizer.tokenizer import Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
TEXTS = ["a b c", "d", "e f g h i j a", "b b", "a b c d e f g h"]
BERT = {
    "kind": "encoder", "vocab_size": 16, "dim": 16, "num_layers": 2, "num_heads": 2, "max_positions": 12,
    "position": "learned", "norm": "layer", "norm_place": "after", "embedding_norm": "learned",
    "num_token_types": 2, "attention_bias": True, "out_bias": True, "ffn_bias": True, "head": "none",
    "pooler": "tanh", "norm_eps": 1e-12,
}  # fmt: skip


def make_tokenizer(template: bool = True) -> Tokenizer:
    """A word each letter; [CLS] and [SEP] around a text."""
    inner = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.normalizer = normalizers.NFC()
    inner.add_special_tokens(WORDS[:4])
    if template:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return Tokenizer(inner)


def make_model(**shape: object) -> Transformer:
    """An encoder whose biases are no zeros."""
    model = build(ModelConfig(**{**BERT, **shape}), seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    return model


@torch.no_grad()
def one_by_one(model: Transformer, pooling: str, texts: list[str] = TEXTS) -> np.ndarray:
    """Each text alone, without a mask: what `embed` must give, in float64."""
    vectors = []
    for text in texts:
        ids = [2, *(WORDS.index(word) for word in text.split()), 3]
        hidden = model(torch.tensor([ids]))[0]
        pooled = torch.tanh(model.pooler(hidden[0])) if model.pooler else None
        vectors.append(
            {"mean": hidden.mean(0), "first": hidden[0], "pooler": pooled}[pooling].double().numpy()
        )
    return np.stack(vectors)


@pytest.mark.parametrize("pooling", ["mean", "first", "pooler"])
@pytest.mark.parametrize("batch_tokens", [1, 12, 1000])
def test_a_vector_is_that_of_its_text_alone_whatever_is_read_beside_it(pooling, batch_tokens):
    model = make_model()
    config = EmbedConfig(pooling=pooling, batch_tokens=batch_tokens, normalize=False)
    found = embed(model, make_tokenizer(), TEXTS, config)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one(model, pooling), atol=1e-5)


def test_vectors_have_length_one_and_their_products_are_cosines():
    model = make_model()
    found = embed(model, make_tokenizer(), TEXTS, EmbedConfig())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    wanted = one_by_one(model, "mean")
    lengths = np.linalg.norm(wanted, axis=1)
    np.testing.assert_allclose(cosines(found), wanted @ wanted.T / np.outer(lengths, lengths), atol=1e-5)


def test_a_long_text_is_an_error_until_it_may_be_cut_and_keeps_its_special_tokens():
    model, tokenizer = make_model(), make_tokenizer()
    long = "a b c d e f g h i j a b"
    with pytest.raises(DataError, match=r"text 2 is 14 tokens long and the model reads 12; .*truncate=true"):
        embed(model, tokenizer, ["a", long], EmbedConfig())
    cut = embed(model, tokenizer, [long], EmbedConfig(truncate=True, normalize=False))
    np.testing.assert_allclose(cut, one_by_one(model, "mean", ["a b c d e f g h i j"]), atol=1e-5)
    shorter = embed(model, tokenizer, [long], EmbedConfig(truncate=True, normalize=False, max_tokens=5))
    np.testing.assert_allclose(shorter, one_by_one(model, "mean", ["a b c"]), atol=1e-5)
    folder_says = Settings(max_tokens=5)
    with pytest.raises(DataError, match="text 1 is 14 tokens long and the model reads 5"):
        embed(model, tokenizer, [long], EmbedConfig(), folder_says)
    exactly = embed(model, tokenizer, ["a b c d e f g h i j"], EmbedConfig())
    assert exactly.shape == (1, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 13}, "max_tokens is 13 and the model reads 12"),
        ({"max_tokens": 2}, "max_tokens is 2 and 2 are special; write 3 or more"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        embed(make_model(), make_tokenizer(), ["a"], EmbedConfig(**options))


@pytest.mark.parametrize(
    ("text", "message"), [("  ", "text 1 holds no token"), ("\ud800", "half a surrogate pair")]
)
def test_a_text_that_says_nothing_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        embed(make_model(), make_tokenizer(), [text], EmbedConfig())


def test_a_special_token_in_a_text_is_text():
    model, tokenizer = make_model(), make_tokenizer()
    spelled = embed(model, tokenizer, ["[SEP]"], EmbedConfig(normalize=False))
    ids = tokenizer.encode("[SEP]")
    assert 3 not in ids
    hidden = model(torch.tensor([[2, *ids, 3]]))[0].mean(0).detach().numpy()
    np.testing.assert_allclose(spelled[0], hidden, atol=1e-5)


def test_a_tokenizer_without_a_template_adds_nothing():
    model = make_model()
    found = embed(model, make_tokenizer(template=False), ["a b"], EmbedConfig(normalize=False))
    np.testing.assert_allclose(found[0], model(torch.tensor([[4, 5]]))[0].mean(0).detach().numpy(), atol=1e-5)


def test_a_pooler_that_is_not_there_and_the_first_state_of_a_decoder_are_refused():
    with pytest.raises(ConfigError, match="pooling is pooler and the model has none"):
        embed(make_model(pooler=None), make_tokenizer(), ["a"], EmbedConfig(pooling="pooler"))
    decoder = build(ModelConfig(vocab_size=16, dim=16, num_layers=1, num_heads=2), seed=0)
    with pytest.raises(ConfigError, match="the model a decoder, whose first state has seen one token"):
        embed(decoder, make_tokenizer(), ["a"], EmbedConfig(pooling="first"))


@pytest.mark.parametrize("kind", ["decoder", "seq2seq"])
@torch.no_grad()
def test_decoders_and_the_encoder_of_a_translator_have_a_mean_too(kind):
    model = build(ModelConfig(kind=kind, vocab_size=16, dim=16, num_layers=1, num_heads=2), seed=0).eval()
    found = embed(model, make_tokenizer(), TEXTS, EmbedConfig(normalize=False))
    for vector, text in zip(found, TEXTS, strict=True):
        tokens = torch.tensor([[2, *(WORDS.index(word) for word in text.split()), 3]])
        hidden = model(tokens) if kind == "decoder" else model.encode(tokens)
        np.testing.assert_allclose(vector, hidden[0].mean(0).numpy(), atol=1e-5)


def test_a_model_with_fewer_tokens_than_its_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="the model knows 8 tokens and the tokenizer has 14"):
        embed(make_model(vocab_size=8), make_tokenizer(), ["a"], EmbedConfig())


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def write_settings(folder: Path, pooling: object, modules: object = MODULES, **files: object) -> Path:
    """A folder as sentence-transformers leaves it."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(json.dumps(modules))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
    ],
)
def test_the_pooling_of_a_folder_is_followed_unless_another_is_asked_for(pooling, expected, tmp_path):
    settings = read_settings(write_settings(tmp_path, pooling))
    assert settings.pooling == expected
    model, tokenizer = make_model(), make_tokenizer()
    found = embed(model, tokenizer, TEXTS, EmbedConfig(normalize=False), settings)
    np.testing.assert_allclose(found, one_by_one(model, expected), atol=1e-5)
    found = embed(model, tokenizer, TEXTS, EmbedConfig(normalize=False, pooling="pooler"), settings)
    np.testing.assert_allclose(found, one_by_one(model, "pooler"), atol=1e-5)


def test_limit_lower_case_and_prompt_of_a_folder_are_followed(tmp_path):
    folder = write_settings(
        tmp_path,
        {"pooling_mode_mean_tokens": True},
        sentence_bert_config={"max_seq_length": 6, "do_lower_case": True},
        config_sentence_transformers={"prompts": {"query": "j ", "none": ""}, "default_prompt_name": "query"},
    )
    settings = read_settings(folder)
    assert settings == Settings("mean", 6, True, "j ")
    model = make_model()
    found = embed(model, make_tokenizer(), ["A B"], EmbedConfig(normalize=False), settings)
    np.testing.assert_allclose(found, one_by_one(model, "mean", ["j a b"]), atol=1e-5)


def test_a_folder_without_modules_has_no_settings(tmp_path):
    assert read_settings(tmp_path) == Settings()


@pytest.mark.parametrize(
    ("pooling", "modules", "message"),
    [
        ({"pooling_mode_max_tokens": True}, MODULES, "asks for max_tokens"),
        (
            {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True},
            MODULES,
            "max_tokens, mean_tokens",
        ),
        ({}, MODULES, "asks for nothing"),
        ({"pooling_mode": "lasttoken"}, MODULES, "asks for lasttoken"),
        ([], MODULES, "should hold a mapping"),
        ({}, {}, "should be a list of steps"),
        ({}, [[]], "should be a list of steps"),
        (
            {},
            [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}],
            "has no step Dense in 2_Dense",
        ),
        (
            {},
            [{"type": "x.Transformer", "path": "0_Transformer"}],
            "has no step Transformer in 0_Transformer",
        ),
        ({}, [{"type": "x.Pooling", "path": "../elsewhere"}], "no folder within this one"),
        ({}, [{"type": "x.Pooling", "path": "/etc"}], "no folder within this one"),
        ({}, [{"type": "x.Pooling", "path": ".."}], "no folder within this one"),
    ],
)
def test_settings_that_hasten_has_not_are_refused(pooling, modules, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        read_settings(write_settings(tmp_path, pooling, modules))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "sentence_bert_config.json",
            '{"max_seq_length": "many"}',
            "max_seq_length should be a whole number",
        ),
        ("sentence_bert_config.json", '{"max_seq_length": true}', "max_seq_length should be a whole number"),
        ("sentence_bert_config.json", "{", "is not JSON"),
        ("sentence_bert_config.json", "[" * 100_000, "is not JSON"),
        (
            "config_sentence_transformers.json",
            '{"default_prompt_name": "q"}',
            "names the prompt 'q', which it lacks",
        ),
        ("modules.json", " " * (1 << 20) + "[]", "is larger than 1,048,576 bytes"),
    ],
)
def test_damaged_settings_are_refused_and_named(name, text, message, tmp_path):
    folder = write_settings(tmp_path, {"pooling_mode": "mean"})
    (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_settings(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in the layout of sentence-transformers."""
    save_hugging_face(make_model(), tmp_path / "model")
    make_tokenizer().save(tmp_path / "model")
    return write_settings(tmp_path / "model", {"pooling_mode_cls_token": True})


def test_the_verb_prints_cosines_and_writes_vectors(folder, tmp_path, capsys):
    wanted = one_by_one(make_model(), "first", ["a b c", "d"])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    path = tmp_path / "made/vectors.npy"
    assert main(["embed", str(folder), 'texts=["a b c", "d"]', f"output={path}"]) == 0
    said = capsys.readouterr().out
    assert "a b c" in said
    assert said.count(f"{wanted[0] @ wanted[1]:.4f}") == 2
    assert "vectors.npy: 2 vectors of 16 numbers" in said
    np.testing.assert_allclose(np.load(path), wanted, atol=1e-5)
    main(["embed", str(folder), "texts=[a b c, d]", f"output={tmp_path / 'v.safetensors'}"])
    np.testing.assert_array_equal(load_file(tmp_path / "v.safetensors")["vectors"], np.load(path))
    main(["embed", str(folder), "texts=[a b c, d]", f"output={tmp_path / 'v.json'}"])
    rows = json.loads((tmp_path / "v.json").read_text())
    assert [row["text"] for row in rows] == ["a b c", "d"]
    np.testing.assert_allclose([row["vector"] for row in rows], np.load(path), atol=1e-7)


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.txt", "a b c\r\nd\n"), ("t.jsonl", '{"text": "a b c"}\n{"text": "d", "id": 1}')],
)
def test_texts_come_from_a_file_too(name, text, folder, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    assert (
        main(["embed", str(folder), f"file={tmp_path / name}", "texts=[e]", f"output={tmp_path}/v.json"]) == 0
    )
    assert [row["text"] for row in json.loads((tmp_path / "v.json").read_text())] == ["e", "a b c", "d"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "hasten embed needs a model first"),
        (["texts=[a]"], "hasten embed needs a model first"),
        (["nowhere", "texts=[a]"], "nowhere: there is no such folder"),
        (["MODEL"], "there is nothing to embed; write texts="),
        (["MODEL", "text=[a]"], "has no field 'text'. Did you mean 'texts'?"),
        (["MODEL", "texts=[a]", "output=v.pkl"], "should end with .npy, .safetensors, .json"),
        (["MODEL", f"texts={list('ab') * 9}"], "a table of 18 texts is too wide; write output=vectors.npy"),
        (["MODEL", "texts=[a]", "pooling=max"], "pooling cannot be 'max'"),
        (["MODEL", "file=none.txt"], "none.txt: cannot be read"),
        (["MODEL", "file=bad.jsonl"], "bad.jsonl: line 2 should be an object such as"),
        (["MODEL", "file=bad.txt"], "text 2 holds no token"),
    ],
)
def test_a_mistake_ends_in_one_sentence(words, message, folder, monkeypatch, capsys):
    tmp_path = folder.parent
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "a"}\n')
    (tmp_path / "bad.txt").write_text("a\n\nb\n")
    assert main(["embed", *(str(folder) if word == "MODEL" else word for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("v*"))


def test_a_folder_that_says_nothing_of_pooling_gets_the_mean_and_is_told_so(folder, capsys):
    (folder / "modules.json").unlink()
    assert main(["embed", str(folder), "texts=[a b, c]"]) == 0
    wanted = one_by_one(make_model(), "mean", ["a b", "c"])
    cosine = wanted[0] @ wanted[1] / np.linalg.norm(wanted[0]) / np.linalg.norm(wanted[1])
    said = capsys.readouterr().out
    assert "says nothing of pooling: the mean of all states" in said
    assert f"{cosine:.4f}" in said


def test_a_folder_without_a_tokenizer_is_refused(folder, capsys):
    (folder / "tokenizer.json").unlink()
    assert main(["embed", str(folder), "texts=[a]"]) == 2
    assert "has no tokenizer.json" in capsys.readouterr().err


def test_the_settings_travel_with_a_model_that_is_imported_and_exported(folder, tmp_path):
    checkpoint, back = tmp_path / "checkpoint", tmp_path / "back"
    assert main(["import", str(folder), f"output={checkpoint}"]) == 0
    assert main(["export", str(checkpoint), "to=hf", f"output={back}"]) == 0
    assert read_settings(folder) == read_settings(checkpoint) == read_settings(back) == Settings("first")
    for place in (folder, checkpoint, back):
        assert main(["embed", str(place), "texts=[a b, c]", f"output={tmp_path / place.name}.npy"]) == 0
    vectors = [np.load(tmp_path / f"{place.name}.npy") for place in (folder, checkpoint, back)]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[0], vectors[2])


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/config.json").write_text('{"pooling_mode": "mean"}')
    (folder / "1_Pooling/config.json").unlink()
    (folder / "1_Pooling").rmdir()
    (folder / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        read_settings(folder)


def test_links_within_the_cache_of_the_hub_are_followed(tmp_path):
    cache = tmp_path / "models--owner--name"
    (cache / "blobs").mkdir(parents=True)
    folder = write_settings(cache / "snapshots/abc", {"pooling_mode": "cls"})
    for number, name in enumerate(("modules.json", "1_Pooling/config.json")):
        (folder / name).rename(cache / "blobs" / str(number))
        (folder / name).symlink_to(cache / "blobs" / str(number))
    assert read_settings(folder) == Settings("first")
