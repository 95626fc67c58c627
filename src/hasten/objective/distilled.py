"""The objective of a student beside its teacher, as the loop wants it.

Letters in shapes: B rows, T places, N scored places, D model width, K tokens kept of a place, V vocabulary.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from hasten.core.batch import Batch
from hasten.core.errors import DataError
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import scored
from hasten.objective.distillation import Distillation
from hasten.objective.divergence import Heard, Logits, OverChunks, Told
from hasten.objective.inner import Inner, Seen

STATES = "teacher"
"""In `Batch.extra`: the teacher's hidden states [B, T, D]; behind a dot, what one of its modules gave."""
TOKENS, WEIGHTS, ENTROPY = "teacher.tokens", "teacher.weights", "teacher.entropy"
"""In `Batch.extra`: what was heard of a teacher: tokens [B, T, K], their weights, entropies [B, T]."""
LOGITS = "teacher.logits"
"""In `Batch.extra`: a teacher's logits [B, T, V], where all of them were kept."""


class Distilled:
    """A `Distillation` of a student, by a teacher that reads along or by what batches bring of one.

    The teacher is whole on each process, in evaluation mode, and never learns.  `known` is how many tokens
    the tokenizer has.  While a student is measured no teacher is asked: the loss is that of the labels.
    """

    def __init__(
        self,
        config: Distillation,
        student: Transformer,
        teacher: Transformer | None,
        *,
        inner: Inner,
        known: int,
        precision: str = "fp32",
    ) -> None:
        self.config, self.student, self.teacher, self.inner = config, student, teacher, inner
        self.labels, self.mix, self.half = config.labels_alone(), config.mix(known), precision != "fp32"
        self.seen = Seen(student, inner.names("student"))
        self.seen_of_teacher = None
        if teacher is not None:
            teacher.eval().requires_grad_(False)
            self.seen_of_teacher = Seen(teacher, inner.names("teacher"))

    def count(self, batch: Batch) -> Tensor:
        """The number of targets that carry loss, []."""
        return self.labels.count(batch)

    @torch.no_grad()
    def enrich(self, batch: Batch) -> Batch:
        """The batch with what the teacher makes of it, while the student learns."""
        if self.teacher is None or not self.student.training:
            return batch
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=self.half):
            states = self.teacher(**self.inputs(batch))
        assert self.seen_of_teacher is not None
        inner = {f"{STATES}.{name}": x for name, x in self.seen_of_teacher.taken().items()}
        return replace(batch, extra={**batch.extra, STATES: states, **inner})

    def inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        """As those of cross-entropy, of student and teacher alike."""
        return self.labels.inputs(batch)

    @torch.compiler.disable
    def loss(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """Summed loss [] of `hidden` [B, T, D]; of a model that is measured the labels' alone."""
        seen = self.seen.taken()
        if not model.training:
            return self.labels.loss(model, hidden, batch)
        student = cast(Transformer, model)
        loss = (
            self.said(student, hidden, batch)
            if self.config.asks_logits
            else self.labels.loss(model, hidden, batch)
        )
        if not self.inner.asks:
            return loss
        theirs = {name.removeprefix(f"{STATES}."): x for name, x in batch.extra.items()}
        return loss + self.inner.loss(student, batch, seen, theirs)

    def said(self, student: Transformer, hidden: Tensor, batch: Batch) -> Tensor:
        """The loss [] of what is said, by the teacher and by the labels."""
        states, targets = scored(hidden, batch)
        return student.cross_entropy(
            student.head_input(states),
            student.head_weight,
            targets,
            student.head_bias,
            chunk_tokens=self.chunk(targets.numel(), student.config.vocabulary, hidden.device),
            soft_cap=student.config.logit_soft_cap,
            over=OverChunks(self.told(batch), self.mix),
        )

    def told(self, batch: Batch) -> Told:
        """What the teacher says of the scored places [N] of a batch."""

        def places(name: str) -> Tensor:
            return scored(batch.extra[name], batch)[0]

        if self.teacher is not None:
            return Logits(places(STATES), self.teacher.logits)
        if LOGITS in batch.extra:
            return Logits(places(LOGITS))
        if TOKENS not in batch.extra:
            raise DataError(
                "the batch does not hold what the teacher says of it; write objective.cache=null to have the"
                " teacher read along"
            )
        entropy = scored(batch.extra[ENTROPY][..., None], batch)[0][:, 0]
        return Heard(places(TOKENS), places(WEIGHTS), entropy)

    def correct(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """As that of cross-entropy."""
        return self.labels.correct(model, hidden, batch)

    def chunk(self, num_tokens: int, vocab_size: int, device: torch.device) -> int | None:
        """For how many tokens to hold float32 logits of both models at a time; None is all of them."""
        return self.labels.chunk(num_tokens, 2 * vocab_size, device)
