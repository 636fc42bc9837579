"""Timelines of uploaded videos: windows from a process of their own, answered between the questions of others.

Belongs here: how `upload.decode_windows`, the batcher and `timeline.merge` are put together, with memory that does not
grow with the video, and how all of it is let go where nobody waits any more. What a timeline is (`timeline`) and how
it is sent (`service.py`) do not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

from pipelines.common.serving import log
from pipelines.common.serving.batcher import Batcher, Done
from pipelines.common.serving.refusal import RefusalError
from pipelines.common.serving.sandbox import GivenUpError, Job, Sandbox
from pipelines.common.vlm.dialogue import Question
from pipelines.openpack.decode import Window
from pipelines.openpack.prediction import Prediction
from pipelines.openpack.timeline import Progress, VideoTimeline, merge, window_name, window_of
from pipelines.openpack.upload import PRELOAD, WINDOWS_LIMITS, decode_windows, decoding, place, refused, shown

if TYPE_CHECKING:
    from pipelines.openpack.serve import Model

AT_ONCE = 2  # more would only make each of them late; each has a core's worth of decoding
LONGEST_S = 30 * 60
MARGIN_S = 10  # before the deadline of the request, which would cut the answer off without a last line
BATCHES_AHEAD = 2  # of windows that wait to be answered: one is scored while the next is decoded
PRIORITY = 0  # below that of whoever asks about one clip

Event = Progress | VideoTimeline
Submit = Callable[["Model", tuple[str, Question], int], "Future[Done[Prediction]]"]


class LongVideos:
    """Answers whole videos; `start` once, `stop` ends what is there."""

    def __init__(self) -> None:
        self.sandbox = Sandbox(
            decode_windows, WINDOWS_LIMITS, processes=AT_ONCE, preload=PRELOAD, name="packaging-timeline"
        )

    def start(self, batcher: Batcher[Model, tuple[str, Question], Prediction]) -> None:
        self._submit = batcher.submit
        self._threads = ThreadPoolExecutor(AT_ONCE, "timeline")
        self.sandbox.start()

    @property
    def works(self) -> bool:
        """Whether processes that end are still replaced."""
        return self.sandbox.works

    def stop(self) -> None:
        """After the requests have ended."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.sandbox.stop()

    async def events(self, model: Model, upload: BinaryIO, name: str, seconds: float) -> AsyncGenerator[Event, None]:
        """`Progress` for each window that is answered, at last the timeline; to be closed where one leaves early.

        RefusalError for what gets none, also shortly before the request is `seconds` old. Closing it, or cancelling who
        waits for its next event, ends the process and takes the waiting windows out of the queue.
        """
        settings = model.predictor.settings.timeline
        longest = {"longest_s": min(settings.longest_s, LONGEST_S), "stride_s": settings.stride_s}
        task = decoding(place(upload), model.bundle.preparation, model.predictor.size, **longest)
        answering = _Answering(self.sandbox.job(task), model, name, self._submit)
        loop, events = asyncio.get_running_loop(), answering.events()
        began, step = loop.time(), None
        ends = began + seconds - log.current().stages.get("receive", 0) - MARGIN_S
        try:
            while True:
                step = loop.run_in_executor(self._threads, next, events, None)
                await asyncio.wait({step}, timeout=max(0, ends - loop.time()))
                if not step.done():
                    sentence = f"There was no answer within {seconds / 60:.0f} minutes. Send a shorter video."
                    raise RefusalError(504, "deadline", sentence)
                with refused(name):
                    event = step.result()
                if event is None:
                    return
                yield event
        finally:
            answering.give_up()
            if step is not None:
                # within one batch: its process is dead, its questions are cancelled
                await asyncio.gather(step, return_exceptions=True)
            await loop.run_in_executor(self._threads, events.close)
            log.current().took("timeline", loop.time() - began)


class _Answering:
    """One video. `events` is for one thread at a time; `give_up` may be called from any, and ends it soon."""

    def __init__(self, job: Job, model: Model, name: str, submit: Submit) -> None:
        self._job, self._model, self._name, self._submit = job, model, name, submit
        self._lock, self._given_up = Lock(), False
        self._waiting: deque[tuple[int, Future[Done[Prediction]]]] = deque()

    def events(self) -> Generator[Event, None, None]:
        """DataError, SetupError and DiedError as `Job.messages` raises them; GivenUpError after `give_up`."""
        messages = self._job.messages()
        try:
            told, _ = next(messages)
            windows: list[Window] = []
            for number in count():
                message = next(messages, None) if number < told["windows"] else None
                if message is not None:
                    self._ask(message)
                while self._waiting and (message is None or len(self._waiting) >= self._ahead):
                    windows.append(self._answered(told["frames"]))
                    yield Progress(len(windows), told["windows"])
                if message is None:
                    break
            next(messages, None)  # its end: the process is fit for another video
        finally:
            messages.close()
        bundle, settings = self._model.bundle, self._model.predictor.settings.timeline
        yield merge(windows, told["frames"], bundle.grammar, settings, bundle.taxonomy)

    def give_up(self) -> None:
        with self._lock:
            self._given_up = True
            for _, future in self._waiting:
                future.cancel()
        self._job.cancel()

    @property
    def _ahead(self) -> int:
        return BATCHES_AHEAD * self._model.predictor.settings.batch_size

    def _ask(self, message: Any) -> None:
        window = shown(message)
        question = window.question(self._model.bundle.taxonomy, self._model.clip_format.fps)
        with self._lock:
            if self._given_up:
                raise GivenUpError
            future = self._submit(self._model, (window_name(self._name, window.start), question), PRIORITY)
            self._waiting.append((window.start, future))

    def _answered(self, n_frames: int) -> Window:
        start, future = self._waiting[0]
        try:
            answer = future.result().value
        except CancelledError:
            raise GivenUpError from None
        with self._lock:
            self._waiting.popleft()
        return window_of(start, n_frames, answer, self._model.clip_format)
