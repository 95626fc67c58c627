"""hasten: `extend` on a model that is ready, as a chat or a batch of prompts uses it."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from hasten.generate.completion import Row
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import extend, ready
from hasten.model.interop import load_hugging_face
from hasten.model.quantized import Quantization, put_quantized
from hasten.tokenizer.tokenizer import Tokenizer


def opened(
    *, folder: str, precision: str, threads: int, quantization: dict[str, Any] | None = None
) -> Callable[[list[list[int]], int], list[list[int]]]:
    """What continues prompts; the rows grow together, and their text is made as it grows."""
    torch.set_num_threads(threads)
    model = load_hugging_face(Path(folder)).eval()
    if quantization is not None:
        put_quantized(model, Quantization.model_validate(quantization))
    longest = model.config.max_positions
    open_till_the_end = ExitStack()
    prepared = open_till_the_end.enter_context(ready(model, settings(precision, longest)))
    tokenizer = words(model.config.vocabulary)

    def write(prompts: list[list[int]], count: int, _holds: ExitStack = open_till_the_end) -> list[list[int]]:
        config = settings(precision, count)
        rows = [
            Row("", 0, ids, tokenizer=tokenizer, max_positions=longest, config=config, on_piece=None)
            for ids in prompts
        ]
        extend(prepared, rows, config, tokenizer.vocab_size)
        return [list(row.completion().tokens) for row in rows]

    return write


def settings(precision: str, count: int) -> GenerateConfig:
    """The likeliest token each time, and no end before `count`."""
    return GenerateConfig.model_validate(
        {"temperature": 0, "max_new_tokens": count, "stop_at_end_of_text": False, "precision": precision}
    )


def words(vocab_size: int) -> Tokenizer:
    """A tokenizer whose token i is the word `t<i>`."""
    inner = tokenizers.Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t1"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["t0"])
    return Tokenizer(inner, {"eos_token": "t0"})
