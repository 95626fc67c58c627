"""The process between hasten and an untrusted program: it shuts the doors, starts the program, and judges it.

`sandbox.py` starts it; only the standard library is imported.  It makes namespaces, and in them a guard, the
first process of its own process namespace: when that ends, by itself or because the asker is gone, the kernel
ends everything in there.  The guard starts the program in an interpreter of its own, waits, and answers.
"""

import fcntl
import json
import os
import resource
import select
import signal
import sys
import sysconfig
import time
from collections.abc import Callable
from typing import Any, NoReturn

from hasten.evaluate import isolation
from hasten.evaluate.harness import REPORT, REQUEST, TOKEN_BYTES, receive

MAX_REPORT = 4096
"""Bytes of an outcome; what comes after them is not read."""
NAMESPACES = ("network", "files", "processes")
KINDS = ("failed", "error", "exited", "memory")
"""What the harness may say by itself."""
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/etc/ld.so.cache")
ZONES = "/usr/share/zoneinfo"
ABOVE_INHERITED = 16
"""Descriptors from here on are in nobody's way."""


class MissingGuardError(Exception):
    """A protection that this machine does not give: its name and the reason."""

    def __init__(self, guard: str, reason: object) -> None:
        super().__init__(guard, str(reason))
        self.guard, self.reason = guard, str(reason)


def main() -> None:
    """Read a request on standard input, write the verdict on standard output."""
    asked = json.loads(receive(0))
    asked["nothing"] = os.open(os.devnull, os.O_RDWR)  # it will be out of sight
    try:
        arrange(asked)
    except MissingGuardError as missing:
        answer({"kind": "unavailable", "guard": missing.guard, "detail": missing.reason})
        return
    guard = os.fork()
    if guard == 0:
        watch(asked)
    _, status = os.waitpid(guard, 0)
    if status:
        answer({"kind": "crashed", "detail": "the process that watched the program is gone"})


def answer(verdict: dict[str, Any]) -> None:
    """Tell the asker."""
    os.write(1, json.dumps(verdict).encode() + b"\n")


def provide(guard: str, waived: list[str], *steps: Callable[[], None]) -> None:
    """Take the steps to a protection that is not waived; where the kernel refuses one, that is an error."""
    try:
        for step in steps if guard not in waived else ():
            step()
    except OSError as error:
        raise MissingGuardError(guard, error) from None


def arrange(asked: dict[str, Any]) -> None:
    """Leave the namespaces of the machine, and make a root in which there is Python and nothing else."""
    new, waived = isolation.unshare, asked["waive"]
    raise_badness()
    asked["user"] = isolation.free_user() if os.geteuid() == 0 else None
    for guard in [name for name in NAMESPACES if name not in waived][: asked["user"] is None]:
        provide(guard, waived, isolation.become_own_user)  # all of them rest on it
    provide("network", waived, lambda: new(isolation.NEW_NETWORK | isolation.NEW_HOST))
    provide("files", waived, lambda: isolation.build_root(asked["root"], shown()))
    provide("processes", waived, lambda: new(isolation.NEW_PIDS | isolation.NEW_IPC))


def raise_badness() -> None:
    """Where memory runs out all the same, the kernel ends this first, and no training."""
    if os.path.exists("/proc/self/oom_score_adj"):
        isolation.write("/proc/self/oom_score_adj", "1000")


def shown() -> list[str]:
    """The paths that an interpreter needs."""
    prefix = os.path.realpath(sys.base_prefix)
    standard = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    return [*LIBRARIES, ZONES, f"{prefix}/lib", *standard, sys.executable]


def watch(asked: dict[str, Any]) -> NoReturn:
    """Start the program, wait for its end or its time, answer, and go: all that is left goes too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the program shall not reach a handler of Python's
    try:
        confine(asked)
        began = time.monotonic()
        verdict = judge(asked)
        answer({**verdict, "seconds": round(time.monotonic() - began, 3)})
    except MissingGuardError as missing:
        answer({"kind": "unavailable", "guard": missing.guard, "detail": missing.reason})
    os._exit(0)


def confine(asked: dict[str, Any]) -> None:
    """Enter the root and give up every right."""
    waived, user = asked["waive"], asked["user"]
    os.chdir(asked["root"])
    provide("files", waived, lambda: isolation.enter_root(asked["root"]))
    if user is not None:
        provide("user", [], lambda: isolation.drop_to(user))
    provide("processes", waived, isolation.hide_memory)
    provide("system_calls", waived, isolation.refuse_privileges)


def judge(asked: dict[str, Any]) -> dict[str, Any]:
    """What came of the program."""
    token = os.urandom(TOKEN_BYTES)
    request, to_program = os.pipe()
    from_program, report = os.pipe()
    problem, problems = os.pipe()
    child = os.fork()
    if child == 0:
        become_program(asked, high(request), high(report), high(problems))
    for end in (request, report, problems):
        os.close(end)
    if said := os.read(problem, MAX_REPORT):  # closed by a start that succeeds
        guard, _, reason = said.decode().partition(":")
        raise MissingGuardError(guard, reason)
    pass_on(to_program, asked, token)
    return decide(child, from_program, token, asked)


def high(descriptor: int) -> int:
    """The same file under a number that nothing else will take."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, ABOVE_INHERITED)


def pass_on(to_program: int, asked: dict[str, Any], token: bytes) -> None:
    """Hand the harness its request and, behind it, the token."""
    body = json.dumps({"program": asked["program"], "tests": asked["tests"]}).encode()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        with open(to_program, "wb", buffering=0) as pipe:
            for data in (len(body).to_bytes(8, "big"), body, token):
                pipe.write(data)
    except BrokenPipeError:
        return  # it ended before it began, which its end will tell


def become_program(asked: dict[str, Any], request: int, report: int, problems: int) -> NoReturn:
    """Be the interpreter that runs the harness, with no right and little of everything."""
    try:
        for descriptor in (0, 1, 2):
            os.dup2(asked["nothing"], descriptor)
        os.dup2(request, REQUEST)
        os.dup2(report, REPORT)
        limit(asked)
        provide("system_calls", asked["waive"], isolation.refuse_calls)
        os.execve(sys.executable, [sys.executable, "-I", "-B", "-c", asked["harness"]], {})
    except MissingGuardError as missing:
        os.write(problems, f"{missing.guard}:{missing.reason}".encode())
    except BaseException as error:
        os.write(problems, f"files:{error}".encode())
    os._exit(1)


def limit(asked: dict[str, Any]) -> None:
    """The limits of setrlimit(2)."""
    cpu = asked["cpu_seconds"]
    limits = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),  # a program may ignore the first
        resource.RLIMIT_AS: (asked["memory_mb"] << 20,) * 2,
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (asked["open_files"],) * 2,
        resource.RLIMIT_NPROC: (asked["threads"] + 2,) * 2,  # with the guard and the first thread
        resource.RLIMIT_MEMLOCK: (0, 0),
        # One byte and not none: at none the kernel would still start a program that collects cores.
        resource.RLIMIT_CORE: (1, 1),
    }
    for kind, (soft, hard) in limits.items():
        most = resource.getrlimit(kind)[1]
        top = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(kind, (min(soft, top), top))


def decide(child: int, from_program: int, token: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of the program, and name it."""
    said = listen(child, from_program, time.monotonic() + asked["wall_seconds"])
    late = said is None
    if late:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    if said == token:
        return {"kind": "passed", "tests_passed": len(asked["tests"])}
    if late:
        return {"kind": "timeout", "detail": f"{asked['wall_seconds']:g} seconds of wall time"}
    if used.ru_utime + used.ru_stime >= asked["cpu_seconds"]:
        return {"kind": "timeout", "detail": f"{asked['cpu_seconds']} seconds of processor time"}
    return named(said or b"") or ended(status)


def listen(child: int, from_program: int, deadline: float) -> bytes | None:
    """What the program reports until its end; None where it goes on beyond the deadline.

    Ends this process where the asker closes standard input, or is gone.
    """
    ending = isolation.watched(child)
    waiting = select.poll()
    for descriptor in (0, ending, from_program):
        waiting.register(descriptor, select.POLLIN)
    said = b""
    while (left := deadline - time.monotonic()) > 0:
        ready = {descriptor for descriptor, _ in waiting.poll(1000 * left)}
        if 0 in ready:
            os._exit(0)
        if from_program in ready:
            part = os.read(from_program, MAX_REPORT)
            said += part
            if not part or len(said) >= MAX_REPORT:
                waiting.unregister(from_program)
        elif ending in ready:
            return said
    return None


def named(said: bytes) -> dict[str, Any] | None:
    """What the harness says went wrong; None where it says nothing that it can say."""
    try:
        report = json.loads(said)
        kind, detail = report["kind"], report.get("detail", "")
        passed = report.get("tests_passed", 0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if kind not in KINDS or not isinstance(detail, str) or not isinstance(passed, int):
        return None
    return {"kind": kind, "detail": detail, "tests_passed": passed}


def ended(status: int) -> dict[str, Any]:
    """The end of a program that reported nothing."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return {"kind": "exited", "detail": f"with {code} before the tests were through"}
    if -code == signal.SIGXCPU:
        return {"kind": "timeout", "detail": "processor time"}
    return {"kind": "crashed", "detail": signal.Signals(-code).name}
