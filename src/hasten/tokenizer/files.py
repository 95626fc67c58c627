"""Tokenizer files from anywhere: sizes bounded, every fault a DataError that names the file."""

import gzip
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, pre_tokenizers

from hasten.core.errors import DataError
from hasten.core.foreign import mapping

FILE, ROLES_FILE = "tokenizer.json", "tokenizer_config.json"
SPECIAL_FILE, GENERATION_FILE = "special_tokens_map.json", "generation_config.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_FILE_BYTES = 1 << 28  # the largest published tokenizer.json are about 35 MB
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Cut text where `pattern` says, then write each piece's bytes in GPT-2's alphabet."""
    parts = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(parts)


def find(folder: Path, name: str) -> Path | None:
    """`name` or `name.gz` in `folder`."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_text(file: Path) -> str:
    """The text of a file of bounded size, gunzipped if its name ends so."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        try:
            data = stream.read(MAX_FILE_BYTES + 1)
        except (OSError, EOFError) as error:
            raise DataError(f"{file}: cannot be read ({error}); fetch it again") from None
    if len(data) > MAX_FILE_BYTES:
        raise DataError(
            f"{file}: is larger than {MAX_FILE_BYTES:,} bytes and no tokenizer file; give another"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{file}: is not UTF-8 text; give a {FILE} of the tokenizers library") from None


def parse(text: str, file: Path) -> tokenizers.Tokenizer:
    """A tokenizer from JSON text; `file` is for the complaint."""
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as error:  # a panic in the library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise DataError(f"{file}: is not a {FILE} of the tokenizers library ({error})") from None


def read_settings(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file beside a tokenizer, {} without the file."""
    if not file.exists():
        return {}
    return mapping(read_text(file).encode(), str(file), DataError)


def read_spellings(folder: Path) -> dict[str, str]:
    """How a folder spells its special tokens: {"bos_token": "<s>", ...}; {} where it does not say.

    `tokenizer_config.json` has the last word, before the older `special_tokens_map.json`.
    """
    spelled: dict[str, str] = {}
    for name in (SPECIAL_FILE, ROLES_FILE):
        for role, entry in read_settings(folder / name).items():
            word = entry.get("content") if isinstance(entry, dict) else entry
            if role in ROLES and isinstance(word, str):
                spelled[role] = word
    return spelled


def read_ends(folder: Path, vocab_size: int) -> frozenset[int]:
    """All ids that end a text by `generation_config.json`: a chat model has one for an answer's end, too."""
    file = folder / GENERATION_FILE
    ends = read_settings(file).get("eos_token_id")
    ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    for id in ids:
        if type(id) is not int or not 0 <= id < vocab_size:
            raise DataError(
                f"{file}: ends texts with the token {str(id)[:40]}, which the tokenizer of {vocab_size:,}"
                " does not have; correct eos_token_id"
            )
    return frozenset(ids)
