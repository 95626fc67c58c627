"""What can go wrong, in words a user can act on.

    HastenError              anything the user can mend; the command line prints it and exits with 2
    ├── ConfigError          a recipe or an override
    ├── DataError            a source, a shard, a tokenizer file
    ├── CheckpointError      a checkpoint's folder
    ├── MissingExtraError    an optional package that is not installed
    ├── LostContactError     another process of the training is gone; exits with 75: start again
    └── ProcessesError       the processes of a training failed too often; exits with 1

A message says where, what, and what to write instead, in one sentence.  Mistakes of our own are
`assert`s and tracebacks.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class HastenError(Exception):
    """Base of all errors that are the user's to mend; `exit_code` is what the process then ends with."""

    exit_code = 2


class ConfigError(HastenError):
    """A recipe or an override cannot work."""


class DataError(HastenError):
    """A source, a shard or a tokenizer file cannot be used."""


class CheckpointError(HastenError):
    """A checkpoint is missing, damaged, or belongs to something else."""


class MissingExtraError(HastenError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: pip install 'hasten[{extra}]'")


class LostContactError(HastenError):
    """Another process of the training is gone or silent: nothing to mend here, start all of them again."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class ProcessesError(HastenError):
    """The processes of a training ended badly, and starting them again does not help."""

    exit_code = 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did_you_mean("stpes", ["steps", "seed"])` -> `" Did you mean 'steps'?"`, or an empty string."""
    close = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
