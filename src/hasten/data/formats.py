"""Reading one file of any size in little memory: plain text, JSON lines, tables, Parquet, compressed or not.

Files come from outside, so nothing is unpacked whole: a small archive that grows without end is read
as a stream, and a row longer than `MAX_ROW_BYTES` is refused instead of held.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import zstandard

from hasten.core.errors import DataError, MissingExtraError, did_you_mean

CHUNK_BYTES = 1 << 20
PIECE_CHARACTERS = 1 << 20
MAX_ROW_BYTES = 64 << 20
BATCH_ROWS = 1024

BETWEEN = "\x1e"  # between the two sides of a pair
Row = tuple[int, str]  # its number in the file, from 1, and what was read of it as text


@dataclass
class BadLines:
    """What a row that cannot be read does: `error` raises, `skip` counts it and remembers the first few."""

    policy: Literal["error", "skip"]
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, where: str, what: str) -> None:
        """Raise, or count."""
        if self.policy == "error":
            raise DataError(f"{where}: {what}; mend the row, or write on_bad_line: skip")
        self.count += 1
        if len(self.examples) < 3:
            self.examples.append(f"{where}: {what}")


class Reader(Protocol):
    """What is read of a row."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that every row must have; None where that is for each row to say."""
        ...

    @property
    def setting(self) -> str:
        """What in the recipe says which columns are read."""
        ...

    def __call__(self, row: dict[str, Any], where: str, bad: BadLines, required: bool) -> str | None:
        """The text of a row, or None where it is bad; if `required`, that is the recipe's mistake."""
        ...


@dataclass(frozen=True)
class TextFields:
    """The text of one field, or of the two sides of a pair with BETWEEN in the middle."""

    columns: tuple[str, ...]

    @property
    def setting(self) -> str:
        """What in the recipe names the fields."""
        return "text_field: ..." if len(self.columns) == 1 else "source_field: ... and target_field: ..."

    def __call__(self, row: dict[str, Any], where: str, bad: BadLines, required: bool) -> str | None:
        """The text in a row, or None where it is bad."""
        texts = []
        for name in self.columns:
            text = field_of(row, where, name, bad, self.setting if required else None)
            if text is None:
                return None
            texts.append(text)
        return joined(texts, where, bad)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked on the way; whatever goes wrong while they are read is a `DataError`."""
    try:
        with open_any(path) as file:
            yield file
    except UnicodeDecodeError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(f"{path}: is damaged or not {path.suffix} ({error}); make it again") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check that it is a readable file"
        ) from None


def open_any(path: Path) -> io.BufferedIOBase:
    """A buffered stream of the unpacked bytes."""
    match path.suffix.lower():
        case ".gz":
            return cast(io.BufferedIOBase, gzip.open(path, "rb"))
        case ".zst":
            stream = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True)
            return io.BufferedReader(cast(io.RawIOBase, stream), CHUNK_BYTES)
        case _:
            return path.open("rb")


def text_chunks(path: Path) -> Iterator[str]:
    """A plain text file, decoded strictly, a chunk at a time."""
    decoder, lines, position = codecs.getincrementaldecoder("utf-8-sig")(), 1, 0
    with opened(path) as file:
        while True:
            data = file.read(CHUNK_BYTES)
            refuse_binary(data, path)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                line = lines + error.object[: error.start].count(b"\n")
                raise DataError(not_utf8(path, line, error)) from None
            lines, position = lines + text.count("\n"), position + len(data)
            yield text
            if not data:
                return


def refuse_binary(data: bytes, path: Path) -> None:
    """Raise where the bytes cannot be text."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
    if b"\0" in data:
        raise DataError(f"{path}: is a binary file (it holds a zero byte); give text")


def not_utf8(where: object, line: int, error: UnicodeDecodeError) -> str:
    """The message for a byte that is not UTF-8."""
    byte = error.object[error.start]
    return (
        f"{where}:{line}: is not UTF-8 (byte 0x{byte:02x}: {error.reason}); convert it, for example"
        " iconv -f WINDOWS-1252 -t UTF-8"
    )


def pieces(chunks: Iterable[str], separator: str | None) -> Iterator[str]:
    """Cut a stream of text at `separator`, and whatever is still longer than a piece at a line's end."""
    rest, reach = "", PIECE_CHARACTERS + len(separator or "")
    for chunk in chunks:
        rest += chunk
        if separator:
            *whole, rest = rest.split(separator)
            for text in whole:
                yield from short_pieces(text)
        # The last characters may be the beginning of a separator: keep more than a piece before cutting.
        while len(rest) > reach:
            end = piece_end(rest)
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def short_pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most `PIECE_CHARACTERS`; nothing for an empty one."""
    while len(text) > PIECE_CHARACTERS:
        end = piece_end(text)
        yield text[:end]
        text = text[end:]
    if text:
        yield text


def piece_end(text: str) -> int:
    """Where to cut a text that is too long: after the last line, else word, that fits."""
    for mark in "\n", " ":
        if (end := text.rfind(mark, 0, PIECE_CHARACTERS)) > 0:
            return end + 1
    return PIECE_CHARACTERS


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each line of a file, none longer than `MAX_ROW_BYTES`."""
    with opened(path) as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                raise DataError(
                    f"{path}:{number}: is longer than {MAX_ROW_BYTES >> 20} MiB; cut it into rows"
                )
            if number == 1:
                refuse_binary(line[:CHUNK_BYTES], path)
                line = line.removeprefix(codecs.BOM_UTF8)
            yield number, line


def jsonl_rows(path: Path, read: Reader, bad: BadLines) -> Iterator[Row]:
    """What is read of each line's object; blank lines are allowed."""
    seen = False
    for number, line in raw_lines(path):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except UnicodeDecodeError as error:
            bad.note(where, f"is not UTF-8 (byte 0x{error.object[error.start]:02x})")
            continue
        except (ValueError, RecursionError) as error:
            bad.note(where, f"is not JSON ({error})")
            continue
        if not isinstance(row, dict):
            wanted = f"an object with a field '{read.columns[0]}'" if read.columns else "an object"
            bad.note(where, f"holds {type(row).__name__} instead of {wanted}")
            continue
        text = read(row, where, bad, not seen)
        if text is not None:
            seen = True
            yield number, text


def joined(texts: Sequence[str], where: str, bad: BadLines) -> str | None:
    """One text of all fields of a row, or None where it would not come apart again."""
    if len(texts) > 1 and any(BETWEEN in text for text in texts):
        bad.note(where, "holds the control character U+001E, which stands between the sides of a pair")
        return None
    return BETWEEN.join(texts)


def field_of(row: dict[str, Any], where: str, field: str, bad: BadLines, setting: str | None) -> str | None:
    """The text of one field, or None where it is bad; with `setting`, a missing field is an error at once."""
    if field not in row:
        known = [str(name) for name in row]
        what = f"has no field '{field}'.{did_you_mean(field, known)} It has {', '.join(known) or 'none'}"
        if setting:
            raise DataError(f"{where}: {what}; write {setting}")
        bad.note(where, what)
        return None
    text = row[field]
    if not isinstance(text, str):
        bad.note(where, f"field '{field}' holds {type(text).__name__} instead of text")
        return None
    if not is_unicode(text):
        bad.note(where, f"field '{field}' holds half a surrogate pair, which is no character")
        return None
    return text


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: JSON's escapes can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_of_rows(rows: Iterable[dict[str, Any]], where: str, read: Reader, bad: BadLines) -> Iterator[Row]:
    """What is read of each row of a data set."""
    seen = False
    for number, row in enumerate(rows, 1):
        text = read(row, f"{where}:{number}", bad, not seen)
        if text is not None:
            seen = True
            yield number, text


def csv_rows(path: Path, read: Reader, bad: BadLines) -> Iterator[Row]:
    """Columns of a table with one header line: .csv with quotes, .tsv with tabs and no quotes."""
    csv.field_size_limit(MAX_ROW_BYTES)
    tabs = ".tsv" in path.suffixes
    reader = csv.reader(
        decoded_lines(path),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] | None = None
    seen = False
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            bad.note(f"{path}:{number}", f"is not a row of the table ({error})")
            continue
        if cells is None:
            return
        if header is None:
            header = header_with(cells, read, path)
        elif cells and len(cells) != len(header):
            bad.note(f"{path}:{number}", f"has {len(cells)} cells instead of {len(header)}")
        elif cells:
            text = read(dict(zip(header, cells, strict=True)), f"{path}:{number}", bad, not seen)
            if text is not None:
                seen = True
                yield number, text


def header_with(cells: list[str], read: Reader, path: Path) -> list[str]:
    """The header line, which must name the columns, each once."""
    for name in read.columns or ():
        if name not in cells:
            raise DataError(
                f"{path}: has no column '{name}'.{did_you_mean(name, cells)} It has {', '.join(cells)};"
                f" write {read.setting}"
            )
    return cells


def decoded_lines(path: Path) -> Iterator[str]:
    """The lines of a table as text."""
    for number, line in raw_lines(path):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise DataError(not_utf8(path, number, error)) from None


def parquet_rows(path: Path, read: Reader, bad: BadLines) -> Iterator[Row]:
    """Columns of a Parquet file, read some rows at a time."""
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415  an optional package
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"{path}: reading Parquet") from None
    try:
        with parquet.ParquetFile(path) as file:
            header_with(file.schema_arrow.names, read, path)
            batches = file.iter_batches(BATCH_ROWS, columns=[*read.columns] if read.columns else None)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from text_of_rows(rows, str(path), read, bad)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: is damaged or not Parquet ({error}); make it again") from None
