"""What the kernel says about processes: memory, and whose work the processors did."""

import os
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
BUSY = (1, 2, 3, 6, 7, 8)
"""Fields of the first line of /proc/stat: user, nice, system, irq, softirq, steal."""


def memory(process: int | str) -> dict[str, int]:
    """VmRSS and VmHWM (the largest it ever was) of a process, in bytes."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    words = [line.split() for line in lines if line.startswith(("VmRSS", "VmHWM"))]
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in words}


def available_bytes() -> int:
    """Memory that new processes could get without any other losing some."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def busy_seconds() -> float:
    """Processor seconds that this machine has spent on anything, over all cores."""
    fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()
    return sum(int(fields[i]) for i in BUSY) / TICK


def family(root: int) -> dict[int, list[str]]:
    """A process and its descendants: /proc/PID/stat of each, the fields from the state on.

    Not a session: workers that compile have one of their own.
    """
    every, found = {}, [root]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has just ended
            continue
        every[int(path.parent.name)] = text.rpartition(")")[2].split()
    for parent in found:
        found += [process for process, fields in every.items() if int(fields[1]) == parent]
    return {process: every[process] for process in found if process in every}


def family_seconds(root: int) -> float:
    """Processor seconds of a process and its descendants, those that have ended included."""
    return sum(sum(map(int, fields[11:15])) for fields in family(root).values()) / TICK


def family_peak_bytes(root: int) -> int:
    """The largest sizes of a process and its descendants, added up: never less than they held at once."""
    total = 0
    for process in family(root):
        try:
            total += memory(process).get("VmHWM", 0)
        except OSError:
            continue
    return total
