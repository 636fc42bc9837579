"""The newest good model while serving: another one without a restart, a broken one never.

Belongs here: when to look, what to try and what to keep. Where models are stored and how one is loaded and tried does
not. A new model is loaded beside the one that answers, in a thread, and takes its place in one assignment; who holds
the old one goes on with it, and its memory is free when the last one lets go.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Generic, Protocol, TypeVar

from pipelines.common.errors import DataError
from pipelines.common.serving import log, metrics


class Stored(Protocol):
    """A model in a store: its name, and a `stamp` that changes when its files do."""

    @property
    def name(self) -> str: ...

    @property
    def stamp(self) -> str: ...


Place = TypeVar("Place", bound=Stored)
Model = TypeVar("Model")


class Newest(Generic[Place, Model]):
    """`current` is the model of the first of `stored()` (newest first) that `load` brings up, or None as yet.

    A model that fails is told of once and not tried again until its files change.
    """

    def __init__(self, stored: Callable[[], Sequence[Place]], load: Callable[[Place], Model]) -> None:
        self._stored, self._load = stored, load
        self._is: str | None = None
        self._bad: set[tuple[str, str]] = set()
        self._unreadable: str | None = None  # what was last told of the store
        self._stopping = Event()
        self.current: Model | None = None
        self.looked = False  # all that is stored was tried, or one is good
        self.failure: str | None = None  # of the last one that could not be used, while it is the newest

    def start(self, every_s: float | None) -> None:
        """Looks now and every `every_s` seconds, in a thread; with None until one was tried, for what is fixed."""
        Thread(target=self._watch, args=(every_s,), name="newest-model", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def look(self) -> None:
        """Looks once, now."""
        self._try_all()
        self.looked = True

    def _try_all(self) -> None:
        for number, place in enumerate(self._stored()):
            if place.name == self._is:
                self.failure = self.failure if number else None
                return
            if (place.name, place.stamp) not in self._bad and self._took(place):
                self.failure = self.failure if number else None
                return

    def _took(self, place: Place) -> bool:
        try:
            model = self._load(place)
        except Exception as error:  # whatever is wrong with it, the one that answers goes on
            self._bad.add((place.name, place.stamp))
            metrics.MODEL_REJECTED.inc()
            why = str(error) if isinstance(error, DataError) else "".join(traceback.format_exception_only(error))
            self.failure = f"{place.name} cannot be used: {why.strip()}"
            log.say("model_rejected", model=place.name, error=why.strip(), stays=self._is)
            return False
        self.current, before, self._is = model, self._is, place.name
        log.say("model_loaded", model=place.name, instead_of=before)
        return True

    def _watch(self, every_s: float | None) -> None:
        while True:
            try:
                self.look()
                self._unreadable = None
            except Exception as error:  # the store cannot be read just now
                if str(error) != self._unreadable:
                    log.say("store_unreadable", error=str(error))
                self._unreadable = str(error)
            if every_s is None and self.looked:
                return
            if self._stopping.wait(every_s or 1):
                return
