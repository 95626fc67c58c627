"""Hostile programs do no harm, each gets the verdict that it should, and what is missing is said."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from hasten.core.errors import ConfigError
from hasten.evaluate import isolation, sandbox
from hasten.evaluate.sandbox import Program, SandboxConfig, Verdict, run, run_one

QUICK = SandboxConfig(cpu_seconds=5, wall_seconds=20, workers=2)
SHORT = SandboxConfig(cpu_seconds=1, wall_seconds=1.5, workers=2)
"""For what ends at a limit."""


def available() -> bool:
    try:
        sandbox.check(QUICK)
    except ConfigError:
        return False
    return True


needs_sandbox = pytest.mark.skipif(not available(), reason="this machine keeps nothing in")


def verdict(text: str, *tests: str, config: SandboxConfig = QUICK) -> Verdict:
    return run_one(Program(text, tests), config)


def probe(expression: str) -> Verdict:
    """Passed where the expression is true inside."""
    return verdict("", f"assert {expression}")


ADD = "def add(a, b):\n    return a + b\n"
ENDS = {
    "right": (ADD, "assert add(1, 2) == 3", "passed"),
    "wrong": (ADD, "assert add(1, 2) == 4", "failed"),
    "raises": ("def add(a, b):\n    raise KeyError(a)", "add(1, 2)", "error"),
    "asserts by itself": ("assert False", "pass", "error"),
    "no Python": ("def add(:", "pass", "error"),
    "half a character": ("x = '\ud800'", "assert x", "error"),
    "leaves early": ("import os\nos._exit(0)", "assert False", "exited"),
    "exits with success": ("import sys\nsys.exit(0)", "assert False", "exited"),
    "exits in a test": ("import sys\ndef f():\n    sys.exit(0)", "f()", "exited"),
    "says passed": ("print('passed')\nimport os\nos._exit(0)", "assert False", "exited"),
    "writes to every descriptor": (
        'import os\nfor n in range(1, 64):\n    try: os.write(n, b\'{"kind": "passed"}\')\n'
        "    except OSError: pass\nos._exit(0)",
        "assert False",
        "exited",
    ),
    "floods the report": (
        "import os, signal\ntry:\n    while True: os.write(4, b'x' * 65536)\nexcept OSError: pass",
        "assert False",
        "timeout",
    ),
    "replaces assert": (
        "import builtins\nbuiltins.AssertionError = type('Mild', (BaseException,), {})\n"
        "builtins.compile = builtins.exec = builtins.isinstance = lambda *a, **k: None",
        "assert False",
        "failed",
    ),
    "replaces builtins": ("__builtins__ = {}\nimport builtins\nbuiltins.__dict__.clear()", "1 / 0", None),
    "endless": ("while True: pass", "pass", "timeout"),
    "ignores the limit": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "pass",
        "timeout",
    ),
    "sleeps": ("import time\ntime.sleep(99)", "pass", "timeout"),
    "stops itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "pass", "timeout"),
    "100 GB": ("x = bytearray(100 << 30)", "pass", "memory"),
    "grows": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "pass", "memory"),
    "maps and unmaps": (
        "import mmap\nx = [mmap.mmap(-1, 1 << 26) for _ in range(99)]",
        "pass",
        "error",
    ),
    "recursion": ("def f(): return f()\nf()", "pass", "error"),
    "recursion beyond the stack": (
        "import sys\nsys.setrecursionlimit(1 << 30)\ndef f(x): return [f] * (x and f(x))\n"
        "class A:\n    def __repr__(self): return repr(self)\nrepr(A())",
        "pass",
        None,
    ),
    "gigabytes of output": (
        "import sys\ns = 'x' * (1 << 20)\nfor _ in range(4096): sys.stdout.write(s)",
        "pass",
        None,
    ),
    "crashes": ("import ctypes\nctypes.string_at(0)", "pass", "crashed"),
    "kills itself": ("import os\nos.kill(os.getpid(), 9)", "pass", "crashed"),
    "reads input": ("input()", "pass", "error"),
    "threads": (
        "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
        "pass",
        "passed",
    ),
    "a thread that goes on": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()",
        "pass",
        "passed",
    ),
    "thread bomb": (
        "import threading, time\nfor _ in range(10**6):\n"
        "    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
        "pass",
        "error",
    ),
    "closes all": ("import os\nos.closerange(0, 64)", "pass", "exited"),
    "a dataclass": (
        "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A: x: int",
        "assert A(1) == A(1)",
        "passed",
    ),
    "an event loop": (
        "import asyncio\nasync def f(): return 3\nx = asyncio.run(f())",
        "assert x == 3",
        "passed",
    ),
}


@needs_sandbox
@pytest.mark.parametrize("name", ENDS)
def test_every_end_has_its_name(name):
    text, test, kind = ENDS[name]
    found = verdict(text, test, config=SHORT if kind == "timeout" else QUICK)
    assert found.kind == kind if kind else found.kind != "passed" or name == "gigabytes of output"
    assert found.seconds < QUICK.wall_seconds + 5


@needs_sandbox
@pytest.mark.parametrize(
    "text",
    [
        "import os\nwhile True: os.fork()",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass",
        "import subprocess\nsubprocess.Popen(['sleep', '99'], start_new_session=True)",
        "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()",
        "import ctypes\nassert ctypes.CDLL(None).syscall(57) >= 0 or ctypes.CDLL(None).syscall(58) >= 0",
    ],
    ids=["bomb", "daemons", "subprocess", "multiprocessing", "libc"],
)
def test_no_process_is_started(text):
    before = user_processes()
    assert verdict(text, "pass").kind == "error"
    assert user_processes() <= before


def user_processes() -> set[str]:
    """The processes of users that no one is."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.stat().st_uid >= isolation.NOBODY:
                found.add(entry.name)
        except OSError:
            continue  # it has ended
    return found


@needs_sandbox
def test_without_the_filter_of_calls_a_bomb_is_bounded_and_dies_with_its_namespace():
    config = SHORT.model_copy(update={"waive": ("system_calls",)})
    before = user_processes()
    bomb = "import os\nn = 0\ntry:\n    while True:\n        os.fork()\nexcept OSError:\n    while True: pass"
    assert verdict(bomb, "pass", config=config).kind in ("timeout", "error")
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(99)"
    assert verdict(daemon, "pass", config=config).kind == "passed"
    assert user_processes() <= before


@needs_sandbox
@pytest.mark.parametrize("waive", [(), ("system_calls",)], ids=["all", "namespaces-alone"])
def test_no_network_is_there(waive):
    config = QUICK.model_copy(update={"waive": waive})
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"('127.0.0.1', {port})", "('192.0.2.1', 80)"):
            found = verdict(f"import socket\nsocket.create_connection({address}, 2)", "pass", config=config)
            assert found.kind == "error", found
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


@needs_sandbox
def test_no_socket_of_any_family_is_made():
    refused = (
        "import socket\ndef refused(family):\n"
        "    try: socket.socket(family, socket.SOCK_RAW)\n"
        "    except PermissionError: return True"
    )
    names = ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK")
    found = verdict(refused, *(f"assert refused(socket.{name})" for name in names))
    assert found.kind == "passed", found


@needs_sandbox
def test_files_of_the_machine_are_not_there(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("it is 42")
    secret.chmod(0o644)
    names = ["/etc/shadow", "/etc/passwd", "/proc", "/sys", "/var", "/home", "/dev/mem", "/dev/shm"]
    names += [os.getcwd(), str(secret)]
    there = f"import os\nthere = [name for name in {names!r} if os.path.exists(name)]"
    assert verdict(there, "assert not there", "1 / 0").tests_passed == 1
    # Of a home there is the way to the interpreter, where that is installed there.
    seen = {part.name for part in (Path(os.path.realpath(sys.base_prefix)), *Path(sys.base_prefix).parents)}
    inside = (
        f"import os\nhome = {str(Path.home())!r}\nfound = os.listdir(home) if os.path.isdir(home) else []"
    )
    assert verdict(inside, f"assert set(found) <= {seen!r}").kind == "passed"
    found = verdict(f"open({str(secret)!r}).read()", "pass")
    assert found.kind == "error" and "FileNotFoundError" in found.detail


@needs_sandbox
def test_nothing_is_written_anywhere():
    folders = [".", "/", "/tmp", "/usr/lib", "/lib", os.path.realpath(sys.base_prefix) + "/lib"]
    text = (
        "import os\nwritten = []\n"
        f"for folder in {folders!r}:\n"
        "    try:\n"
        "        with open(os.path.join(folder, 'made'), 'w') as file: file.write('x')\n"
        "        written.append(folder)\n"
        "    except OSError: pass"
    )
    assert verdict(text, "assert not written").kind == "passed"
    assert not any(Path(folder, "made").exists() for folder in folders)
    assert verdict("import os\nfor n in range(10**5): os.mkdir(str(n))", "pass").kind == "error"
    assert verdict("import os\nos.truncate(os.memfd_create('x'), 1 << 40)", "pass").kind == "error"


@needs_sandbox
def test_a_folder_to_work_in_is_new_and_empty_and_gone_afterwards():
    listed = "import os\nassert os.listdir() == []\nos.mkdir('made')"
    assert verdict(listed, "assert os.listdir() == ['made']").kind == "passed"
    assert verdict(listed, "pass").kind == "passed"
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("hasten-sandbox-*/*"))


@needs_sandbox
def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("API_KEY", "secret")
    assert probe("'API_KEY' not in __import__('os').environ").kind == "passed"
    assert probe("'secret' not in str(dict(__import__('os').environ))").kind == "passed"


@needs_sandbox
def test_the_asker_and_other_processes_are_out_of_reach():
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        text = (
            "import os, signal\n"
            f"for pid in (os.getppid(), {os.getpid()}, {bystander.pid}, 1, -1):\n"
            "    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):\n"
            "        try: os.kill(pid, number)\n"
            "        except OSError: pass\n"
        )
        assert verdict(text, "assert os.getpid() != 1").kind == "passed"
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert probe("__import__('os').getppid() == 1").kind == "passed"


CALLS = (
    "ptrace(16, 1, 0, 0)", "ptrace(0, 0, 0, 0)", "unshare(0x10000000)", "setns(0, 0)", "chroot(b'/')",
    "mount(b'none', b'/sandbox', b'tmpfs', 0, 0)", "shmget(0, 1 << 30, 0o1600)", "syscall(425, 1, 0)",
    "syscall(250, 0, 0)", "process_vm_readv(1, 0, 0, 0, 0, 0)", "setuid(0)", "socket(40, 1, 0)",
)  # fmt: skip


@needs_sandbox
def test_calls_that_could_do_harm_fail():
    text = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)"
    found = verdict(text, *(f"assert libc.{call} == -1, {call!r}" for call in CALLS))
    assert found.kind == "passed", found


@needs_sandbox
def test_limits_cannot_be_raised():
    raised = (
        "import resource\ndef raised(kind):\n"
        "    try: resource.setrlimit(kind, (1 << 40, 1 << 40))\n"
        "    except ValueError: return False\n"
        "    return True"
    )
    names = ("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NPROC", "RLIMIT_CPU")
    found = verdict(raised, *(f"assert not raised(resource.{name})" for name in names))
    assert found.kind == "passed", found


@needs_sandbox
def test_no_right_is_left():
    text = "import os\nids = {*os.getresuid(), *os.getresgid()}"
    assert verdict(text, "assert 0 not in ids", "assert os.getgroups() in ([], [65534])").kind == "passed"


@needs_sandbox
def test_a_dead_asker_leaves_nothing_behind(tmp_path):
    """The program ends when the process that asked for it is killed."""
    script = (
        "from hasten.evaluate.sandbox import Program, SandboxConfig, run_one\n"
        "print('begun', flush=True)\n"
        "run_one(Program('import time\\ntime.sleep(99)'), SandboxConfig(wall_seconds=99))"
    )
    before = user_processes()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    asker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert asker.stdout is not None
    asker.stdout.readline()
    deadline = time.monotonic() + 20
    while not user_processes() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    if os.geteuid() == 0:
        assert user_processes() - before
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    asker.stdout.close()
    while user_processes() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert user_processes() <= before


@needs_sandbox
def test_how_many_tests_passed_is_told():
    found = verdict(ADD, "assert add(1, 1) == 2", "assert add(1, 1) == 3", "assert add(2, 2) == 4")
    assert (found.kind, found.tests_passed) == ("failed", 1)
    assert verdict(ADD, "assert add(1, 1) == 2", "assert add(2, 2) == 4").tests_passed == 2
    assert "KeyError" in verdict("{}['x']", "pass").detail


@needs_sandbox
def test_many_programs_run_at_a_time_and_keep_their_order():
    programs = [Program(ADD, (f"assert add({n}, 1) == {n + 1 + n % 2}",)) for n in range(12)]
    done: list[int] = []
    found = run(programs, QUICK, done.append)
    assert [one.passed for one in found] == [n % 2 == 0 for n in range(12)]
    assert done == list(range(1, 13))


@needs_sandbox
def test_programs_run_side_by_side():
    programs = [Program("import time\ntime.sleep(1)")] * 3
    began = time.monotonic()
    verdicts = run(programs, QUICK.model_copy(update={"workers": 3}))
    assert time.monotonic() - began < sum(one.seconds for one in verdicts)


@needs_sandbox
def test_a_main_guard_does_not_run():
    assert verdict("x = __name__\nif x == '__main__': 1 / 0", "assert x != '__main__'").passed


def unprivileged(script: str, *before: str) -> str:
    """What a script prints that runs as a user without a right, after some lines that still have them."""
    lines = [
        "import os, sys",
        "from hasten.evaluate.isolation import NEW_USER, unshare, write",
        "users = f'1000 {os.getuid()} 1', f'1000 {os.getgid()} 1'",
        "unshare(NEW_USER)",
        "write('/proc/self/setgroups', 'deny')",
        "for kind, line in zip(('uid', 'gid'), users): write(f'/proc/self/{kind}_map', line)",
        *before,
        f"os.execv(sys.executable, [sys.executable, '-c', {script!r}])",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stdout


UNPRIVILEGED = """
import os, sys
from hasten.core.errors import ConfigError
from hasten.evaluate.sandbox import *
assert os.geteuid() == 1000 and "CapEff:\\t0000000000000000" in open("/proc/self/status").read()
files = "import os\\nassert not os.path.exists('/etc/shadow')\\nopen('/tmp/made', 'w')"
network = "import socket\\nsocket.create_connection(('127.0.0.1', 80), 2)"
ids = "import os\\nassert os.getuid() == 65534 and os.getppid() == 1"
caps = "import ctypes\\nassert ctypes.CDLL(None).mount(b'none', b'/sandbox', b'tmpfs', 0, 0) == -1"
try:
    for text in ("", files, network, ids, caps):
        print(run_one(Program(text, ("pass",)), SandboxConfig()).kind)
    config = SandboxConfig(cpu_seconds=1, wall_seconds=1.5, waive=("system_calls",))
    for text in (network, ids, caps):
        print(run_one(Program(text, ("pass",)), config).kind)
except ConfigError as error:
    print(error)
"""


@needs_sandbox
def test_a_user_without_rights_keeps_programs_in_as_well():
    found = unprivileged(UNPRIVILEGED).split("\n")
    if not found[0]:
        pytest.skip("no namespace of users can be made here")
    assert found[:-1] == "passed error error passed passed error passed passed".split()


@needs_sandbox
def test_a_user_without_namespaces_is_told_what_is_missing():
    found = unprivileged(UNPRIVILEGED, "write('/proc/sys/user/max_user_namespaces', '0')")
    if not found:
        pytest.skip("no namespace of users can be made here")
    assert "cannot keep generated programs from the network here (" in found
    assert found.count("\n") == 1
    waived = UNPRIVILEGED.replace("SandboxConfig()", "SandboxConfig(waive=('network', 'files', 'processes'))")
    found = unprivileged(waived, "write('/proc/sys/user/max_user_namespaces', '0')").split("\n")
    assert found[0] == "passed" and found[2] == "error"  # the filter still refuses sockets


def test_a_missing_protection_is_named_and_waived_by_name(monkeypatch):
    answers = iter([{"kind": "unavailable", "guard": "network", "detail": "unshare: not permitted"}])
    monkeypatch.setattr(sandbox, "ask", lambda request, patience: next(answers))
    with pytest.raises(ConfigError) as caught:
        run([Program("")], QUICK)
    text = str(caught.value)
    assert "cannot keep generated programs from the network here (unshare: not permitted)" in text
    assert "sandbox.waive=[network]" in text and "\n" not in text
    with pytest.raises(ValidationError, match="waive"):
        SandboxConfig.model_validate({"waive": ["everything"]})


def test_limits_under_which_nothing_runs_are_refused(monkeypatch):
    monkeypatch.setattr(sandbox, "ask", lambda request, patience: {"kind": "memory"})
    with pytest.raises(ConfigError, match="an empty program does not pass in the sandbox"):
        run([Program("")], QUICK)


def test_a_machine_whose_calls_are_not_listed_has_no_filter():
    with pytest.raises(OSError, match="no list of system calls for pdp11"):
        isolation.filter_program("pdp11")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_refuses_what_is_listed_and_nothing_else(machine):
    """The instructions, interpreted here for every call up to 500."""
    denied = set(isolation.denied(machine))
    for number in range(500):
        expected = isolation.REFUSE if number in denied else isolation.ALLOW
        if number == isolation.CLONE3:
            expected = isolation.UNKNOWN
        for flags in (17, isolation.CLONE_THREAD | 0x100):
            if number == isolation.CLONE[machine]:
                expected = isolation.ALLOW if flags & isolation.CLONE_THREAD else isolation.REFUSE
            assert interpreted(machine, number, flags) == expected, number
    assert interpreted(machine, 0x40000000 + 1, 0) == isolation.REFUSE
    assert interpreted(machine, 1, 0, architecture=1) == isolation.REFUSE


def interpreted(machine: str, number: int, flags: int, architecture: int | None = None) -> int:
    """What the kernel would answer."""
    import struct

    steps = list(struct.iter_unpack("HBBI", isolation.filter_program(machine)))
    data = {isolation.NUMBER: number, isolation.FIRST_ARGUMENT: flags}
    data[isolation.ARCHITECTURE] = architecture or isolation.MACHINES[machine]
    at, word = 0, 0
    while True:
        code, yes, no, k = steps[at]
        at += 1
        if code == isolation.LOAD:
            word = data[k]
        elif code == isolation.ANSWER:
            return k
        else:
            true = {isolation.IS: word == k, isolation.AT_LEAST: word >= k, isolation.HAS: bool(word & k)}
            at += yes if true[code] else no
