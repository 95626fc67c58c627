"""What a run remembers beside weights and optimizer: JSON in a checkpoint."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hasten.core.errors import CheckpointError

ORDER = ("batch_rows", "row_tokens", "seed")
"""What the order of the data depends on."""


@dataclass
class State:
    """Where a run stands after `step` steps."""

    batch_rows: int
    row_tokens: int
    seed: int
    micro_rows: int
    step: int = 0
    data_step: int = 0  # which batch comes next: as `step`, or further on where bad data was left behind
    elapsed: float = 0.0
    skips: int = 0  # steps in a row, up to now, that changed nothing because they were not finite
    skipped: int = 0  # all such steps
    rollbacks: int = 0
    finished: float | None = None  # the horizon's total, once it was reached
    validation: dict[str, float] = field(default_factory=dict)  # the last figures
    figure: float | None = None  # what was last judged by (`TrainConfig.metric`), the lower the better
    figured: int = -1  # the step of this figure
    best: float | None = None  # the least figure of all
    worse: int = 0  # looks in a row, up to now, that had none better
    window: dict[str, Any] = field(default_factory=dict)
    cadences: dict[str, dict[str, Any]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)  # seconds of a save and of each look
    times: dict[str, float] = field(default_factory=dict)  # seconds of each part of the run (train/times.py)

    def judge(self, figure: float) -> None:
        """Note what the run is judged by, the lower the better."""
        self.figure, self.figured = figure, self.step
        if self.best is None or figure < self.best:
            self.best, self.worse = figure, 0
        else:
            self.worse += 1

    @property
    def judged(self) -> float | None:
        """The figure of the weights as they are now; None where nobody has looked since."""
        return self.figure if self.figured == self.step else None

    def to_json(self) -> dict[str, Any]:
        """What `from_json` needs."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any], wanted: "State", where: Path) -> "State":
        """The saved state, refused where the data would come in another order than it did so far."""
        known = {f.name for f in fields(cls)}
        if set(saved) != known:
            name = min(set(saved) ^ known)
            raise CheckpointError(f"{where}: its state and this version differ in '{name}'; begin a new run")
        for name in ORDER:
            then, now = saved[name], getattr(wanted, name)
            if then != now:
                raise CheckpointError(
                    f"{where}: the run began with {name.replace('_', ' ')} {then} and the recipe now gives"
                    f" {now}; put it back, or begin in a new folder"
                )
        return cls(**saved)
