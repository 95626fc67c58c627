"""How the C library hands out memory: settled before a process begins, for it can't be changed afterwards.

A training step takes and gives back hundreds of megabytes.  glibc returns large blocks to the kernel each
time, and the next product waits while fresh pages are zeroed, 4 KiB at a time: the vocabulary's product
ran at 0.31 instead of 0.42 TFLOP/s for that alone.  These settings keep the memory, in pages of 2 MiB.
"""

import os
import platform
import sys
from collections.abc import Mapping

SETTINGS = {
    "glibc.malloc.hugetlb": "1",  # ask for huge pages where the kernel leaves it to the program
    "glibc.malloc.mmap_max": "0",  # no block gets a mapping of its own, to be unmapped when it is freed
    "glibc.malloc.trim_threshold": str(2**40),  # the heap does not shrink
    "glibc.malloc.top_pad": str(2**26),  # it grows by this much at once
}
VARIABLE, SWITCH = "GLIBC_TUNABLES", "HASTEN_ALLOCATOR"


def allocator_environment(given: Mapping[str, str]) -> dict[str, str]:
    """`given` with the settings added: what the user has set wins.

    HASTEN_ALLOCATOR=off leaves the C library as it is, and takes the settings out where a parent put them in.
    """
    theirs = [word for word in given.get(VARIABLE, "").split(":") if word]
    if platform.libc_ver()[0] != "glibc":
        return dict(given)
    if given.get(SWITCH, "on") == "off":
        words = [word for word in theirs if SETTINGS.get(word.partition("=")[0]) != word.partition("=")[2]]
    else:
        named = {word.partition("=")[0] for word in theirs}
        words = theirs + [f"{name}={value}" for name, value in SETTINGS.items() if name not in named]
    rest = {name: value for name, value in given.items() if name != VARIABLE}
    return {**rest, VARIABLE: ":".join(words)} if words else rest


def settle_allocator() -> None:
    """Begin this process anew with the settings, once, before anything large is loaded (20 ms)."""
    wanted = allocator_environment(os.environ)
    if wanted.get(VARIABLE) != os.environ.get(VARIABLE):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)
