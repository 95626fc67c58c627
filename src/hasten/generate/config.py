"""How text is generated, as a recipe's `generate:` section."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hasten.core.config import Config
from hasten.core.errors import DataError

Positive = Annotated[int, Field(ge=1)]
SOURCE_BEAMS = 5
"""Beams where nothing is said and the model reads a source."""


class GenerateConfig(Config):
    """Continue prompts, one text each or several.

    A completion depends on its prompt, its seed and the settings that choose tokens, never on the prompts
    beside it: sample s of a prompt has seed `seed` + s.  It ends at the end of a document, at a `stop` string
    (which is cut off), after `max_new_tokens`, or where the model's context is full.
    """

    prompts: tuple[str, ...] = ()
    prompts_file: Path | None = Field(
        None, description="one prompt a line, or .jsonl with a `prompt` a line; added to `prompts`"
    )
    samples_per_prompt: Positive = 1
    max_new_tokens: Positive = 256
    temperature: float = Field(0.8, ge=0, description="0 takes the likeliest token every time")
    top_k: Positive | None = Field(None, description="choose among the k likeliest tokens")
    top_p: float | None = Field(
        0.95, gt=0, le=1, description="choose among the likeliest tokens that together have probability p"
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="drop tokens less likely than min_p times the likeliest"
    )
    repetition_penalty: float = Field(
        1.0, gt=0, description="above 1: tokens of the prompt and the text so far become less likely"
    )
    heal_prompt: bool = Field(
        True,
        description="choose the prompt's last token anew among those that begin with its text: a prompt may"
        " then end anywhere in a word or a line; false keeps its tokens as they are",
    )
    no_repeat_ngram: Positive | None = Field(
        None, description="no run of so many tokens comes twice in a text, its prompt included"
    )
    beams: Positive | None = Field(
        None,
        description="above 1: search for the likeliest text with so many beams, drawing nothing: temperature,"
        " top_k, top_p and min_p take no part; null: 5 where the model reads a source (translation), else 1",
    )
    length_penalty: float = Field(
        1.0, description="beam search: log p is divided by (tokens ** length_penalty); above 0 favours length"
    )
    length_rule: Literal["power", "gnmt"] = Field(
        "power", description="gnmt: log p is divided by ((5 + tokens) / 6) ** length_penalty (Wu et al. 2016)"
    )
    early_stopping: bool | Literal["never"] = Field(
        False,
        description="beam search ends, true: with as many ended texts as beams; false: when the best beam is"
        " not better than those as it stands; never: when it cannot become better",
    )
    min_new_tokens: Annotated[int, Field(ge=0)] = Field(0, description="a text does not end before")
    stop: tuple[str, ...] = Field((), description="strings at which a text ends")
    stop_at_end_of_text: bool = Field(True, description="end where the model ends the document")
    context_overflow: Literal["stop", "slide"] = Field(
        "stop",
        description="when the context is full, end the text, or forget all but the last half and go on",
    )
    precision: Literal["auto", "model", "fp32", "bf16"] = Field(
        "auto",
        description="of the weights; model: as they are; auto: so too, but kernels that decode many tokens"
        " on a CPU read float32 weights rounded to float16, if they are not bfloat16 at heart, and keep"
        " keys and values so: twice as fast",
    )
    batch_rows: Positive = Field(32, description="texts that are generated together")
    draft: Path | None = Field(
        None,
        description="a smaller model with the same tokenizer, best a distilled one: it guesses tokens and the"
        " model keeps those that it would have written, the same texts sooner (speculative decoding)",
    )
    draft_tokens: Positive = Field(4, description="how many tokens are guessed at a time")
    seed: int = 0

    @field_validator("stop")
    @classmethod
    def check_stop(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty stop string stands everywhere; leave it out")
        return stop

    @model_validator(mode="after")
    def check_greedy(self) -> "GenerateConfig":
        if self.temperature == 0 and self.samples_per_prompt > 1 and (self.beams or 1) == 1:
            raise ValueError(
                f"samples_per_prompt is {self.samples_per_prompt} and temperature 0: the same text each time;"
                " write samples_per_prompt: 1 or temperature: 0.8"
            )
        return self

    @model_validator(mode="after")
    def check_beams(self) -> "GenerateConfig":
        if 1 < (self.beams or 1) < self.samples_per_prompt:
            raise ValueError(
                f"samples_per_prompt is {self.samples_per_prompt} and beams {self.beams}: a search finds"
                f" as many texts as it has beams; write beams: {self.samples_per_prompt} or more"
            )
        return self

    @model_validator(mode="after")
    def check_draft(self) -> "GenerateConfig":
        others = {"repetition_penalty": 1.0, "no_repeat_ngram": None}
        for name, plain in others.items():
            if self.draft is not None and getattr(self, name) != plain:
                raise ValueError(
                    f"{name} looks at the text so far, for which a draft cannot guess ahead; leave out one of"
                    " them"
                )
        if self.draft is not None and (self.beams or 1) > 1:
            raise ValueError(f"beams is {self.beams}, and a draft guesses for one text; write beams: 1")
        return self

    def width(self, reads_source: bool) -> int:
        """How many beams there are, for a model that reads a source or for a decoder; 1 is no search."""
        return self.beams or (max(SOURCE_BEAMS, self.samples_per_prompt) if reads_source else 1)

    def all_prompts(self) -> list[str]:
        """`prompts`, then those of `prompts_file`; DataError where the file cannot be read or holds none."""
        return [*self.prompts, *(read_prompts(self.prompts_file) if self.prompts_file else [])]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file (a line each, empty lines left out) or of a .jsonl file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; give prompts_file one prompt a line") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); give one prompt a line") from None
    filled = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise DataError(f"{path}: holds no prompt; write one a line")
    if path.suffix != ".jsonl":
        return [line for _, line in filled]
    return [prompt_of(line, f"{path}, line {number}") for number, line in filled]


def prompt_of(line: str, where: str) -> str:
    """The `prompt` of one JSON line."""
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise DataError(f'{where}: is not JSON; write {{"prompt": "..."}}') from None
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise DataError(f'{where}: has no text under "prompt"; write {{"prompt": "..."}}')
    return value["prompt"]
