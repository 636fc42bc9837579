"""No process that a stage starts outlives the one that started it, not even where that one was killed.

Belongs here: processes that may end at once, because nothing of theirs is worth saving. A training, which saves a
checkpoint first, does not: its guard is in `resources`. Linux only, as the project is.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from multiprocessing import parent_process
from threading import Thread

_PR_SET_PDEATHSIG = 1  # of prctl(2); kept over exec, so a small Python asks for it and becomes the command
_BOUND = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGKILL)})
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


_group_is_bound = False


def bind_group() -> None:
    """Puts this process, and all that it starts, into a group that ends as one: whoever ends it ends the group.

    A program is then started as it is: `bound_to_caller` would only cost its time.
    """
    global _group_is_bound
    os.setpgrp()
    _group_is_bound = True


def end_group(pid: int) -> None:
    """Ends a process that called `bind_group`, and what it started, also where it is gone already."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def end_with_parent() -> None:
    """Ends this process, one that multiprocessing started, as soon as the one that started it is gone; so its group.

    The workers of a pool hold both ends of their queue, so nothing else tells them, and they would go on with what was
    already asked of them. RuntimeError in a process that multiprocessing did not start.
    """
    parent = parent_process()
    if parent is None:
        raise RuntimeError("this process was not started by multiprocessing")

    def watch() -> None:
        parent.join()
        if _group_is_bound:
            end_group(os.getpid())
        os._exit(1)

    Thread(target=watch, name="end-with-parent", daemon=True).start()


def bound_to_caller(command: list[str]) -> list[str]:
    """`command`, whose first word is an absolute path, so that the system kills it once the calling thread is gone.

    Costs about 10 ms at its start, and nothing in a process that called `bind_group`.
    """
    if _group_is_bound:
        return command
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *command]
