"""What /proc says about a process and its descendants."""

import os
import subprocess
import sys
import time

import pytest
from peers.machine import available_bytes, busy_seconds, family, family_peak_bytes, family_seconds, memory

BURN = """
import time
end = time.process_time() + 0.5
while time.process_time() < end:
    pass
print("done", flush=True)
"""
CHILD = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}], start_new_session=True)
input()
"""


@pytest.fixture
def parent():
    """A process that waits, after a child of it, in a session of its own, has burnt half a second."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.communicate("\n")


def test_descendants_are_found_with_what_they_used_after_they_have_ended(parent):
    before = busy_seconds()
    while len(family(parent.pid)) < 2:
        time.sleep(0.01)
    assert parent.stdout.readline() == "done\n"
    while len(family(parent.pid)) > 1:
        time.sleep(0.01)
    assert 0.4 < family_seconds(parent.pid) < 30
    assert busy_seconds() - before > 0.4


def test_a_family_has_at_least_the_memory_of_its_head(parent):
    while len(family(parent.pid)) < 2:
        time.sleep(0.01)
    alone = memory(parent.pid)["VmHWM"]
    assert family_peak_bytes(parent.pid) >= alone > 0


def test_a_peak_is_never_below_what_is_held_now():
    now = memory(os.getpid())
    assert now["VmHWM"] >= now["VmRSS"] > 2**20
    assert available_bytes() > 2**20


def test_a_process_that_is_gone_has_no_family():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert family(process.pid) == {}
    assert family_seconds(process.pid) == 0
