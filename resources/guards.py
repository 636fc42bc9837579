"""A guard of long processes: none outlives the process that started it."""

import multiprocessing
import os
import signal
import threading
import time

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
