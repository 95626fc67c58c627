"""Write the same prompts with a model alone and with a draft that guesses ahead, in turn: one JSON object.

    python bench/speculative.py runs/models/SmolLM2-135M-Instruct-hf runs/draft --prompts prompts.txt
    python bench/speculative.py MODEL DRAFT --ahead 2 4 6 --temperatures 0 0.8 --repeats 5 --threads 1 2

The pair that docs/benchmarks.md measures: bench/distil.py --only text --dim 384 --tokens 750000 --seeds 1
--arms labels layers trains both, and a step {kind: quantize, bits: 4, group_size: 32} makes the draft small.

Prompts are lines of text, or of .jsonl with a `prompt`; a model with a chat template is asked them, and
answers.  Every repeat writes all prompts once in each way,
one text at a time, after one turn that does not count.  The object holds tokens a second of each turn,
medians, how much sooner the draft's texts are there, how many guesses were kept, and whether the likeliest
texts are the same.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hasten.core.files import write_json
from hasten.core.runtime import environment
from hasten.evaluate.written import Asked, row_of
from hasten.generate.config import GenerateConfig, read_prompts
from hasten.generate.engine import growing
from hasten.model.transformer import Decoder
from hasten.tokenizer.conversation import conversation_ids
from hasten.tokenizer.template import find_template
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.load import load_model

Turn = dict[str, Any]


def asked(model: Path, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[Asked]:
    """What is to be gone on with, or answered."""
    template = find_template(model)
    if template is None:
        return [Asked(prompt) for prompt in prompts]
    said = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [Asked(tuple(conversation_ids(tokenizer, template, messages))) for messages in said]


class Bench:
    """The two models and their prompts."""

    def __init__(self, options: argparse.Namespace) -> None:
        model, tokenizer = load_model(options.model)
        draft, _ = load_model(options.draft)
        assert isinstance(model, Decoder) and isinstance(draft, Decoder) and tokenizer is not None
        self.model, self.draft, self.tokenizer = model, draft, tokenizer
        self.asked = asked(options.model, tokenizer, read_prompts(options.prompts)[: options.num_prompts])
        self.tokens = options.tokens

    def config(self, temperature: float, ahead: int | None) -> GenerateConfig:
        """How texts are written; `ahead` is None without a draft."""
        asked = {"temperature": temperature, "max_new_tokens": self.tokens, "stop_at_end_of_text": False}
        return GenerateConfig(**asked, draft_tokens=ahead or 1)

    def turn(self, temperature: float, ahead: int | None) -> Turn:
        """All prompts once."""
        config, draft = self.config(temperature, ahead), None if ahead is None else self.draft
        rows = [row_of(self.model, self.tokenizer, one, config, config.seed) for one in self.asked]
        with growing(self.model, config, self.tokenizer.vocab_size, draft) as let_grow:
            began = time.perf_counter()
            for row in rows:
                let_grow([row])
            seconds = time.perf_counter() - began
        written = [row.completion() for row in rows]
        return {
            "tokens_per_second": sum(len(one.tokens) for one in written) / seconds,
            "guessed": sum(one.guessed for one in written),
            "accepted": sum(one.accepted for one in written),
            "texts": [one.tokens for one in written],
        }

    def compare(self, threads: int, temperature: float, options: argparse.Namespace) -> dict[str, Any]:
        """Every way in turn, so that a busy machine meets them alike; the first round does not count."""
        torch.set_num_threads(threads)
        aheads, repeats = options.ahead, options.repeats
        ways: list[int | None] = [None, *aheads]
        rounds = [{way: self.turn(temperature, way) for way in ways} for _ in range(repeats + 1)]
        alone, counted = rounds[-1][None]["texts"], rounds[1:]
        speeds = {way: [one[way]["tokens_per_second"] for one in counted] for way in ways}
        plain = median(speeds[None])
        return {
            "threads": threads,
            "temperature": temperature,
            "alone": {"tokens_per_second": plain, "repeats": speeds[None]},
            "with_draft": [
                {
                    "ahead": way,
                    "tokens_per_second": median(speeds[way]),
                    "times_as_fast": median(speeds[way]) / plain,
                    "accepted": sum(one[way]["accepted"] for one in counted)
                    / max(1, sum(one[way]["guessed"] for one in counted)),
                    "same_texts": rounds[-1][way]["texts"] == alone if temperature == 0 else None,
                    "repeats": speeds[way],
                }
                for way in aheads
            ],
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, save."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("model", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="of each text")
    parser.add_argument("--ahead", type=int, nargs="+", default=[2, 4, 6], help="guesses at a time")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--save", type=Path, help="write the JSON into this file too")
    options = parser.parse_args(arguments)
    load, bench = os.getloadavg(), Bench(options)
    sizes = {
        name: model.config.num_parameters for name, model in (("model", bench.model), ("draft", bench.draft))
    }
    result = {
        "program": "speculative",
        "parameters": sizes,
        "prompts": len(bench.asked),
        "tokens": options.tokens,
        "results": [
            bench.compare(threads, temperature, options)
            for threads in options.threads
            for temperature in options.temperatures
        ],
        "environment": {"load_average": load, **environment()},
    }
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.save, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
