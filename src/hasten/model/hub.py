"""Models of the Hugging Face hub by name: the files that hasten reads, fetched once into the hub's cache."""

import re
from pathlib import Path

from hasten.core.errors import CheckpointError, MissingExtraError

READ = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja")
PICKLES = ("*.bin", "*.bin.index.json")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
ANSWER_SECONDS = 10.0


def is_hub_name(name: str) -> bool:
    """Whether `name` is spelt as the hub spells models: `owner/name`."""
    return NAME.fullmatch(name) is not None and ".." not in name


def fetch(name: str, revision: str | None = None, pickle: bool = False) -> Path:
    """The folder with the files of a model of the hub, from its cache where they are there already.

    Only weights, JSON, text and templates are fetched, from the repository's top folder: never a program.
    """
    try:
        from huggingface_hub import errors, snapshot_download  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError("huggingface_hub", "hub", f"fetching {name}") from None
    where = f"{name} of the hub"
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=[*READ, *(PICKLES if pickle else ())],
            ignore_patterns=["*/*"],
            etag_timeout=ANSWER_SECONDS,
        )
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{where} asks for consent: give it on its page, then `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{where}: there is none, or it is private; correct the name") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{where}: has no revision {revision!r}; correct it or leave it out") from None
    except errors.HFValidationError as error:
        raise CheckpointError(f"{where}: is no name of the hub ({error})") from None
    except Exception as error:  # whatever the network raises, and there are many
        kind = type(error).__name__
        raise CheckpointError(
            f"{where} cannot be fetched ({kind}; is there a network?) and is not in the cache; fetch it on"
            " another machine and give its folder: hasten import path/to/folder"
        ) from None
    return Path(folder)
