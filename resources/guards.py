"""Guards of long processes: one at a time on a machine, and none that outlives the process that started it."""

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.common.errors import SetupError

POLL_S = 1.0  # an orphan holds the GPU for no longer than this before it is told to stop
GRACE_S = 20.0  # for a checkpoint; as long as Dagster's Pipes client waits after its SIGINT


def stop_with_parent(parent: int) -> None:
    """Watches process `parent` from a thread: once it is gone, this process gets SIGINT, and is ended after GRACE_S.

    Call it first thing. A killed Dagster worker cannot forward the signal itself, and frees the pool's slot.
    """

    # what a shell starts in the background ignores SIGINT, and so would all that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GRACE_S)
        for child in multiprocessing.active_children():
            child.kill()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="stop-with-parent", daemon=True).start()


@contextmanager
def only_one(lock: Path, *, waiting: Callable[[str], None] | None) -> Iterator[None]:
    """Holds the file lock `lock`, which the system drops when the process ends, however it ends.

    While another process holds it: `waiting(message)` is called once and the call blocks; with None it is a SetupError.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = f"process {stream.read().strip() or 'unknown'} is at work"
            if waiting is None:
                raise SetupError(holder, file=lock, cure="Wait until it has ended, or end it.") from None
            waiting(f"{holder} ({lock}), waiting for it to end")
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
