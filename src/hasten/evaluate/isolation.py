"""What Linux keeps a process from: namespaces, a root of its own, a filter of system calls.

Only the standard library is imported, for this runs where nothing else is to be seen.  Every function raises
OSError where the kernel refuses.  Numbers are those of the kernel's own headers; see namespaces(7),
mount_setattr(2), seccomp(2), user_namespaces(7).
"""

import ctypes
import os
import platform
import struct
from collections.abc import Iterable

NEW_MOUNTS, NEW_HOST, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
"""CLONE_NEWNS, -NEWUTS, -NEWIPC, -NEWUSER, -NEWPID, -NEWNET."""
NOSUID, NODEV, NOEXEC, BIND, RECURSIVE, PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
"""MS_... of mount(2); the first three have the same numbers in mount_setattr(2)."""
READ_ONLY = 1
SET_DUMPABLE, SET_SECCOMP, SET_NO_NEW_PRIVILEGES = 4, 22, 38
"""PR_... of prctl(2)."""
MOUNT_SETATTR, PIDFD_OPEN = 442, 434
"""The same on every architecture."""
HERE, WHOLE_TREE = -100, 0x8000
"""AT_FDCWD, AT_RECURSIVE."""
NOBODY = 65534
OWN_USERS = 1 << 30
"""User ids from here on belong to no one: a program with one of its own owns no file and no process."""
WORK = "/sandbox"
"""The only folder in which something may be made; it is in memory and goes with the program."""


def libc(name: str, *arguments: object) -> int:
    """Call a function of the C library; its result, or OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    result: int = getattr(library, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces of these kinds for new, empty ones."""
    libc("unshare", ctypes.c_int(flags))


def become_own_user() -> None:
    """Enter a namespace of users in which this process may arrange things that concern it alone."""
    user, group = os.geteuid(), os.getegid()
    unshare(NEW_USER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{NOBODY} {user} 1")
    write("/proc/self/gid_map", f"{NOBODY} {group} 1")


def write(path: str, text: str) -> None:
    """Write to a file of /proc."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def free_user() -> int:
    """A user id that nobody else has while this process lives, or that of nobody where it is not mapped."""
    wanted = OWN_USERS + os.getpid()
    with open("/proc/self/uid_map", encoding="ascii") as file:
        spans = [tuple(map(int, line.split())) for line in file]
    return wanted if any(first <= wanted < first + count for first, _, count in spans) else NOBODY


def drop_to(user: int) -> None:
    """Be `user` and nothing else, for good."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    *paths, data = texts
    libc("mount", *paths, ctypes.c_ulong(flags), data)


def build_root(root: str, shown: Iterable[str]) -> None:
    """Make of the folder `root` a file system that holds the paths `shown`, all of it read-only.

    And `WORK`, which is empty.  Only this process and its children see it.  Needs Linux 5.12.
    """
    os.umask(0o022)
    unshare(NEW_MOUNTS)
    mount("none", "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", root, "tmpfs", NOSUID | NODEV, "size=1m,nr_inodes=1k,mode=755")
    covered: list[str] = []
    for path in sorted(set(shown), key=len):
        if os.path.lexists(path) and not any(path.startswith(f"{above}/") for above in covered):
            show(path, root)
            covered += [] if os.path.islink(path) else [path]
    os.mkdir(f"{root}{WORK}")
    attributes = struct.pack("QQQQ", READ_ONLY | NOSUID | NODEV, 0, 0, 0)
    where = (ctypes.c_int(HERE), root.encode(), ctypes.c_uint(WHOLE_TREE))
    libc("syscall", ctypes.c_long(MOUNT_SETATTR), *where, attributes, ctypes.c_size_t(len(attributes)))
    mount("tmpfs", f"{root}{WORK}", "tmpfs", NOSUID | NODEV | NOEXEC, "size=64k,nr_inodes=64,mode=777")


def show(path: str, root: str) -> None:
    """Let `path` be seen below `root` under its own name."""
    target = f"{root}{path}"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        open(target, "x", encoding="ascii").close()
    mount(path, target, None, BIND | RECURSIVE)


def enter_root(root: str) -> None:
    """See nothing but what is below `root`, from `WORK` on."""
    os.chroot(root)
    os.chdir(WORK)


def watched(process: int) -> int:
    """A descriptor that is ready to read once a child has ended.  Not every Python has os.pidfd_open."""
    return libc("syscall", ctypes.c_long(PIDFD_OPEN), ctypes.c_int(process), ctypes.c_uint(0))


def hide_memory() -> None:
    """Keep other processes of the same user from reading this one's memory."""
    libc("prctl", SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0)))


MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_... of the machines whose calls are listed, in the order of the columns."""
CALLS = """
fork               57    -
vfork              58    -
socket             41  198
ptrace            101  117
process_vm_readv  310  270
process_vm_writev 311  271
kcmp              312  272
unshare           272   97
setns             308  268
mount             165   40
umount2           166   39
pivot_root        155   41
chroot            161   51
name_to_handle_at 303  264
open_by_handle_at 304  265
add_key           248  217
request_key       249  218
keyctl            250  219
bpf               321  280
perf_event_open   298  241
userfaultfd       323  282
fanotify_init     300  262
shmget             29  194
semget             64  190
msgget             68  186
mq_open           240  180
memfd_create      319  279
kexec_load        246  104
init_module       175  105
finit_module      313  273
io_uring_setup    425  425
io_uring_enter    426  426
io_uring_register 427  427
open_tree         428  428
move_mount        429  429
fsopen            430  430
fsmount           432  432
pidfd_getfd       438  438
mount_setattr     442  442
memfd_secret      447  447
"""
"""What a program is refused.

Sockets of every family, VSOCK too, which no namespace holds back; new processes; memory that no limit counts
(System V segments, memfd); other processes' memory; keys, which are the machine's; doors of the kernel that
no program under test needs.
"""
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3, FOREIGN_CALLS, CLONE_THREAD = 435, 0x40000000, 0x00010000
LOAD, IS, AT_LEAST, HAS, ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
"""Instructions of classic BPF: load a word, jump if equal, if greater or equal, if a bit is set; return."""
ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
"""SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM; with ENOSYS, on which a C library tries `clone`."""
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data."""


def filter_program(machine: str) -> bytes:
    """The filter as instructions, 8 bytes each; OSError for a machine whose numbers are not known here."""
    if machine not in MACHINES:
        raise OSError(f"there is no list of system calls for {machine}")
    steps = [
        (LOAD, 0, 0, ARCHITECTURE),
        (IS, 1, 0, MACHINES[machine]),
        (ANSWER, 0, 0, REFUSE),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, FOREIGN_CALLS),  # the x32 calls of x86
        (ANSWER, 0, 0, REFUSE),
        (IS, 0, 1, CLONE3),
        (ANSWER, 0, 0, UNKNOWN),
    ]
    for number in denied(machine):
        steps += [(IS, 0, 1, number), (ANSWER, 0, 0, REFUSE)]
    steps += [
        (IS, 1, 0, CLONE[machine]),
        (ANSWER, 0, 0, ALLOW),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (HAS, 0, 1, CLONE_THREAD),  # a thread is not a process
        (ANSWER, 0, 0, ALLOW),
        (ANSWER, 0, 0, REFUSE),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def denied(machine: str) -> list[int]:
    """The numbers of what is refused on a machine."""
    column = 1 + list(MACHINES).index(machine)
    numbers = [line.split()[column] for line in CALLS.strip().splitlines()]
    return [int(number) for number in numbers if number != "-"]


def refuse_calls() -> None:
    """Refuse the denied calls of this process and all that comes of it, for good."""
    program = ctypes.create_string_buffer(filter_program(platform.machine()))
    described = struct.pack("HP", (len(program) - 1) // 8, ctypes.addressof(program))
    libc("prctl", SET_SECCOMP, ctypes.c_ulong(2), described, ctypes.c_ulong(0), ctypes.c_ulong(0))


def refuse_privileges() -> None:
    """Never gain a right by starting a program."""
    libc("prctl", SET_NO_NEW_PRIVILEGES, *map(ctypes.c_ulong, (1, 0, 0, 0)))
