"""One step ahead in a thread."""

import threading
from itertools import islice

import pytest

from hasten.data.prefetch import Prefetch


def test_steps_come_in_order_from_any_first_one():
    with Prefetch(lambda step: step * step, 3) as prefetch:
        assert list(islice(prefetch, 4)) == [9, 16, 25, 36]
        assert prefetch.step == 7, "the step that `next` gives now"


def test_the_next_step_is_made_while_this_one_is_used_and_no_further():
    made: list[int] = []
    second, third = threading.Event(), threading.Event()

    def make(step: int) -> int:
        made.append(step)
        {1: second, 2: third}.get(step, threading.Event()).set()
        return step

    with Prefetch(make) as prefetch:
        assert next(prefetch) == 0
        assert second.wait(10), "made though nobody asked for it yet"
        assert not third.wait(0.05)
        assert made == [0, 1]


def test_an_error_is_raised_by_the_step_it_belongs_to_and_from_then_on():
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("row 17")
        return step

    with Prefetch(make) as prefetch:
        assert list(islice(prefetch, 2)) == [0, 1]
        for _ in range(2):
            with pytest.raises(ValueError, match="row 17"):
                next(prefetch)


def test_closing_ends_the_thread():
    before = set(threading.enumerate())
    prefetch = Prefetch(lambda step: step)
    assert next(prefetch) == 0
    prefetch.close()
    assert set(threading.enumerate()) <= before
