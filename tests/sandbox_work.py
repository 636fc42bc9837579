"""What the tests of the sandbox run in its processes, by name."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from pipelines.common.errors import DataError, SetupError
from pipelines.common.serving.sandbox import Message

IMPORTED_BY = os.getpid()


def work(task: dict[str, Any]) -> Iterator[Message]:
    yield from globals()[f"_{task['do']}"](task)


def _echo(task: dict[str, Any]) -> Iterator[Message]:
    yield {"text": task["text"], "pid": os.getpid(), "temporary": tempfile.gettempdir()}, b"\0\1" * 100_000


def _preloaded(task: dict[str, Any]) -> Iterator[Message]:
    """Which process imported this module, and which this one is."""
    yield {"imported_by": IMPORTED_BY, "pid": os.getpid()}, b""


def _many(task: dict[str, Any]) -> Iterator[Message]:
    for number in range(task["count"]):
        yield {"number": number}, b""


def _bad_file(task: dict[str, Any]) -> Iterator[Message]:
    raise DataError("not a video", file="/secret/place", where="frame 3", cure="Give another.")
    yield


def _bad_machine(task: dict[str, Any]) -> Iterator[Message]:
    raise SetupError("no ffmpeg", cure="Install it.")
    yield


def _bomb(task: dict[str, Any]) -> Iterator[Message]:
    yield {"bytes": len(bytearray(2**30))}, b""


def _spin(task: dict[str, Any]) -> Iterator[Message]:
    while True:
        pass
    yield


def _hang(task: dict[str, Any]) -> Iterator[Message]:
    Path(task["began"]).write_text(str(os.getpid()))
    time.sleep(60)
    yield {}, b""


def _program(task: dict[str, Any]) -> Iterator[Message]:
    """A program that it started hangs, as ffmpeg may."""
    child = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(task["began"]).write_text(str(child.pid))
    child.wait()
    yield {}, b""


def _big_file(task: dict[str, Any]) -> Iterator[Message]:
    with tempfile.TemporaryFile() as stream:
        for _ in range(100):
            stream.write(bytes(2**20))
    yield {}, b""


def _dies_once(task: dict[str, Any]) -> Iterator[Message]:
    """Killed the first time; `mark` says whether it was."""
    if not Path(task["mark"]).exists():
        Path(task["mark"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield {"text": "second"}, b""


def _dies(task: dict[str, Any]) -> Iterator[Message]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield
