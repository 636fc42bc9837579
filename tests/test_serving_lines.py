"""Answers that come line by line: how they begin, break off and are let go."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pipelines.common.serving.lines import FAILED, Lines, begun
from pipelines.common.serving.refusal import RefusalError


class Source:
    """Gives `events`, raises `error` at their end, and knows whether it was closed."""

    def __init__(self, *events: dict[str, Any], error: Exception | None = None) -> None:
        self.given, self.error, self.closed = events, error, False

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        try:
            for event in self.given:
                yield event
            if self.error:
                raise self.error
        finally:
            self.closed = True


def _sent(source: Source, breaks_at: int | None = None) -> tuple[list[dict[str, Any]], list[Any], Exception | None]:
    """What an answer sends: its lines, its messages, and what it raised; the client goes at message `breaks_at`."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        if len(messages) == breaks_at:
            raise OSError("gone")
        messages.append(message)

    async def use() -> Exception | None:
        answer = Lines(await begun(source.events()), {"X-Model": "m"})
        try:
            await answer({"type": "http"}, None, send)  # pyright: ignore[reportArgumentType]  # it reads nothing
        except Exception as error:
            return error

    raised = asyncio.run(use())
    text = b"".join(message.get("body", b"") for message in messages).decode()
    return [json.loads(line) for line in text.splitlines()], messages, raised


def test_events_are_lines_in_their_order_each_sent_by_itself() -> None:
    events = [{"event": "progress", "name": "包装"}, {"event": "result"}]
    lines, messages, raised = _sent(Source(*events))
    assert (lines, raised) == (events, None)
    assert [message.get("more_body") for message in messages] == [None, True, True, False]
    headers = dict(messages[0]["headers"])
    assert (headers[b"content-type"], headers[b"x-model"]) == (b"application/x-ndjson", b"m")
    assert b"content-length" not in headers


def test_what_fails_before_the_first_event_is_raised_and_can_have_a_status() -> None:
    source = Source(error=RefusalError(400, "video", "No video."))
    with pytest.raises(RefusalError, match="No video"):
        _sent(source)
    assert source.closed


@pytest.mark.parametrize(
    ("error", "said"), [(RefusalError(400, "video", "Cut short."), "Cut short."), (ValueError("secret"), FAILED)]
)
def test_what_fails_later_is_the_last_line(error: Exception, said: str) -> None:
    lines, messages, raised = _sent(Source({"event": "progress"}, error=error))
    assert lines == [{"event": "progress"}, {"event": "error", "error": said}]
    assert messages[-1]["more_body"] is False
    assert raised is (None if isinstance(error, RefusalError) else error)


def test_where_the_client_goes_the_events_are_closed() -> None:
    source = Source({"event": "progress"}, {"event": "progress"}, {"event": "result"})
    lines, _, raised = _sent(source, breaks_at=2)
    assert len(lines) == 1
    assert isinstance(raised, OSError)
    assert source.closed
