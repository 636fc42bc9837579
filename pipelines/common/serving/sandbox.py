"""Work on files that nobody vouches for, in processes with limits, started beforehand.

Belongs here: the processes, their limits, and what is told when one is reached. What the work is does not: a function
of a module, from a JSON object to messages of a JSON object and bytes each. Nothing that a process sends is unpickled.

A process is forked from a server that has imported everything (`preload`), and waits for work. It goes on to the next
piece only where the last one went well, and not for ever: whatever a bad file did to it ends with it. Linux only.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing import forkserver, get_context, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Semaphore, Thread
from typing import Any

import psutil

from pipelines.common.errors import DataError, SetupError
from pipelines.common.orphans import bind_group, end_group, end_with_parent
from pipelines.common.serving import log, metrics
from pipelines.common.threads import one_thread

Message = tuple[dict[str, Any], bytes]
Work = Callable[[dict[str, Any]], Iterator[Message]]

_START_S = 60  # seconds in which a process must be there: importing is slow on a busy machine
_GRACE_S = 2  # seconds in which a process that went is gone
_MOST_PIECES = 100  # of work for one process: what a decoder leaks ends with it
_DATA, _FSIZE, _CORE = resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE
_PATHS = Lock()  # of the environment, which sandboxes share
_STOPS = {signal.SIGTERM, signal.SIGINT}  # meant for the service, which lets its processes finish


@dataclass(frozen=True)
class Limits:
    """Of one piece of work: seconds, and for each process that it starts processor time, memory, bytes of a file."""

    seconds: float
    cpu_seconds: int
    memory_bytes: int
    file_bytes: int


class DiedError(Exception):
    """A process ended in the midst of its work and at no limit: it was killed, or is broken."""


class GivenUpError(Exception):
    """The work was given up by who wanted it."""


class Sandbox:
    """Keeps `processes` of them, each for one piece of work at a time; `start` brings them up, `stop` ends them."""

    def __init__(self, work: Work, limits: Limits, *, processes: int, preload: Sequence[str], name: str) -> None:
        self._work, self.limits, self._name = work, limits, name
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._places = Semaphore(processes)
        self._stopping, self._numbers = Event(), itertools.count()
        self._starting_fails = False
        self._keeper = Thread(target=self._keep, name=f"{name}-keeper", daemon=True)
        self._scratch = Path()

    def start(self) -> None:
        sweep(self._name)
        self._scratch = Path(tempfile.mkdtemp(prefix=f"{self._name}-{os.getpid()}-"))
        atexit.register(self.stop)  # before multiprocessing's own, which waits for processes that are not told to end
        self._keeper.start()

    def job(self, task: dict[str, Any]) -> Job:
        """A piece of work, which begins when its messages are asked for."""
        return Job(self, task)

    def only(self, job: Job) -> Message:
        """The message of a `job` that gives one; by a second process where the first one died, DataError where that
        one dies too: then it is the file."""
        try:
            (message,) = job.messages()
        except DiedError:
            metrics.RETRIED.inc()
            try:
                (message,) = job.messages()
            except DiedError as error:
                cure = "Write it anew: ffmpeg -i <this file> new.mp4"
                raise DataError(f"reading it killed two processes ({error})", cure=cure) from None
        return message

    @property
    def works(self) -> bool:
        """Whether processes that end are replaced: not once the keeper has ended, nor while none can be started."""
        return self._keeper.is_alive() and not self._starting_fails

    def stop(self) -> None:
        atexit.unregister(self.stop)
        self._stopping.set()
        self._places.release()
        self._keeper.join()
        with suppress(Empty):
            while True:
                self._idle.get_nowait().end()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def take(self) -> _Process:
        """A process that waits for work, to be given back; SetupError where none comes up."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and not self._stopping.is_set():
            with suppress(Empty):
                process = self._idle.get(timeout=1)
                if process.alive():
                    return process
                self.give_back(process, fit=False)
        raise SetupError("no process for decoding came up", cure="See the service's log; the machine may lack memory.")

    def give_back(self, process: _Process, *, fit: bool) -> None:
        """One that is not `fit` for more work is ended, and another takes its place."""
        if fit and process.pieces < _MOST_PIECES and not self._stopping.is_set():
            self._idle.put(process)
        else:
            process.end()
            self._places.release()

    def folder(self) -> Path:
        """An empty folder for one piece of work; SetupError where none can be made."""
        path = self._scratch / str(next(self._numbers))
        try:
            path.mkdir(parents=True)  # who cleans temporary folders may have removed the one above
        except OSError as error:
            cure = "See the space in the temporary folder."
            raise SetupError(f"no folder to work in ({error.strerror})", file=path, cure=cure) from None
        return path

    def _keep(self) -> None:
        resource_tracker.ensure_running()  # or the next line would start it, and unblock what is blocked here
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # of this thread, and so of the server and what it forks
        while True:
            self._places.acquire()
            if self._stopping.is_set():
                return
            try:
                with _PATHS, _importable():
                    forkserver.ensure_running()
                self._idle.put(_Process(self._context, self._work, self.limits))
                self._starting_fails = False
            except (
                OSError,
                EOFError,
            ) as error:  # no memory, no process number, a fork server that ended so: it may pass
                self._starting_fails = True
                log.say("no_process", error=str(error))
                self._places.release()
                self._stopping.wait(1)


class Job:
    """One piece of work in a process. `cancel` may be called from any thread, before, while and after it runs."""

    def __init__(self, sandbox: Sandbox, task: dict[str, Any]) -> None:
        self._sandbox, self._task = sandbox, task
        self._lock, self._process, self._cancelled = Lock(), None, False

    def messages(self) -> Generator[Message, None, None]:
        """What the work gives, as it comes; blocks. Leaving the loop before its end ends the process.

        DataError as the work raised it, or where a limit is reached; SetupError as the work raised it; DiedError;
        GivenUpError.
        """
        process, folder, fit = self._sandbox.take(), None, False
        try:
            folder = self._sandbox.folder()
            with self._lock:
                self._process = process
                if self._cancelled:
                    process.kill()
            process.send({**self._task, "scratch": str(folder)})
            deadline = time.monotonic() + self._sandbox.limits.seconds
            while (message := process.receive(deadline)) is not None:
                yield message
            fit = True
        except DiedError:
            if self._cancelled:
                raise GivenUpError from None
            raise
        finally:
            with self._lock:  # from here on it is not this job's to kill
                self._process = None
            self._sandbox.give_back(process, fit=fit and not self._cancelled)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._process:
                self._process.kill()


class _Process:
    """This side of a process."""

    def __init__(self, context: Any, work: Work, limits: Limits) -> None:
        self._limits, self.pieces = limits, 0
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, asdict(limits)), daemon=True)
        self._process.start()
        theirs.close()

    def alive(self) -> bool:
        return self._process.is_alive()

    def send(self, task: dict[str, Any]) -> None:
        self.pieces += 1
        try:
            self._line.send_bytes(json.dumps(task).encode())
        except OSError:
            raise DiedError("it died while it waited for work") from None

    def receive(self, deadline: float) -> Message | None:
        try:
            if not self._line.poll(max(0, deadline - time.monotonic())):
                raise _too_much(f"{self._limits.seconds:.0f} s")
            head = json.loads(self._line.recv_bytes())
            if head["kind"] == "message":
                return head["data"], self._line.recv_bytes()
        except (EOFError, OSError):
            raise self._why() from None
        if head["kind"] == "error":
            kind = SetupError if head["setup"] else DataError
            raise kind(head["what"], file=head["file"], where=head["where"], cure=head["cure"])
        return None

    def kill(self) -> None:
        self._process.kill()
        end_group(self._process.pid)

    def end(self) -> None:
        self.kill()
        self._process.join()
        self._process.close()
        self._line.close()

    def _why(self) -> Exception:
        self._process.join(_GRACE_S)
        code = self._process.exitcode
        if code == -signal.SIGXCPU:
            return _too_much(f"{self._limits.cpu_seconds} s of processor time")
        return DiedError(f"it ended with {code}")


@contextmanager
def _importable() -> Iterator[None]:
    """What this process can import, a fork server that starts in the block can: Python gives it no path of its own."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def sweep(name: str) -> None:
    """Removes the folders of sandboxes of this name whose processes were killed and could not do so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{name}-*-*"):
        owner = folder.name.removeprefix(f"{name}-").partition("-")[0]
        if owner.isdecimal() and not _made_by(int(owner), folder):
            shutil.rmtree(folder, ignore_errors=True)


def _made_by(process: int, folder: Path) -> bool:
    """Whether a process of this number runs that is older than `folder`: in a container numbers come again."""
    try:
        return psutil.Process(process).create_time() <= folder.stat().st_mtime + 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


def _too_much(what: str) -> DataError:
    cure = "Send a shorter or smaller video."
    return DataError(f"reading it takes more than the {what} that one file may take", cure=cure)


def _serve(line: Connection, work: Work, limits: dict[str, Any]) -> None:
    """The process: waits for tasks and tells what comes of them; ends after the first that fails."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    bind_group()
    end_with_parent()
    one_thread()
    most = Limits(**limits)
    # data and not address space: what is mapped and never touched costs nothing, and libraries map much
    for kind, limit in ((_DATA, most.memory_bytes), (_FSIZE, most.file_bytes), (_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))
    fit = True
    while fit:
        try:
            task = json.loads(line.recv_bytes())
        except EOFError:
            return
        tempfile.tempdir = task["scratch"]
        fit = _work(line, work, task, most)


def _work(line: Connection, work: Work, task: dict[str, Any], limits: Limits) -> bool:
    """One task; whether it went well."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    # counts from the start of this process; what it starts gets a little more than its due
    soft = limits.cpu_seconds + int(own.ru_utime + own.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
    before = _children_s()
    end: dict[str, Any] = {"kind": "end"}
    try:
        for data, blob in work(task):
            line.send_bytes(json.dumps({"kind": "message", "data": data}).encode())
            line.send_bytes(blob)
    except (DataError, MemoryError, OSError) as error:
        end = _told(error, limits, _children_s() - before)
    line.send_bytes(json.dumps(end).encode())
    return end["kind"] == "end"


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _told(error: Exception, limits: Limits, children_s: float) -> dict[str, Any]:
    """The error for the other side; where a program that it started used up its time it is that, whatever was said."""
    if children_s >= limits.cpu_seconds:
        error = _too_much(f"{limits.cpu_seconds} s of processor time")
    elif isinstance(error, MemoryError):
        error = _too_much(f"{limits.memory_bytes // 2**20} MB of memory")
    elif not isinstance(error, DataError):
        error = SetupError(f"a file cannot be read or written ({error})", cure="See the space in the temporary folder.")
    place = {"file": str(error.file) if error.file else None, "where": error.where}
    return {"kind": "error", "setup": isinstance(error, SetupError), "what": error.what, "cure": error.cure, **place}
