"""Work that runs out of memory is done in smaller parts, which the log says."""

import logging
from collections.abc import Sequence

import pytest
import torch

from pipelines.common.errors import SetupError
from pipelines.common.vlm.halving import Halving


class Narrow:
    """Doubles numbers, of which `room` fit at a time."""

    def __init__(self, room: int) -> None:
        self.room, self.parts = room, []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.parts.append(len(numbers))
        if len(numbers) > self.room:
            raise torch.OutOfMemoryError
        return [2 * one for one in numbers]


def test_parts_are_halved_until_they_fit_and_stay_so(caplog: pytest.LogCaptureFixture):
    narrow = Narrow(3)
    halving = Halving(narrow, 8, "Buy memory.")
    with caplog.at_level(logging.WARNING):
        assert halving(range(10)) == [2 * one for one in range(10)]
    assert narrow.parts == [8, 4, 2, 2, 2, 2, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: goes on with 4 clips at a time",
        "out of memory: goes on with 2 clips at a time",
    ]
    halving(range(4))
    assert narrow.parts[-2:] == [2, 2]


def test_a_single_one_that_does_not_fit_is_an_error_with_its_cure():
    with pytest.raises(SetupError, match=r"out of memory with a single clip on the device\. Buy memory\."):
        Halving(Narrow(0), 8, "Buy memory.")([1, 2, 3])
