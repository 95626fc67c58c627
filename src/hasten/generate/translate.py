"""Lines in, lines out: each line is a source, and its translation stands in the same place."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from hasten.core.errors import ConfigError, DataError
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.model.transformer import Seq2Seq, Transformer
from hasten.tokenizer.tokenizer import Tokenizer

CHUNK_LINES = 1024
"""Lines sorted by length together; their translations are written when all of them are there."""


@dataclass
class Work:
    """What has been translated so far."""

    lines: int = 0
    tokens: int = 0
    seconds: float = 0.0
    unfinished: int = 0

    def __str__(self) -> str:
        rate = self.tokens / max(self.seconds, 1e-9)
        cut = f"; {self.unfinished:,} were cut off, see generate.max_new_tokens" if self.unfinished else ""
        return f"{self.lines:,} lines, {self.tokens:,} tokens, {rate:,.0f} tokens/s{cut}"


def translate(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: Iterable[str],
    config: GenerateConfig,
    write: Callable[[str], object],
    *,
    chunk_lines: int = CHUNK_LINES,
    progress: Callable[[Work], None] = lambda work: None,
) -> Work:
    """Hand the translation of each line to `write`, in order, with a line end; an empty line stays empty.

    At most `chunk_lines` lines are held.  Raises ConfigError for a model that reads no source, and DataError,
    which names the lines, for a source that is too long; what came before is written then.
    """
    if not isinstance(model, Seq2Seq):
        raise ConfigError(
            "this model reads no source, so it cannot translate; hasten generate continues prompts"
        )
    if config.samples_per_prompt != 1:
        raise ConfigError(
            f"generate.samples_per_prompt is {config.samples_per_prompt}, and each line has one translation;"
            " write 1, or use hasten generate"
        )
    if config.draft is not None:
        raise ConfigError(f"generate.draft is {config.draft}, and drafts are for decoders; leave it out")
    work, began, incoming = Work(), time.monotonic(), iter(lines)
    while chunk := [line.rstrip("\r\n") for line in islice(incoming, chunk_lines)]:
        for text in translated(model, tokenizer, chunk, config, work):
            write(f"{text}\n")
        work.lines, work.seconds = work.lines + len(chunk), time.monotonic() - began
        progress(work)
    return work


def translated(
    model: Seq2Seq, tokenizer: Tokenizer, lines: list[str], config: GenerateConfig, work: Work
) -> Iterator[str]:
    """The translations of some lines; `work` counts their tokens."""
    filled = [line for line in lines if line.strip()]
    try:
        written = generate(model, tokenizer, filled, config)
    except DataError as error:
        place = f"lines {work.lines + 1} to {work.lines + len(lines)}" if len(lines) > 1 else "this line"
        raise DataError(f"{place}: {error}") from None
    work.tokens += sum(len(completion.tokens) for completion in written)
    work.unfinished += sum(completion.stopped_by in ("length", "context") for completion in written)
    texts = iter(written)
    for line in lines:
        # A line break inside a translation would put all that follows out of place.
        yield " ".join(next(texts).text.splitlines()).strip() if line.strip() else ""
