"""An answer that comes piece by piece: a line of JSON an event (NDJSON), while the work on it goes on.

Belongs here: how events are sent, and how it is told that they break off. What they say does not.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipelines.common.serving.refusal import RefusalError

NDJSON = "application/x-ndjson"
Events = AsyncGenerator[dict[str, Any], None]
_END = {"type": "http.response.body", "body": b"", "more_body": False}
FAILED = "The service failed. Its log says why, with the request's id."


async def begun(events: Events) -> Events:
    """The same events, once the first of them is there: what refuses before it is raised here, where a status can
    still tell so."""
    first = await anext(events)

    async def rest() -> Events:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    return rest()


class Lines(Response):
    """Sends events; one that says {"event": "error", "error": sentence} comes last where they broke off."""

    media_type = NDJSON

    def __init__(self, events: Events, headers: Mapping[str, str]) -> None:
        super().__init__(headers={**headers, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]  # of the empty body that it is without its events
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for event in events:
                    await send(_line(event))
            except RefusalError as refusal:
                refusal.count()
                await send(_line({"event": "error", "error": refusal.sentence}))
            except OSError:  # of sending: the client has gone
                raise
            except Exception:
                await send(_line({"event": "error", "error": FAILED}))
                await send(_END)
                raise  # for the server's log
            await send(_END)


def _line(event: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(event, ensure_ascii=False).encode() + b"\n"
    return {"type": "http.response.body", "body": body, "more_body": True}
