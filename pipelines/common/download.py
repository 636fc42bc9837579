"""Downloads that survive a bad line: resumed, retried, verified, whole or absent.

Belongs here: HTTP. Which file is wanted, and what is in it, does not.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from pipelines.common.disk import check_room, writing
from pipelines.common.errors import DataError
from pipelines.common.settings import Settings

if TYPE_CHECKING:
    from httpx import Response

T = TypeVar("T")
Progress = Callable[[int, int], None]  # bytes that are here, bytes in all; the first falls back where it starts again

_PASSING = {408, 425, 429}  # with every 5xx: what a server says when the same request may succeed later
_ALGORITHMS = ("md5", "sha256")


class DownloadSettings(Settings):
    """How patient a download is; times in seconds."""

    # that fail in a row: with the waits between them one to two minutes, enough for a server that restarts. It counts
    # from the last that brought anything new, so a line that breaks again and again but moves on is never given up
    attempts: int = Field(default=8, ge=2)
    first_wait_s: float = Field(default=1, ge=0)  # doubled from attempt to attempt, less up to half by chance
    longest_wait_s: float = Field(default=120, ge=0)  # of one wait, ours or asked for: limits are mostly per minute
    connect_timeout_s: float = Field(default=15, gt=0)
    read_timeout_s: float = Field(default=60, gt=0)  # without a single byte; a slow line is none


class _PassingError(Exception):
    """What may be gone at the next attempt; `asked_s` is how long the server asks to wait, None where it does not."""

    def __init__(self, why: str, asked_s: float | None = None) -> None:
        super().__init__(why)
        self.asked_s = asked_s


def download(
    url: str,
    target: Path,
    *,
    size: int,
    checksum: str,
    settings: DownloadSettings,
    progress: Progress = lambda done, size: None,
) -> None:
    """Brings the file of `size` bytes and this checksum (`md5:…` or `sha256:…`) from `url` to `target`.

    Its bytes gather in `<target>.part`, with which a later call goes on; `target` appears by rename once they are
    verified. A target that is right already costs no request. Wrong bytes are deleted and fetched once more from the
    start. One process a target at a time. DataError where the server keeps failing, refuses, or sends wrong bytes
    again; SetupError where the disk is too full or cannot be written.
    """
    if checksum.partition(":")[0] not in _ALGORITHMS:
        cure = f"It must start with one of {', '.join(_ALGORITHMS)} and a colon."
        raise DataError(f"the checksum {checksum!r} is of an unknown kind", file=url, cure=cure)
    if _is_right(target, size, checksum):
        return
    part = target.with_name(f"{target.name}.part")
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            part.touch()
            check_room(part.parent, size - part.stat().st_size)
            _insist(
                lambda: _add(url, part, size, settings, progress), url, settings, reached=lambda: part.stat().st_size
            )
            if _is_right(part, size, checksum):
                part.replace(target)
                return
            part.unlink()
    cure = "Run again later; if it stays so, the server's file is not what its listing says."
    raise DataError(f"twice the bytes were not those of {checksum}", file=url, cure=cure)


def get_json(url: str, settings: DownloadSettings) -> Any:
    """What a server answers in JSON. DataError where it keeps failing, refuses, or answers something else."""

    def ask() -> Any:
        with _answer(url, {}, settings) as response:
            _check(response)
            response.read()
            return response.json()

    try:
        return _insist(ask, url, settings)
    except ValueError as error:
        raise DataError(f"the answer is no JSON ({error})", file=url, cure="Check the address.") from None


def _insist(
    attempt: Callable[[], T], url: str, settings: DownloadSettings, reached: Callable[[], int] = lambda: 0
) -> T:
    """Calls `attempt` until it succeeds; DataError after too many failures since `reached` last grew."""
    furthest, failed = reached(), 0
    while True:
        try:
            return attempt()
        except _PassingError as error:
            failure = error
        failed = failed + 1 if reached() <= furthest else 1
        furthest = max(furthest, reached())
        if failed == settings.attempts:
            cure = "Check the connection and run again; a download goes on where it stopped."
            raise DataError(f"{failed} attempts in a row failed, the last one: {failure}", file=url, cure=cure)
        time.sleep(_wait_s(failed, failure, url, settings))


def _wait_s(failed: int, failure: _PassingError, url: str, settings: DownloadSettings) -> float:
    asked_s = failure.asked_s or 0.0
    if asked_s > settings.longest_wait_s:
        what = f"{failure}, and it asks to wait {asked_s:.0f} s"
        raise DataError(what, file=url, cure="Run again after that time; a download goes on where it stopped.")
    usual_s = min(settings.first_wait_s * 2 ** (failed - 1), settings.longest_wait_s)
    return max(asked_s, usual_s * random.uniform(0.5, 1))  # many clients must not come back at the same moment


def _add(url: str, part: Path, size: int, settings: DownloadSettings, progress: Progress) -> None:
    """One request for what `part` lacks of `size` bytes; what comes is kept, however it ends."""
    done = part.stat().st_size
    if done >= size:  # ended after the last byte, or is another file's; its checksum tells
        return
    with _answer(url, {"Range": f"bytes={done}-"} if done else {}, settings) as response:
        if done and response.status_code == 416:
            part.write_bytes(b"")
            raise _PassingError(f"the server has no byte {done}")
        _check(response)
        if response.status_code != 206:  # the server knows no ranges
            done = 0
        elif done and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            part.write_bytes(b"")
            raise _PassingError("the server sent another range than it was asked for")
        with part.open("ab" if done else "wb") as stream:
            for chunk in response.iter_raw():
                stream.write(chunk)
                done += len(chunk)
                progress(done, size)
                if done > size:  # another file than was meant; the rest would only fill the disk
                    return
    if done < size:
        raise _PassingError(f"the answer ended at byte {done} of {size}")


@contextmanager
def _answer(url: str, headers: dict[str, str], settings: DownloadSettings) -> Iterator[Response]:
    """The answer to one GET, its body still to be read; what goes wrong on the line is a `_PassingError`."""
    import httpx  # takes long to load, and Dagster loads this module for its settings

    timeout = httpx.Timeout(settings.read_timeout_s, connect=settings.connect_timeout_s)
    headers = {"Accept-Encoding": "identity", **headers}  # ranges and checksums are of the file as it is
    try:
        with httpx.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            yield response
    except httpx.RequestError as error:
        raise _PassingError(f"{type(error).__name__} ({error})" if str(error) else type(error).__name__) from None


def _check(response: Response) -> None:
    if response.is_success:
        return
    why = f"the server answers {response.status_code} {response.reason_phrase}"
    if response.status_code in _PASSING or response.is_server_error:
        raise _PassingError(why, _retry_after_s(response))
    raise DataError(why, file=str(response.url), cure="Check the address and the settings that it is made of.")


def _retry_after_s(response: Response) -> float | None:
    said = response.headers.get("Retry-After", "")
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # absent, no date, or a date without its zone
        return None


def _is_right(path: Path, size: int, checksum: str) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    algorithm, _, expected = checksum.partition(":")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return found.hexdigest() == expected.lower()
