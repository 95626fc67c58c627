"""What was trained of a model that was there before: thin pairs beside its frozen matrices."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from hasten.adapt.config import LoraConfig
from hasten.core.config import load
from hasten.core.errors import CheckpointError, ConfigError, DataError
from hasten.train.held import WEIGHTS
from hasten.train.load import AdapterNote
from hasten.train.pieces import Pieces
from hasten.train.snapshot import ADAPTER


@dataclass(frozen=True)
class Adapter:
    """Pairs of one `rank` beside the model in `base`; all that was trained are so many numbers."""

    base: Path
    adaptation: LoraConfig
    rank: int
    trained: int

    @property
    def method(self) -> str:
        """By the names of its papers: LoRA or DoRA, then what else was asked for."""
        asked = self.adaptation
        names = ["DoRA" if asked.dora else "LoRA"]
        return " · ".join([*names, *["rsLoRA"] * asked.rslora, *["NF4"] * (asked.base == "nf4")])

    @property
    def targets(self) -> str:
        """The layers that have a pair."""
        return ", ".join(self.adaptation.targets)


def read_adapter(checkpoint: Path) -> Adapter | None:
    """What a checkpoint's adapter.yaml and weights tell, None where it is a whole model.

    Raises DataError for files that are not as hasten writes them.
    """
    if not (checkpoint / ADAPTER).is_file():
        return None
    try:
        note = load(AdapterNote, checkpoint / ADAPTER)
        shapes = [shape for shape, _ in Pieces(checkpoint, WEIGHTS).layout().values()]
    except (ConfigError, CheckpointError) as error:
        raise DataError(str(error)) from None
    return Adapter(note.base, note.adaptation, note.rank, sum(map(prod, shapes)))
