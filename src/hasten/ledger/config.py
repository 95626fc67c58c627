"""What a recipe says about `hasten bench`."""

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from hasten.core.config import Config
from hasten.report.frame import Language


class BenchConfig(Config):
    """Which techniques are measured, and for how long."""

    output: Path = Field(Path("runs/bench"), description="folder of ledger.json and ledger.html")
    minutes: PositiveFloat = Field(10.0, description="for everything; each arm runs at least once")
    repeats: PositiveInt = Field(3, description="rounds of all arms in turn, as far as the time allows")
    techniques: tuple[str, ...] | None = Field(None, description="names from the table; null: all of them")
    staircase: bool = Field(
        False, description="also begin with none of them and add one at a time, each on top of the last"
    )
    lang: Language = Field("en", description="en or zh; the page can be switched")
