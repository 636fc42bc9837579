"""What a request may be before anybody looks at it: how large, how long, how many at once, and from whom.

Belongs here: ASGI middlewares that judge a request by its path, headers, size and time. What is in a body does not.
All answers are `{"error": sentence}`.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections import Counter
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.common.serving import log, metrics
from pipelines.common.serving.refusal import RefusalError

LONGEST_RETRY_S = 600


@dataclass(frozen=True)
class Route:
    """Limits of one path: bytes of a body, seconds from the first byte to the answer's end, requests `at_once`.

    Of those one is worked on and the others wait; the next is refused, which is better than a late refusal.
    """

    body_bytes: int
    seconds: float
    at_once: int


Routes = Mapping[str, Route]
OTHERS = 2**20  # bytes of a body to any other path; none takes one


class BearerToken:
    """401 without `Authorization: Bearer <token>`, but for the paths `opened`; without a token everything is open."""

    def __init__(self, app: ASGIApp, token: str | None, opened: Container[str]) -> None:
        self.app, self.opened = app, opened
        self.expected = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.expected is None or scope["path"] in self.opened or self._known(scope):
            return await self.app(scope, receive, send)
        sentence = "Send the service's token: Authorization: Bearer <token>."
        await RefusalError(401, "token", sentence, {"WWW-Authenticate": "Bearer"}).response()(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.encode("latin-1"), self.expected or b"")


class OwnPages:
    """403 for what a browser sends for a page of another site: whoever looks at that page did not ask for it.

    Browsers say so to https addresses and to this machine's own, where a service without a token listens.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        foreign = scope["type"] == "http" and Headers(scope=scope).get("sec-fetch-site") == "cross-site"
        if not foreign or scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        sentence = "Pages of other sites may not use this service. Ask it from a program, or open its own page."
        await RefusalError(403, "foreign_page", sentence).response()(scope, receive, send)


class BodyLimit:
    """413 for a body of more than its route's limit, announced or streamed; the rest is not read. 408 where no byte of
    a body comes for `silent_s`, or where after `silent_s` less than `least_rate` bytes a second have come: who says
    nothing, or a byte now and then, holds a place that others wait for. A phone with a bad signal sends 50 kB/s."""

    def __init__(self, app: ASGIApp, routes: Routes, silent_s: float = 30, least_rate: float = 8 * 2**10) -> None:
        self.app, self.routes, self.silent_s, self.least_rate = app, routes, silent_s, least_rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        route = self.routes.get(scope["path"])
        limit = route.body_bytes if route else OTHERS
        announced = Headers(scope=scope).get("content-length", "0")
        read, size = 0, int(announced) if announced.isdecimal() else 0
        silent = slow = whole = began = False
        first = time.monotonic()

        async def watched() -> Message:
            nonlocal read, size, silent, slow, whole
            try:
                # not `wait_for`, which can swallow that `Watch` ends the work: github.com/python/cpython/issues/86296
                async with asyncio.timeout(None if whole else self.silent_s):
                    message = await receive()
            except TimeoutError:
                if not began:
                    silent = True
                    return {"type": "http.disconnect"}
                message = await receive()  # who has an answer already only listens for the end
            whole = not message.get("more_body")
            read += len(message.get("body", b""))
            size = max(size, read)
            took = time.monotonic() - first
            slow = slow or (not (whole or began) and took > self.silent_s and read < took * self.least_rate)
            return {"type": "http.disconnect"} if slow or size > limit else message

        async def unless_refused(message: Message) -> None:
            nonlocal began
            if size <= limit and not (silent or slow):
                began = True
                await send(message)

        if size <= limit:
            try:
                await self.app(scope, watched, unless_refused)
            except Exception:  # it was told that the client has gone, and may say so
                if size <= limit and not (silent or slow):
                    raise
        if size > limit:
            sentence = f"The upload is larger than {limit // 2**20} MB. Cut the video, or code it smaller."
            refusal = RefusalError(413, "body", sentence, {"connection": "close"})
            await refusal.response()(scope, receive, send)
        elif silent or slow:
            what = f"No byte of the upload came for {self.silent_s:.0f} s"
            what = f"The upload comes at less than {self.least_rate / 2**10:.0f} KiB/s" if slow else what
            sentence = f"{what}. Send it again."
            refusal = RefusalError(408, "slow" if slow else "silent", sentence, {"connection": "close"})
            await refusal.response()(scope, receive, send)


class Admission:
    """429 with Retry-After for a request beyond `at_once` of its route, before its body is read.

    What to wait follows from the seconds that a request took while there was work, and how many are there: after so
    long all of them are answered.
    """

    def __init__(self, app: ASGIApp, routes: Routes) -> None:
        self.app, self.routes = app, routes
        self._inside: Counter[str] = Counter()
        self._pace = {path: Pace() for path in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or scope["method"] != "POST" or path not in self.routes:
            return await self.app(scope, receive, send)
        if self._inside[path] >= self.routes[path].at_once:
            wait = self._pace[path].wait_s(self._inside[path])
            sentence = f"{self._inside[path]} others are waiting. Try again in {wait} s."
            refusal = RefusalError(429, "busy", sentence, {"Retry-After": str(wait)})
            return await refusal.response()(scope, receive, send)
        self._inside[path] += 1
        metrics.IN_FLIGHT.labels(route=path).inc()
        began = time.monotonic()
        try:
            await self.app(scope, receive, send)
        finally:
            self._inside[path] -= 1
            metrics.IN_FLIGHT.labels(route=path).dec()
            self._pace[path].ended(began)


class Pace:
    """Seconds from the end of one request to the end of the next while there is work: the service rate's inverse."""

    def __init__(self) -> None:
        self.each_s, self._before = 0.0, 0.0

    def ended(self, began: float) -> None:
        """A request that came in at `began` ended now (`time.monotonic`)."""
        now = time.monotonic()
        took = now - max(began, self._before)
        self.each_s = took if not self.each_s else 0.8 * self.each_s + 0.2 * took  # about the last five
        self._before = now

    def wait_s(self, inside: int) -> int:
        """Whole seconds, at least one, until as many as are inside have ended."""
        return min(LONGEST_RETRY_S, max(1, math.ceil(self.each_s * inside)))


class Watch:
    """Ends the work on a request that nobody waits for any more: 504 after its route's seconds, or the client left.

    The handler is cancelled, so that whatever it waits for is given up; it must let go of what it took in `finally`.
    """

    def __init__(self, app: ASGIApp, routes: Routes) -> None:
        self.app, self.routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get(scope.get("path", "")) if scope["type"] == "http" else None
        if route is None:
            return await self.app(scope, receive, send)
        line = _Line(receive, send)
        work = asyncio.ensure_future(self.app(scope, line.receive, line.send))
        left = asyncio.ensure_future(line.left())
        try:
            await asyncio.wait({work, left}, timeout=route.seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or line.answered:
                return await work
            await _cancelled(work)
            if not line.began:
                await self._refuse(left.done(), route.seconds)(scope, receive, send)
        finally:
            await _cancelled(work)
            await _cancelled(left)

    def _refuse(self, left: bool, seconds: float) -> Response:
        if left:  # nobody reads it; the server's own counters do
            return RefusalError(log.GONE, "disconnect", "The client has gone.").response()
        sentence = f"There was no answer within {seconds:.0f} s. Try again later, or send a shorter video."
        return RefusalError(504, "deadline", sentence).response()


class _Line:
    """A request's two ends, watched: whether its answer began or is complete, and when the client hung up."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._read, self._gone = asyncio.Event(), asyncio.Event()
        self.began = self.answered = False

    async def receive(self) -> Message:
        if self._read.is_set():  # the rest is for `left`, and two must not read at once
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone.set()
        if not message.get("more_body"):
            self._read.set()
        return message

    async def send(self, message: Message) -> None:
        self.began = True
        self.answered = message["type"] == "http.response.body" and not message.get("more_body")
        await self._send(message)

    async def left(self) -> None:
        """Returns when the client has hung up; before its body is read that is the handler's to notice."""
        await self._read.wait()
        while not self._gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._gone.set()


async def _cancelled(task: asyncio.Future) -> None:
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
