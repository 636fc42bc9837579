"""The service's OpenAPI description beyond what BentoML writes by itself: refusals, headers, lines, readiness, token.

Belongs here: what is documented. What is done (`service.py`, `serve`, `common.serving`) does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from pipelines.common.serving.lines import NDJSON
from pipelines.common.serving.log import REQUEST_ID

_REFUSALS = {
    400: "No file in the field `video`, no video, or one outside of the limits; the sentence says which and the cure.",
    401: "The service wants a token, and it was missing or another one.",
    403: "A page of another site sent it, in somebody's browser.",
    408: "No byte of the body came for too long.",
    413: "The body is larger than the route takes.",
    429: "Too many others are waiting.",
    503: "No model could be loaded, or videos cannot be read just now.",
    504: "There was no answer within the time that a request has.",
}
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "Seconds until those who wait are answered, by the measured rate."},
}
_ANSWERED = {
    "X-Model": "The model that answered, name:version.",
    "X-Adapter": "Digest of its adapter's weights.",
    "X-Label-Set": "The names that the answer is given in.",
    "X-Data": "Where the clips came from that it was trained on, source/view.",
    "X-Frames-Per-Second": "At which every frame number of the answer counts.",
}
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string", "description": "a sentence with the cure"}},
    "required": ["error"],
    "additionalProperties": False,
}
_PROGRESS = {
    "type": "object",
    "properties": {"event": {"const": "progress"}, "done": {"type": "integer"}, "of": {"type": "integer"}},
    "required": ["event", "done", "of"],
}
_BROKEN = {
    "type": "object",
    "properties": {"event": {"const": "error"}, "error": {"type": "string", "description": "a sentence with the cure"}},
    "required": ["event", "error"],
}
_CLIP_FORMAT = {
    "type": "object",
    "properties": {
        "fps": {"type": "integer", "description": "frames a second, at which all frame numbers count"},
        "seconds": {"type": "number", "description": "of a clip: what /predict and /keyframes look at, from the start"},
        "frames": {"type": "integer", "description": "of a clip"},
        "size": {"type": "integer", "description": "pixels a side of a frame"},
    },
    "required": ["fps", "seconds", "frames", "size"],
    "additionalProperties": False,
}
_READY = {"type": "object", "properties": {"ready": {"type": "boolean"}}, "required": ["ready"]}


def described(bentos: dict[str, Any], videos: Iterable[str], token: bool) -> dict[str, Any]:
    """BentoML's description with the rest put in, `videos` being the routes that take one; `token` says whether one is
    asked for."""
    spec = deepcopy(bentos)
    posts = [spec["paths"][path]["post"] for path in videos]
    for post in posts:
        answered = _named(post["responses"])["200"]
        answered["headers"] = {
            name: _header(text) for name, text in {**_ANSWERED, REQUEST_ID: "Of this request."}.items()
        }
        post["responses"] = {"200": answered, **{str(status): _refusal(status) for status in _REFUSALS}}
        post["requestBody"]["required"] = True
    _stream(spec["paths"]["/timeline"]["post"])
    ready = {str(status): _json(text, _READY) for status, text in ((200, "It answers."), (503, "Not yet, and why."))}
    spec["paths"]["/readyz"]["get"]["responses"] = ready
    spec["paths"]["/clip-format"] = {"get": _clip_format()}
    if token:
        spec["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for one in (*posts, spec["paths"]["/metrics"]["get"]):
            one["security"] = [{"token": []}]
    return spec


def _clip_format() -> dict[str, Any]:
    answers = {"200": _json("Of the model that answers now.", _CLIP_FORMAT), "503": _refusal(503)}
    return {
        "summary": "How long, how fast and how large a clip is.",
        "operationId": "clip_format",
        "responses": answers,
    }


def _stream(post: dict[str, Any]) -> None:
    """The answer is lines, of which BentoML knows the last, or a table."""
    answered = post["responses"]["200"]
    result = answered["content"].pop("application/json")["schema"]
    lines = {"oneOf": [_PROGRESS, result, _BROKEN], "description": "of each line; the last is no progress"}
    answered["content"] = {NDJSON: {"schema": lines}, "text/csv": {"schema": {"type": "string"}}}


def _named(responses: dict[Any, Any]) -> dict[str, Any]:
    return {str(status): response for status, response in responses.items()}


def _refusal(status: int) -> dict[str, Any]:
    headers = {name: _header(text) for name, text in _HEADERS.get(status, {}).items()}
    return _json(_REFUSALS[status], _ERROR) | ({"headers": headers} if headers else {})


def _json(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _header(text: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": "string"}}
