"""Faults to inject (system calls that fail, processes that die at one), and the smallest tokenizer."""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from hasten.tokenizer.tokenizer import Tokenizer

FILE_CALLS = ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir")


@pytest.fixture
def file_calls() -> Callable[[Callable[[int], None]], AbstractContextManager[None]]:
    """`with file_calls(before):` runs `before(n)` ahead of the n-th call that changes the file system."""

    @contextmanager
    def watch(before: Callable[[int], None]) -> Iterator[None]:
        count = 0

        def spied(call: Callable) -> Callable:
            def wrapper(*arguments: object, **options: object) -> object:
                nonlocal count
                count += 1
                before(count)
                return call(*arguments, **options)

            return wrapper

        with pytest.MonkeyPatch.context() as patch:
            for name in FILE_CALLS:
                patch.setattr(os, name, spied(getattr(os, name)))
            yield

    return watch


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], int]:
    """`in_child(work)` runs `work` in a forked process; its exit code, negative for a signal."""

    def run(work: Callable[[], object]) -> int:
        child = os.fork()
        if child == 0:
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., Tokenizer]:
    """`byte_tokenizer("<|end|>")`: the 256 bytes without a merge, then the special tokens named."""

    def make(*special: str) -> Tokenizer:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        inner = tokenizers.Tokenizer(
            models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[])
        )
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens([*special])
        return Tokenizer(inner)

    return make


def die() -> None:
    """Leave as abruptly as a process can."""
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full() -> None:
    """What the kernel says when there is no room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
