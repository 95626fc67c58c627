"""What the models of a chain are judged on: held-out text, hidden tokens, pairs, or the rows of a task."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hasten.compression.original import Original
from hasten.compression.record import Quality
from hasten.core.batch import Batch
from hasten.core.console import Progress
from hasten.core.errors import DataError
from hasten.data.source import Document
from hasten.data.split import Split
from hasten.evaluate.agreement import Agreement, Estimate, Tally, compare_rows, compare_texts
from hasten.evaluate.sample import sample
from hasten.evaluate.tasks import Subject, evaluate_task
from hasten.model.transformer import Decoder, Transformer
from hasten.objective.preference import Preference

ROWS = 8
SCORED = ("spans", "preferences")
"""Tasks whose score is more than what places with a target come to."""


@dataclass(frozen=True)
class Material:
    """The texts of one split, for an original and what is made of it."""

    original: Original
    split: Split
    known: list[Estimate] = field(default_factory=list)  # the score of the original, once it is

    @cached_property
    def task(self) -> str | None:
        """The kind of the recipe's task."""
        task = self.original.recipe.text.task
        return None if task is None else task.kind

    @cached_property
    def documents(self) -> list[Document]:
        """The sample of held-out texts."""
        prepared, asked = self.original.prepared, self.original.config.measure
        found = list(prepared.texts(self.split)) if self.split in prepared.splits else []
        if not found:
            raise DataError(
                f"there is no text in the {self.split} split to measure on; give it a share in data.split, or"
                " choose another with compress.measure.split"
            )
        return sample(found, asked.max_bytes, asked.seed)

    def rows(self) -> Iterable[Batch]:
        """The rows of what is no plain text, each time from the first."""
        original = self.original
        original.recipe.examples()
        corpus = original.recipe.corpus(original.prepared, self.split, original.tokenizer)
        return corpus.sweep(ROWS, rows=original.config.measure.rows)

    def tally(self, reference: Transformer, model: Transformer) -> Tally:
        """Both on the same places."""
        evaluate = self.original.recipe.evaluate
        bf16 = evaluate.bf16(reference)
        if self.task is None and isinstance(reference, Decoder):
            texts = [document.text for document in self.documents]
            with Progress("compare", unit="tokens") as line:

                def show(done: int, total: int) -> None:
                    line.total = total
                    line.update(done)

                windows = evaluate.windows(reference)
                tokenizer = self.original.tokenizer
                return compare_texts(reference, model, tokenizer, texts, windows, bf16=bf16, progress=show)
        return compare_rows(reference, model, self.rows(), bf16=bf16)

    def judged(self, reference: Transformer, model: Transformer) -> tuple[Quality, Agreement | None]:
        """What a model is worth, and how far it is from its reference."""
        found = None if self.task == "spans" else self.tally(reference, model).agreement()
        if self.task in SCORED:
            return self.by_score(reference, model), found
        assert found is not None
        return by_agreement(found, self.task, reference), found

    def by_score(self, reference: Transformer, model: Transformer) -> Quality:
        """The score of a task, of both."""
        before, after = self.score_of_reference(reference), self.scored(model)
        name = "f1" if self.task == "spans" else "preference_accuracy"
        change = Estimate(after.value - before.value, None)
        return Quality(name, after, change, True, after.value / before.value if before.value else 0.0)

    def score_of_reference(self, reference: Transformer) -> Estimate:
        """The score of the original, asked once."""
        if not self.known:
            self.known.append(self.scored(reference))
        return self.known[0]

    def scored(self, model: Transformer) -> Estimate:
        """The score of one model."""
        original = self.original
        recipe = original.recipe
        objective = recipe.objective if isinstance(recipe.objective, Preference) else None
        config = recipe.evaluate.model_copy(update={"split": self.split, "written": None})
        subject = Subject(
            model, original.tokenizer, original.prepared, recipe.text, config, recipe.base_folder, objective
        )
        return headline(evaluate_task(subject))


def headline(figures: dict[str, Any]) -> Estimate:
    """The one figure of a task's evaluation, as a share."""
    if "answers" in figures:
        found = figures["answers"]
        interval = found.get("f1_interval")
        return Estimate(found["f1"] / 100, None if interval is None else interval / 100)
    return Estimate(figures["preferences"]["accuracy"], None)


def by_agreement(found: Agreement, task: str | None, reference: Transformer) -> Quality:
    """The figure that a kind of model is judged by, out of all."""
    classes = task == "labelled" or (task is None and reference.config.kind == "encoder")
    if classes:
        change = found.accuracy_change
        before = found.accuracy.value - change.value
        return Quality(
            "accuracy", found.accuracy, change, True, found.accuracy.value / before if before else 0.0
        )
    name, score, change = "loss", found.loss, found.loss_change
    if found.bits_per_byte is not None and found.bits_change is not None:
        name, score, change = "bits_per_byte", found.bits_per_byte, found.bits_change
    kept = (score.value - change.value) / score.value if score.value else 1.0
    return Quality(name, score, change, False, kept)
