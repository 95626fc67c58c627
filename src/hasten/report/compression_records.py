"""What compression.json tells of the models of a chain (`compression/record.py`)."""

from typing import Any

from hasten.report.records import Record


class Estimate(Record):
    """A figure with half of its 95% interval."""

    value: float
    interval: float | None = None


class Speed(Record):
    """Seconds until a prompt is read, and tokens or examples a second after that."""

    unit: str
    read_seconds: float
    per_second: float


class Memory(Record):
    """Bytes of the process before the model was there, and at most."""

    before: int
    peak: int


class Quality(Record):
    """The figure that a model is judged by."""

    name: str
    score: Estimate
    change: Estimate | None = None
    higher_is_better: bool = False
    kept: float


class Agreement(Record):
    """How far a model is from the original."""

    kl: Estimate
    same: Estimate


class CompressedModel(Record):
    """One model of the chain (`compression/record.py`)."""

    name: str
    folder: str
    words: str = ""
    bytes: int
    parameters: int
    zeros: float = 0.0
    speed: Speed | None = None
    speedup: Estimate | None = None
    reading_speedup: Estimate | None = None
    memory: Memory | None = None
    quality: Quality | None = None
    agreement: Agreement | None = None


class Compression(Record):
    """All of it; the first model is the original."""

    original: str
    models: tuple[CompressedModel, ...]
    target: dict[str, Any] | None = None

    @property
    def first(self) -> CompressedModel | None:
        """The original."""
        return self.models[0] if self.models else None

    @property
    def last(self) -> CompressedModel | None:
        """What the chain has come to."""
        return self.models[-1] if len(self.models) > 1 else None

    @property
    def figures(self) -> dict[str, float | None]:
        """What a summary tells of the last model."""
        last = self.last
        if last is None:
            return {}
        return {
            "compressed_bytes": last.bytes,
            "compressed_speedup": last.speedup.value if last.speedup else None,
            "compressed_quality": last.quality.kept if last.quality else None,
        }
