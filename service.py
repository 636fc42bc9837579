"""The service: a video in, and out comes which packing operation it shows, from which frame to which, and what is next.

Belongs here: what BentoML needs to know, which is routes, limits of each, the model store. How a video becomes an
answer does not: `pipelines.openpack.serve`, on the same code that the evaluation ran; nor what a request may be:
`pipelines.common.serving`. `bentoml serve service:PackagingService`, or `make serve`.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import bentoml
from bentoml.exceptions import BentoMLException, NotFound
from bentoml.models import BentoModel
from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Place
from starlette.types import ASGIApp, Receive, Scope, Send

import pipelines.openpack
from pipelines.common.serving import log, metrics
from pipelines.common.serving.hosts import KnownHosts
from pipelines.common.serving.limits import Admission, BearerToken, BodyLimit, OwnPages, Route, Watch
from pipelines.common.serving.lines import Lines, begun
from pipelines.common.serving.page import page, paths
from pipelines.common.serving.refusal import RefusalError
from pipelines.openpack import long_videos
from pipelines.openpack.api_docs import described
from pipelines.openpack.bundle import NAME
from pipelines.openpack.serve import Desk, StoredModel
from pipelines.openpack.time_study import as_csv

ROUTES = {
    # a minute, the longest video that is taken, at 8 Mbit a second; a full queue is answered well within the time
    "/predict": Route(body_bytes=64 * 2**20, seconds=60, at_once=32),
    "/keyframes": Route(body_bytes=64 * 2**20, seconds=60, at_once=8),  # a person looks at them, one after the other
    # half an hour at 4.5 Mbit a second; the time is that of a machine which only just keeps up, decoding and answering
    "/timeline": Route(body_bytes=2**30, seconds=15 * 60, at_once=long_videos.AT_ONCE),
}
TOKEN = os.environ.get("SERVICE_TOKEN") or None
HOSTS = [name.strip() for name in os.environ.get("SERVICE_HOSTS", "").split(",") if name.strip()]
PAGE = Path(pipelines.openpack.__file__).with_name("page")
PROBES = ("/livez", "/readyz", "/healthz")
CLIP_FORMAT = "/clip-format"  # asked by the page before it has a token: three numbers, no data

Operation = Annotated[str, Field(description="a name of the second label set that the adapter was trained with")]


class TemporalSegment(bentoml.IODescriptor):
    """Frames from the start of the video, half-open: `end_frame` is the first after the segment. The header
    X-Frames-Per-Second says how many a second has."""

    model_config = ConfigDict(extra="forbid")

    start_frame: int = Field(ge=0)
    end_frame: int = Field(gt=0)


class Answer(bentoml.IODescriptor):
    """What fills most of the first clip of a video, and what follows it. GET /clip-format says how long a clip is."""

    model_config = ConfigDict(extra="forbid")

    clip_id: str = Field(description="name of the file without its ending")
    dominant_operation: Operation
    temporal_segment: TemporalSegment
    anticipated_next_operation: Operation
    confidence: float = Field(ge=0, le=1, description="probability of the dominant operation")


class Shown(bentoml.IODescriptor):
    """Frames of the first clip of a video: pair i of them stands for the stretch `[bounds[i], bounds[i + 1])`."""

    model_config = ConfigDict(extra="forbid")

    fps: int
    bounds: list[int] = Field(description="where the stretches begin, and where the last one ends")
    frames: list[int] = Field(description="numbers of the frames, in order")
    pairs: list[tuple[int, int]] = Field(description="the same frames, two for each stretch")
    pictures: list[str] = Field(description="each frame as data:image/jpeg;base64,…, as large as GET /clip-format says")


class Timeline(bentoml.IODescriptor):
    """The last event of a timeline; `pipelines.openpack.timeline` describes its parts."""

    event: Literal["result"]
    fps: int
    frames: int
    seconds: float
    segments: list[dict[str, Any]] = Field(description="every operation in its order, without gap or overlap")
    time_study: dict[str, Any] = Field(description="seconds of each operation and of each box")
    alerts: list[dict[str, Any]] = Field(description="where the order departs from what is usual")


class Upload(bentoml.IODescriptor):
    """A form with one file in the field `video`."""

    video: Path = Field(description="any video that ffmpeg reads and that is not too short for its eight frames")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Upload:
        """The field as it was sent, or None: BentoML itself would take a string in it for an address and fetch that."""
        try:
            with log.stage("receive"):
                form = await request.form(max_files=1, max_fields=10)  # other fields may be there; nobody looks
        except (HTTPException, ClientDisconnect, ValueError):  # not what its content type says, or only half of it
            return cls.model_construct(video=None)
        return cls.model_construct(video=form.get("video"))

    @staticmethod
    def file(video: UploadFile | str | None) -> UploadFile:
        if isinstance(video, UploadFile):
            return video
        sentence = "Send the video as a file in the field `video` of a form (multipart/form-data)."
        raise RefusalError(400, "form", sentence)


class TimelineUpload(Upload):
    """The same, and in which form the answer is asked for."""

    csv: SkipJsonSchema[bool] = False  # told by the header Accept: BentoML's own context would set the status

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> TimelineUpload:
        form = await super().from_http_request(request, serde)
        return cls.model_construct(video=form.video, csv="text/csv" in request.headers.get("accept", ""))


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


def stored_models() -> list[StoredModel]:
    """The bundles that may answer, newest first: those of the store, or the one of the bento that is served."""
    newest = PackagingService.inner.model.stored
    rest: list[bentoml.Model] = []
    if not PackagingService.bento:
        with suppress(BentoMLException):  # one of the older ones is half there; they matter only where the newest fails
            rest = [one for one in bentoml.models.list(NAME) if one.tag != newest.tag]
    rest.sort(key=lambda one: one.creation_time, reverse=True)
    return [StoredModel(str(one.tag.version), Path(one.path)) for one in (newest, *rest)]


@bentoml.service(
    workers=1,  # one model in memory
    # after the deadlines of ROUTES, which also end the work. No longer: until then BentoML keeps a timer and 5 kB of
    # every request, also of those long answered. `max_concurrency` would refuse without Retry-After
    traffic={"timeout": max(route.seconds for route in ROUTES.values()) + 60},
    http={"host": "127.0.0.1", "port": 8000},  # pyright: ignore[reportArgumentType]  # BentoML's own are 0.0.0.0, 3000
    # BentoML's own metrics have a series a path that anyone has ever asked for; `RequestLog` counts routes
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},  # pyright: ignore[reportArgumentType]  # `RequestLog` has a line for each
    envs=[{"name": "BENTOML_DO_NOT_TRACK", "value": "True"}],
)
class PackagingService:
    """Names the packing operation in a video of a bench, its frames, and the operation that follows."""

    model = StoredBundle(f"{NAME}:latest")

    def __init__(self) -> None:
        log.to_stdout()
        DESK.start(pinned=PackagingService.bento is not None)

    @bentoml.on_shutdown
    def close(self) -> None:
        DESK.stop()

    @bentoml.api(route="/predict", input_spec=Upload, output_spec=Answer)
    async def predict(self, video: UploadFile | str | None) -> JSONResponse:
        """The operation that fills most of the first clip of a video, its frames, and the one that follows."""
        try:
            upload = Upload.file(video)
            reply = await DESK.predict(upload.file, upload.filename)
        except RefusalError as refusal:
            return refusal.response()
        return JSONResponse(Answer.model_validate(reply.answer).model_dump(), headers=reply.headers)

    @bentoml.api(route="/keyframes", input_spec=Upload, output_spec=Shown)
    async def keyframes(self, video: UploadFile | str | None) -> JSONResponse:
        """What the model is shown of the first clip of a video: frames that are chosen from the picture alone."""
        try:
            upload = Upload.file(video)
            reply = await DESK.keyframes(upload.file, upload.filename)
        except RefusalError as refusal:
            return refusal.response()
        return JSONResponse(Shown.model_validate(reply.answer).model_dump(), headers=reply.headers)

    @bentoml.api(route="/timeline", input_spec=TimelineUpload, output_spec=Timeline)
    async def timeline(self, video: UploadFile | str | None, csv: bool) -> Response:
        """All operations of a video of up to half an hour, its time study and its alerts: events, a line of JSON each.

        With `Accept: text/csv` the time study alone, once it is complete.
        """
        try:
            upload = Upload.file(video)
            headers, events = await DESK.timeline(upload.file, upload.filename, ROUTES["/timeline"].seconds)
            if not csv:
                return Lines(await begun(events), headers)
            async with aclosing(events):
                last = [event async for event in events][-1]
        except RefusalError as refusal:
            return refusal.response()
        return Response(as_csv(last["time_study"]), headers=headers, media_type="text/csv")


class Ready:
    """ASGI middleware: /readyz tells what answers, or why nothing does; BentoML's own has no content."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/readyz":
            return await self.app(scope, receive, send)
        status, told = DESK.state()
        await JSONResponse(told, status)(scope, receive, send)


async def clip_format(request: Request) -> JSONResponse:
    """How long, how fast and how large a clip is to the model that answers now."""
    try:
        return JSONResponse(await DESK.clip_format())
    except RefusalError as refusal:
        return refusal.response()


async def shown_metrics(request: Request) -> Response:
    content, kind = await asyncio.to_thread(metrics.shown)
    return Response(content, media_type=kind)


async def docs(request: Request) -> JSONResponse:
    return JSONResponse(described(PackagingService.openapi_spec.asdict(), ROUTES, token=TOKEN is not None))


DESK = Desk(stored_models)
# BentoML's type would have a middleware return an application; its server calls it as one, like any ASGI server.
_add: Any = PackagingService.add_asgi_middleware
_add(log.RequestLog, routes={*ROUTES, *PROBES, "/", "/metrics", "/docs.json", CLIP_FORMAT}, quiet={*PROBES, "/metrics"})
_add(KnownHosts, names=HOSTS)
# a browser sends no token for a page; it holds no data
_add(BearerToken, token=TOKEN, opened={*PROBES, CLIP_FORMAT, *paths(PAGE)})
_add(OwnPages)
_add(Ready)
_add(Admission, routes=ROUTES)
_add(Watch, routes=ROUTES)
_add(BodyLimit, routes=ROUTES)
PLACES = [Place("/docs.json", docs), Place("/metrics", shown_metrics), Place(CLIP_FORMAT, clip_format)]
PackagingService.mount_asgi_app(Starlette(routes=PLACES), name="docs")
if PAGE.is_dir():
    PackagingService.mount_asgi_app(page(PAGE), name="page")
