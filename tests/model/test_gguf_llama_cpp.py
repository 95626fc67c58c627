"""What hasten writes, llama.cpp reads alike: texts as tokens, scores, and the likeliest 64 tokens.

Needs llama-cpp-python, in this environment or in .venv-peers (`make bench-peers`).
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gguf import SHAPES, TEXT, make_bytewise, make_model
from torch import Tensor

from hasten.model.gguf import load_gguf, save_gguf
from hasten.model.gguf.splits import SPLITS
from hasten.model.interop import load_hugging_face
from hasten.model.transformer import Decoder
from hasten.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "../shared/data/models/stories260K"
PEERS = ROOT / ".venv-peers/bin/python"
COUNT = 64
# GELU comes from a table in float16 there; without it both compute in float32.
TOLERANCE = {name: 5e-3 if name.startswith(("gpt2", "gemma")) else 1e-4 for name in SHAPES}
TEXTS = [
    TEXT,
    " two  spaces",
    "\n\n\ttabs\r\n",
    "12345678901 ١٢ ½ IX",
    "don't DON'T they'LL 'start",
    "你好，世界🙂é",
    "<|pad|>",
]


def python() -> str | None:
    """An interpreter that has llama_cpp."""
    if importlib.util.find_spec("llama_cpp"):
        return sys.executable
    found = PEERS.exists() and any((PEERS.parents[1] / "lib").glob("python*/site-packages/llama_cpp"))
    return str(PEERS) if found else None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(python() is None, reason="llama_cpp is not installed; make bench-peers brings it"),
]


def ask(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What llama.cpp makes of each file, in a process of its own."""
    lines = [json.dumps({"texts": [], "tokens": [], "count": 0, **request}) for request in requests]
    done = subprocess.run(
        [str(python()), str(ROOT / "bench/peers/open_gguf.py")],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@torch.no_grad()
def scores(model: Decoder, tokens: list[int]) -> Tensor:
    """The scores of the token after `tokens`."""
    return model.logits(model(torch.tensor([tokens]))[:, -1])[0]


def greedy(model: Decoder, tokens: list[int]) -> list[int]:
    """The likeliest token, `COUNT` times."""
    for _ in range(COUNT):
        tokens = [*tokens, int(scores(model, tokens).argmax())]
    return tokens[-COUNT:]


def test_every_architecture_gives_the_same_scores(tmp_path):
    tokenizer = make_bytewise()
    tokens = torch.randint(0, 340, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    models, requests = {}, []
    for number, name in enumerate(SHAPES):
        models[name] = make_model(name)
        path = tmp_path / f"{number}.gguf"
        save_gguf(models[name], tokenizer, path, "F32")
        requests.append({"path": str(path), "tokens": tokens})
    for (name, model), told in zip(models.items(), ask(requests), strict=True):
        assert "error" not in told, f"{name}: {told}"
        expected = scores(model, tokens)
        assert expected.std() > 0.1, name  # large enough for the tolerance to mean something
        apart = (torch.tensor(told["logits"]) - expected).abs().max()
        assert apart < TOLERANCE[name] * max(1.0, float(expected.std())), f"{name}: {apart}"


def learn(model: Decoder, ids: Tensor) -> None:
    """100 steps of Adam on one text: then no two scores are nearly equal where it goes on."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(model.logits(model(ids[None, :-1]))[0], ids[1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def small_case() -> tuple[Decoder, Tokenizer, list[int]]:
    """A small model with a byte-level vocabulary that knows one text by heart."""
    model, tokenizer = make_model("llama, long"), make_bytewise()
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    learn(model, torch.tensor(ids))
    return model, tokenizer, ids[:5]


def stories_case() -> tuple[Decoder, Tokenizer, list[int]]:
    """stories260K from its beginning."""
    loaded: Any = load_hugging_face(STORIES)
    tokenizer = Tokenizer.load(STORIES)
    return loaded.eval(), tokenizer, [tokenizer.bos_id]


@pytest.mark.parametrize("make", [small_case, stories_case])
def test_sixteen_bits_choose_the_same_tokens_and_eight_bits_nearly_the_same_scores(make, tmp_path):
    if make is stories_case and not STORIES.exists():
        pytest.skip("shared/data/models/stories260K is not here")
    model, tokenizer, tokens = make()
    requests = []
    for dtype in ("F16", "Q8_0"):
        path = tmp_path / f"{dtype}.gguf"
        save_gguf(model, tokenizer, path, dtype)
        requests.append({"path": str(path), "texts": ["the"], "tokens": tokens, "count": COUNT})
    half, eight = ask(requests)
    assert half["ids"] == eight["ids"] == [[tokenizer.bos_id, *tokenizer.encode("the")]]
    assert half["greedy"] == greedy(model, tokens)
    again, _, _ = load_gguf(tmp_path / "Q8_0.gguf")
    expected = scores(again, tokens)
    assert (torch.tensor(eight["logits"]) - expected).abs().max() < 0.25 * expected.std()


def test_every_tokenizer_gives_the_same_tokens(tmp_path):
    kinds = {pre: make_bytewise(pre) for pre in SPLITS}
    if STORIES.exists():
        kinds["pieces"] = Tokenizer.load(STORIES)
    requests = []
    for name, tokenizer in kinds.items():
        model = make_model("llama")
        if name == "pieces":
            model = load_hugging_face(STORIES)
        save_gguf(model, tokenizer, tmp_path / f"{name}.gguf")
        requests.append({"path": str(tmp_path / f"{name}.gguf"), "texts": TEXTS})
    for (name, tokenizer), told in zip(kinds.items(), ask(requests), strict=True):
        assert "error" not in told, f"{name}: {told}"
        for text, bare, whole in zip(TEXTS, told["bare"], told["ids"], strict=True):
            assert bare == tokenizer.encode(text), f"{name}: {text!r}"
            assert whole == [tokenizer.bos_id, *bare]
