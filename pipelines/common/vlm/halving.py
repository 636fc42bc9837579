"""Work on a GPU in parts that fit: where memory runs out, the rest is done in parts of half the size.

Belongs here: how parts get smaller, and how memory of a part that failed is let go. A training, whose processes all
have to halve together, does its own halving (`train`).
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from pipelines.common.errors import SetupError

Item = TypeVar("Item")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class Halving(Generic[Item, Result]):
    """Calls `work` with at most `size` items at a time; `size` is from then on what fitted.

    The log says when it gets smaller. SetupError, with `cure`, where a single item does not fit.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], size: int, cure: str) -> None:
        self._work, self.size, self._cure = work, size, cure

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        """`work` gives a result an item, in order."""
        done: list[Result] = []
        while len(done) < len(items):
            part = items[len(done) : len(done) + self.size]
            try:
                done += self._work(part)
                continue
            except torch.OutOfMemoryError:
                pass  # freed below: while the error is handled, its frames hold on to what they had made
            release_memory()
            if len(part) == 1:
                raise SetupError("out of memory with a single clip on the device", cure=self._cure)
            self.size = len(part) // 2
            _log.warning("out of memory: goes on with %d clips at a time", self.size)
        return done


def release_memory() -> None:
    """Gives the memory of what nobody holds any more back to the device."""
    gc.collect()  # interrupted work leaves tensors in cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
