"""A real HTTP server in a thread, with the faults that a download must survive, a path each."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = 4096


@dataclass
class Resource:
    """What one path answers. A list says what the first requests meet, one element each; later ones meet nothing."""

    body: bytes
    ranges: bool = True  # else Range is ignored and everything sent
    range_start: int | None = None  # every range that is asked for is answered with the one from this byte
    length: bool = True  # else no Content-Length: the body ends with the connection
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # status and headers instead of the body
    silent: int = 0  # so many requests first are never answered
    cuts: list[int | None] = field(default_factory=list)  # after so many bytes the connection is cut; None: whole
    wrong: int = 0  # so many requests first get other bytes of the same number
    location: str | None = None  # redirects there
    pause_s: float = 0  # between chunks


@dataclass
class Request:
    """What was asked and answered; `sent` are the bytes of the body that went out."""

    path: str
    range: str | None
    status: int = 0
    sent: int = 0


class RangeServer:
    """Answers GET for `resources`, by path, and writes down every request in `log`."""

    def __init__(self) -> None:
        self.resources: dict[str, Resource] = {}
        self.log: list[Request] = []
        self.closing = threading.Event()
        self.base_url = ""

    def add(self, path: str, body: bytes, **faults: object) -> str:
        """Puts a resource there and returns its address."""
        self.resources[path] = Resource(body, **faults)
        return self.base_url + path

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.log if request.path == path]


@contextmanager
def serving() -> Iterator[RangeServer]:
    """A server on a free port of this machine, until the block ends."""
    server = RangeServer()
    handler = type("Handler", (_Handler,), {"ours": server})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        server.base_url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            http.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    ours: RangeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        request = Request(self.path, self.headers.get("Range"))
        self.ours.log.append(request)
        resource = self.ours.resources.get(self.path)
        if resource is None:
            self._refuse(request, 404, {})
        elif resource.silent > 0:
            resource.silent -= 1
            self.ours.closing.wait()
        elif resource.refusals:
            self._refuse(request, *resource.refusals.pop(0))
        elif resource.location:
            self._refuse(request, 302, {"Location": resource.location})
        else:
            self._send(request, resource)

    def _refuse(self, request: Request, status: int, headers: dict[str, str]) -> None:
        self._head(request, status, {"Content-Length": "0", **headers})

    def _head(self, request: Request, status: int, headers: dict[str, str]) -> None:
        request.status = status
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, request: Request, resource: Resource) -> None:
        body, size = resource.body, len(resource.body)
        if resource.wrong > 0:
            resource.wrong -= 1
            body = bytes(byte ^ 0xFF for byte in body)
        start, headers = 0, {}
        if request.range and resource.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", request.range)[1])
            start = start if resource.range_start is None else resource.range_start
            if start >= size:
                return self._refuse(request, 416, {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        if resource.length:
            headers["Content-Length"] = str(size - start)
        self._head(request, 206 if "Content-Range" in headers else 200, headers)
        cut = resource.cuts.pop(0) if resource.cuts else None
        self._write(request, body[start:][:cut], resource.pause_s)

    def _write(self, request: Request, body: bytes, pause_s: float) -> None:
        for at in range(0, len(body), CHUNK):
            chunk = body[at : at + CHUNK]
            request.sent += len(chunk)  # before they go: who has received them may look at once
            try:
                self.wfile.write(chunk)
            except OSError:  # the client is gone, as it is when a test kills it
                request.sent -= len(chunk)
                return
            if pause_s:
                self.ours.closing.wait(pause_s)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on the terminal: `log` has it."""
