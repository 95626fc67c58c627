"""How well a model predicts text: bits per byte, loss, perplexity, next-token accuracy.

Letters in shapes: B windows, T tokens, N scored targets, D width, V vocabulary.

A document longer than the context is read through windows that overlap: each window after the first
scores only its last `stride` targets, so that every one of them has at least `context - stride` tokens
before it.  Disjoint windows (stride = context) overstate the loss; stride = 1 gives every target the
whole context and costs a forward pass each.  Windows never cross documents.

Bits per byte divides by the UTF-8 bytes of the text, not by tokens, so that models with different
tokenizers compare (Gao et al. 2020, "The Pile", 3.1).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hasten.core.errors import ConfigError, DataError
from hasten.model.evaluating import evaluating
from hasten.model.transformer import Transformer
from hasten.tokenizer.tokenizer import Tokenizer

CHUNK_TARGETS = 1024  # logits held at once are [CHUNK_TARGETS, V]


@dataclass(frozen=True)
class LanguageScore:
    """A model's score on documents.

    `stderr` is the standard error of `bits_per_byte` over documents, None for fewer than two.
    """

    bits_per_byte: float
    stderr: float | None
    loss: float  # nats per token
    perplexity: float  # per token: compare it only between models with the same tokenizer
    accuracy: float  # share of targets that are the most probable token
    tokens: int
    bytes: int
    documents: int


@dataclass(frozen=True)
class TokenScores:
    """What the model gave every target, document after document.

    Document i has the targets `bounds[i]:bounds[i + 1]`.
    """

    log_probs: np.ndarray  # [targets] float32, natural logarithm
    correct: np.ndarray  # [targets] bool
    bounds: np.ndarray  # [documents + 1] int64

    def select(self, documents: np.ndarray) -> "TokenScores":
        """The scores of some documents, by their numbers."""
        spans = [slice(self.bounds[i], self.bounds[i + 1]) for i in documents]
        bounds = np.cumsum([0, *(span.stop - span.start for span in spans)])
        return TokenScores(
            np.concatenate([self.log_probs[span] for span in spans]),
            np.concatenate([self.correct[span] for span in spans]),
            bounds,
        )


@dataclass(frozen=True)
class Windows:
    """How documents are cut: `context` tokens seen at most, `stride` scored, `batch_tokens` at once."""

    context: int
    stride: int
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.context:
            raise ConfigError(
                f"a stride of {self.stride} with a context of {self.context} would leave targets unscored; "
                f"write a stride from 1 to {self.context}"
            )


@dataclass(frozen=True)
class Window:
    """Tokens `start : start + length` of a document; the last `scored` of their targets count."""

    document: int
    start: int
    length: int
    scored: int


def score_texts(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    windows: Windows,
    *,
    bf16: bool = False,
    score_end: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LanguageScore, TokenScores]:
    """Score `model` on `texts`, each a document of its own.

    A document is read after the token that begins texts, and with `score_end` its own end is predicted too,
    as in training: a compressor pays for a file's length as well.  False is the convention of
    lm-evaluation-harness.
    `bf16` runs the model under autocast; logarithms and sums are float32 and float64 in any case.
    `progress` is told (targets done, targets in all) after each batch.
    Raises DataError where the texts hold no byte.
    """
    end = [tokenizer.eot_id] if score_end else []
    encoded = tokenizer.encode_batch(list(texts))
    documents = [np.array([tokenizer.bos_id, *ids, *end], dtype=np.int64) for ids in encoded]
    scores = score_tokens(model, documents, windows, bf16=bf16, progress=progress)
    return summarise(scores, np.array([len(text.encode()) for text in texts])), scores


def summarise(scores: TokenScores, sizes: np.ndarray) -> LanguageScore:
    """Totals over documents of `sizes` [documents] bytes.

    The standard error is the delta method's for a ratio of sums (Cochran 1977, 6.4), with documents as
    the sampling unit: neighbouring tokens are no independent draws.
    """
    tokens, total = len(scores.log_probs), int(sizes.sum())
    if not total:
        raise DataError(
            f"the {len(sizes)} documents to score hold no byte of text; give some that are not empty"
        )
    running = np.concatenate([[0.0], np.cumsum(scores.log_probs, dtype=np.float64)])
    bits = -np.diff(running[scores.bounds]) / math.log(2)  # [documents]
    loss, bits_per_byte = -running[-1] / tokens, bits.sum() / total
    return LanguageScore(
        bits_per_byte=float(bits_per_byte),
        stderr=ratio_stderr(bits, sizes),
        loss=float(loss),
        perplexity=math.exp(min(loss, 700.0)),  # e^700 is about the largest float
        accuracy=float(scores.correct.mean()),
        tokens=tokens,
        bytes=total,
        documents=len(sizes),
    )


def ratio_stderr(numerators: np.ndarray, denominators: np.ndarray) -> float | None:
    """Standard error of sum(numerators) / sum(denominators), pairs drawn independently; None for one pair."""
    n = len(numerators)
    if n < 2:
        return None
    residuals = numerators - numerators.sum() / denominators.sum() * denominators
    return float(math.sqrt(n / (n - 1) * np.square(residuals).sum()) / denominators.sum())


def score_tokens(
    model: Transformer,
    documents: Sequence[np.ndarray],
    windows: Windows,
    *,
    bf16: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TokenScores:
    """Score every token of each document [n + 1] but its first, which is only read: n targets."""
    bounds = np.concatenate([[0], np.cumsum([len(ids) - 1 for ids in documents])]).astype(np.int64)
    device = next(model.parameters()).device
    slots: list[np.ndarray] = []
    results: list[tuple[Tensor, Tensor]] = []
    done = 0
    with evaluating(model), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for batch in batches(cut(bounds, windows), windows.batch_tokens):
            tokens, targets, counted = lay_out(documents, batch)
            hidden = model(torch.from_numpy(tokens).to(device))  # [B, T, D]
            mask = torch.from_numpy(counted).to(device)
            results.append(score_targets(model, hidden[mask], torch.from_numpy(targets[counted]).to(device)))
            slots += [bounds[w.document] + w.start + np.arange(w.length - w.scored, w.length) for w in batch]
            done += sum(w.scored for w in batch)
            if progress:
                progress(done, int(bounds[-1]))
    log_probs, correct = np.empty(bounds[-1], np.float32), np.empty(bounds[-1], bool)
    if results:
        place = np.concatenate(slots)
        log_probs[place] = torch.cat([result[0] for result in results]).cpu().numpy()
        correct[place] = torch.cat([result[1] for result in results]).cpu().numpy()
    return TokenScores(log_probs, correct, bounds)


def cut(bounds: np.ndarray, windows: Windows) -> list[Window]:
    """Windows that score each target once; all but a document's first reach back the whole context."""
    result = []
    for document, targets in enumerate(np.diff(bounds).tolist()):
        first = min(targets, windows.context)
        if first:
            result.append(Window(document, 0, first, first))
        for scored in range(first, targets, windows.stride):
            end = min(scored + windows.stride, targets)
            result.append(Window(document, end - windows.context, windows.context, end - scored))
    return result


def batches(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows of like length together, the longest first: memory is short at once or never."""
    in_order = sorted(windows, key=lambda window: -window.length)
    at = 0
    while at < len(in_order):
        rows = max(1, batch_tokens // in_order[at].length)
        yield in_order[at : at + rows]
        at += rows


def lay_out(
    documents: Sequence[np.ndarray], batch: Sequence[Window]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, targets and which targets count, each [B, T].

    Padding stands at the end of a row, where causal attention keeps it from every real token: no mask.
    """
    shape = (len(batch), max(window.length for window in batch))
    tokens, targets, counted = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for row, window in enumerate(batch):
        ids = documents[window.document][window.start : window.start + window.length + 1]
        tokens[row, : window.length], targets[row, : window.length] = ids[:-1], ids[1:]
        counted[row, window.length - window.scored : window.length] = True
    return tokens, targets, counted


def score_targets(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """hidden [N, D], targets [N] -> log-probability float32 [N] and whether it is the most probable [N]."""
    pieces = zip(hidden.split(CHUNK_TARGETS), targets.split(CHUNK_TARGETS), strict=True)
    results = [score_chunk(model.logits(some).float(), wanted) for some, wanted in pieces]
    return torch.cat([result[0] for result in results]), torch.cat([result[1] for result in results])


def score_chunk(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, V] float32, targets [N] -> log-probability and correctness, [N] each."""
    wanted = logits.gather(-1, targets[:, None]).squeeze(-1)
    return wanted - logits.logsumexp(-1), logits.argmax(-1) == targets
