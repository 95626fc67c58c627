"""Prepared examples: on the disk and back, and in rows that hold each whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.batch import IGNORE
from hasten.core.errors import DataError
from hasten.data.tasks.corpus import TaskCorpus
from hasten.data.tasks.protocol import Example
from hasten.data.tasks.table import Table, TableWriter, open_tables

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=40)


def example(number: int, length: int) -> Example:
    """One whose tokens tell its number, with its last target supervised and its middle a place."""
    tokens = [100 + number] * length
    targets = [IGNORE] * (length - 1) + [number]
    return Example(tokens, targets, [1] * length, {"middle": length // 2}, {"number": number})


def written(folder: Path, lengths: list[int], per_unit: int = 1, source: str = "rows") -> Path:
    """A prepared folder whose split `train` has a unit for each of so many lengths."""
    (folder / "data/train").mkdir(parents=True, exist_ok=True)
    writer = TableWriter(source, per_unit)
    for number, length in enumerate(lengths):
        unit = tuple(example(per_unit * number + which, length) for which in range(per_unit))
        writer.add(f"{source}:{number}", [unit], text_bytes=10 * length)
    writer.write(folder / f"data/train/{source}-00000.safetensors")
    return folder / "data"


def test_a_table_gives_back_what_was_written(tmp_path):
    folder = written(tmp_path, [3, 5, 1])
    table = open_tables(folder / "train")["rows"]
    assert (table.num_examples, table.num_units, table.num_bytes) == (3, 3, 90)
    assert table.lengths.tolist() == [3, 5, 1] and table.num_supervised.tolist() == [1, 1, 1]
    for number, length in enumerate([3, 5, 1]):
        tokens, targets, types = (part.tolist() for part in table.example(number))
        want = example(number, length)
        assert (tokens, targets, types) == (want.tokens, want.targets, want.types)
        assert table.name(number) == f"rows:{number}" and table.record[number] == number
    assert table.columns["place.middle"].tolist() == [1, 2, 0]
    assert table.columns["value.number"].tolist() == [0, 1, 2]
    with pytest.raises(IndexError):
        table.example(3)


def test_a_record_without_units_is_kept_and_several_tables_are_one(tmp_path):
    first, second = TableWriter("rows", 1), TableWriter("rows", 1)
    first.add("a", [(example(0, 2),), (example(1, 3),)], 5)
    first.add("b", [], 7)
    second.add("c", [(Example([7], [IGNORE]),)], 9)
    first.write(tmp_path / "rows-00000.safetensors")
    second.write(tmp_path / "rows-00001.safetensors")
    table = Table(sorted(tmp_path.glob("*.safetensors")))
    assert table.record.tolist() == [0, 0, 2] and table.num_bytes == 21
    assert [table.name(number) for number in range(3)] == ["a", "a", "c"]
    assert table.columns["place.middle"].tolist() == [1, 1, -1]
    assert table.typed


@pytest.mark.parametrize("damage", ["cut", "bounds", "records"])
def test_a_damaged_table_is_refused(tmp_path, damage):
    writer = TableWriter("rows", 1)
    writer.add("a", [(example(0, 4),)], 5)
    if damage == "records":
        writer.records[0] = 3
    path = tmp_path / "rows-00000.safetensors"
    writer.write(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    if damage == "bounds":
        data = path.read_bytes()
        where = data.index(np.array([0, 4], "<u8").tobytes())
        path.write_bytes(data[:where] + np.array([0, 5], "<u8").tobytes() + data[where + 16 :])
    with pytest.raises(DataError, match=r"rows-00000\.safetensors: is damaged"):
        open_tables(tmp_path)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, per_unit=st.sampled_from([1, 2]), seed=st.integers(0, 3))
def test_an_epoch_reads_every_unit_once_and_whole(tmp_path_factory, lengths, per_unit, seed):
    folder = written(tmp_path_factory.mktemp("tasks"), lengths, per_unit)
    corpus = TaskCorpus(folder, "train", 24, seed, pad_id=0)
    seen: list[int] = []
    for batch in corpus.batches(0, rows=corpus.num_rows, micro_rows=1):
        seen += rows_of(batch, per_unit)
    assert sorted(seen) == list(range(per_unit * len(lengths)))


def rows_of(batch, per_unit):
    """The numbers of a batch's examples; what is said of each place is checked on the way."""
    found = []
    for b, segments in enumerate(batch.segments):
        here = []
        for segment in range(1, int(segments.max()) + 1):
            places = (segments == segment).nonzero().flatten()
            length, (token,) = len(places), set(batch.tokens[b, places].tolist())
            assert places.tolist() == list(range(int(places[0]), int(places[0]) + length))
            assert batch.positions[b, places].tolist() == list(range(length))
            assert batch.targets[b, places].tolist() == [IGNORE] * (length - 1) + [token - 100]
            assert batch.extra["middle"][b, segment - 1] == int(places[0]) + length // 2
            assert batch.extra["number"][b, segment - 1] == token - 100
            assert set(batch.extra["token_types"][b, places].tolist()) == {1}
            here.append(token - 100)
        for first in here[::per_unit]:
            assert here[here.index(first) : here.index(first) + per_unit] == list(
                range(first, first + per_unit)
            )
        assert (batch.extra["number"][b, len(here) :] == -1).all()
        found += here
    places = batch.extra["scored"]
    wanted = (batch.targets.flatten() != IGNORE).nonzero().flatten().tolist()
    assert sorted(place for place in places.tolist() if batch.targets.flatten()[place] != IGNORE) == wanted
    return found


def test_epochs_differ_in_who_meets_and_not_in_shapes(tmp_path):
    corpus = TaskCorpus(written(tmp_path, [4] * 30 + [7] * 20), "train", 24, 0, pad_id=0)
    epochs = [corpus.batches(epoch, rows=corpus.num_rows, micro_rows=corpus.num_rows)[0] for epoch in (0, 1)]
    assert not torch.equal(epochs[0].tokens, epochs[1].tokens)
    assert sorted(map(tuple, epochs[0].segments.tolist())) == sorted(map(tuple, epochs[1].segments.tolist()))
    assert epochs[0].extra["scored"].shape == epochs[1].extra["scored"].shape
    again = corpus.batches(1, rows=corpus.num_rows, micro_rows=corpus.num_rows)[0]
    assert torch.equal(epochs[1].tokens, again.tokens)


def test_two_ranks_read_what_one_does(tmp_path):
    corpus = TaskCorpus(written(tmp_path, [3, 5, 8, 2] * 12), "train", 16, 0, pad_id=0)
    alone = torch.cat([batch.tokens for batch in corpus.batches(1, rows=4, micro_rows=2)])
    ranks = [corpus.batches(1, rows=4, micro_rows=2, rank=rank, world_size=2) for rank in (0, 1)]
    assert torch.equal(alone, torch.cat([batch.tokens for batches in ranks for batch in batches]))


def test_references_come_with_their_examples(tmp_path):
    corpus = TaskCorpus(written(tmp_path, [3] * 10, per_unit=2), "train", 16, 0, pad_id=0)
    corpus.refer(np.arange(20, dtype=np.float32) / 8)
    batch = corpus.batches(0, rows=corpus.num_rows, micro_rows=corpus.num_rows)[0]
    there = batch.extra["number"] >= 0
    assert torch.equal(batch.extra["reference"][there], batch.extra["number"][there] / 8)
    assert (batch.extra["reference"][~there] == 0).all()


def test_numbered_batches_name_every_example_once(tmp_path):
    written(tmp_path, [3, 4, 5] * 5, source="first")
    corpus = TaskCorpus(written(tmp_path, [2] * 7, source="second"), "train", 16, 0, pad_id=0)
    seen = []
    for numbers, batch in corpus.numbered(2):
        there = numbers >= 0
        assert np.array_equal(there, batch.extra["number"].numpy() >= 0)
        own = np.where(numbers < 15, numbers, numbers - 15)  # the second source's begin at 15
        assert np.array_equal(own[there], batch.extra["number"].numpy()[there])
        seen += numbers[there].tolist()
    assert sorted(seen) == list(range(22))


def test_a_sweep_ends_with_empty_rows_and_too_few_examples_are_refused(tmp_path):
    corpus = TaskCorpus(written(tmp_path, [8, 8, 8]), "train", 16, 0, pad_id=0)
    (batch,) = corpus.sweep(4)
    assert batch.tokens.shape == (4, 16) and (batch.segments.sum(1) > 0).sum() == corpus.num_rows == 2
    with pytest.raises(DataError, match=r"the examples make 2 rows of 16 tokens.* train.batch_tokens=32"):
        corpus.check(4, 1, 1)


def test_sources_are_mixed_by_weight_of_their_tokens(tmp_path):
    written(tmp_path, [4] * 64, source="few")
    folder = written(tmp_path, [16] * 64, source="many")
    corpus = TaskCorpus(folder, "train", 16, 0, {"few": 0.5, "many": 0.5}, pad_id=0)
    batches = [batch for step in range(8) for batch in corpus.batches(step, rows=4, micro_rows=4)]
    full = sum(int((batch.segments.max(1).values == 1).sum()) for batch in batches)
    assert full == 16
    with pytest.raises(DataError, match="weigh these and no others"):
        TaskCorpus(folder, "train", 16, 0, {"few": 1.0}, pad_id=0)
