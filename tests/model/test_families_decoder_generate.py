"""Texts of each decoder family, cached and in batches of unequal prompts, against `transformers` without."""

import pytest
import torch
from tiny_decoders import OPTIONS, tiny_model
from torch import nn

from hasten.generate import native
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.model.interop import load_hugging_face
from hasten.tokenizer.tokenizer import Tokenizer

PROMPTS = ["", "床前", "The quick brown fox"]
"""Shorter than the windows of 5 and longer."""
CHOSEN = [
    "gpt2", "llama, biased", "mistral", "mistral, window beyond the text", "mistral, window of one", "qwen2",
    "qwen2, window from the second layer", "qwen3, windows by name, llama3 rope", "gemma",
    "gemma2, tight caps", "gemma3, two ropes, cap, other scale", "opt", "opt, norms after",
    "opt, no last norm", "gpt_neox", "gpt_neox, one after the other",
]  # fmt: skip
NEW_TOKENS = 20


@pytest.fixture(scope="session")
def tokenizer(byte_tokenizer) -> Tokenizer:
    return byte_tokenizer("<|endoftext|>")


def lively(name: str) -> nn.Module:
    """A model over bytes whose likeliest tokens are far from the others."""
    kind, options = OPTIONS[name]
    model = tiny_model(
        kind, vocab_size=257, eos_token_id=None, pad_token_id=None, bos_token_id=None, **options
    )
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
    return model


@torch.no_grad()
def likeliest(model: nn.Module, ids: list[int], end: int) -> list[int]:
    """What `transformers` writes after `ids`, everything read again for each token."""
    tokens = torch.tensor([ids])
    found = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=NEW_TOKENS,
        use_cache=False, eos_token_id=end, pad_token_id=end, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    best = torch.stack(found.logits).topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 1e-4  # so that no rounding decides
    return found.sequences[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", CHOSEN)
def test_a_batch_is_written_as_transformers_writes_each(name, tokenizer, tmp_path, monkeypatch):
    theirs = lively(name)
    theirs.save_pretrained(tmp_path)
    ours = load_hugging_face(tmp_path)
    config = GenerateConfig(temperature=0.0, max_new_tokens=NEW_TOKENS)
    fast = generate(ours, tokenizer, PROMPTS, config)
    monkeypatch.setattr(native, "follows", lambda config: False)
    slow = generate(ours, tokenizer, PROMPTS, config)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in PROMPTS]
    expected = [likeliest(theirs, ids, tokenizer.eot_id) for ids in prompts]
    assert [list(completion.tokens) for completion in slow] == expected
    assert [list(completion.tokens) for completion in fast] == expected
