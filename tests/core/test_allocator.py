"""Memory settings reach the process that computes, and the user's own settings win."""

import os
import platform
import subprocess
import sys

import pytest

from hasten.core.allocator import SETTINGS, SWITCH, VARIABLE, allocator_environment

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")


@GLIBC
def test_settings_are_added_once() -> None:
    once = allocator_environment({"HOME": "/home/a"})
    assert once["HOME"] == "/home/a"
    assert set(once[VARIABLE].split(":")) == {f"{name}={value}" for name, value in SETTINGS.items()}
    assert allocator_environment(once) == once


@GLIBC
def test_what_the_user_has_set_wins() -> None:
    mine = "glibc.malloc.mmap_max=7:glibc.malloc.arena_max=2"
    words = allocator_environment({VARIABLE: mine})[VARIABLE].split(":")
    assert words[:2] == mine.split(":") and len(words) == len(SETTINGS) + 1
    off = allocator_environment({VARIABLE: mine, SWITCH: "off"})
    assert off == {VARIABLE: mine, SWITCH: "off"}


@GLIBC
def test_switched_off_it_takes_back_what_a_parent_set() -> None:
    parent = allocator_environment({})
    assert allocator_environment({**parent, SWITCH: "off"}) == {SWITCH: "off"}


@GLIBC
@pytest.mark.parametrize("switch", ["on", "off"])
def test_the_process_begins_anew_with_the_same_words(switch: str) -> None:
    program = (
        "import os, sys; from hasten.core.allocator import settle_allocator; settle_allocator();"
        f"print(sys.argv[1:], {VARIABLE!r} in os.environ)"
    )
    clean = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", program, "train", "output=a b"]
    answer = subprocess.run(
        command, env={**clean, SWITCH: switch}, capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.strip() == f"['train', 'output=a b'] {switch == 'on'}"
