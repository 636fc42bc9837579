"""Several processes that train one model, each on a GPU or a core of its own, started here or by `accelerate launch`.

Belongs here: starting them, who one is among them, sums over all of them, and waiting for them. What is summed does
not.

Data parallel, with one sum of gradients a step where DistributedDataParallel has one a bucket inside backward. The
adapter's gradients are a few megabytes, so little is lost; every token of a step weighs the same, whichever process it
is in; and a process that is out of memory says so before the others wait for its part, so that all of them go on.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather, reduce

from pipelines.common.errors import DataError, SetupError
from pipelines.common.orphans import end_with_parent
from pipelines.common.vlm.settings import Device


@dataclass(frozen=True)
class Ranks:
    """One process among `count`; by default the only one, for which every sum is its own value."""

    index: int = 0
    count: int = 1
    device: str = "cpu"  # through which sums go

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and tells of its progress."""
        return self.index == 0

    def total(self, value: float) -> float:
        """Sum of `value` over all processes."""
        if self.count == 1:
            return value
        summed: Any = reduce(torch.tensor(value, dtype=torch.float64, device=self.device), "sum")
        return summed.item()

    def any(self, happened: bool) -> bool:
        """Whether it happened in one of the processes."""
        return self.total(float(happened)) > 0

    def sum_gradients(self, weights: Iterable[torch.Tensor]) -> None:
        """Puts into each weight's gradient its sum over all processes."""
        if self.count == 1:
            return
        weights = list(weights)
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in weights]
        summed: Any = reduce(torch.cat([part.flatten() for part in parts]), "sum")
        for weight, part in zip(weights, summed.split([one.numel() for one in weights]), strict=True):
            weight.grad = part.view_as(weight)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """(processes, …): each process's `part`, which has the same shape in all of them."""
        if self.count == 1:
            return part[None]
        gathered: Any = gather(part[None])
        return gathered

    def same_as_first(self, weights: Iterable[torch.Tensor]) -> None:
        """Gives each weight the values that it has in the first process."""
        if self.count == 1:
            return
        with torch.no_grad():
            for weight in weights:
                first: Any = broadcast(weight.detach().clone())
                weight.copy_(first)

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.count > 1:
            PartialState().wait_for_everyone()


ALONE = Ranks()
DYING_S = 10.0  # a process that is done, or whose group is gone, ends within this


@contextmanager
def together(processes: int, work: Callable[[], object]) -> Iterator[None]:
    """For the block this is the first of `processes`; the others are started here and run `work`, which must be
    picklable. Where a launcher has started this process it has started the others too, and none is here.

    All of them call `joined`. The others end with this one, however it ends. A user's error in one of them is raised
    here; SetupError where one has died otherwise.
    """
    if processes == 1 or "WORLD_SIZE" in os.environ:
        yield
        return
    place, *places = _places(processes)
    before = {name: os.environ.get(name) for name in place}
    others: list[_Other] = []
    try:
        for one in places:
            others.append(_Other(one, work))  # one by one: those that run are ended where a next cannot start
        for other in others:
            other.wait_until_up(processes)  # one that is dead by then would be waited for half an hour
        os.environ.update(place)
        yield
        for other in others:
            other.process.join(DYING_S)  # it is done too, and lets go of what it holds
    except RuntimeError as error:  # of a group that has lost a process; or of this one's own
        for other in others:
            other.raise_its_end(processes, error)
        raise
    finally:
        for other in others:
            other.process.kill()
            other.process.join()
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


class _Other:
    """Another process of the group, seen from the first one."""

    def __init__(self, place: dict[str, str], work: Callable[[], object]) -> None:
        context = get_context("spawn")
        self._said, told = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(target=_run, args=(place, work, told))
        self.process.start()
        told.close()  # its end is that process's alone, so that its death is heard here

    def wait_until_up(self, processes: int) -> None:
        try:
            self._said.recv()
        except EOFError as error:
            self.raise_its_end(processes, error)

    def raise_its_end(self, processes: int, because: BaseException) -> None:
        """Raises the user's error that it sent, or that it died; returns where it did neither."""
        self.process.join(DYING_S)  # one that has let go of the group is about to end
        with suppress(EOFError):
            if self._said.poll():
                raise self._said.recv() from because
        if self.process.exitcode:
            cure = (
                "Look for what it wrote last, or for a lack of memory; the next run goes on from the last checkpoint."
            )
            what = f"one of {processes} processes ended with {self.process.exitcode}"
            raise SetupError(what, cure=cure) from because


def _run(place: dict[str, str], work: Callable[[], object], told: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the first one's, which ends this one
    end_with_parent()
    os.environ.update(place)
    told.send("up")
    try:
        work()
    except DataError as error:
        told.send(error)


def started_first() -> bool:
    """Whether this is the first of the processes that a launcher has started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _places(processes: int) -> list[dict[str, str]]:
    """For each process the variables by which it finds the others, those that launchers set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")  # accelerate's default, which it would tell of
    return [
        {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(processes)
    ]


@contextmanager
def joined(device: Device, processes: int) -> Iterator[Ranks]:
    """The place of this process among `processes`.

    SetupError where a launcher started another number of them, or where there are fewer GPUs.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes:
        cure = f"Set `processes = {started}`, or start {processes} of them, or none, with the launcher."
        raise SetupError(f"{started} processes train where the settings ask for {processes}", cure=cure)
    if processes == 1:
        yield ALONE
        return
    cpu, here = device == "cpu" or not torch.cuda.is_available(), int(os.environ.get("LOCAL_WORLD_SIZE", started))
    if not cpu and torch.cuda.device_count() < here:
        cure = "Set `[finetune] processes` to the number of GPUs in `nvidia-smi`; a launcher's --num_processes too."
        raise SetupError(f"{here} processes for {torch.cuda.device_count()} GPUs", cure=cure)
    state = PartialState(cpu=cpu)
    try:
        yield Ranks(state.process_index, state.num_processes, str(state.device))
    finally:
        state.destroy_process_group()
        PartialState._reset_state()  # accelerate keeps one state a process, and the next training is another group
