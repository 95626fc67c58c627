"""Beam search continues prompts too, and finds what `transformers` finds."""

from collections.abc import Callable

import pytest
import torch
import transformers

from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.model.interop import save_hugging_face
from hasten.model.transformer import Decoder

Make = Callable[..., Decoder]
PROMPTS = ["ab", "The cat", "", "日本語のテキスト", "x"]
OPTIONS = [
    {},
    {"early_stopping": True, "length_penalty": 0.3},
    {"early_stopping": "never", "repetition_penalty": 1.4},
    {"no_repeat_ngram": 2, "min_new_tokens": 7},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_continuations_are_those_of_transformers(small_model: Make, bytes_only, tmp_path, options):
    """The C++ reads single tokens here: its caches are put in the order of the beams as well."""
    model = small_model(seed=1, activation="swiglu")
    save_hugging_face(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    config = GenerateConfig(
        beams=4, samples_per_prompt=4, max_new_tokens=9, heal_prompt=False, batch_rows=3, **options
    )
    ours = iter(generate(model, bytes_only, PROMPTS, config))
    for prompt in PROMPTS:
        ids = torch.tensor([[bytes_only.bos_id, *bytes_only.encode(prompt)]])
        found = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=4,
            num_return_sequences=4,
            do_sample=False,
            max_new_tokens=config.max_new_tokens,
            min_new_tokens=config.min_new_tokens,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
            no_repeat_ngram_size=config.no_repeat_ngram,
            repetition_penalty=config.repetition_penalty,
            eos_token_id=bytes_only.eot_id,
            pad_token_id=bytes_only.eot_id,
        )
        for text in found[:, ids.shape[1] :].tolist():
            tokens = list(next(ours).tokens)
            assert tokens == text[: len(tokens)]
            assert set(text[len(tokens) :]) <= {bytes_only.eot_id}


def test_a_healed_prompt_begins_with_what_was_taken_back(small_model: Make, bytes_only):
    config = GenerateConfig(beams=3, max_new_tokens=5)
    [healed] = generate(small_model(), bytes_only, ["abc"], config)
    [plain] = generate(small_model(), bytes_only, ["abc"], config.model_copy(update={"heal_prompt": False}))
    assert healed.text == plain.text  # every token is one byte: nothing longer begins like the last


def test_a_stop_string_cuts_the_text_that_was_found(speaking, bytes_only):
    config = GenerateConfig(beams=2, max_new_tokens=60, stop=("own",))
    [completion] = generate(speaking("The quick brown fox"), bytes_only, ["T"], config)
    assert (completion.text, completion.stopped_by) == ("he quick br", "stop")


def test_a_search_over_a_text_that_is_sure_finds_it(speaking, bytes_only):
    [completion] = generate(speaking("Hello"), bytes_only, ["H"], GenerateConfig(beams=5, length_penalty=0))
    assert (completion.text, completion.stopped_by) == ("ello", "end_of_text")


def test_more_samples_than_beams_are_refused():
    with pytest.raises(ValueError, match="samples_per_prompt is 5 and beams 3: a search finds as many texts"):
        GenerateConfig(beams=3, samples_per_prompt=5)
