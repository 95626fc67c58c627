"""Everything there is to measure of a model on documents it has not seen, and evaluation.json."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from hasten.core.config import Config
from hasten.core.console import Progress, say
from hasten.core.errors import ConfigError, DataError
from hasten.core.files import write_json
from hasten.data.config import DataConfig, SourceConfig
from hasten.data.masked import MaskedCorpus
from hasten.data.pairs import pair_of
from hasten.data.prepare import Prepared
from hasten.data.source import Document
from hasten.data.source import documents as documents_of
from hasten.evaluate.baselines import baselines
from hasten.evaluate.classify import ClassificationConfig
from hasten.evaluate.code import FunctionPrompt, Snippet, function_prompts, parse_rate, parses
from hasten.evaluate.continued import before_and_after
from hasten.evaluate.language import TokenScores, Windows, score_texts, summarise
from hasten.evaluate.masked import score_masked
from hasten.evaluate.sample import sample
from hasten.evaluate.spans import ExtractionConfig
from hasten.evaluate.translation import (
    TranslationConfig,
    as_record,
    score_references,
    score_translations,
)
from hasten.evaluate.written import WrittenConfig
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import check_vocabulary, generate
from hasten.model.transformer import Decoder, Seq2Seq, Transformer
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.engine import choose_precision

Positive = Annotated[int, Field(ge=1)]
EXAMPLES = 5  # snippets kept in evaluation.json


class CodeConfig(Config):
    """Let the model continue unseen Python functions, each in its file, and count what parses."""

    prompts: Positive = 100
    context_lines: Annotated[int, Field(ge=0)] = Field(20, description="of the file, shown before the header")
    max_new_tokens: Positive = 128
    temperature: float = Field(0.8, ge=0, description="0 takes the likeliest token every time")
    top_p: float | None = Field(0.95, gt=0, le=1)


class EvaluateConfig(Config):
    """What to measure on the held-out documents, and how exactly."""

    split: Literal["test", "validation"] = "test"
    context: Positive | None = Field(None, description="tokens seen at most; null: as many as the model can")
    stride: Positive | None = Field(
        None, description="tokens scored per window: smaller is more exact and slower; null: half the context"
    )
    batch_tokens: Positive = 8192
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    score_end: bool = Field(
        True,
        description="count the end of each document as a token; false is lm-evaluation-harness's convention",
    )
    max_bytes: Positive | None = Field(
        None,
        description="a sample of documents that is at least this long, drawn by `seed`; null: all of them",
    )
    masked_share: float = Field(
        0.15, gt=0, lt=1, description="of an encoder's held-out tokens that are hidden, whatever training hid"
    )
    baselines: bool = Field(True, description="compress the same documents with LZMA")
    code: CodeConfig | None = None
    elsewhere: tuple[SourceConfig, ...] = Field(
        (), description="other texts, which a continued pretraining may have forgotten: what it cost there"
    )
    classification: ClassificationConfig = ClassificationConfig()
    extraction: ExtractionConfig = ExtractionConfig()
    written: WrittenConfig | None = Field(
        None, description="of conversations: let the model answer, and score that; null: the loss alone"
    )
    problems: Path | None = Field(
        None, description="what programs are written for: a file of MBPP or HumanEval"
    )
    during_training: Annotated[int, Field(ge=0)] = Field(
        0,
        description="so many examples of the validation split are answered and scored each time that training"
        " validates; 64 where train.metric is score",
    )
    max_rows: Positive | None = Field(
        None, description="of conversations: answer the first so many; null: all"
    )
    translation: TranslationConfig | None = Field(
        TranslationConfig(),
        description="of models that read a source; null: how they predict references only",
    )
    seed: int = 0

    def windows(self, model: Decoder) -> Windows:
        """The windows for a model, or ConfigError where it cannot see that far."""
        longest = model.config.max_positions
        context = self.context or longest
        if context > longest:
            raise ConfigError(
                f"evaluate.context is {context} and the model sees {longest} tokens at most; "
                f"write {longest} or less, or null"
            )
        return Windows(context, self.stride or max(context // 2, 1), self.batch_tokens)

    def bf16(self, model: Transformer) -> bool:
        """Whether products are rounded to bf16 on the model's device."""
        return choose_precision(self.precision, next(model.parameters()).device) == "bf16"


def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    config: EvaluateConfig,
    *,
    base: Decoder | None = None,
    path: Path | None = None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Score `model` on the `documents` of `config.split`; the result goes to `path` too, whole or not at all.

    With the `base` that its training began with, "continued" compares the two, there and elsewhere.  The
    result holds `{split: LanguageScore}` and, where they apply, "sources" (a score each), "baselines"
    and "code"; then how it was measured.  Raises DataError where there is nothing to measure, ConfigError
    where the configuration does not fit the model.
    """
    began = time.monotonic()
    check_vocabulary(model, tokenizer)
    if not documents:
        raise DataError(
            f"there is no document in the {config.split} split to evaluate on; give it a share in data.split,"
            " or choose another with evaluate.split"
        )
    chosen = sample(documents, config.max_bytes, config.seed)
    scores = language(model, tokenizer, chosen, config)
    result = {
        **scores,
        **({"baselines": baselines([d.text for d in chosen])} if config.baselines else {}),
        **({"code": code(model, tokenizer, chosen, config.code, config.seed)} if config.code else {}),
        **({"continued": continued(model, base, tokenizer, chosen, config, scores=scores)} if base else {}),
        "documents_available": len(documents),
    }
    return kept(result, tokenizer, config, began, checkpoint=checkpoint, path=path)


def continued(
    model: Decoder,
    base: Decoder,
    tokenizer: Tokenizer,
    chosen: Sequence[Document],
    config: EvaluateConfig,
    *,
    scores: dict[str, Any],
) -> dict[str, Any]:
    """The gain on documents like those of training, whose `scores` are known, and the loss elsewhere."""
    texts: dict[str, Sequence[Document]] = {config.split: chosen}
    for source in config.elsewhere:
        texts[source.title] = sample(list(documents_of(source)), config.max_bytes, config.seed)
    how = {"bf16": config.bf16(model), "score_end": config.score_end}
    known: dict[str, Any] = {config.split: scores[config.split]}
    return before_and_after(model, base, tokenizer, texts, config.windows(model), known=known, **how)


def evaluate_masked(
    model: Transformer,
    tokenizer: Tokenizer,
    prepared: Prepared,
    data: DataConfig,
    config: EvaluateConfig,
    *,
    path: Path | None = None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """`evaluate` for an encoder: the result holds "masked", a `MaskedScore` on the rows of `config.split`.

    Rows are as long as in training, and words are whole where they were.  Raises ConfigError where the model
    spells text in another way than the prepared data.
    """
    began = time.monotonic()
    check_vocabulary(model, tokenizer)
    if Tokenizer.load(prepared.tokenizer).fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"the model's tokenizer is not that of {prepared.folder}; write data.tokenizer="
            f"{checkpoint or 'the folder of the model'}"
        )
    if config.split not in prepared.splits:
        raise DataError(f"there is no {config.split} split to evaluate on; give it a share in data.split")
    masking = data.masking.model_copy(update={"share": config.masked_share, "as_mask": 1.0, "as_random": 0.0})
    row_tokens = min(data.row_tokens, model.config.max_positions)
    corpus = MaskedCorpus(
        prepared.folder, config.split, row_tokens, config.seed, tokenizer=tokenizer, masking=masking
    )
    share = min((config.max_bytes or corpus.num_bytes) / max(corpus.num_bytes, 1), 1)
    score = score_masked(
        model,
        tokenizer,
        corpus,
        prepared.shards("train"),
        bf16=config.bf16(model),
        rows=max(round(share * corpus.num_rows), 1),
    )
    result = {"masked": {"split": config.split, **asdict(score)}}
    return kept(result, tokenizer, config, began, checkpoint=checkpoint, path=path)


def evaluate_pairs(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    prepared: Prepared,
    config: EvaluateConfig,
    *,
    path: Path | None = None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """`evaluate` for a model that reads a source, on the pairs of `config.split`.

    The result holds `{split: LanguageScore}` of the references, each after its source, and "translation", a
    `TranslationScore`.
    """
    began = time.monotonic()
    check_vocabulary(model, tokenizer)
    documents = list(prepared.texts(config.split)) if config.split in prepared.splits else []
    if not documents:
        raise DataError(
            f"there is no pair in the {config.split} split to evaluate on; give it a share in data.split, or"
            " sources of its own in data.split.test_sources"
        )
    pairs = [pair_of(document) for document in sample(documents, config.max_bytes, config.seed)]
    bf16 = config.bf16(model)
    references = score_references(model, tokenizer, pairs, config.batch_tokens, bf16=bf16)
    asked = config.translation
    written = None if asked is None else score_translations(model, tokenizer, pairs, asked)
    result = {
        config.split: asdict(references),
        **({"translation": as_record(written, config.split, asked)} if written and asked else {}),
        "bf16": bf16,
        "documents_available": len(documents),
    }
    return kept(result, tokenizer, config, began, checkpoint=checkpoint, path=path)


def kept(
    figures: dict[str, Any],
    tokenizer: Tokenizer,
    config: EvaluateConfig,
    began: float,
    *,
    checkpoint: str | None,
    path: Path | None,
) -> dict[str, Any]:
    """`figures` with how they were measured since `began`; in `path` too, whole or not at all."""
    result = {
        **figures,
        "checkpoint": checkpoint,
        "settings": config.model_dump(mode="json"),
        "tokenizer": tokenizer.fingerprint,
        "seconds": round(time.monotonic() - began, 2),
    }
    if path is not None:
        write_json(path, result)
    return result


def language(
    model: Decoder, tokenizer: Tokenizer, documents: Sequence[Document], config: EvaluateConfig
) -> dict[str, Any]:
    """`{split: score}`, and `"sources": {name: score}` where there are several sources."""
    bf16 = config.bf16(model)
    with Progress("evaluate", unit="tokens") as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update(done)

        whole, scores = score_texts(
            model,
            tokenizer,
            [document.text for document in documents],
            config.windows(model),
            bf16=bf16,
            score_end=config.score_end,
            progress=show,
        )
    return {config.split: asdict(whole), **by_source(scores, documents), "bf16": bf16}


def by_source(scores: TokenScores, documents: Sequence[Document]) -> dict[str, Any]:
    """`{"sources": {name: score}}`, or nothing where all documents come from one."""
    names = sorted({document.source for document in documents})
    if len(names) == 1:
        return {}
    sizes = np.array([len(document.text.encode()) for document in documents])
    members = {name: np.array([i for i, d in enumerate(documents) if d.source == name]) for name in names}
    # A source of empty documents has no bits per byte.
    scored = {name: ids for name, ids in members.items() if sizes[ids].any()}
    return {
        "sources": {name: asdict(summarise(scores.select(ids), sizes[ids])) for name, ids in scored.items()}
    }


def code(
    model: Decoder, tokenizer: Tokenizer, documents: Sequence[Document], config: CodeConfig, seed: int
) -> dict[str, Any] | None:
    """The parse rate of the model's continuations, and of the authors' own cut at as many tokens.

    None, and a line that says so, where no document holds a Python function.
    """
    room = model.config.max_positions - config.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"evaluate.code.max_new_tokens is {config.max_new_tokens} and the model's whole context"
            f" {model.config.max_positions}; write {model.config.max_positions // 2} or less"
        )
    prompts = function_prompts(
        ((document.id, document.text) for document in documents),
        config.prompts,
        seed,
        fits=lambda prompt: len(tokenizer.encode(prompt.context(config.context_lines))) < room,
    )
    if not prompts:
        say(f"evaluate   none of {len(documents):,} documents holds a Python function: no parse rate")
        return None
    settings = GenerateConfig(
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, seed=seed
    )
    contexts = [prompt.context(config.context_lines) for prompt in prompts]
    completions = generate(model, tokenizer, contexts, settings)
    snippets = [
        prompt.snippet(completion.text, completion.stopped_by == "end_of_text")
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    authors = [shortened(prompt, tokenizer, config.max_new_tokens) for prompt in prompts]
    return {
        **asdict(parse_rate(snippets)),
        "authors": asdict(parse_rate(authors)),
        "examples": [{**asdict(snippet), "parses": parses(snippet)} for snippet in snippets[:EXAMPLES]],
    }


def shortened(prompt: FunctionPrompt, tokenizer: Tokenizer, max_tokens: int) -> Snippet:
    """The author's own continuation, cut at the model's budget."""
    ids = tokenizer.encode(prompt.continuation)
    if len(ids) <= max_tokens:
        return Snippet(prompt.prompt, prompt.continuation, finished=True)
    return Snippet(prompt.prompt, tokenizer.decode(ids[:max_tokens]))
