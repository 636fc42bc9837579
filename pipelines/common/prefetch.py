"""Makes the next items in a thread while the last ones are worked on.

Belongs here: iterators whose work lets go of the interpreter (decoding, files), beside a model. Work that does not
belongs into a process: `ahead`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.1


def prefetched(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The same items in order, up to `depth` of them made before they are asked for.

    What making one raises is raised where it would have been. Closing the generator ends the thread, with the item that
    it is at.
    """
    ready: Queue[tuple[T | None, BaseException | None, bool]] = Queue(depth)
    left = Event()

    def put(entry: tuple[T | None, BaseException | None, bool]) -> None:
        while not left.is_set():
            with suppress(Full):
                ready.put(entry, timeout=_POLL_S)
                return

    def make() -> None:
        try:
            for item in items:
                put((item, None, False))
                if left.is_set():
                    return
        except BaseException as error:  # for whoever waits; this thread has nobody to tell
            put((None, error, True))
        else:
            put((None, None, True))

    thread = Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item, error, last = ready.get(timeout=_POLL_S)
            except Empty:
                continue
            if error is not None:
                raise error
            if last:
                return
            yield item  # pyright: ignore[reportReturnType]
    finally:
        left.set()
        thread.join()
