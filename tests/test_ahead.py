"""Samples made ahead of the training that wants them: the same by any number of workers, and errors come through."""

from functools import partial

import pytest

from pipelines.common.ahead import Ahead
from pipelines.common.errors import DataError


def squares(fails_at: int | None):
    def make(step: int) -> int:
        if step == fails_at:
            raise DataError("the shard is damaged", file="a.tar", cure="Run shards again.")
        return step * step

    return make


@pytest.mark.parametrize("workers", [1, 3])
def test_each_step_gets_its_own_samples_whoever_makes_them(workers: int):
    with Ahead(partial(squares, None), workers) as ahead:
        assert [ahead(step) for step in range(3, 12)] == [step * step for step in range(3, 12)]


def test_an_error_comes_with_the_step_that_it_belongs_to():
    with Ahead(partial(squares, 2), 2) as ahead:
        assert [ahead(0), ahead(1)] == [0, 1]
        with pytest.raises(DataError, match=r"a\.tar: the shard is damaged"):
            ahead(2)
