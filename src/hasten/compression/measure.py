"""What each model of a chain is beside the original: size, memory and speed on this machine, quality."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hasten.compression.chain import Link
from hasten.compression.config import ORIGINAL
from hasten.compression.footprint import Footprint, footprint
from hasten.compression.material import Material
from hasten.compression.original import Original, bytes_of
from hasten.compression.record import Measured, Quality
from hasten.compression.speed import Load, Race, Times, race, speed_of
from hasten.evaluate.agreement import Agreement, Estimate
from hasten.model.compressed import tensors_of
from hasten.model.quantized import quantized_weights
from hasten.model.transformer import Transformer


@dataclass
class Measures:
    """Measures models against one original, which is loaded once."""

    original: Original
    turns: list[Times] = field(default_factory=list)  # of the original, in all races
    unit: str = "tokens"

    def __post_init__(self) -> None:
        self.reference = self.original.load()
        asked, evaluate = self.original.config.measure, self.original.recipe.evaluate
        self.load = Load(asked.prompt_tokens, asked.new_tokens, evaluate.bf16(self.reference))
        scores = self.reference.config.head != "none"
        self.material = Material(self.original, asked.split) if scores and self.original.has_text else None

    def of_link(self, link: Link, words: str) -> Measured:
        """All figures of one model of the chain."""
        model = self.original.load(link.folder)
        found = self.race(model)
        quality, agreement = self.judged(model)
        return Measured(
            name=link.name,
            folder=str(link.folder),
            key=link.key,
            words=words,
            bytes=bytes_of(link.folder),
            **counts(model),
            speed=speed_of(found.model, found.unit),
            speedup=found.speedup(1),
            reading_speedup=found.speedup(0),
            memory=self.footprint(link),
            quality=quality,
            agreement=agreement,
        )

    def of_original(self, measured: Sequence[Measured]) -> Measured:
        """The figures of the original, which took part in the races of the others."""
        original = self.original
        return Measured(
            name=ORIGINAL,
            folder=str(original.folder),
            key=original.key,
            words="",
            bytes=bytes_of(original.folder),
            **counts(self.reference),
            speed=speed_of(self.turns, self.unit) if self.turns else None,
            speedup=None,
            reading_speedup=None,
            memory=self.footprint(None),
            quality=next((before(each.quality) for each in measured if each.quality), None),
            agreement=None,
        )

    def race(self, model: Transformer) -> Race:
        """The rounds of a model and the original."""
        found = race(self.reference, model, self.load, self.original.config.measure.seconds)
        self.turns += found.reference
        self.unit = found.unit
        return found

    def judged(self, model: Transformer) -> tuple[Quality | None, Agreement | None]:
        """Quality and agreement, where there is text."""
        return (None, None) if self.material is None else self.material.judged(self.reference, model)

    def footprint(self, link: Link | None) -> Footprint | None:
        """Peak memory in a process of its own, where that is asked."""
        if not self.original.config.measure.memory:
            return None
        folder = link.folder if link else self.original.folder
        return footprint(folder, self.original.recipe.device, self.load)


def before(quality: Quality) -> Quality:
    """The original's quality, out of that of a model beside it."""
    assert quality.change is not None
    score = Estimate(quality.score.value - quality.change.value, quality.score.interval)
    return Quality(quality.name, score, None, quality.higher_is_better, 1.0)


@torch.no_grad()
def counts(model: Transformer) -> dict[str, Any]:
    """Numbers that a model is made of, however they are kept, and the share of zeros in its matrices."""
    packed = dict(quantized_weights(model))
    plain = {
        name: tensor for name, tensor in tensors_of(model).items() if name.rpartition(".")[0] not in packed
    }
    integers = sum(layer.shape[0] * layer.shape[1] for layer in packed.values())
    biases = sum(
        bias.numel() for layer in packed.values() if (bias := getattr(layer, "bias", None)) is not None
    )
    matrices = [tensor for tensor in plain.values() if tensor.dim() == 2]
    zeros = sum(int((tensor == 0).sum()) for tensor in matrices)
    numbers = sum(tensor.numel() for tensor in plain.values())
    return {
        "parameters": numbers + integers + biases,
        "zeros": zeros / max(sum(tensor.numel() for tensor in matrices), 1),
    }
