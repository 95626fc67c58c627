"""Files of every kind give their texts, and each thing that can be wrong with one is said in a sentence."""

import gzip
import io
import json
import sys
import tracemalloc

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from hasten.core.errors import DataError, MissingExtraError
from hasten.data import formats
from hasten.data.formats import BadLines, TextFields, csv_rows, jsonl_rows, parquet_rows, pieces, text_chunks

TEXT = TextFields(("text",))


def strict():
    return BadLines("error")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(path, *rows):
    return write(path, "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.sampled_from("ab |\n"), max_size=60),
    separator=st.sampled_from([None, "|", "||", "\n\n", "a|b"]),
    chunk=st.integers(1, 9),
)
def test_cutting_text_loses_nothing_but_separators_however_it_arrives(text, separator, chunk):
    chunks = [text[start : start + chunk] for start in range(0, len(text), chunk)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "PIECE_CHARACTERS", 7)
        found = list(pieces(chunks, separator))
        whole = [part for part in (text.split(separator) if separator else [text]) if part]
        assert "".join(found) == "".join(whole)
        assert all(0 < len(piece) <= 7 + len(separator or "") for piece in found)
        if all(len(part) <= 7 for part in whole):
            assert found == whole


def test_a_long_text_is_cut_at_line_ends(monkeypatch):
    monkeypatch.setattr(formats, "PIECE_CHARACTERS", 10)
    assert list(pieces(["aaa bbb\nccc ddd\n", "eee"], None)) == ["aaa bbb\n", "ccc ddd\n", "eee"]
    assert list(pieces(["aaa bbb ccc ddd"], None)) == ["aaa bbb ", "ccc ddd"]
    assert list(pieces(["a" * 23], None)) == ["a" * 10, "a" * 10, "aaa"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_compressed_text_reads_as_plain_text(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(formats, "CHUNK_BYTES", 5)  # characters of several bytes lie across chunks
    data = "﻿Ein Bär, 一只猫 🐈\r\n".encode() * 3
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = write(tmp_path / f"a.txt{suffix}", pack(data))
    assert "".join(text_chunks(path)) == data.decode("utf-8-sig")


def test_frames_of_zstandard_and_members_of_gzip_are_read_one_after_the_other(tmp_path):
    assert (
        "".join(
            text_chunks(write(tmp_path / "a.zst", zstandard.compress(b"one ") + zstandard.compress(b"two")))
        )
        == "one two"
    )
    assert (
        "".join(text_chunks(write(tmp_path / "a.gz", gzip.compress(b"one ") + gzip.compress(b"two"))))
        == "one two"
    )


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            "a.txt",
            b"good\nbad \xff\n",
            r"a.txt:2: is not UTF-8 \(byte 0xff: invalid start byte\); convert it",
        ),
        ("a.txt", b"cut \xe4\xb8", r"a.txt:1: is not UTF-8 \(byte 0xe4: unexpected end of data\)"),
        ("a.txt", b"PK\x03\x04\0\0", r"a.txt: is a binary file \(it holds a zero byte\); give text"),
        ("a.txt", "text".encode("utf-16"), "a.txt: is UTF-16; convert it: iconv -f UTF-16 -t UTF-8"),
        ("a.txt.gz", b"plain text", r"a.txt.gz: is damaged or not .gz \(Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "a.txt.gz: is damaged or not .gz"),
        ("a.txt.zst", b"plain text", "a.txt.zst: is damaged or not .zst"),
    ],
)
def test_a_file_that_is_not_text_is_refused(tmp_path, name, content, complaint):
    with pytest.raises(DataError, match=complaint):
        list(text_chunks(write(tmp_path / name, content)))


def test_the_line_of_broken_utf8_is_counted_over_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "CHUNK_BYTES", 4)
    with pytest.raises(DataError, match=r"a\.txt:4: is not UTF-8"):
        list(text_chunks(write(tmp_path / "a.txt", b"one\ntwo\nthree\nfo\xffur\n")))


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone.txt: cannot be read \(No such file or directory\)"):
        list(text_chunks(tmp_path / "gone.txt"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_archive_that_grows_without_end_is_streamed(tmp_path, suffix):
    """64 MiB of spaces in a few kilobytes: what is held stays a few pieces."""
    path = tmp_path / f"bomb.txt{suffix}"
    opener = gzip.open if suffix == ".gz" else zstandard.open
    with opener(path, "wb") as file:
        for _ in range(64):
            file.write(b" " * (1 << 20))
    tracemalloc.start()
    try:
        assert sum(len(piece) for piece in pieces(text_chunks(path), None)) == 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_row_without_end_is_refused_and_not_held(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(formats, "MAX_ROW_BYTES", 1 << 20)
    path = tmp_path / f"bomb.jsonl{suffix}"
    opener = gzip.open if suffix == ".gz" else zstandard.open
    with opener(path, "wb") as file:
        file.write(b'{"text": "a"}\n{"text": "' + b"x" * (4 << 20))
    with pytest.raises(DataError, match=f"bomb.jsonl{suffix}:2: is longer than 1 MiB; cut it into rows"):
        list(jsonl_rows(path, TEXT, strict()))


def test_json_lines_give_a_field_with_its_line(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl", {"text": "one", "id": 7}, "\n", {"text": "two\u2028lines\nhere"}, {"text": ""}
    )
    assert list(jsonl_rows(path, TEXT, strict())) == [(1, "one"), (3, "two\u2028lines\nhere"), (4, "")]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"text": "cut\n', r"a.jsonl:2: is not JSON \(.*\); mend the row, or write on_bad_line: skip"),
        ("[1, 2]\n", "a.jsonl:2: holds list instead of an object with a field 'text'"),
        ('{"text": 5}\n', "a.jsonl:2: field 'text' holds int instead of text"),
        ('{"text": null}\n', "a.jsonl:2: field 'text' holds NoneType instead of text"),
        ('{"other": "a"}\n', "a.jsonl:2: has no field 'text'. It has other"),
        ('{"text": "\\ud83d"}\n', "a.jsonl:2: field 'text' holds half a surrogate pair"),
        ("[" * 100_000 + "\n", r"a.jsonl:2: is not JSON \("),
    ],
)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, row, complaint):
    path = jsonl(tmp_path / "a.jsonl", {"text": "one"}, row, {"text": "three"})
    with pytest.raises(DataError, match=complaint):
        list(jsonl_rows(path, TEXT, strict()))
    bad = BadLines("skip")
    assert list(jsonl_rows(path, TEXT, bad)) == [(1, "one"), (3, "three")]
    assert bad.count == 1
    assert bad.examples[0].startswith(f"{path}:2: ")


def test_a_row_of_broken_utf8_is_a_bad_row(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:2: is not UTF-8 \(byte 0xff\)"):
        list(jsonl_rows(path, TEXT, strict()))
    assert list(jsonl_rows(path, TEXT, BadLines("skip"))) == [(1, "one")]


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_field_that_the_first_row_lacks_is_a_mistake_of_the_recipe(tmp_path, policy):
    path = jsonl(tmp_path / "a.jsonl", {"texts": "one", "id": 1})
    with pytest.raises(
        DataError,
        match=r"a.jsonl:1: has no field 'text'. Did you mean 'texts'\? It has texts, id; write text_field",
    ):
        list(jsonl_rows(path, TEXT, BadLines(policy)))


def test_tables_give_a_column(tmp_path):
    path = write(tmp_path / "a.csv", 'id,text\r\n1,"a, ""quoted""\nline"\r\n2,b\r\n')
    assert list(csv_rows(path, TEXT, strict())) == [(2, 'a, "quoted"\nline'), (4, "b")]
    path = write(tmp_path / "a.tsv", "text\tid\nit's 5\" long\t1\n")
    assert list(csv_rows(path, TEXT, strict())) == [(2, "it's 5\" long")]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("1,2,3\n", "a.csv:3: has 3 cells instead of 2; mend the row"),
        ('"a"b,c\n', r"a.csv:3: is not a row of the table \('," + r"' expected after '\"'\)"),
    ],
)
def test_a_bad_row_of_a_table_is_named_or_skipped_and_counted(tmp_path, row, complaint):
    path = write(tmp_path / "a.csv", f"id,text\n1,one\n{row}3,three\n")
    with pytest.raises(DataError, match=complaint):
        list(csv_rows(path, TEXT, strict()))
    bad = BadLines("skip")
    assert list(csv_rows(path, TEXT, bad)) == [(2, "one"), (4, "three")]
    assert bad.count == 1


def test_a_missing_column_has_its_near_match(tmp_path):
    path = write(tmp_path / "a.csv", "id,txet\n1,one\n")
    complaint = r"a.csv: has no column 'text'. Did you mean 'txet'\? It has id, txet; write text_field: ..."
    with pytest.raises(DataError, match=complaint):
        list(csv_rows(path, TEXT, strict()))
    parquet.write_table(pyarrow.table({"id": [1], "txet": ["one"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=complaint.replace("csv", "parquet")):
        list(parquet_rows(tmp_path / "a.parquet", TEXT, strict()))


def test_broken_utf8_in_a_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv:2: is not UTF-8"):
        list(csv_rows(write(tmp_path / "a.csv", b"text\n\xff\n"), TEXT, strict()))


def test_parquet_gives_a_column_over_row_groups(tmp_path):
    texts = [f"text {number}" for number in range(50)]
    parquet.write_table(
        pyarrow.table({"text": texts, "n": list(range(50))}), tmp_path / "a.parquet", row_group_size=7
    )
    assert list(parquet_rows(tmp_path / "a.parquet", TEXT, strict())) == list(enumerate(texts, 1))


def test_an_empty_cell_of_parquet_is_a_bad_row(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet:2: field 'text' holds NoneType instead of text"):
        list(parquet_rows(tmp_path / "a.parquet", TEXT, strict()))
    assert list(parquet_rows(tmp_path / "a.parquet", TEXT, BadLines("skip"))) == [(1, "a"), (3, "b")]


def test_a_damaged_parquet_file_is_named(tmp_path):
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["a"]}), stream)
    for broken in (b"", b"PAR1", stream.getvalue()[:-20]):
        with pytest.raises(DataError, match=r"a\.parquet: is damaged or not Parquet"):
            list(parquet_rows(write(tmp_path / "a.parquet", broken), TEXT, strict()))


def test_without_pyarrow_parquet_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingExtraError, match=r"a.parquet: reading Parquet needs .*pip install 'hasten\[parquet\]'"
    ):
        list(parquet_rows(tmp_path / "a.parquet", TEXT, strict()))
