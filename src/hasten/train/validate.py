"""The loss on data that is not trained on."""

from collections.abc import Sequence
from math import exp, log

import torch
from torch import Tensor, distributed

from hasten.core.batch import IGNORE, Batch
from hasten.core.runtime import Runtime
from hasten.data.corpus import Corpus
from hasten.objective.spans import ENDS
from hasten.parallel.grid import Grid
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.engine import Engine


class Validation:
    """The same rows of the validation split each time, at most `max_tokens` of them.

    `words` says that targets are words, of which there is a perplexity.  Bits per byte need a tokenizer whose
    tokens are bytes: each target then stands for a known number of them, an end of text for none.
    """

    def __init__(
        self,
        corpus: Corpus,
        runtime: Runtime,
        *,
        max_tokens: int,
        micro_rows: int,
        tokenizer: Tokenizer | None = None,
        grid: Grid | None = None,
        words: bool = True,
    ) -> None:
        self.runtime, self.words, grid = runtime, words, grid or Grid.make(runtime)
        rows = max(max_tokens // corpus.row_tokens, 1)
        self.batches: Sequence[Batch] = list(
            corpus.sweep(micro_rows, rows=rows, rank=grid.replica, world_size=grid.replicas)
        )
        self.num_tokens = min(rows, corpus.num_rows) * corpus.row_tokens
        self.guesses = any({"scored", *ENDS} & batch.extra.keys() for batch in self.batches)
        # Where some tokens are predicted and the others seen, the loss is no length of the text.
        by_bytes = tokenizer is not None and tokenizer.is_byte_level and not self.guesses
        self.num_bytes = None
        if tokenizer and by_bytes:
            self.num_bytes = self.total(count_bytes(self.batches, tokenizer) * grid.speaks_for_rows)

    def total(self, figures: Tensor) -> list[float]:
        """Sums over all ranks, as numbers."""
        figures = figures.to(self.runtime.device)
        if self.runtime.group is not None:
            distributed.all_reduce(figures, group=self.runtime.group)
        return [float(figure) for figure in figures.tolist()]

    def __call__(self, engine: Engine) -> dict[str, float]:
        """`validation_loss` in nats per target, of words its exponential, how many targets.

        `bits_per_byte` where the bytes of all targets are known, `validation_accuracy` of masked tokens, of
        classes, answers or preferences.
        """
        loss, count, correct = self.total(torch.stack(engine.measure(self.batches)))
        figures = {"validation_loss": loss / count, "validation_targets": int(count)}
        if self.words:
            # e^700 is about the largest float.
            figures["validation_perplexity"] = exp(min(loss / count, 700.0))
        if self.guesses:
            figures["validation_accuracy"] = correct / count
        if self.num_bytes is not None:
            figures["bits_per_byte"] = loss / log(2) / self.num_bytes[0]
        return figures


def count_bytes(batches: Sequence[Batch], tokenizer: Tokenizer) -> Tensor:
    """Bytes of text that the targets stand for, [1] in float64."""
    special = tokenizer.special_ids
    sizes = torch.tensor([0 if i in special else len(b) for i, b in enumerate(tokenizer.token_bytes)])
    targets = torch.cat([batch.targets[batch.targets != IGNORE] for batch in batches])
    return sizes[targets].sum().double().reshape(1)
