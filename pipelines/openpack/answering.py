"""The models of an evaluation at work: in this process, or on a CPU in several, each with a share of the work.

Belongs here: loading the models, and who answers what. What is answered (`arms`, `calibrate`, `whole_sessions`), in
which order and what comes of it (`evaluate`) do not. One piece of work is a batch of clips or a session; which process
does it changes nothing about its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipelines.common.errors import SetupError
from pipelines.common.orphans import end_with_parent
from pipelines.common.threads import one_thread
from pipelines.openpack.arms import answer_batch
from pipelines.openpack.baselines import Baselines
from pipelines.openpack.calibrate import Calibration
from pipelines.openpack.grammar import Grammar
from pipelines.openpack.loader import ShardReader
from pipelines.openpack.prediction import Prediction
from pipelines.openpack.records import write_clip_records
from pipelines.openpack.settings import EvaluationSettings
from pipelines.openpack.splits import Split
from pipelines.openpack.taxonomy import LABELS, Taxonomy
from pipelines.openpack.whole_sessions import Answered, SessionTask, Videos, answer_session

if TYPE_CHECKING:
    from pipelines.openpack.predict import Predictor

T = TypeVar("T")


@dataclass(frozen=True)
class Models:
    """What is loaded to answer: folders of the stages, whose clips are answered, and with which settings."""

    base: Path
    adapter: Path
    shards: Path
    split: Split
    settings: EvaluationSettings


class Answerer:
    """The tuned model and its base, which are one model in memory: the base answers with the adapter switched off."""

    def __init__(self, models: Models) -> None:
        from pipelines.openpack.predict import Predictor

        self._models = models
        taxonomy = Taxonomy.read(models.shards / LABELS)
        self._tuned: Predictor = Predictor.load(models.base, models.adapter, taxonomy, models.settings)

    @cached_property
    def _validation(self) -> ShardReader:
        return ShardReader(self._models.shards, "val")

    @cached_property
    def _clips(self) -> ShardReader:
        return ShardReader(self._models.shards, self._models.split)

    def validation(self, numbers: Sequence[int]) -> list[Prediction]:
        """Uncalibrated answers to samples of the validation split, by number."""
        return self._tuned.answer_samples([self._validation.sample(number) for number in numbers])

    def batch(
        self, file: Path, start: int, calibration: Calibration, baselines: Baselines, models: dict[str, str]
    ) -> None:
        """Writes the records of the batch of clips that begins with number `start` to `file`. The base answers
        uncalibrated, as it is without this project."""
        base, tuned = self._tuned.without_adapter(), self._tuned.calibrated(calibration)
        records = answer_batch(base, tuned, baselines, self._clips, start, self._models.settings, models)
        write_clip_records(file, records)

    def session(self, task: SessionTask, calibration: Calibration, grammar: Grammar, videos: Videos) -> list[Answered]:
        """One test session, or a user's sessions drawn once more, as a whole."""
        return answer_session(self._tuned.calibrated(calibration), task, videos, self._clips.preparation, grammar)


class Run(Protocol):
    def __call__(self, work: Callable[..., T], arguments: Iterable[tuple]) -> Iterator[T]: ...


@contextmanager
def answering(models: Models) -> Iterator[Run]:
    """A function that calls a method of `Answerer` with each of many arguments; results come in their order.

    In `settings.processes` processes, which end with the block and with their parent. SetupError where one dies.
    """
    processes = models.settings.processes
    if processes == 1:
        answerer = Answerer(models)

        def here(work: Callable[..., T], arguments: Iterable[tuple]) -> Iterator[T]:
            return (work(answerer, *one) for one in arguments)

        yield here
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (models,))

    def there(work: Callable[..., T], arguments: Iterable[tuple]) -> Iterator[T]:
        futures: list[Future[T]] = [pool.submit(_work, work, one) for one in arguments]
        for future in futures:
            yield future.result()

    try:
        yield there
    except BrokenProcessPool as error:
        cure = "Look for a lack of memory; the next run goes on from the batches that are answered."
        raise SetupError(f"one of {processes} processes that answer died", cure=cure) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_answerer: Answerer | None = None


def _start(models: Models) -> None:
    global _answerer
    end_with_parent()
    one_thread()
    _answerer = Answerer(models)


def _work(work: Callable[..., T], arguments: tuple) -> T:
    assert _answerer is not None
    return work(_answerer, *arguments)
