"""A request that gets no answer: its status, why in one word for metrics and logs, the sentence for who sent it."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from pipelines.common.serving import log, metrics


class RefusalError(Exception):
    """Raised while a request is worked on; `response()` is what the client gets: `{"error": sentence}`."""

    def __init__(self, status: int, reason: str, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.reason, self.sentence, self.headers = status, reason, sentence, dict(headers or {})

    def count(self) -> None:
        """In metrics and in the request's log; once."""
        metrics.REFUSED.labels(reason=self.reason).inc()
        log.current().refused = self.reason

    def response(self) -> JSONResponse:
        """Counts the refusal too: call it once."""
        self.count()
        return JSONResponse({"error": self.sentence}, self.status, headers=self.headers)
