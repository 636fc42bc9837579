"""The newest good model: when another takes its place, and what a broken one does, which is nothing."""

import threading
from dataclasses import dataclass

import pytest
from kills import wait_until

from pipelines.common.errors import DataError
from pipelines.common.serving.newest import Newest


@dataclass
class Stored:
    name: str
    broken: bool = False
    stamp: str = "1"


class Store:
    def __init__(self, *models: Stored) -> None:
        self.models, self.tried = list(models), []

    def stored(self) -> list[Stored]:
        return self.models

    def load(self, place: Stored) -> str:
        self.tried.append(place.name)
        if place.broken:
            raise DataError("no weights", file=place.name, cure="Train again.")
        return place.name.upper()


def _looked(store: Store, times: int = 1) -> Newest[Stored, str]:
    newest = Newest(store.stored, store.load)
    for _ in range(times):
        newest.look()
    return newest


def test_the_newest_is_taken_and_loaded_once() -> None:
    store = Store(Stored("b"), Stored("a"))
    assert _looked(store, 3).current == "B"
    assert store.tried == ["b"]


def test_a_newer_one_takes_its_place() -> None:
    store = Store(Stored("a"))
    newest = _looked(store)
    held = newest.current
    store.models.insert(0, Stored("b"))
    newest.look()
    assert (held, newest.current) == ("A", "B")


def test_a_broken_one_never_does_and_is_tried_once_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(Stored("a"))
    newest = _looked(store)
    store.models.insert(0, Stored("b", broken=True))
    with caplog.at_level("INFO", "serving"):
        for _ in range(3):
            newest.look()
    assert (newest.current, store.tried) == ("A", ["a", "b"])
    assert sum("model_rejected" in line for line in caplog.messages) == 1
    assert newest.failure == "b cannot be used: b: no weights. Train again."


def test_while_older_ones_are_tried_nothing_is_settled() -> None:
    store = Store(Stored("b", broken=True), Stored("a"))
    newest, settled = Newest(store.stored, lambda place: settled.append(newest.looked) or store.load(place)), []
    newest.look()
    assert (settled, newest.current, newest.looked) == ([False, False], "A", True)


def test_a_broken_one_is_tried_again_when_its_files_changed() -> None:
    store = Store(Stored("b", broken=True), Stored("a"))
    newest = _looked(store)
    assert newest.current == "A"
    store.models[0] = Stored("b", stamp="2")
    newest.look()
    assert (newest.current, newest.failure) == ("B", None)


def test_with_nothing_good_there_is_none_and_a_reason() -> None:
    newest = _looked(Store(Stored("a", broken=True)))
    assert (newest.current, newest.looked) == (None, True)
    assert "no weights" in (newest.failure or "")


def test_it_looks_by_itself_and_bears_a_store_that_cannot_be_read() -> None:
    store, broken = Store(Stored("a")), threading.Event()

    def stored() -> list[Stored]:
        if broken.is_set():
            broken.clear()
            raise OSError("gone for a moment")
        return store.stored()

    newest = Newest(stored, store.load)
    newest.start(0.01)
    assert wait_until(lambda: newest.current) == "A"
    broken.set()
    wait_until(lambda: not broken.is_set())
    store.models.insert(0, Stored("b"))
    wait_until(lambda: newest.current == "B")
    newest.stop()


def test_what_must_not_change_is_looked_at_once() -> None:
    store = Store(Stored("a"))
    newest = Newest(store.stored, store.load)
    newest.start(None)
    wait_until(lambda: newest.current)
    wait_until(lambda: "newest-model" not in {thread.name for thread in threading.enumerate()})
    assert newest.current == "A"
