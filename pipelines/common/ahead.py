"""Makes the next steps' samples in other processes while this one computes.

Not torch's DataLoader, though its order could be the same, with the steps' numbers as sampler: it makes a worker's
error anew from its traceback, without file, place and cure (a DataError becomes a RuntimeError), and its workers look
for their parent only between two steps.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import Generic, Self, TypeVar

from pipelines.common.orphans import end_with_parent
from pipelines.common.threads import one_thread

T = TypeVar("T")

_make: Callable[[int], object] | None = None


class Ahead(Generic[T]):
    """Calls `maker()` once in each of `workers` spawned processes, then the function it returns for each step, early
    enough that every worker has one to make and one more is ready.

    Context manager; `ahead(step)` waits for that step's result. The function must depend on the step alone, so that
    any order of calls gives the same. Both must be picklable (module level functions, `functools.partial` of them).
    """

    def __init__(self, maker: Callable[[], Callable[[int], T]], workers: int = 1) -> None:
        self._depth = workers + 1  # a step of 16 clips at full size is 173 MB of shared memory
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (maker,))
        self._coming: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        for one in range(step, step + self._depth + 1):
            if one not in self._coming:
                self._coming[one] = self._pool.submit(_call, one)  # pyright: ignore[reportArgumentType]
        return self._coming.pop(step).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _start(maker: Callable[[], Callable[[int], object]]) -> None:
    global _make
    end_with_parent()
    one_thread()
    _make = maker()


def _call(step: int) -> object:
    assert _make is not None
    return _make(step)
