"""A server that speaks as much of the hub's API as naming and downloading a model takes: one repository, real files."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

LARGE = ".safetensors"  # kept by their SHA-256, as the hub does


class Hub:
    """What the server tells: `commit` is the branch's newest, `files` the folder of each commit."""

    def __init__(self, name: str) -> None:
        self.name, self.commit, self.files, self.sent, self.endpoint = name, "", {}, [], ""

    def listed(self, commit: str) -> list[dict[str, Any]]:
        rows = []
        for path in sorted(self.files[commit].iterdir()):
            data = path.read_bytes()
            row = {"type": "file", "path": path.name, "rfilename": path.name, "size": len(data)}
            row["oid"] = row["blobId"] = hashlib.sha1(data).hexdigest()
            if path.suffix == LARGE:
                sha = hashlib.sha256(data).hexdigest()
                row["lfs"] = {"sha256": sha, "oid": sha, "size": len(data), "pointerSize": 100}
            rows.append(row)
        return rows


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            api = f"/api/models/{hub.name}"
            if path.startswith(f"/{hub.name}/resolve/"):
                self._file(*path.removeprefix(f"/{hub.name}/resolve/").split("/"))
            elif path.startswith(f"{api}/tree/"):
                self._json(hub.listed(path.rpartition("/")[2]))
            elif path == api or path.startswith(f"{api}/revision/"):
                asked = path.rpartition("/")[2]
                commit = asked if asked in hub.files else hub.commit
                self._json({"id": hub.name, "sha": commit, "siblings": hub.listed(commit)})
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def _json(self, content: Any) -> None:
            self._send(json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _file(self, commit: str, name: str) -> None:
            data = (hub.files[commit] / name).read_bytes()
            if self.command == "GET":
                hub.sent.append(name)
            self._send(data, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

        def _send(self, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
