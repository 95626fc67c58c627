"""A byte tokenizer, small random models, and models whose weights spell a text."""

from collections.abc import Callable

import pytest
import torch

from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def bytes_only(byte_tokenizer) -> Tokenizer:
    """256 bytes and the end of text, id 256: every character of more than one byte is several tokens."""
    return byte_tokenizer("<|endoftext|>")


def small_config(**changes: object) -> ModelConfig:
    shape = {"vocab_size": 257, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    return ModelConfig.model_validate({**shape, "max_positions": 64, **changes})


@pytest.fixture
def small_model() -> Callable[..., Decoder]:
    """`small_model(seed, position="learned", ...)`: random weights, with logits far enough apart.

    The head is scaled up, so that a draw or an argmax is not decided by the last bit of a sum.
    """

    def make(seed: int = 0, **changes: object) -> Decoder:
        model = build(small_config(**changes), seed=seed).eval()
        with torch.no_grad():
            weight = model.embedding.weight if model.head is None else model.head.weight
            weight.mul_(30)
        return model

    return make


@pytest.fixture
def speaking(bytes_only: Tokenizer) -> Callable[[str], Decoder]:
    """`speaking(text)`: a decoder that after a prompt of p tokens continues with text from byte p - 1 on.

    Its layers are the identity, its embeddings zero, and position i is the direction of the i-th byte.
    """

    def make(text: str) -> Decoder:
        ids = [*bytes_only.encode(text), bytes_only.eot_id]
        model = build(
            small_config(
                dim=260, position="learned", zero_init_outputs=True, max_positions=len(ids), num_heads=2
            ),
            seed=0,
        ).eval()
        assert model.positions is not None and model.head is not None
        with torch.no_grad():
            model.embedding.weight.zero_()
            model.positions.weight.zero_()
            model.positions.weight[range(len(ids)), ids] = 1.0
            model.head.weight.copy_(torch.eye(257, 260))
        return model

    return make
