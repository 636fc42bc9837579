"""A folder of static files as a web page with a strict policy: no script, style or connection but the service's own.

Belongs here: how files are sent. What is on the page does not.
"""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

INDEX = "index.html"
_OWN = ("script-src", "style-src", "connect-src", "font-src")
_MADE = ("img-src 'self' blob: data:", "media-src 'self' blob:")  # a chosen video and pictures of it, shown before sent
_NONE = ("default-src", "base-uri", "form-action", "frame-ancestors")
POLICY = "; ".join([*(f"{name} 'none'" for name in _NONE), *(f"{name} 'self'" for name in _OWN), *_MADE])
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asks whether it changed; a new service brings a new page
}


def paths(folder: Path) -> dict[str, Path]:
    """What each file of `folder` is served as: its name at the root, `index.html` as the root itself; not subfolders.

    By name and not by pattern, so that no path can lead out of the folder and none hides another route.
    """
    files = sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith((".", "_")))
    return {"/" if path.name == INDEX else f"/{path.name}": path for path in files if path.suffix != ".py"}


def page(folder: Path) -> Starlette:
    """An application that serves `paths(folder)`, each by GET."""
    return Starlette(routes=[Route(place, _sender(path), methods=["GET"]) for place, path in paths(folder).items()])


def _sender(path: Path):
    async def send(request: Request) -> FileResponse:
        return FileResponse(path, headers=HEADERS)

    return send
