"""Shards give back what was written, and refuse every file that is not as it was written."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from hasten.core.errors import DataError
from hasten.data.shards import Shard, Shards, ShardWriter, open_split

BOS, EOT = 2, 3
DOCUMENTS = st.lists(
    st.tuples(st.text(max_size=8), st.lists(st.integers(0, 99), max_size=12), st.integers(0, 2**40)),
    max_size=9,
)


def write(path, documents, vocab_size=100, source="books"):
    writer = ShardWriter(source, vocab_size, BOS, EOT)
    for name, tokens, text_bytes in documents:
        writer.add(name, tokens, text_bytes)
    writer.write(path)
    return path


@settings(max_examples=30, deadline=None)
@given(documents=DOCUMENTS, cut=st.integers(0, 9))
def test_documents_come_back_from_any_cut_into_shards(tmp_path_factory, documents, cut):
    folder = tmp_path_factory.mktemp("shards")
    shards = Shards([write(folder / "a", documents[:cut]), write(folder / "b", documents[cut:])])
    assert shards.num_documents == len(documents)
    assert shards.lengths.tolist() == [len(tokens) + 2 for _, tokens, _ in documents]
    assert shards.text_bytes.tolist() == [text_bytes for _, _, text_bytes in documents]
    assert shards.num_tokens == sum(shards.lengths)
    for number, (name, tokens, _) in enumerate(documents):
        assert shards.name(number) == name
        assert shards.ids(number).tolist() == [BOS, *tokens, EOT]


def test_a_piece_of_a_document_never_reaches_into_the_next(tmp_path):
    shards = Shards([write(tmp_path / "a", [("x", [10, 11, 12], 3), ("y", [20], 1)])])
    assert shards.ids(0, 1, 2).tolist() == [10, 11]
    assert shards.ids(0, 3, 99).tolist() == [12, EOT]
    assert shards.ids(1, 0, 99).tolist() == [BOS, 20, EOT]
    with pytest.raises(IndexError, match="document 2 of 2"):
        shards.ids(2)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_ids_are_as_narrow_as_the_vocabulary_allows(tmp_path, vocab_size, dtype):
    shard = Shard(write(tmp_path / "a", [("x", [vocab_size - 1], 1)], vocab_size))
    assert shard.tokens.dtype == dtype
    assert shard.tokens.tolist() == [BOS, vocab_size - 1, EOT]


def test_an_id_beyond_the_vocabulary_is_not_wrapped_around():
    with pytest.raises(OverflowError):
        ShardWriter("books", 65_536, BOS, EOT).add("x", [65_536], 1)


def test_a_shard_is_an_ordinary_safetensors_file_with_equal_bytes_for_equal_documents(tmp_path):
    documents = [("a.py", [1, 2], 5), ("é", [4], 2)]
    first, second = write(tmp_path / "1", documents), write(tmp_path / "2", documents)
    assert first.read_bytes() == second.read_bytes()
    assert load_file(first)["tokens"].tolist() == [BOS, 1, 2, EOT, BOS, 4, EOT]


def test_the_ids_stay_on_the_disk_until_they_are_looked_at(tmp_path):
    shard = Shard(write(tmp_path / "a", [("x", [1], 1)]))
    assert isinstance(shard.tokens.base, np.memmap)


def test_a_split_groups_shards_by_source_in_the_order_of_their_files(tmp_path):
    write(tmp_path / "code-00001.safetensors", [("second", [], 0)], source="code")
    write(tmp_path / "code-00000.safetensors", [("first", [], 0)], source="code")
    write(tmp_path / "books-00000.safetensors", [("other", [], 0)], source="books")
    split = open_split(tmp_path)
    assert list(split) == ["books", "code"]
    assert [split["code"].name(number) for number in range(2)] == ["first", "second"]


def test_a_split_without_shards_says_how_to_get_some(tmp_path):
    with pytest.raises(DataError, match="holds no shards; run `hasten prepare`"):
        open_split(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone.safetensors: cannot be read \(No such file or directory\)"):
        Shard(tmp_path / "gone.safetensors")


def test_a_shard_cut_short_anywhere_is_refused(tmp_path):
    path = write(tmp_path / "a", [("x", [1, 2, 3], 3), ("y", [], 0)])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="is damaged"):
            Shard(path)


def test_bytes_after_the_last_array_are_refused(tmp_path):
    path = write(tmp_path / "a", [("x", [1], 1)])
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match="is damaged"):
        Shard(path)


def rewrite_header(path: Path, change) -> None:
    """Let `change` edit the parsed header of the shard at `path`, and write it back."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda h: h["tokens"].update(shape=[10**9]), "tokens lies at"),
        (lambda h: h["tokens"].update(shape=[2.5]), "tokens lies at"),
        (lambda h: h["tokens"].update(data_offsets=[-8, 2]), "tokens lies at"),
        (lambda h: h["bounds"].update(dtype="F32"), "bounds of type F32"),
        (lambda h: h.pop("names"), "arrays"),
        (lambda h: h.update(more=h["names"]), "arrays"),
        (lambda h: h.pop("__metadata__"), "KeyError"),
        (lambda h: h["__metadata__"].update(hasten="[]"), "TypeError"),
        (lambda h: h["__metadata__"].update(hasten='{"version": 99}'), "version 99 instead of 1"),
        (
            lambda h: h["__metadata__"].update(
                hasten=h["__metadata__"]["hasten"].replace('"eot_id": 3', '"eot_id": 300')
            ),
            "eot_id 300",
        ),
    ],
)
def test_a_header_that_lies_is_refused_and_quoted(tmp_path, change, complaint):
    path = write(tmp_path / "a", [("x", [1], 1)])
    rewrite_header(path, change)
    with pytest.raises(DataError, match=f"is damaged: .*{complaint}"):
        Shard(path)


def test_bounds_that_fall_or_leave_the_array_are_refused(tmp_path):
    path = write(tmp_path / "a", [("x", [1], 1), ("y", [2], 1)])
    offset = path.read_bytes().index(np.array([0, 3, 6], "<u8").tobytes())
    for broken in ([0, 6, 3], [0, 7, 6], [1, 3, 6], [0, 3, 7], [0, 2**63, 6]):
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(np.array(broken, "<u8").tobytes())
        with pytest.raises(DataError, match="bounds does not rise from 0 to 6 in 2 steps"):
            Shard(path)


def test_an_interrupted_write_leaves_no_shard(tmp_path, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.safetensors", [("x", [1], 1)])
    assert not list(tmp_path.glob("*.safetensors"))
