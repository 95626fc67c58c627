"""A training in two processes of which one hangs."""

import re

import pytest
from launched import hasten, write_recipe


@pytest.mark.slow
def test_a_process_that_hangs_is_named_and_all_start_again(tmp_path):
    write_recipe(tmp_path)
    hangs = {"rank": 1, "step": 7, "act": "sleep", "once": str(tmp_path / "hung")}
    words = ("parallel.data=2", "parallel.timeout=8")
    done = hasten(tmp_path, "train", "recipe.yaml", *words, faults=[hangs])
    assert done.returncode == 0, done.stderr
    sentence = (
        r"nothing moved for (8|9|10) s: rank 1 on \S+, in step 7 \(step\), does not wait for the others;"
        r" the other waits"
    )
    assert re.search(rf"^hasten: {sentence}$", done.stderr, re.M)
    assert "rank 1 on" in done.stderr and "time.sleep(600)" in done.stderr
    assert re.search(rf"^{sentence}; all processes start again from the last checkpoint$", done.stdout, re.M)
    assert "trained 10 steps" in done.stdout
