"""The page of the service behind a real HTTP server in a thread, with answers that a test writes down.

Files are the page's own, sent with the policy that it must live with. Answers are canned: what a model says is no
subject of the page. Whatever is asked is kept in `log`.
"""

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

PAGE = Path(__file__).parents[1] / "pipelines" / "openpack" / "page"
_NONE = ("default-src", "base-uri", "form-action", "frame-ancestors")
_OWN = ("script-src 'self'", "style-src 'self'", "connect-src 'self'")
POLICY = "; ".join(
    [*(f"{name} 'none'" for name in _NONE), *_OWN, "img-src 'self' blob: data:", "media-src 'self' blob:"]
)
FORMAT = {"fps": 25, "seconds": 5, "frames": 125, "size": 336}
SOURCE = {"X-Model": "none, canned answers", "X-Adapter": "none", "X-Label-Set": "brief", "X-Data": "written by hand"}


@dataclass
class Asked:
    """A request as it came: its path, its token, the name and size of the file in the field `video`."""

    path: str
    authorization: str | None
    filename: str
    size: int


@dataclass
class PageServer:
    """What the service is to answer, by path; a test changes it before it asks."""

    answers: dict[str, Any] = field(default_factory=dict)
    refusals: list[Response] = field(default_factory=list)  # what the next requests get instead, in order
    token: str | None = None  # else anything without it is refused
    clip_format: dict[str, float] = field(default_factory=lambda: dict(FORMAT))
    held: bool = False  # answers to predict and timeline wait until this is False
    log: list[Asked] = field(default_factory=list)
    left: Queue[str] = field(default_factory=Queue)  # paths whose client went before its answer
    url: str = ""

    def asked(self, path: str) -> list[Asked]:
        return [one for one in self.log if one.path == path]

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        async with request.form() as form:
            video = form["video"]
            assert not isinstance(video, str)
            size = len(await video.read())
            self.log.append(Asked(path, request.headers.get("authorization"), video.filename or "", size))
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"error": "Send the token."}, 401, {"WWW-Authenticate": "Bearer"})
        if self.refusals:
            return self.refusals.pop(0)
        if path == "/timeline":
            return StreamingResponse(self.lines(), headers=SOURCE, media_type="application/x-ndjson")
        while path == "/predict" and self.held:
            if await request.is_disconnected():
                self.left.put(path)
                return Response()
            await asyncio.sleep(0.01)
        return JSONResponse(self.answers[path], headers={**SOURCE, "X-Frames-Per-Second": str(self.clip_format["fps"])})

    async def formatted(self, request: Request) -> Response:
        return JSONResponse(self.clip_format)

    async def lines(self) -> AsyncIterator[str]:
        *progress, last = self.answers["/timeline"]
        try:
            for event in progress:
                yield json.dumps(event) + "\n"
            while self.held:
                await asyncio.sleep(0.01)
            whole = json.dumps(last) + "\n"
            yield whole[: len(whole) // 2]  # as a network may cut it
            yield whole[len(whole) // 2 :]
        except asyncio.CancelledError:
            self.left.put("/timeline")
            raise


class _Files(StaticFiles):
    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers["Content-Security-Policy"] = POLICY
        return response


@contextmanager
def serving() -> Iterator[PageServer]:
    """A server on a free port of this machine, until the block ends."""
    ours = PageServer()
    routes = [Route(path, ours.answer, methods=["POST"]) for path in ("/predict", "/keyframes", "/timeline")]
    routes.append(Route("/clip-format", ours.formatted))
    app = Starlette(routes=[*routes, Mount("/", _Files(directory=PAGE, html=True))])
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1)
    server, started = uvicorn.Server(config), threading.Event()
    socket = config.bind_socket()

    async def serve() -> None:
        app.state.task = asyncio.create_task(server.serve(sockets=[socket]))
        while not server.started:
            await asyncio.sleep(0.01)
        started.set()
        await app.state.task

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(20)
    ours.url = f"http://127.0.0.1:{socket.getsockname()[1]}/"
    try:
        yield ours
    finally:
        ours.held = False
        server.should_exit = True
        thread.join()


PREDICTION = {
    "clip_id": "clip",
    "dominant_operation": "Box Setup",
    "temporal_segment": {"start_frame": 20, "end_frame": 80},
    "anticipated_next_operation": "Put Items",
    "confidence": 0.93,
}


def keyframes(frames: int) -> dict[str, Any]:
    """An answer about the first `frames` of a video: four stretches of equal length, two pictures in each."""
    bounds = [frames * i // 4 for i in range(5)]
    pairs = [[start + 3, start + 4] for start in bounds[:-1]]
    shown = [frame for pair in pairs for frame in pair]
    return {"fps": 25, "bounds": bounds, "frames": shown, "pairs": pairs, "pictures": [_picture(n) for n in shown]}


def timeline(rows: list[tuple[str, int, int, str, float]], seconds: float, alerts: list[dict[str, Any]]) -> list[Any]:
    """The lines of an answer: progress, then the result with these (operation, start, end, next, confidence)."""
    segments = [
        {
            "operation": operation,
            "start_frame": start,
            "end_frame": end,
            "start_s": start / 25,
            "end_s": end / 25,
            "anticipated_next_operation": following,
            "confidence": confidence,
        }
        for operation, start, end, following, confidence in rows
    ]
    names = list(dict.fromkeys(row[0] for row in rows))
    lengths = {name: sorted((end - start) / 25 for one, start, end, *_ in rows if one == name) for name in names}
    operations = [
        {
            "operation": name,
            "count": len(times),
            "total_s": round(sum(times), 2),
            "median_s": times[len(times) // 2],
            "iqr_s": round(times[len(times) * 3 // 4] - times[len(times) // 4], 2),
        }
        for name, times in lengths.items()
    ]
    box = {name: round(sum(times), 2) for name, times in lengths.items()}
    boxes = [{"box": 1, "start_s": 0.0, "end_s": seconds, "seconds": seconds, "operations": box}]
    study = {"operations": operations, "boxes": boxes, "box_median_s": seconds, "box_iqr_s": None}
    result = {"event": "result", "fps": 25, "frames": round(seconds * 25), "seconds": seconds, "segments": segments}
    progress = [{"event": "progress", "done": done, "of": 8} for done in range(1, 9)]
    return [*progress, {**result, "time_study": study, "alerts": alerts}]


def _picture(number: int) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (84, 84), (number % 256, 90, 120)).save(stream, "jpeg")
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
