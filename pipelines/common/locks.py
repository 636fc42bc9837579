"""One process at a time: on an output folder, a machine's GPU, a folder of data.

Belongs here: the lock, and what is told to who waits. What is locked stands with the work that must be alone. Not the
package filelock: it cannot say who holds a lock.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path

from pipelines.common.errors import SetupError

_logger = logging.getLogger(__name__)


@contextmanager
def output_lock(out: Path, say: Callable[[str], None] = _logger.warning) -> Iterator[None]:
    """For the block this process alone writes to `out`, a folder that need not be there; another one waits, and says
    for whom. Everything that writes a stage's folder holds it, or two runs would take each other's unfinished folders
    for leftovers."""
    with only_one(out.with_name(f".{out.name}.lock"), waiting=say):
        yield


@contextmanager
def only_one(lock: Path, *, waiting: Callable[[str], None] | None) -> Iterator[None]:
    """Holds the file `lock`, which is gone afterwards; the system drops the lock when the process ends in any way.

    While another process holds it `waiting(message)` is called once and the call blocks; with None it is a SetupError.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    stream = _acquired(lock, waiting)
    try:
        stream.truncate(0)
        stream.write(json.dumps(_this_process()))
        stream.flush()
        yield
    finally:
        with suppress(FileNotFoundError):
            lock.unlink()  # while it is held: who waits for it sees that it is no longer the file at this place
        stream.close()


def _acquired(lock: Path, waiting: Callable[[str], None] | None) -> TextIOWrapper:
    """The file, open and locked."""
    told = False
    while True:
        stream = lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(stream)
            if waiting is None:
                stream.close()
                raise SetupError(holder, file=lock, cure="Wait until it has ended, or end it.") from None
            if not told:
                waiting(f"{holder} ({lock}), waiting for it to end")
            told = True
            fcntl.flock(stream, fcntl.LOCK_EX)
        if _is_at(stream, lock):
            return stream
        stream.close()


def _is_at(stream: TextIOWrapper, lock: Path) -> bool:
    """Whether the open file is still the one at that place: its last holder has removed it."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), lock.stat())
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, str | int]:
    command = " ".join(Path(word).name if number == 0 else word for number, word in enumerate(sys.orig_argv))
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": since, "command": command[:200]}


def _holder(stream: TextIOWrapper) -> str:
    stream.seek(0)
    try:
        told = json.loads(stream.read())
        return f"process {told['process']} on {told['host']} is at work since {told['since']}: {told['command']}"
    except (ValueError, KeyError, TypeError):  # it has just begun
        return "another process is at work"
