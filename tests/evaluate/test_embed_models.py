"""Trained encoders of others: `make models` fetches them, HASTEN_MODELS is the folder that holds them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hasten.cli import main
from hasten.evaluate.embed import EmbedConfig, embed
from hasten.evaluate.pooling import read_settings
from hasten.model.interop import load_hugging_face, save_hugging_face
from hasten.train.load import load_model

SIX, THREE = "all-MiniLM-L6-v2", "paraphrase-MiniLM-L3-v2"
TEXTS = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
KNOWN = {SIX: 0.7553, THREE: 0.779945}
"""Cosine of the first two: the first by transformers, the second by ONNX Runtime on the original file."""


@pytest.fixture(params=[SIX, THREE])
def folder(request: pytest.FixtureRequest) -> Path:
    where = os.environ.get("HASTEN_MODELS")
    if not where or not (Path(where) / request.param).is_dir():
        pytest.skip(f"HASTEN_MODELS holds no {request.param}: run make models")
    return Path(where) / request.param


def test_the_known_cosine_comes_out_of_the_command(folder, tmp_path, capsys):
    output = tmp_path / "vectors.json"
    assert main(["embed", str(folder), f"texts={json.dumps(TEXTS)}", f"output={output}"]) == 0
    assert capsys.readouterr().out.count(f"{KNOWN[folder.name]:.4f}") == 2
    first, second, third = (np.array(row["vector"]) for row in json.loads(output.read_text()))
    assert abs(first @ second - KNOWN[folder.name]) < 5e-5
    assert first @ third < 0.1


@torch.no_grad()
def test_every_state_is_that_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    pooled = folder.name == SIX
    theirs = transformers.BertModel.from_pretrained(
        folder, attn_implementation="eager", add_pooling_layer=pooled
    ).eval()
    ours = load_hugging_face(folder).eval()
    assert ours.config.num_parameters == {SIX: 22_713_216, THREE: 17_241_984}[folder.name]
    rows = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding="longest", return_tensors="pt")
    expected = theirs(**rows)
    found = ours(rows["input_ids"], segments=rows["attention_mask"], token_types=rows["token_type_ids"])
    real = rows["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected.last_hidden_state[real], rtol=1e-5, atol=1e-5)
    if pooled:
        torch.testing.assert_close(ours.pooled(found[:, 0]), expected.pooler_output, rtol=1e-5, atol=1e-5)


def test_an_export_holds_every_tensor_bit_for_bit(folder, tmp_path):
    save_hugging_face(load_hugging_face(folder), tmp_path)
    theirs, ours = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    theirs.pop("embeddings.position_ids", None)  # 0, 1, 2, ...
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_vector_does_not_depend_on_its_neighbours(folder):
    model, tokenizer = load_model(folder)
    texts = [" ".join(TEXTS[: 1 + i % 3]) for i in range(9)]
    settings = read_settings(folder)
    together = embed(model, tokenizer, texts, EmbedConfig(), settings)
    alone = np.concatenate([embed(model, tokenizer, [text], EmbedConfig(), settings) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
