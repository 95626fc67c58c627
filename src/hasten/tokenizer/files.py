"""Tokenizer files from anywhere: sizes bounded, every fault a DataError that names the file."""

import gzip
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from hasten.core.errors import DataError

FILE, ROLES_FILE = "tokenizer.json", "tokenizer_config.json"
MAX_FILE_BYTES = 1 << 28  # the largest published tokenizer.json are about 35 MB
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Cut text where `pattern` says, then write each piece's bytes in GPT-2's alphabet."""
    parts = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(parts)


def load_gpt2(folder: Path) -> tokenizers.Tokenizer:
    """GPT-2's two files as a tokenizer."""
    vocab_file, merges_file = find(folder, "vocab.json"), find(folder, "merges.txt")
    if vocab_file is None or merges_file is None:
        raise DataError(f"{folder}: has vocab.json but no merges.txt; put both files there")
    lines = read_text(merges_file).splitlines()
    merges: Any = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    try:
        vocab = json.loads(read_text(vocab_file))
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:
        raise DataError(f"{folder}: vocab.json and merges.txt do not make a tokenizer ({error})") from None
    inner.pre_tokenizer, inner.decoder = byte_level(GPT2_PATTERN), decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return inner


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


def read_roles(file: Path) -> dict[str, str]:
    """The spellings of special roles in a Hugging Face `tokenizer_config.json`, {} without the file."""
    if not file.exists():
        return {}
    try:
        config: dict[str, Any] = json.loads(read_text(file))
        entries = {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token")}
        spelled = {name: e["content"] if isinstance(e, dict) else e for name, e in entries.items()}
    except (ValueError, AttributeError, KeyError, RecursionError):
        raise DataError(f"{file}: is not the JSON of a tokenizer's roles; correct or remove it") from None
    return {name: value for name, value in spelled.items() if isinstance(value, str)}
