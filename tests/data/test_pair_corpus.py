"""Packed pairs as batches: each pair whole and once an epoch, the same whoever asks and whenever."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import DataError
from hasten.data.pair_corpus import PairCorpus
from hasten.data.shards import ShardWriter

EOT, START, PAD = 0, 1, 2
Pair = tuple[tuple[int, ...], tuple[int, ...]]


def write(folder: Path, lengths: list[tuple[int, int]], name: str = "talk", lowest: int = 10) -> list[Pair]:
    """Shards of pairs in which no token comes twice; three pairs a shard, so that there are several."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    tokens = iter(range(lowest, 60_000))
    pairs = [(tuple(islice(tokens, s)), tuple(islice(tokens, t))) for s, t in lengths]
    for first in range(0, len(pairs), 3):
        writer = ShardWriter(name, 60_000, bos_id=EOT, eot_id=EOT)
        for number, pair in enumerate(pairs[first : first + 3], first):
            for side in pair:
                writer.add(f"{name}:{number}", np.array(side, np.int64), len(side))
        writer.write(folder / "train" / f"{name}-{first:05}.safetensors")
    return pairs


LENGTHS = [
    (3, 5),
    (6, 2),
    (1, 1),
    (3, 5),
    (4, 4),
    (3, 5),
    (9, 7),
    (2, 3),
    (5, 5),
    (3, 5),
    (7, 6),
    (1, 9),
    (3, 5),
]


def corpus(folder: Path, seed: int = 0, **fields: object) -> PairCorpus:
    given = {"source_tokens": 12, "start_id": START, "pad_id": PAD, **fields}
    return PairCorpus(folder, "train", 14, seed, **given)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Pair]]:
    folder = tmp_path_factory.mktemp("pairs") / "prepared"
    return folder, write(folder, LENGTHS)


def read_back(batch: Batch) -> list[Pair]:
    """The pairs in a batch, after checking how each of them stands there."""
    found, extra = [], batch.extra
    for row in range(len(batch.tokens)):
        for segment in range(1, int(batch.segments[row].max()) + 1):
            here, there = batch.segments[row] == segment, extra["source_segments"][row] == segment
            tokens, targets = batch.tokens[row][here].tolist(), batch.targets[row][here].tolist()
            source = extra["source"][row][there].tolist()
            assert tokens == [START, *targets[:-1]] and targets[-1] == EOT == source[-1]
            assert batch.positions[row][here].tolist() == list(range(len(tokens)))
            assert extra["source_positions"][row][there].tolist() == list(range(len(source)))
            found.append((tuple(source[:-1]), tuple(targets[:-1])))
    empty = batch.segments == 0
    assert (batch.targets[empty] == IGNORE).all() and (batch.targets[~empty] != IGNORE).all()
    assert (batch.tokens[empty] == PAD).all() and (
        extra["source"][extra["source_segments"] == 0] == PAD
    ).all()
    return found


def test_an_epoch_reads_every_pair_once_and_whole(prepared):
    folder, pairs = prepared
    rows = corpus(folder)
    batches = [batch for step in range(rows.num_rows) for batch in rows.batches(step, rows=1, micro_rows=1)]
    assert sorted(pair for batch in batches for pair in read_back(batch)) == sorted(pairs)
    assert {batch.tokens.shape for batch in batches} == {(1, 14)}
    assert {batch.extra["source"].shape for batch in batches} == {(1, 12)}
    assert rows.num_tokens == sum(len(target) + 1 for _, target in pairs)
    everything = sum(len(s) + len(t) + 2 for s, t in pairs)
    assert rows.utilisation == pytest.approx(everything / (rows.num_rows * 26))


def epoch(rows: PairCorpus, number: int) -> list[list[Pair]]:
    start = number * rows.num_rows
    steps = range(start, start + rows.num_rows)
    return [read_back(rows.batches(step, rows=1, micro_rows=1)[0]) for step in steps]


def test_other_pairs_meet_in_every_epoch(prepared):
    folder, pairs = prepared
    rows = corpus(folder)
    epochs = [{frozenset(row) for row in epoch(rows, number)} for number in range(4)]
    assert all(sorted(pair for row in rows for pair in row) == sorted(pairs) for rows in epochs)
    assert len({frozenset(rows) for rows in epochs}) > 1


def same(one: Batch, other: Batch) -> bool:
    tensors = [[b.tokens, b.targets, b.segments, b.positions, *b.extra.values()] for b in (one, other)]
    return one.documents == other.documents and all(map(torch.equal, *tensors))


def test_ranks_together_read_what_one_would_and_a_resumed_run_goes_on(prepared):
    folder, _ = prepared
    whole = corpus(folder, seed=3)
    for step in (0, 1, 5):
        alone = whole.batches(step, rows=4, micro_rows=1)
        later = corpus(folder, seed=3)  # as after a resume: nothing before was asked for
        ranks = [
            b for rank in (0, 1) for b in later.batches(step, rows=4, micro_rows=1, rank=rank, world_size=2)
        ]
        assert all(map(same, alone, ranks))


def test_a_sweep_reads_all_rows_in_equal_shapes(prepared):
    folder, pairs = prepared
    batches = list(corpus(folder).sweep(3))
    assert sorted(pair for batch in batches for pair in read_back(batch)) == sorted(pairs)
    assert {batch.tokens.shape for batch in batches} == {(3, 14)}


def test_sources_take_turns_by_weight_and_each_reads_its_pairs_once_before_it_begins_again(tmp_path):
    first, second = write(tmp_path / "p", LENGTHS, "a"), write(tmp_path / "p", LENGTHS[:6], "b", 5000)
    rows = corpus(tmp_path / "p", weights={"a": 1, "b": 1})
    sizes = [stream.rows.num_rows for stream in rows.pair_streams]
    seen = [
        pair
        for step in range(4 * max(sizes))
        for pair in read_back(rows.batches(step, rows=1, micro_rows=1)[0])
    ]
    mine = [pair for pair in seen if pair in set(first)]
    assert sorted(mine[: len(first)]) == sorted(first)
    assert set(second) <= set(seen)


def test_a_pair_longer_than_a_row_is_an_error_that_says_what_to_change_or_is_counted(prepared, capsys):
    folder, pairs = prepared
    with pytest.raises(
        DataError, match=r"1 of 13 pairs of talk are longer than a row of 9 source and 14 target"
    ):
        corpus(folder, source_tokens=9)
    rows = corpus(folder, source_tokens=9, too_long="drop")
    assert rows.too_long_pairs == 1
    assert "1 pairs are longer than a row and left out; raise data.row_tokens" in capsys.readouterr().out
    read = sorted(pair for row in epoch(rows, 0) for pair in row)
    assert read == sorted(pair for pair in pairs if len(pair[0]) < 9)


def test_text_is_no_pairs(tmp_path):
    (tmp_path / "text" / "train").mkdir(parents=True)
    writer = ShardWriter("text", 100, bos_id=EOT, eot_id=EOT)
    writer.add("one", np.array([5, 6, 7]), 3)
    writer.write(tmp_path / "text" / "train" / "text-00000.safetensors")
    with pytest.raises(DataError, match="holds no pairs"):
        corpus(tmp_path / "text")
