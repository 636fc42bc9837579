"""Batches across requests: who is scored with whom, in which order, and who is not scored any more."""

import threading
from collections.abc import Iterator

import pytest

from pipelines.common.serving.batcher import Batcher


class Model:
    """Scores text; while `closed` it holds on to the batch that it was given."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.models: list[str] = []
        self.open, self.began = threading.Event(), threading.Event()
        self.open.set()

    def score(self, model: str, items: list[str]) -> list[str]:
        self.batches.append(items)
        self.models.append(model)
        self.began.set()
        assert self.open.wait(10)
        if "bad" in items:
            raise ValueError("bad")
        return [f"{model}:{item}" for item in items]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Iterator[Batcher]:
    one = Batcher(model.score, lambda name: 3)
    yield one
    model.open.set()
    one.stop()


def _busy(model: Model, batcher: Batcher) -> None:
    """Until `model.open` is set everything else waits."""
    model.open.clear()
    batcher.submit("m", "first")
    assert model.began.wait(10)


def test_what_waits_is_scored_together_up_to_the_batch_size(model: Model, batcher: Batcher) -> None:
    _busy(model, batcher)
    futures = [batcher.submit("m", f"{number}") for number in range(5)]
    model.open.set()
    done = [future.result(10) for future in futures]
    assert [one.value for one in done] == [f"m:{number}" for number in range(5)]
    assert model.batches == [["first"], ["0", "1", "2"], ["3", "4"]]
    assert [one.batch for one in done] == [3, 3, 3, 2, 2]
    assert all(one.waited_s > 0 for one in done)


def test_one_alone_does_not_wait_for_others(model: Model, batcher: Batcher) -> None:
    assert batcher.submit("m", "a").result(10).batch == 1


def test_higher_priority_goes_first_and_alone(model: Model, batcher: Batcher) -> None:
    _busy(model, batcher)
    futures = [batcher.submit("m", item, priority) for item, priority in (("low", 0), ("high", 1), ("low2", 0))]
    model.open.set()
    for future in futures:
        future.result(10)
    assert model.batches[1:] == [["high"], ["low", "low2"]]


def test_a_batch_is_of_one_model(model: Model, batcher: Batcher) -> None:
    _busy(model, batcher)
    futures = [batcher.submit(name, item) for name, item in (("old", "a"), ("new", "b"), ("new", "c"))]
    model.open.set()
    assert [future.result(10).value for future in futures] == ["old:a", "new:b", "new:c"]
    assert list(zip(model.models, model.batches, strict=True))[1:] == [("old", ["a"]), ("new", ["b", "c"])]


def test_who_has_gone_is_not_scored(model: Model, batcher: Batcher) -> None:
    _busy(model, batcher)
    gone, stays = batcher.submit("m", "gone"), batcher.submit("m", "stays")
    assert gone.cancel()
    model.open.set()
    assert stays.result(10).value == "m:stays"
    assert model.batches[1:] == [["stays"]]


def test_one_bad_item_fails_alone(model: Model, batcher: Batcher) -> None:
    _busy(model, batcher)
    futures = [batcher.submit("m", item) for item in ("a", "bad", "c")]
    model.open.set()
    assert [future.exception(10) is None for future in futures] == [True, False, True]
    assert futures[2].result().value == "m:c"
    assert batcher.submit("m", "next").result(10).value == "m:next"


def test_stopping_finishes_what_waits_and_takes_no_more(model: Model) -> None:
    batcher = Batcher(model.score, lambda name: 3)
    _busy(model, batcher)
    waits = batcher.submit("m", "waits")
    threading.Timer(0.05, model.open.set).start()
    assert batcher.works
    batcher.stop()
    assert not batcher.works
    assert waits.result(0).value == "m:waits"
    with pytest.raises(RuntimeError, match="stopped"):
        batcher.submit("m", "late")
