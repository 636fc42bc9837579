"""The service: a video in, and out comes which packing operation it shows, from which frame to which, and what is next.

Belongs here: what is special about HTTP, which is what is taken, refused and how much at once. How a video becomes an
answer does not: `pipelines.openpack.predict`, the same code that the evaluation ran. `bentoml serve
service:PackagingService`, or `make serve`; `/docs.json`, `/livez`, `/readyz` and `/metrics` come with BentoML.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import bentoml
from bentoml.exceptions import NotFound
from bentoml.models import BentoModel
from pydantic import ConfigDict, Field
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.common.errors import DataError, SetupError
from pipelines.openpack.bundle import NAME, read_bundle

BODY_LIMIT = 64 * 2**20  # bytes: a minute, the longest video that is taken, at 8 Mbit a second
TIMEOUT_S = 60  # seconds until 504, from the request's first byte: a full queue of five-second answers
MOST_REQUESTS = 12  # at once, waiting ones included; the next gets 429, which is better than a late 504
LONGEST_ID = 64  # characters of a file's name that are given back

Operation = Annotated[str, Field(description="a name of the second label set that the adapter was trained with")]


class TemporalSegment(bentoml.IODescriptor):
    """Frames at 25 a second from the start of the video, half-open: `end_frame` is the first after the segment."""

    model_config = ConfigDict(extra="forbid")

    start_frame: int = Field(ge=0)
    end_frame: int = Field(gt=0)


class Answer(bentoml.IODescriptor):
    """What fills most of the first five seconds, and what follows it."""

    model_config = ConfigDict(extra="forbid")

    clip_id: str = Field(description="name of the file without its ending")
    dominant_operation: Operation
    temporal_segment: TemporalSegment
    anticipated_next_operation: Operation
    confidence: float = Field(ge=0, le=1, description="probability of the dominant operation")


class Upload(bentoml.IODescriptor):
    """A form with one file in the field `video`."""

    video: Path = Field(description="any video that ffmpeg reads, of 0.8 to 60 seconds")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Upload:
        """The field as it was sent, or None: BentoML itself would take a string in it for an address and fetch that."""
        try:
            form = await request.form(max_files=1, max_fields=10)  # other fields may be there; nobody looks
        except HTTPException:  # not the form that its content type says; Starlette's sentence would end as a 500
            return cls.model_construct(video=None)
        return cls.model_construct(video=form.get("video"))


class BodyLimit:
    """ASGI middleware: 413 for a body of more than `limit` bytes, announced or streamed; the rest is not read."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        read, size = 0, int(Headers(scope=scope).get("content-length", 0))

        async def counted() -> Message:
            nonlocal read, size
            message = await receive()
            read += len(message.get("body", b""))
            size = max(size, read)
            return message if size <= self.limit else {"type": "http.disconnect"}

        async def unless_refused(message: Message) -> None:
            if size <= self.limit:
                await send(message)

        if size <= self.limit:
            await self.app(scope, counted, unless_refused)
        if size > self.limit:
            error = {"error": f"The upload is larger than {self.limit // 2**20} MB. Cut the video, or code it smaller."}
            await JSONResponse(error, 413, headers={"connection": "close"})(scope, receive, send)


class StoredBundle(BentoModel):
    """The newest adapter of the model store; for a bento, the one that it was built with."""

    @property
    def stored(self) -> bentoml.Model:  # pyright: ignore[reportIncompatibleMethodOverride]  # BentoML's is injected
        bento = PackagingService.bento
        tag = bento.info.all_models[0].tag if bento else self.tag
        try:
            return bentoml.models.get(str(tag))  # as text: a Tag would be changed from `latest` to what that is today
        except NotFound:
            home = os.environ.get("BENTOML_HOME", "BENTOML_HOME is not set")
            what = f"no {NAME} in BentoML's model store ({home})"
            raise NotFound(f"{what}. Materialise `bento` first: make demo.") from None


@bentoml.service(
    workers=1,  # one model in memory
    traffic={"timeout": TIMEOUT_S, "max_concurrency": MOST_REQUESTS},
    http={"host": "127.0.0.1", "port": 8000},  # pyright: ignore[reportArgumentType]  # BentoML's own are 0.0.0.0, 3000
    envs=[{"name": "BENTOML_DO_NOT_TRACK", "value": "True"}],
)
class PackagingService:
    """Names the packing operation in a video of a bench, its frames, and the operation that follows."""

    model = StoredBundle(f"{NAME}:latest")

    def __init__(self) -> None:
        # Not at the top: it brings torch, which the process that only watches over this one has no use for.
        from pipelines.openpack.predict import Predictor

        bundle = read_bundle(Path(self.model.path))
        self.keyframes = bundle.settings.keyframes
        asked = bundle.taxonomy, bundle.settings.evaluation, bundle.calibration
        self.predictor = Predictor.load(bundle.base, bundle.adapter, *asked)
        # One thread: an answer outlives its timeout, and what waited in vain leaves the queue instead of running too.
        self.turns = ThreadPoolExecutor(1, "answer")

    @bentoml.api(route="/predict", input_spec=Upload, output_spec=Answer)
    async def predict(self, video: UploadFile | str | None) -> Answer | JSONResponse:
        """The operation that fills most of the first five seconds of a video, its frames, and the one that follows.

        `{"error": sentence}` for the rest: 400 where `video` is no file, or no video of 0.8 to 60 seconds; 413 over
        64 MB; 429 while too many others wait; 504 after a minute.
        """
        if not isinstance(video, UploadFile):
            return _refusal("Send the video as a file in the field `video` of a form (multipart/form-data).")
        try:
            return await asyncio.get_running_loop().run_in_executor(self.turns, self._answer, video)
        except SetupError:
            raise
        except DataError as error:  # without the path, which means nothing to who sent the file
            return _refusal(
                str(DataError(error.what, file=clip_id(video.filename), where=error.where, cure=error.cure))
            )

    def _answer(self, upload: UploadFile) -> Answer:
        with tempfile.TemporaryDirectory(prefix="upload-") as folder:
            path = Path(folder) / "video"  # the sender's name for it stays out of the file system
            with path.open("wb") as stream:
                shutil.copyfileobj(upload.file, stream)
            prediction = self.predictor.answer_video(path, clip_id(upload.filename), self.keyframes)
        return Answer.model_validate(prediction.brief())


# BentoML's type would have a middleware return an application; its server calls it as one, like any ASGI server.
PackagingService.add_asgi_middleware(BodyLimit, limit=BODY_LIMIT)  # pyright: ignore[reportArgumentType]


def clip_id(filename: str | None) -> str:
    """A file's name without folders and ending, in letters, digits, dots, hyphens and underscores; `clip` for none."""
    stem = PurePosixPath((filename or "").replace("\\", "/")).stem
    return re.sub(r"[^\w.-]+", "_", stem)[:LONGEST_ID].strip("._") or "clip"


def _refusal(sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, 400)
