"""What the kernel says about processes: memory, and whose work the processors did."""

import os
from collections.abc import Iterator
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


def session_fields(session: int) -> Iterator[tuple[int, list[str]]]:
    """Process id, and the fields of /proc/PID/stat from the state on, of each process of a session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session:
            yield int(path.parent.name), fields


def session_seconds(session: int) -> float:
    """Processor seconds of all processes of a session, and of those that they waited for."""
    return sum(sum(map(int, fields[11:15])) for _, fields in session_fields(session)) / TICK


def session_peak_bytes(session: int) -> int:
    """The largest sizes of all processes of a session, added up: never less than they held at once."""
    total = 0
    for process, _ in session_fields(session):
        try:
            total += memory(process).get("VmHWM", 0)
        except OSError:
            continue
    return total
