"""Held-out shares are as asked, and a document's place in them depends on its name alone."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hasten.data.config import SourceConfig, SplitConfig
from hasten.data.split import by_document, split_of, split_text


def test_shares_are_as_asked_within_sampling_error():
    config = SplitConfig(validation=0.05, test=0.1)
    places = [split_of(f"file-{number}.txt", config) for number in range(20_000)]
    for split, share in ("validation", 0.05), ("test", 0.1):
        deviation = (share * (1 - share) / len(places)) ** 0.5
        assert abs(places.count(split) / len(places) - share) < 4 * deviation


def test_a_larger_share_only_adds_documents_to_the_test():
    small, large = SplitConfig(test=0.05), SplitConfig(test=0.1)
    names = [f"file-{number}.txt" for number in range(2_000)]
    assert {n for n in names if split_of(n, small) == "test"} < {
        n for n in names if split_of(n, large) == "test"
    }


def test_what_has_no_key_stays_in_training():
    assert split_of(None, SplitConfig(validation=0.5, test=0.49)) == "train"


def test_a_split_with_sources_of_its_own_takes_nothing_from_training():
    config = SplitConfig(test=0.5, test_sources=(SourceConfig(paths=("a",)),), validation=0.0)
    assert {split_of(f"file-{number}", config) for number in range(200)} == {"train"}
    assert list(split_text("one\ntwo\n", config)) == [("train", "one\ntwo\n")]


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.text("ab ", max_size=9), max_size=30),
    validation=st.floats(0, 0.45),
    test=st.floats(0, 0.45),
)
@example(lines=["aa", "a aa"], validation=0.125, test=0.25)  # a part of nothing but a blank
def test_a_text_cut_by_position_loses_only_blanks_and_keeps_its_order(lines, validation, test):
    text = "\n".join(lines)
    parts = dict(split_text(text, SplitConfig(validation=validation, test=test)))
    joined = "".join(parts.get(split, "") for split in ("train", "validation", "test"))
    assert "".join(joined.split()) == "".join(text.split())
    assert all(part.strip() for part in parts.values())


def test_a_text_is_cut_at_line_ends_near_the_shares():
    text = "".join(f"line {number:03}\n" for number in range(1_000))
    parts = dict(split_text(text, SplitConfig(validation=0.1, test=0.2)))
    assert all(part.endswith("\n") for part in parts.values())
    assert len(parts["validation"]) / len(text) == pytest.approx(0.1, abs=0.001)
    assert len(parts["test"]) / len(text) == pytest.approx(0.2, abs=0.001)


def test_auto_splits_by_document_where_each_split_can_expect_ten():
    config = SplitConfig(validation=0.05, test=0.1)
    assert by_document(config, 200)
    assert not by_document(config, 199)
    assert by_document(SplitConfig(by="document"), 1)
    assert not by_document(SplitConfig(by="position"), 10**6)
    assert by_document(SplitConfig(validation=0, test=0), 10)
