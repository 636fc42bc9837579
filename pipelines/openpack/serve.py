"""The service behind its routes: the model of the day, uploads to questions, questions of many requests to answers.

Belongs here: how `common.serving` and `predict` are put together, and what is told of an answer. What is special about
HTTP or BentoML (`service.py`), how one video is read (`upload`) and how a question is answered (`predict`) do not.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from prometheus_client import Counter, Histogram

from pipelines.common.clip_format import ClipFormat
from pipelines.common.errors import DataError
from pipelines.common.files import digest
from pipelines.common.serving import log, metrics
from pipelines.common.serving.batcher import Batcher, Done
from pipelines.common.serving.lines import Events
from pipelines.common.serving.newest import Newest
from pipelines.common.serving.refusal import RefusalError
from pipelines.common.serving.sandbox import Message, Sandbox
from pipelines.common.vlm.dialogue import Question
from pipelines.openpack.bundle import NAME, Bundle, bundle_digest, read_bundle
from pipelines.openpack.long_videos import LongVideos
from pipelines.openpack.prediction import Prediction
from pipelines.openpack.timeline import Progress
from pipelines.openpack.upload import LIMITS, PRELOAD, decoding, pictures, place, refused, shown, work

if TYPE_CHECKING:
    from pipelines.openpack.predict import Predictor

LONGEST_ID = 64  # characters of a file's name that are given back
MOST_DECODERS = 4  # processes that read videos: each may take two gigabytes
LOOK_EVERY_S = 5  # at the model store; a look is a listing of a few files
LABEL_SET = "brief"  # the names that answers are given in

Read = TypeVar("Read")

CONFIDENCE = Histogram(
    "packaging_confidence", "Confidence of answers", buckets=tuple(tenth / 10 for tenth in range(1, 11))
)
ANSWERED = Counter("packaging_answers_total", "Answers by what they name", ["part", "name"])


@dataclass(frozen=True)
class StoredModel:
    """A bundle in a store; `stamp` as `common.serving.newest` wants it."""

    version: str
    folder: Path

    @property
    def name(self) -> str:
        return f"{NAME}:{self.version}"

    @property
    def stamp(self) -> str:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return digest([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files])


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle that is loaded and has answered once."""

    name: str
    bundle: Bundle
    predictor: Predictor

    @property
    def data(self) -> str:
        """Where the clips came from that it was trained on, as source/view."""
        return ",".join(sorted({f"{row['source']}/{row['view']}" for row in self.bundle.info.data}))

    def headers(self) -> dict[str, str]:
        """What answered: a figure or an answer never stands without it."""
        adapter = self.bundle.info.adapter_digest
        told = {"X-Model": self.name, "X-Adapter": adapter, "X-Label-Set": LABEL_SET, "X-Data": self.data}
        return {**told, "X-Frames-Per-Second": str(self.clip_format.fps)}

    @property
    def clip_format(self) -> ClipFormat:
        return self.bundle.preparation.clip_format


@dataclass(frozen=True)
class Reply:
    """An answer and the headers that say what gave it."""

    answer: dict[str, Any]
    headers: dict[str, str]


class Desk:
    """Takes videos in and gives answers out. `start` once, in the process that serves; `stop` finishes what is there.

    `stored()` lists models, newest first.
    """

    def __init__(self, stored: Callable[[], Sequence[StoredModel]]) -> None:
        self.models = Newest(stored, load_model)
        self.sandbox = Sandbox(work, LIMITS, processes=_decoders(), preload=PRELOAD, name="packaging-upload")
        self.long_videos = LongVideos()

    def start(self, *, pinned: bool) -> None:
        """`pinned` keeps the first model for good."""
        metrics.forget_the_dead()
        self.sandbox.start()
        self.batcher: Batcher[Model, tuple[str, Question], Prediction] = Batcher(_answers, _batch_size)
        self._decoders = ThreadPoolExecutor(_decoders(), "decode")  # more at once would only make each of them late
        self.long_videos.start(self.batcher)
        self.models.start(None if pinned else LOOK_EVERY_S)

    def stop(self) -> None:
        self.models.stop()
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self.long_videos.stop()
        self.batcher.stop()
        self.sandbox.stop()

    async def model(self) -> Model:
        """The model that answers from now on, awaited while the first one loads. RefusalError where none loads."""
        while self.models.current is None:
            if self.models.looked and self.models.current is None:
                raise RefusalError(503, "model", f"No model can be loaded: {self.models.failure}")
            await asyncio.sleep(0.05)
        return self.models.current

    async def predict(self, upload: BinaryIO, filename: str | None) -> Reply:
        """The answer for the first clip of an uploaded video: the brief's five keys. RefusalError for what
        gets none.

        Given up, it ends the process that decodes and takes its clip out of the queue.
        """
        model, name = await self.model(), clip_id(filename)
        asked = model.bundle.taxonomy, model.clip_format.fps
        question = await self._read(upload, name, model, lambda message: shown(message).question(*asked))
        done = await asyncio.wrap_future(self.batcher.submit(model, (name, question), priority=1))
        return self._reply(model, done)

    async def keyframes(self, upload: BinaryIO, filename: str | None) -> Reply:
        """What the model is shown of this clip: `fps`, `bounds`, `frames`, `pairs` and, as addresses of data,
        `pictures`. RefusalError as `predict`."""
        model = await self.model()
        chosen, jpegs = await self._read(upload, clip_id(filename), model, pictures, pictures=True)
        log.current().noted["model"] = model.name
        told = {"fps": model.clip_format.fps, "bounds": chosen.bounds, "frames": chosen.frames, "pairs": chosen.pairs}
        coded = [f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" for jpeg in jpegs]
        return Reply({**told, "pictures": coded}, model.headers())

    async def clip_format(self) -> dict[str, float]:
        """What a clip is to the model that answers now: `fps`, `seconds`, `frames` and `size` in pixels a side.
        RefusalError where no model answers."""
        told = (await self.model()).clip_format
        return {**told.model_dump(mode="json"), "frames": told.frames}

    async def timeline(self, upload: BinaryIO, filename: str | None, seconds: float) -> tuple[dict[str, str], Events]:
        """Headers and events of a whole video: `progress` for each window that is answered, at last the `result`.

        The events are to be closed; they raise as `LongVideos.events` does. RefusalError where no model answers.
        """
        model = await self.model()
        events = self.long_videos.events(model, upload, clip_id(filename), seconds)

        async def told() -> Events:
            async with aclosing(events) as ours:
                async for event in ours:
                    if isinstance(event, Progress):
                        yield {"event": "progress", **event.as_json()}
                        continue
                    result = await asyncio.to_thread(event.as_json, brief=True)
                    said = {"segments": len(result["segments"]), "alerts": len(result["alerts"])}
                    log.current().noted.update({"model": model.name, "frames": event.frames, **said})
                    yield {"event": "result", **result}

        return model.headers(), told()

    def state(self) -> tuple[int, dict[str, Any]]:
        """Status and content of /readyz: what answers, or why nothing does yet."""
        model, failure = self.models.current, self.models.failure
        rejected = {"rejected": failure} if failure else {}
        if model is None:
            return 503, {"ready": False, "loading": not self.models.looked, **rejected}
        parts = {"scoring": self.batcher, "clips": self.sandbox, "long videos": self.long_videos}
        broken = [name for name, part in parts.items() if not part.works]
        if broken:
            return 503, {"ready": False, "loading": False, "broken": broken}
        info = model.bundle.info
        told = {"model": model.name, "adapter": info.adapter_digest, "base": info.base, "label_set": LABEL_SET}
        return 200, {"ready": True, **told, "data": model.data, "clips": info.clips, **rejected}

    async def _read(
        self, upload: BinaryIO, name: str, model: Model, read: Callable[[Message], Read], **asked: Any
    ) -> Read:
        """What `read` makes of the message of a process that got the upload and what is `asked` of it."""
        task = decoding(place(upload), model.bundle.preparation, model.predictor.size, **asked)
        job = self.sandbox.job(task)
        loop, record, came = asyncio.get_running_loop(), log.current(), asyncio.get_running_loop().time()

        def step() -> Read:
            record.took("decode_wait", loop.time() - came)
            return read(self.sandbox.only(job))

        try:
            with refused(name):
                return await loop.run_in_executor(self._decoders, step)
        finally:
            job.cancel()
            record.took("decode", loop.time() - came - record.stages.get("decode_wait", 0))

    def _reply(self, model: Model, done: Done[Prediction]) -> Reply:
        answer, record = done.value.brief(), log.current()
        record.took("queue", done.waited_s)
        record.took("score", done.took_s)
        what, following = answer["dominant_operation"], answer["anticipated_next_operation"]
        CONFIDENCE.observe(answer["confidence"])
        ANSWERED.labels(part="operation", name=what).inc()
        ANSWERED.labels(part="next", name=following).inc()
        said = {"operation": what, "next": following, "confidence": answer["confidence"]}
        record.noted.update({"model": model.name, "batch": done.batch, **said})
        return Reply(answer, model.headers())


def load_model(place: StoredModel) -> Model:
    """Loads a stored bundle and has it answer once about a drawn clip.

    DataError where it is not what its version says, or its answer is no answer.
    """
    from pipelines.openpack.predict import Predictor  # brings torch, which who only lists models has no use for

    if bundle_digest(place.folder) != place.version:
        cure = "Store it again: materialise `bento`."
        raise DataError("its content is not what its version says", file=place.name, cure=cure)
    bundle = read_bundle(place.folder)
    scored = bundle.taxonomy, bundle.settings.evaluation, bundle.calibration
    model = Model(place.name, bundle, Predictor.load(bundle.base, bundle.adapter, *scored))
    check_answers(model)
    _show_loaded(model)
    return model


def check_answers(model: Model) -> None:
    """DataError unless its posteriors for a drawn clip are probabilities: weights that are no numbers give others."""
    from pipelines.openpack.question import drawn_question

    question = drawn_question(model.bundle.taxonomy, model.clip_format, model.predictor.size)
    (prediction,) = model.predictor.answer(["self-check"], [question])
    for shares in (*prediction.seen.values(), prediction.what, prediction.span, prediction.next_share):
        if not all(share >= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 0.01:
            cure = "Train the adapter again, or delete this version from the model store."
            raise DataError("its answer to a drawn clip is no answer", file=model.name, cure=cure)


def clip_id(filename: str | None) -> str:
    """A file's name without folders and ending, in letters, digits, dots, hyphens and underscores; `clip` for none."""
    stem = PurePosixPath((filename or "").replace("\\", "/")).stem
    return re.sub(r"[^\w.-]+", "_", stem)[:LONGEST_ID].strip("._") or "clip"


def _answers(model: Model, clips: list[tuple[str, Question]]) -> list[Prediction]:
    names, questions = zip(*clips, strict=True)
    return model.predictor.answer(names, questions)


def _batch_size(model: Model) -> int:
    return model.bundle.settings.evaluation.batch_size


_shown: list[Any] = []


def _show_loaded(model: Model) -> None:
    for gauge in _shown:
        gauge.set(0)
    gauge = metrics.MODEL_LOADED.labels(model=model.name, adapter=model.bundle.info.adapter_digest, data=model.data)
    gauge.set(1)
    _shown[:] = [gauge]


def _decoders() -> int:
    return min(MOST_DECODERS, len(os.sched_getaffinity(0)))
