"""The next step's batches are made while this step runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """`make(first)`, `make(first + 1)`, ... without end, each made in a thread while the one before is used.

    What `make` raises is raised by the `next` that would have given its result, and by every `next` after
    it.  As `make` is a pure function of the step, a Prefetch begun at step n gives what one begun at 0 gives
    from n on.  Close it, or use it in a `with`, so that its thread ends.
    """

    def __init__(self, make: Callable[[int], T], first: int = 0) -> None:
        self.make, self.step = make, first
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self.ready: Future[T] = self.thread.submit(make, first)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        result = self.ready.result()
        self.step += 1
        self.ready = self.thread.submit(self.make, self.step)
        return result

    def close(self) -> None:
        """Wait for the step that is being made, if any, and end the thread."""
        self.thread.shutdown(cancel_futures=True)

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
