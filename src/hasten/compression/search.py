"""Chains for a target: the least that has to be given up for a size, a speed or a share of the quality.

First layers get fewer bits, those that mind least; only what four bits everywhere cannot reach costs whole
layers, and then those that are left get what the budget has room for.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.compress.depth import Depth
from hasten.compress.quantize import Quantize
from hasten.compression.arithmetic import coarsest, file_bytes, groups_of, layers_of, within
from hasten.compression.chain import Link, Train, take
from hasten.compression.config import Step
from hasten.compression.material import Material
from hasten.compression.measure import Measures
from hasten.compression.original import Original, bytes_of
from hasten.compression.target import Wanted
from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.fewer import all_layers, with_layers
from hasten.model.quantized import Bits
from hasten.model.transformer import Transformer

QUALITY_PROBES = 5
"""Halvings of the range of sizes in which a quality is looked for."""
Found = tuple[list[Link], dict[str, Any]]


@dataclass(frozen=True)
class Searcher:
    """A search for one target."""

    original: Original
    measures: Measures
    folder: Path
    train: Train
    wanted: Wanted

    @property
    def method(self) -> str:
        """How integers are chosen: with texts where there are some."""
        return "gptq" if self.original.has_text else "rtn"

    @property
    def model(self) -> Transformer:
        """The original."""
        return self.measures.reference

    @property
    def original_bytes(self) -> int:
        """Of the original's weights on the disk."""
        return bytes_of(self.original.folder)

    @property
    def dtype(self) -> torch.dtype:
        """The type of most of the original's numbers."""
        kinds = [kind for kind in self.original.parcel.types.values() if kind.is_floating_point]
        return max(set(kinds), key=kinds.count)

    @property
    def deepest(self) -> int:
        """How many layers can go."""
        if not self.original.has_text:
            return 0
        return min(len(layers) for layers in all_layers(self.model.config).values()) - 1

    def shape(self, gone: int) -> ModelConfig:
        """The original's shape with so many layers fewer on each side, whichever they are."""
        config = self.model.config
        stay = {side: layers[: len(layers) - gone] for side, layers in all_layers(config).items()}
        return with_layers(config, stay)

    def least(self, gone: int) -> int:
        """Bytes of four bits everywhere, once so many layers are gone."""
        return file_bytes(self.shape(gone), coarsest(self.group, self.method).quantization, self.dtype)

    @property
    def group(self) -> int | None:
        """The coarsest group that all rows have."""
        return groups_of(self.model)[0]

    def before_integers(self, gone: int) -> tuple[Step, ...]:
        """The steps that take layers away, and the training after them."""
        if not gone:
            return ()
        both = self.model.config.kind == "seq2seq"
        depth = Depth(layers=gone, encoder_layers=gone if both else None)
        recover = self.original.config.recover
        return (depth, recover) if recover else (depth,)

    def place(self, gone: int) -> Path:
        """Where the chains lie that take so many layers away."""
        return self.folder / f"depth-{gone}"

    def chain(self, gone: int, quantize: Quantize) -> list[Link]:
        """A whole chain, taken or found as it was taken before."""
        return take(self.original, (*self.before_integers(gone), quantize), self.place(gone), self.train)

    def for_bytes(self, gone: int, budget: int) -> Quantize:
        """The integers that make the most of a budget, once so many layers are gone."""
        links = take(self.original, self.before_integers(gone), self.place(gone), self.train)
        model = self.original.load(links[-1].folder) if links else self.model
        tried = []
        for group in groups_of(model):
            layers = layers_of(model, self.original.batches, group, self.dtype.itemsize)
            if self.least_of(model, group) <= budget:
                tried.append(within(model.config, layers, group, budget, self.method))
        step, size, _ = min(tried, key=lambda each: each[2])
        say(f"compress: {size:,} bytes expected of a budget of {budget:,}")
        return step

    def least_of(self, model: Transformer, group: int | None) -> int:
        """Bytes of a model in four bits everywhere."""
        return file_bytes(model.config, coarsest(group, self.method).quantization, self.dtype)

    def refuse(self, nearest: str) -> ConfigError:
        """What to say of a target beyond reach."""
        return ConfigError(
            f"compress.target {self.wanted.words} cannot be reached with this model; the nearest is {nearest}"
        )

    def by_size(self) -> Found:
        """The chain for a number of bytes."""
        budget = self.wanted.bytes_of(self.original_bytes)
        if budget >= self.original_bytes:
            raise ConfigError(
                f"compress.target {self.wanted.words} is no less than the {self.original_bytes:,} bytes that"
                " the model has; write a smaller size"
            )
        gone = next((n for n in range(self.deepest + 1) if self.least(n) <= budget), None)
        if gone is None:
            more = "" if self.original.has_text else "; with texts (data.sources=[...]) layers could go, too"
            raise self.refuse(f"size={self.least(self.deepest)}B{more}")
        links = self.chain(gone, self.for_bytes(gone, budget))
        size = bytes_of(links[-1].folder)
        return links, {"budget_bytes": budget, "bytes": size, "of_budget": size / budget}

    def by_speed(self) -> Found:
        """The chain for a speed: eight bits, then four, then as few layers less as will do."""
        trials, tried = self.folder / "speed", dict[tuple[int, Bits], float]()

        def reaches(gone: int, bits: Bits) -> bool:
            steps = (*self.before_integers(gone)[:1], self.rounded(bits))  # a training makes no model faster
            links = take(self.original, steps, trials, self.train)
            speedup = self.measures.race(self.original.load(links[-1].folder)).speedup(1).value
            say(f"compress: {gone} layers fewer in {bits} bits are {speedup:.2f} times as fast")
            tried[gone, bits] = speedup
            return speedup >= self.wanted.amount

        try:
            if not reaches(0, 8) and not reaches(0, 4) and self.deepest and reaches(self.deepest, 4):
                fewest(1, self.deepest, lambda gone: reaches(gone, 4))
        finally:
            shutil.rmtree(trials, ignore_errors=True)
        enough = [place for place, speedup in tried.items() if speedup >= self.wanted.amount]
        if not enough:
            raise self.refuse(f"speed={max(tried.values()):.2f}x")
        gone, bits = min(enough)
        quantize = self.rounded(bits).model_copy(update={"method": self.method})
        return self.chain(gone, quantize), {"speedup": tried[gone, bits], "layers_gone": gone}

    def rounded(self, bits: Bits) -> Quantize:
        """Integers of so many bits by rounding: quick, and as fast a model as any other way makes."""
        return Quantize(method="rtn", bits=bits, group_size=self.group)

    def by_quality(self) -> Found:
        """The smallest chain that keeps a share of the quality, on validation text where there is some."""
        if not self.original.has_text:
            raise ConfigError(
                f"compress.target {self.wanted.words} is judged on texts, and there are none; write"
                " data.sources=[path/to/texts]"
            )
        splits = self.original.prepared.splits
        material = Material(self.original, "validation" if "validation" in splits else "test")
        kept: dict[int, float] = {}

        def enough(gone: int, quantize: Quantize) -> bool:
            links = self.chain(gone, quantize)
            quality, _ = material.judged(self.model, self.original.load(links[-1].folder))
            size = bytes_of(links[-1].folder)
            kept[size] = quality.kept
            say(f"compress: {size:,} bytes keep {quality.kept:.2%} of the quality")
            return quality.kept >= self.wanted.amount

        four = enough(0, coarsest(self.group, self.method))
        best = self.without_layers(enough) if four else self.halved(enough)
        if best is None:
            raise self.refuse(f"quality={100 * max(kept.values()):.4g}%")
        tried = {str(size): share for size, share in kept.items()}
        return self.chain(*best), {"quality": self.wanted.amount, "tried": tried}

    def without_layers(self, enough: Callable[[int, Quantize], bool]) -> tuple[int, Quantize]:
        """The most layers that can go in four bits."""
        four = coarsest(self.group, self.method)
        gone = 0
        while gone < self.deepest and enough(gone + 1, four):
            gone += 1
        return gone, four

    def halved(self, enough: Callable[[int, Quantize], bool]) -> tuple[int, Quantize] | None:
        """The fewest bytes between four bits everywhere and the original; None where none is enough."""
        low, high, best = self.least(0), self.original_bytes, None
        for _ in range(QUALITY_PROBES):
            middle = (low + high) // 2
            quantize = self.for_bytes(0, middle)
            if enough(0, quantize):
                high, best = middle, (0, quantize)
            else:
                low = middle
        return best


def fewest(low: int, high: int, reaches: Callable[[int], bool]) -> int:
    """The least number from `low` to `high` that reaches; `high` does."""
    while low < high:
        middle = (low + high) // 2
        if reaches(middle):
            high = middle
        else:
            low = middle + 1
    return high


def search(original: Original, measures: Measures, folder: Path, train: Train) -> Found:
    """The chain for the recipe's target, taken, and what the record says of it."""
    wanted = original.config.target
    assert wanted is not None
    searcher = Searcher(original, measures, folder, train, wanted)
    found = {"size": searcher.by_size, "speed": searcher.by_speed, "quality": searcher.by_quality}[
        wanted.kind
    ]
    links, said = found()
    return links, {"asked": wanted.words, **said}
