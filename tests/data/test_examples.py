"""Pieces to tokens and targets."""

import numpy as np
import torch

from hasten.core.batch import IGNORE
from hasten.data.examples import language_model


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint16)


def test_pieces_stand_side_by_side_each_with_its_next_tokens_segment_and_positions():
    batch = language_model([[ids(1, 2, 3, 4), ids(5, 6, 7)], [ids(8, 9)]], 6, pad_id=0, documents=("a", "b"))
    assert batch.tokens.tolist() == [[1, 2, 3, 5, 6, 0], [8, 0, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[2, 3, 4, 6, 7, IGNORE], [9] + [IGNORE] * 5]
    assert batch.segments is not None
    assert batch.positions is not None
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0] * 6]
    assert batch.documents == ("a", "b")
    assert {t.dtype for t in (batch.tokens, batch.targets, batch.segments, batch.positions)} == {torch.int64}


def test_rows_of_one_full_piece_each_need_no_segments():
    batch = language_model([[ids(1, 2, 3)], [ids(4, 5, 65_535)]], 2, pad_id=0)
    assert batch.tokens.tolist() == [[1, 2], [4, 5]]
    assert batch.targets.tolist() == [[2, 3], [5, 65_535]]
    assert batch.segments is None
    assert batch.positions is None


def test_one_row_with_padding_gives_the_whole_batch_segments():
    batch = language_model([[ids(1, 2, 3)], []], 2, pad_id=7)
    assert batch.tokens.tolist() == [[1, 2], [7, 7]]
    assert batch.targets.tolist() == [[2, 3], [IGNORE, IGNORE]]
    assert batch.segments is not None
    assert batch.segments.tolist() == [[1, 1], [0, 0]]
