"""Stages in processes of their own, killed like `kill -9` at a chosen moment.

A moment is told in events: things that a process is about to do to its files (create, rename, delete) or starts (a
program). So a kill falls between any two steps that could leave something half done, and falls there again next time.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from pipelines.common.files import file_digest, read_json
from pipelines.common.incremental import RECORD

# Forked from a process that has imported everything and done nothing: a start costs no seconds of imports.
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["decord", "webdataset.writer", "bitsandbytes", "pipelines.common.vlm.lora", "pipelines.common.vlm.train"]
    + [f"transformers.models.{name}" for name in ("auto.processing_auto", "qwen2_vl.modeling_qwen2_vl")]
    + [f"pipelines.openpack.{stage}" for stage in ("simulate", "normalise", "clips", "shards", "finetune", "predict")]
)
_WRITING = os.O_WRONLY | os.O_RDWR


def start(work: Callable[..., object], *arguments: object) -> BaseProcess:
    """A process that runs `work`, a function of a module."""
    process = _CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def run(work: Callable[..., object], *arguments: object, root: Path, after: str = "") -> int:
    """Runs `work` to its end; how many events there were below `root`, from the first on whose path holds `after`."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = start(_counted, sender, after, root, work, arguments)
    sender.close()
    process.join()
    assert process.exitcode == 0
    return receiver.recv()


def kill_at(event: int, work: Callable[..., object], *arguments: object, root: Path, after: str = "") -> BaseProcess:
    """A process that runs `work` and is killed right before this event, 0 being the first that `run` counts."""
    return start(_killed, event, after, root, work, arguments)


def run_and_kill(event: int, work: Callable[..., object], *arguments: object, root: Path, after: str = "") -> None:
    process = kill_at(event, work, *arguments, root=root, after=after)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was not killed: there are not so many events"


def content(folder: Path) -> dict[str, Any]:
    """Everything below `folder` that must not depend on how often it was interrupted: all but the times it took."""
    return {
        str(path.relative_to(folder)): {**read_json(path), "seconds": 0} if path.name == RECORD else file_digest(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def hidden(folder: Path) -> list[Path]:
    """What is being written below `folder`, or was left half-written; locks are neither."""
    return [path for path in folder.rglob(".*") if path.suffix != ".lock"]


def wait_until(happened: Callable[[], Any], seconds: float = 60) -> Any:
    """What `happened` gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def _counted(
    sender: Connection, after: str, root: Path, work: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    events = 0

    def count() -> None:
        nonlocal events
        events += 1

    _at_each_event(root, after, count)
    work(*arguments)
    sender.send(events)


def _killed(event: int, after: str, root: Path, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    left = event

    def die() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    _at_each_event(root, after, die)
    work(*arguments)


def _at_each_event(root: Path, after: str, do: Callable[[], None]) -> None:
    """Calls `do` before anything is done to a file below `root`, from the first path on that holds `after`."""
    begun = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal begun
        if not _changes_files(event, arguments, str(root)):
            return
        begun = begun or after in str(arguments[0])
        if begun:
            do()

    sys.addaudithook(hook)


def _changes_files(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    if event == "subprocess.Popen":
        return True
    if event == "open":
        return isinstance(arguments[0], str) and arguments[0].startswith(root) and bool(arguments[2] & _WRITING)
    if event in ("os.remove", "os.rmdir"):  # shutil.rmtree names them relative to the folder that it is in
        return True
    return event in ("os.rename", "os.mkdir") and str(arguments[0]).startswith(root)
