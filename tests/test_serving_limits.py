"""What a request may be: middlewares around a small application, called as a server calls it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route as Place
from starlette.types import ASGIApp, Message

from pipelines.common.serving import log, metrics
from pipelines.common.serving.hosts import KnownHosts
from pipelines.common.serving.limits import Admission, BearerToken, BodyLimit, OwnPages, Pace, Route, Watch
from pipelines.common.serving.page import page

ROUTES = {"/work": Route(body_bytes=2**20, seconds=0.3, at_once=2)}


def _app(handler: Callable[[Request], Awaitable[Any]]) -> Starlette:
    return Starlette(routes=[Place(path, handler, methods=["GET", "POST"]) for path in ("/work", "/livez", "/other")])


def _client(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


def _refused(reason: str) -> float:
    return REGISTRY.get_sample_value("serving_refused_total", {"reason": reason}) or 0


async def _size(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(("path", "size", "status"), [("/work", 2**20, 200), ("/work", 2**20 + 1, 413)])
def test_a_body_may_be_so_large(path: str, size: int, status: int, streamed: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, size, 2**16):
            yield bytes(min(2**16, size - start))

    async def use() -> httpx.Response:
        async with _client(BodyLimit(_app(_size), ROUTES)) as client:
            return await client.post(path, content=chunks() if streamed else bytes(size))

    response = asyncio.run(use())
    assert response.status_code == status
    assert response.text == str(size) if status == 200 else "larger than 1 MB" in response.json()["error"]


def test_who_falls_silent_is_not_waited_for() -> None:
    async def chunks(pause: float) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"some"
            await asyncio.sleep(pause)

    async def slow(request: Request) -> PlainTextResponse:
        await request.body()
        await asyncio.sleep(0.5)  # once the body is there, time is the server's
        return PlainTextResponse("done")

    async def use(pause: float) -> httpx.Response:
        async with _client(BodyLimit(_app(slow), ROUTES, silent_s=0.3)) as client:
            return await client.post("/work", content=chunks(pause))

    assert asyncio.run(use(0.1)).text == "done"
    silent = asyncio.run(use(0.6))
    assert silent.status_code == 408
    assert "No byte of the upload came" in silent.json()["error"]


@pytest.mark.parametrize(("each", "status"), [(2000, 200), (1, 408)])
def test_who_sends_a_byte_now_and_then_is_not_waited_for(each: int, status: int) -> None:
    """One that is silent for no longer than is allowed, but brings less than the least rate."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield bytes(each)
            await asyncio.sleep(0.1)

    async def use() -> tuple[httpx.Response, float]:
        limited = BodyLimit(_app(_size), ROUTES, silent_s=0.3, least_rate=1000)
        async with _client(limited) as client:
            began = time.monotonic()
            return await client.post("/work", content=chunks()), time.monotonic() - began

    before = _refused("slow")
    response, took = asyncio.run(use())
    assert response.status_code == status
    if status == 408:
        assert took < 0.6
        assert "less than 1 KiB/s" in response.json()["error"]
        assert _refused("slow") == before + 1


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost:8000", True),
        ("LOCALHOST.", True),
        ("127.0.0.1:8000", True),
        ("192.168.7.3", True),
        ("[::1]:8000", True),
        ("line-3.example:8000", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:8000", False),
        ("[evil]:80", False),
        ("", False),
    ],
)
def test_only_addresses_and_known_names_are_answered(host: str, known: bool) -> None:
    """Whoever has a name of their own resolve to this machine gets nothing."""

    async def use() -> httpx.Response:
        async with _client(KnownHosts(_app(_size), ["Line-3.example"])) as client:
            return await client.get("/work", headers={"host": host})

    response = asyncio.run(use())
    assert response.status_code == (200 if known else 421)
    assert known or "SERVICE_HOSTS" in response.json()["error"]


def test_paths_that_nobody_knows_share_a_series() -> None:
    async def use() -> None:
        async with _client(log.RequestLog(_app(_size), {"/work"}, quiet={"/work"})) as client:
            for number in range(50):
                await client.get(f"/{number}")
            await client.get("/work")

    def series() -> set[tuple[str, ...]]:
        (family,) = metrics.REQUEST_SECONDS.collect()
        return {(one.labels["route"], one.labels["status"]) for one in family.samples}

    before = series()
    asyncio.run(use())
    assert series() - before <= {("other", "404"), ("/work", "200")}
    assert {("other", "404"), ("/work", "200")} <= series()


def test_a_deadline_holds_for_a_client_that_keeps_sending() -> None:
    """Whatever the moment at which the time is up: the body's next bytes come as the work is ended."""

    async def use() -> tuple[int, float]:
        sent: list[Message] = []

        async def receive() -> Message:
            await asyncio.sleep(0)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message: Message) -> None:
            sent.append(message)

        routes = {"/work": Route(body_bytes=2**40, seconds=0.05, at_once=2)}
        scope = {"type": "http", "method": "POST", "path": "/work", "headers": [], "query_string": b""}
        began = time.monotonic()
        work = Watch(BodyLimit(_app(_size), routes), routes)(scope, receive, send)
        await asyncio.wait_for(work, 10)
        return sent[0]["status"], time.monotonic() - began

    for _ in range(10):
        status, took = asyncio.run(use())
        assert status == 504
        assert took < 5


def test_who_is_answered_already_may_be_silent() -> None:
    async def early(request: Request) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            for _ in range(4):
                yield b"line"
                await asyncio.sleep(0.1)

        return StreamingResponse(lines())

    async def use() -> list[Message]:
        sent: list[Message] = []

        async def receive() -> Message:
            await asyncio.sleep(30)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/other", "headers": [], "query_string": b""}
        await BodyLimit(_app(early), ROUTES, silent_s=0.2)(scope, receive, send)
        return sent

    sent = asyncio.run(use())
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert b"".join(message.get("body", b"") for message in sent) == b"line" * 4


@pytest.mark.parametrize(
    ("method", "site", "status"),
    [("POST", "cross-site", 403), ("POST", "same-origin", 200), ("POST", None, 200), ("GET", "cross-site", 200)],
)
def test_pages_of_other_sites_may_not_post(method: str, site: str | None, status: int) -> None:
    async def use() -> httpx.Response:
        async with _client(OwnPages(_app(_size))) as client:
            return await client.request(method, "/work", headers={"sec-fetch-site": site} if site else {})

    assert asyncio.run(use()).status_code == status


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/work", "Bearer secret", 200),
        ("/work", "Bearer secre", 401),
        ("/work", "bearer secret", 200),
        ("/work", "Bearer sécret", 401),
        ("/work", "Basic secret", 401),
        ("/work", "secret", 401),
        ("/work", None, 401),
        ("/other", None, 401),
        ("/livez", None, 200),
    ],
)
def test_a_token_is_asked_for(path: str, header: str | None, status: int) -> None:
    async def use() -> httpx.Response:
        async with _client(BearerToken(_app(_size), "secret", {"/livez"})) as client:
            headers = [(b"authorization", header.encode("latin-1"))] if header else []
            return await client.post(path, headers=headers)

    before, response = _refused("token"), asyncio.run(use())
    assert response.status_code == status
    assert _refused("token") - before == (status == 401)
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert "secret" not in response.text


def test_without_a_token_all_is_open() -> None:
    async def use() -> int:
        async with _client(BearerToken(_app(_size), None, set())) as client:
            return (await client.post("/work")).status_code

    assert asyncio.run(use()) == 200


def test_beyond_the_queue_a_request_is_told_when_to_come_again() -> None:
    async def use() -> tuple[list[httpx.Response], httpx.Response]:
        going_on = asyncio.Event()

        async def wait(request: Request) -> PlainTextResponse:
            await going_on.wait()
            return PlainTextResponse("done")

        admission = Admission(_app(wait), ROUTES)
        admission._pace["/work"].each_s = 2.2  # measured before
        async with _client(admission) as client:
            inside = [asyncio.create_task(client.post("/work")) for _ in range(2)]
            while admission._inside["/work"] < 2:
                await asyncio.sleep(0)
            refused = await client.post("/work")
            going_on.set()
            answered = [await one for one in inside]
            assert (await client.post("/work")).status_code == 200
            return answered, refused

    answered, refused = asyncio.run(use())
    assert [one.status_code for one in answered] == [200, 200]
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")  # both ends, at 2.2 s each
    assert "Try again in 5 s" in refused.json()["error"]


def test_the_pace_is_that_of_ends_while_there_was_work(monkeypatch: pytest.MonkeyPatch) -> None:
    # three that came at once, one done every two seconds; then a pause, which does not count, and one more
    ends = iter((102.0, 104.0, 106.0, 202.0))
    monkeypatch.setattr("pipelines.common.serving.limits.time.monotonic", lambda: next(ends))
    pace = Pace()
    for _ in range(3):
        pace.ended(100.0)
    assert pace.each_s == pytest.approx(2)
    pace.ended(200.0)
    assert pace.each_s == pytest.approx(2)
    assert (pace.wait_s(3), Pace().wait_s(3)) == (6, 1)


def test_a_request_that_takes_too_long_gets_504_and_its_work_is_ended() -> None:
    ended = []

    async def use() -> httpx.Response:
        async def work(request: Request) -> PlainTextResponse:
            await request.body()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                ended.append(True)
                raise
            return PlainTextResponse("late")

        async with _client(Watch(_app(work), ROUTES)) as client:
            return await client.post("/work", content=b"abc")

    response = asyncio.run(use())
    assert response.status_code == 504
    assert "no answer within" in response.json()["error"]
    assert ended == [True]


@pytest.mark.parametrize("when", ["while it uploads", "while it waits"])
def test_work_for_a_client_that_has_gone_is_ended(when: str) -> None:
    ended: list[str] = []

    async def work(request: Request) -> PlainTextResponse:
        try:
            await request.body()
            await asyncio.sleep(30)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise
        return PlainTextResponse("late")

    async def use() -> list[Any]:
        messages = [{"type": "http.request", "body": b"a", "more_body": when == "while it uploads"}]
        sent = []

        async def receive() -> dict[str, Any]:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/work", "headers": [], "query_string": b""}
        with suppress(ClientDisconnect):
            await asyncio.wait_for(Watch(_app(work), ROUTES)(scope, receive, send), 5)
        return sent

    asyncio.run(use())
    assert ended in (["CancelledError"], ["ClientDisconnect"])


def test_a_stream_goes_through_as_it_comes() -> None:
    async def use() -> str:
        async def work(request: Request) -> StreamingResponse:
            await request.body()

            async def lines() -> AsyncIterator[str]:
                for number in range(3):
                    await asyncio.sleep(0.01)
                    yield f"{number}\n"

            return StreamingResponse(lines())

        async with _client(Watch(_app(work), ROUTES)) as client:
            return (await client.post("/work", content=b"abc")).text

    assert asyncio.run(use()) == "0\n1\n2\n"


def test_each_request_has_one_line_of_json_and_an_id(caplog: pytest.LogCaptureFixture) -> None:
    async def work(request: Request) -> JSONResponse:
        with log.stage("receive"):
            await request.body()
        log.current().noted["confidence"] = 0.5
        return JSONResponse({})

    async def use() -> list[httpx.Response]:
        app = log.RequestLog(_app(work), routes={"/work"}, quiet={"/livez"})
        async with _client(app) as client:
            asked = [("/work", "id-1"), ("/work", "not an id"), ("/secret name.mp4", "id-3"), ("/livez", "id-4")]
            return [await client.post(path, headers={"x-request-id": name}, content=b"abc") for path, name in asked]

    with caplog.at_level("INFO", "serving"):
        first, second, unknown, _ = asyncio.run(use())
    lines = [json.loads(line) for line in caplog.messages]
    assert [(line["route"], line["status"]) for line in lines] == [("/work", 200), ("/work", 200), ("other", 404)]
    assert first.headers["x-request-id"] == lines[0]["request_id"] == "id-1"
    assert second.headers["x-request-id"] == lines[1]["request_id"] != "not an id"
    assert unknown.headers["x-request-id"] == "id-3"
    assert (lines[0]["confidence"], list(lines[0]["stages"])) == (0.5, ["receive"])
    assert "secret" not in caplog.text


def test_a_folder_becomes_a_page_with_a_strict_policy(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "app.js").write_text("1")
    (tmp_path / ".hidden").write_text("no")

    async def use() -> list[httpx.Response]:
        async with _client(page(tmp_path)) as client:
            return [await client.get(path) for path in ("/", "/app.js", "/.hidden", "/../service.py", "/index.html")]

    index, script, *others = asyncio.run(use())
    assert (index.text, script.text) == ("<!doctype html>", "1")
    assert "javascript" in script.headers["content-type"]
    policy = index.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert index.headers["x-content-type-options"] == "nosniff"
    assert [one.status_code for one in others] == [404, 404, 404]
