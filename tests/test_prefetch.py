"""Items that a thread makes ahead: the same, in order, with their errors, and no further than asked for."""

import threading
import time
from collections.abc import Iterator

import pytest

from pipelines.common.prefetch import prefetched


def threads() -> int:
    return sum(one.name == "prefetch" for one in threading.enumerate())


def test_items_come_in_order_and_are_made_ahead():
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    taken = prefetched(items(), depth=2)
    assert next(taken) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # the one that was taken, two that wait, and one in the hand
    assert list(taken) == list(range(1, 20))
    assert threads() == 0


def test_an_error_is_raised_where_it_would_have_been():
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    taken = prefetched(items(), depth=4)
    assert next(taken) == 1
    with pytest.raises(ValueError, match="no more"):
        next(taken)


def test_leaving_early_ends_the_thread():
    taken = prefetched(iter(range(1000)), depth=1)
    assert next(taken) == 0
    taken.close()
    assert threads() == 0
