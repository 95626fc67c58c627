"""A real file of somebody else's: SmolLM2-135M-Instruct as Q4_1 with embeddings as Q8_0.

`make models` fetches it; HASTEN_MODELS is the folder that holds it.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hasten.generate.completion import Row
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import extend, ready
from hasten.model.gguf import load_gguf
from hasten.model.gguf.container import read
from hasten.tokenizer.conversation import conversation_ids

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = os.environ.get("HASTEN_MODELS")
FILE = next(Path(FOLDER).rglob(NAME), None) if FOLDER else None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FILE is None, reason=f"HASTEN_MODELS holds no {NAME}: run make models"),
]


@pytest.fixture(scope="module")
def loaded():
    return load_gguf(FILE)


def test_it_answers_through_its_chat_template(loaded):
    model, tokenizer, template = loaded
    assert model.config.num_parameters == 134_515_008
    ids = conversation_ids(
        tokenizer, template, [{"role": "user", "content": "What is the capital of France?"}]
    )
    settings = {"temperature": 0, "max_new_tokens": 20, "heal_prompt": False, "precision": "fp32"}
    config = GenerateConfig.model_validate(settings)
    row = Row("", 0, ids, tokenizer=tokenizer, max_positions=8192, config=config, on_piece=None)
    with ready(model, config) as prepared:
        extend(prepared, [row], config, tokenizer.vocab_size)
    assert row.completion().text == "The capital of France is Paris."
    assert row.completion().stopped_by == "end_of_text"


def test_its_scores_are_those_of_transformers(loaded):
    """transformers 5 needs gguf and accelerate for it: they are in .venv-peers."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf", reason="transformers needs the package gguf to read this file")
    pytest.importorskip("accelerate", reason="transformers needs the package accelerate to read this file")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        FILE.parent, gguf_file=FILE.name, dtype=torch.float32
    )
    words = transformers.AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name)
    model, tokenizer, _ = loaded
    text = "The quick brown fox couldn't count to 1234.\n  return x + 1  # 你好"
    tokens = tokenizer.encode(text)
    assert tokens == words.encode(text, add_special_tokens=False)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits
        found = model.logits(model(torch.tensor([tokens])))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)  # scores of +-20 after 30 layers


def test_its_weights_are_those_of_the_package_gguf():
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    ours = read(FILE)
    for tensor in gguf.GGUFReader(FILE).tensors[:12]:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.floats(tensor.name), theirs.reshape(ours.tensors[tensor.name].shape))


def test_reading_the_header_takes_little_memory():
    program = f"""
import resource
from pathlib import Path
from hasten.model.gguf.container import read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
file = read(Path({str(FILE)!r}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < FILE.stat().st_size / 2  # mapped, not read
