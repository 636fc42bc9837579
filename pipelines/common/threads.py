"""How many threads libraries start by themselves. Belongs here: nothing that knows what they compute."""

from __future__ import annotations

from importlib import import_module


def one_thread() -> None:
    """For a process beside others that are as busy: numpy's own threads wait for each other in a busy loop, and with
    them cutting clips took more than twice as long."""
    from threadpoolctl import threadpool_limits

    import_module("numpy")  # only what is loaded can be limited
    threadpool_limits(1)
