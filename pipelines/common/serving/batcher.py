"""Items of many requests, scored together: whatever waits when the model is free becomes the next batch.

Belongs here: who waits, in which order, and how batches are cut. What is scored and how does not. Nobody waits for a
batch to fill: an item that comes while nothing is scored is scored at once, alone; under load batches grow by
themselves, since more comes in while one is scored.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Generic, TypeVar

from pipelines.common.serving import metrics

Model = TypeVar("Model", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A result, how many seconds its item waited, how many its batch took, and how many were in it."""

    value: Result
    waited_s: float
    took_s: float
    batch: int


@dataclass(frozen=True)
class _Entry(Generic[Model, Item]):
    model: Model
    item: Item
    future: Future
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[Model, Item, Result]):
    """One thread that calls `score(model, items)`, which gives a result an item, with at most `size(model)` items.

    Items of one batch are for one model and of one priority. An item whose future is cancelled while it waits is
    dropped. Where a batch fails its halves are scored, and theirs, so that one bad item fails by itself.
    """

    def __init__(self, score: Callable[[Model, list[Item]], list[Result]], size: Callable[[Model], int]) -> None:
        self._score, self._size = score, size
        self._waiting: dict[int, deque[_Entry[Model, Item]]] = {}
        self._changed, self._stopping = Condition(), False
        self._thread = Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, model: Model, item: Item, priority: int = 0) -> Future[Done[Result]]:
        """The item's result to come; a lower `priority` waits for all higher ones. RuntimeError after `stop`."""
        entry = _Entry(model, item, Future())
        with self._changed:
            if self._stopping:
                raise RuntimeError("the batcher has stopped")
            self._waiting.setdefault(priority, deque()).append(entry)
            self._tell()
        return entry.future

    def stop(self) -> None:
        """Returns when all that waits is scored."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def works(self) -> bool:
        """Whether what is submitted is still scored."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while batch := self._next():
            self._score_all(batch)
            del batch  # while nothing comes it would keep a model alive that was replaced

    def _next(self) -> list[_Entry[Model, Item]]:
        """The batch that is due, as soon as there is one; empty when all is done and no more will come."""
        with self._changed:
            while True:
                for priority in sorted(self._waiting, reverse=True):
                    if batch := self._cut(self._waiting[priority]):
                        self._tell()
                        return batch
                if self._stopping:
                    return []
                self._tell()
                self._changed.wait()

    def _cut(self, line: deque[_Entry[Model, Item]]) -> list[_Entry[Model, Item]]:
        batch: list[_Entry[Model, Item]] = []
        while line and (not batch or (line[0].model == batch[0].model and len(batch) < self._size(batch[0].model))):
            entry = line.popleft()
            if entry.future.set_running_or_notify_cancel():
                batch.append(entry)
        return batch

    def _tell(self) -> None:
        metrics.QUEUE_LENGTH.set(sum(len(line) for line in self._waiting.values()))
        self._changed.notify()

    def _score_all(self, batch: list[_Entry[Model, Item]]) -> None:
        began = time.monotonic()
        try:
            results = self._score(batch[0].model, [entry.item for entry in batch])
            if len(results) != len(batch):
                raise ValueError(f"{len(results)} results for {len(batch)} items")
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                self._score_all(part)
            return
        took = time.monotonic() - began
        metrics.BATCH_SIZE.observe(len(batch))
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(Done(result, began - entry.since, took, len(batch)))
