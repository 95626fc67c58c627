"""Let a model write, and compare what it wrote: summaries, translations, answers, programs.

One record for all of them: the score, how sure it is, what exactly was counted, and beside it the score of
what costs nothing, where there is such a thing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hasten.core.config import Config
from hasten.core.console import Progress
from hasten.core.errors import ConfigError, DataError
from hasten.evaluate import sandbox
from hasten.evaluate.answers import Rule, percent, score_answers, wide
from hasten.evaluate.programs import STOPS, Problem, pass_record
from hasten.evaluate.rouge import RougeConfig, RougeScore, lead, lead_sentences, score_rouge
from hasten.evaluate.sandbox import SandboxConfig
from hasten.evaluate.translation import Words, metrics, overlap, words_of
from hasten.generate.completion import Completion, Row
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import check_vocabulary, checked_source, grow, start_of
from hasten.model.transformer import Decoder, Seq2Seq, Transformer
from hasten.tokenizer.tokenizer import Tokenizer

Positive = Annotated[int, Field(ge=1)]
Metric = Literal["rouge", "bleu", "answers", "exact", "programs"]


class WrittenConfig(Config):
    """Let a model write an answer to everything that is asked, and how to score what it wrote."""

    metric: Metric
    max_new_tokens: Positive = 128
    beams: Positive = Field(1, description="1 and temperature 0: the likeliest token every time")
    temperature: float = Field(0.0, ge=0)
    top_p: float | None = Field(0.95, gt=0, le=1, description="where temperature is above 0")
    stop: tuple[str, ...] = Field(
        (),
        description="strings at which a text ends; programs that go on from a text also end where those of"
        " MBPP and HumanEval do",
    )
    batch_rows: Positive = Field(32, description="texts that are written together")
    rouge: RougeConfig = RougeConfig()
    lead: Positive | Literal["auto"] | None = Field(
        "auto",
        description="sentences of the source that are the baseline of ROUGE; auto: 1 for Chinese, else 3;"
        " null: no baseline",
    )
    words: Words | Literal["auto"] = Field("auto", description="as evaluate.translation.words")
    rule: Rule | Literal["auto"] = Field(
        "auto", description="of answers; auto: cmrc2018 for Chinese references, else squad"
    )
    samples: Positive = Field(1, description="programs for each problem")
    k: tuple[Positive, ...] = Field((1,), description="of pass@k; the first is the score")
    sandbox: SandboxConfig = SandboxConfig()
    examples: Annotated[int, Field(ge=0)] = Field(8, description="texts kept in the record")
    seed: int = 0

    @model_validator(mode="after")
    def check_samples(self) -> "WrittenConfig":
        if self.samples > 1 and self.metric != "programs":
            raise ValueError(f"samples is for programs, and the metric is {self.metric}; write samples: 1")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples is {self.samples} and temperature 0: the same program each time; write"
                " temperature: 0.8 or samples: 1"
            )
        if not self.k or max(self.k) > self.samples:
            raise ValueError(f"k is {list(self.k)} and samples {self.samples}; write a k of 1 to samples")
        return self

    def settings(self, stop: tuple[str, ...]) -> GenerateConfig:
        """How texts are written that end at a `stop` string."""
        return GenerateConfig(
            beams=self.beams,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            stop=stop,
            batch_rows=self.batch_rows,
            samples_per_prompt=self.samples,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Asked:
    """What a model is to answer, and what answers are good.

    `prompt` is a text, or ids where it was rendered to them already: a decoder reads them as they are, an
    encoder as its source.  `source` is the text that a summary is of.
    """

    prompt: str | tuple[int, ...]
    references: tuple[str, ...] = ()  # for answers none says that there is no answer
    source: str = ""
    problem: Problem | None = None


@dataclass(frozen=True)
class Judged:
    """A score with half the width of its 95% interval, what was counted, and all figures."""

    score: float
    interval: float | None
    signature: str
    figures: dict[str, Any]


def score_written(
    model: Transformer, tokenizer: Tokenizer, asked: Sequence[Asked], config: WrittenConfig
) -> dict[str, Any]:
    """Write an answer to each of `asked`, and score them: a record for evaluation.json.

    Raises DataError where nothing is asked or a prompt is longer than the model reads, ConfigError for an
    encoder.
    """
    if not asked:
        raise DataError("there is nothing to write an answer to; give the split that is evaluated a share")
    began = time.monotonic()
    with Progress("write", len(asked) * config.samples, "texts") as progress:
        written = write(model, tokenizer, asked, config, progress.add)
    seconds = time.monotonic() - began
    judged = judge([completion.text for completion in written], asked, config)
    tokens = sum(len(completion.tokens) for completion in written)
    return {
        "metric": config.metric,
        **asdict(judged),
        "baseline": baseline(asked, config),
        "asked": len(asked),
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "unfinished": sum(completion.stopped_by in ("length", "context") for completion in written),
        "examples": examples(written, asked, config),
    }


def write(
    model: Transformer,
    tokenizer: Tokenizer,
    asked: Sequence[Asked],
    config: WrittenConfig,
    told: Callable[[int], None] | None = None,
) -> list[Completion]:
    """`config.samples` texts for each of `asked`, one after the other; `told` hears of so many more."""
    if not isinstance(model, Decoder | Seq2Seq):
        raise ConfigError("this model is an encoder: it reads text and writes none; take another checkpoint")
    check_vocabulary(model, tokenizer)
    settings = config.settings(stops(asked, config))
    rows = [
        row_of(model, tokenizer, one, settings, config.seed + sample)
        for one in asked
        for sample in range(config.samples)
    ]
    on_done = None if told is None else (lambda some: told(len(some)))
    grow(model, rows, settings, tokenizer.vocab_size, on_done)
    return [row.completion() for row in rows]


def stops(asked: Sequence[Asked], config: WrittenConfig) -> tuple[str, ...]:
    """Where a text ends.  A chat model's program stands between fences, and may hold what ends another's."""
    problems = [one.problem for one in asked if one.problem is not None and isinstance(one.prompt, str)]
    usual = [stop for form in {problem.format for problem in problems} for stop in STOPS[form]]
    return tuple(dict.fromkeys((*config.stop, *sorted(usual))))


def row_of(
    model: Decoder | Seq2Seq, tokenizer: Tokenizer, asked: Asked, settings: GenerateConfig, seed: int
) -> Row:
    """The beginning of a text."""
    prompt, reads_source = asked.prompt, isinstance(model, Seq2Seq)
    if isinstance(prompt, str):
        text, ids = prompt, tokenizer.encode(prompt)
        ids = [*ids, tokenizer.eot_id] if reads_source else [tokenizer.bos_id, *ids]
    else:
        text, ids = tokenizer.decode(list(prompt)), list(prompt)
        settings = settings.model_copy(update={"heal_prompt": False})  # to the token as it was rendered
    source = checked_source(text, ids, model) if isinstance(model, Seq2Seq) else None
    return Row(
        text,
        seed,
        [start_of(model, tokenizer)] if isinstance(model, Seq2Seq) else ids,
        tokenizer=tokenizer,
        max_positions=model.config.max_positions,
        config=settings,
        on_piece=None,
        source=source,
    )


def judge(texts: Sequence[str], asked: Sequence[Asked], config: WrittenConfig) -> Judged:
    """The score of texts, `config.samples` for each of `asked` one after the other.

    Raises DataError where a reference or a problem is missing.
    """
    for number, one in enumerate(asked):
        if config.metric == "programs" and one.problem is None:
            raise DataError(f"item {number} has no problem to write a program for; give MBPP or HumanEval")
        if config.metric not in ("programs", "answers") and not one.references:
            raise DataError(f"item {number} has no reference to compare with; give it one, or leave it out")
    return JUDGES[config.metric](texts, asked, config)


def references_of(asked: Sequence[Asked]) -> list[tuple[str, ...]]:
    """What each answer is compared with."""
    return [one.references for one in asked]


def judge_rouge(texts: Sequence[str], asked: Sequence[Asked], config: WrittenConfig) -> Judged:
    """ROUGE-L, and the others beside it."""
    return of_rouge(score_rouge(texts, references_of(asked), config.rouge))


def of_rouge(found: RougeScore) -> Judged:
    """ROUGE-L as the score."""
    return Judged(found.rougeL.score, found.rougeL.interval, found.signature, asdict(found))


def judge_bleu(texts: Sequence[str], asked: Sequence[Asked], config: WrittenConfig) -> Judged:
    """Corpus BLEU, and chrF beside it."""
    references = references_of(asked)
    flat = [text for golds in references for text in golds]
    words = words_of(flat) if config.words == "auto" else config.words
    streams = list(zip_longest(*references))  # some texts may have fewer
    bleu = overlap(metrics().BLEU(tokenize=words), texts, streams)
    chrf = overlap(metrics().CHRF(), texts, streams)
    return Judged(bleu.score, bleu.interval, bleu.signature, {"bleu": asdict(bleu), "chrf": asdict(chrf)})


def judge_answers(texts: Sequence[str], asked: Sequence[Asked], config: WrittenConfig) -> Judged:
    """F1, and exact match beside it."""
    rule = None if config.rule == "auto" else config.rule
    found = score_answers([text.strip() for text in texts], references_of(asked), rule)
    return Judged(found.f1, found.f1_interval, found.signature, asdict(found))


def judge_exact(texts: Sequence[str], asked: Sequence[Asked], config: WrittenConfig) -> Judged:
    """The share, in percent, that is a reference letter by letter, but for white space around it."""
    hits = [
        float(text.strip() in {gold.strip() for gold in one.references})
        for text, one in zip(texts, asked, strict=True)
    ]
    signature = "exact:stripped|refs:any|scale:100|bootstrap:1000"
    return Judged(percent(hits), wide(hits), signature, {"right": int(sum(hits)), "texts": len(hits)})


def judge_programs(texts: Sequence[str], asked: Sequence[Asked], config: WrittenConfig) -> Judged:
    """pass@k of the first k, in percent."""
    problems = [one.problem for one in asked for _ in range(config.samples)]
    programs = [problem.program(text) for problem, text in zip(problems, texts, strict=True) if problem]
    with Progress("run", len(programs), "programs") as progress:
        verdicts = sandbox.run(programs, config.sandbox, progress.update)
    groups = [verdicts[at : at + config.samples] for at in range(0, len(verdicts), config.samples)]
    record = pass_record(groups, config.k)
    first = record[f"pass@{config.k[0]}"]
    return Judged(
        100 * first["score"],
        None if first["interval"] is None else 100 * first["interval"],
        f"pass@{config.k[0]}|samples:{config.samples}|temperature:{config.temperature:g}|scale:100|unbiased",
        record,
    )


JUDGES: dict[Metric, Callable[[Sequence[str], Sequence[Asked], WrittenConfig], Judged]] = {
    "rouge": judge_rouge,
    "bleu": judge_bleu,
    "answers": judge_answers,
    "exact": judge_exact,
    "programs": judge_programs,
}


def baseline(asked: Sequence[Asked], config: WrittenConfig) -> dict[str, Any] | None:
    """What the first sentences of the sources come to as summaries; None where there are no sources."""
    if config.metric != "rouge" or config.lead is None or not all(one.source for one in asked):
        return None
    references = references_of(asked)
    count = lead_sentences(references) if config.lead == "auto" else config.lead
    found = score_rouge([lead(one.source, count) for one in asked], references, config.rouge)
    return {"name": f"lead-{count}", **asdict(of_rouge(found))}


def examples(
    written: Sequence[Completion], asked: Sequence[Asked], config: WrittenConfig
) -> list[dict[str, Any]]:
    """The first texts with what was asked and what is good; of several samples the first."""
    return [
        {
            "prompt": completion.prompt,
            "text": completion.text,
            "references": list(one.references),
            "stopped_by": completion.stopped_by,
        }
        for completion, one in zip(written[:: config.samples], asked[: config.examples], strict=False)
    ]
