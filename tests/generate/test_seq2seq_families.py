"""T5 and Marian as their files hold them, searched by hasten: the texts of `transformers`."""

import pytest
import torch
import transformers

from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.model.interop import load_hugging_face

END, PAD = 256, 257
SOURCES = ["a man", "two dogs run", "x", "日本"]


def t5() -> transformers.PreTrainedModel:
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 258}
    ids = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**shape, **ids, initializer_factor=4.0)
    )


def marian() -> transformers.PreTrainedModel:
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "vocab_size": 258}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ffn = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64}
    ids = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
    return transformers.MarianMTModel(transformers.MarianConfig(**shape, **heads, **ffn, **ids, init_std=0.5))


@pytest.mark.parametrize(
    "options", [{"beams": 5}, {"beams": 4, "length_penalty": 0.6, "early_stopping": True}]
)
@pytest.mark.parametrize("make", [t5, marian])
def test_texts_are_those_of_transformers(make, options, byte_tokenizer, tmp_path):
    torch.manual_seed(1)
    theirs, letters = make().eval(), byte_tokenizer("<|endoftext|>", "<|pad|>")
    theirs.save_pretrained(tmp_path)
    config = GenerateConfig(max_new_tokens=12, batch_rows=3, **options)
    ours = generate(load_hugging_face(tmp_path), letters, SOURCES, config)
    for source, completion in zip(SOURCES, ours, strict=True):
        ids = torch.tensor([[*letters.encode(source), END]])
        found = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=config.beams,
            do_sample=False,
            max_new_tokens=config.max_new_tokens,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
            suppress_tokens=[PAD],
            forced_eos_token_id=None,
        )[0, 1:].tolist()
        tokens = list(completion.tokens)
        assert tokens == found[: len(tokens)]
        assert set(found[len(tokens) :]) <= {PAD}
