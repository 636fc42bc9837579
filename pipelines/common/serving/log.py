"""One line of JSON a request: id, route, status, seconds by stage, and what its handler noted; and its metrics.

Belongs here: how a request is followed and written down. What may be noted is the handler's business; nothing of a
file's content or name is.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Container, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.common.serving import metrics

REQUEST_ID = "X-Request-Id"
GONE = 499  # in logs and metrics: the client left before there was an answer
_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
_logger = logging.getLogger("serving")


@dataclass
class Record:
    """What is known of one request so far; `stages` are seconds."""

    request_id: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    noted: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None

    def took(self, stage: str, seconds: float) -> None:
        self.stages[stage] = round(seconds, 4)
        metrics.STAGE_SECONDS.labels(stage=stage).observe(seconds)


_current: ContextVar[Record] = ContextVar("request")


def current() -> Record:
    """The record of the request that is being handled; one that nobody reads outside of a request."""
    try:
        return _current.get()
    except LookupError:
        return Record()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """The block is a stage of the current request, timed however it ends."""
    record, started = current(), time.perf_counter()
    try:
        yield
    finally:
        record.took(name, time.perf_counter() - started)


def say(event: str, **fields: Any) -> None:
    """One line of JSON that belongs to no request."""
    _write({"event": event, **fields})


def to_stdout() -> None:
    """Lines go to standard output as they are, whatever the server does with other logs."""
    if not _logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        _logger.addHandler(handler)
        _logger.setLevel(logging.INFO)
        _logger.propagate = False


class RequestLog:
    """ASGI middleware, the outermost: gives each request an id (or keeps the client's), and logs it at its end.

    Only `routes` are named in the log and in metrics; any other path is `other`, since a path may hold a file's name,
    and each path ever asked for would stay a series. `quiet` ones,
    which are asked every few seconds, have no line.
    """

    def __init__(self, app: ASGIApp, routes: Container[str], quiet: Container[str] = ()) -> None:
        self.app, self.routes, self.quiet = app, routes, quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        asked = Headers(scope=scope).get(REQUEST_ID, "")
        record = Record(asked if _ID.fullmatch(asked) else uuid.uuid4().hex)
        status, started = 500, time.perf_counter()

        async def identified(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = record.request_id
            await send(message)

        token = _current.set(record)
        try:
            await self.app(scope, receive, identified)
        finally:
            _current.reset(token)
            route, seconds = self._route(scope["path"]), time.perf_counter() - started
            metrics.REQUEST_SECONDS.labels(route=route, status=status).observe(seconds)
            if scope["path"] not in self.quiet:
                self._log(scope["method"], route, record, status, seconds)

    def _route(self, path: str) -> str:
        return path if path in self.routes else "other"

    def _log(self, method: str, route: str, record: Record, status: int, seconds: float) -> None:
        refused = {"refused": record.refused} if record.refused else {}
        asked = {"request_id": record.request_id, "method": method, "route": route}
        made = {"status": status, "seconds": round(seconds, 4), "stages": record.stages}
        _write({"event": "request", **asked, **made, **refused, **record.noted})


def _write(fields: dict[str, Any]) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    _logger.info(json.dumps({"time": now, **fields}, ensure_ascii=False))
