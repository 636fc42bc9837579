"""Several processes that train one model, each on a GPU of its own, as `accelerate launch` starts them.

Belongs here: who one is among them, sums over all of them, and waiting for them. What is summed does not.

Data parallel, with one sum of gradients a step where DistributedDataParallel has one a bucket inside backward. The
adapter's gradients are a few megabytes, so little is lost; every token of a step weighs the same, whichever process it
is in; and a process that is out of memory says so before the others wait for its part, so that all of them go on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, reduce

from pipelines.common.errors import SetupError
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


@contextmanager
def joined(device: Device, processes: int) -> Iterator[Ranks]:
    """The place of this process among `processes`.

    SetupError where another number of them was started, or more than there are GPUs.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes:
        cure = (
            f"Start it with `accelerate launch --multi_gpu --num_processes {processes} -m …`."
            if processes > 1
            else f"Set `[finetune] processes = {started}`, or start it without a launcher."
        )
        raise SetupError(f"{started} processes train where the settings ask for {processes}", cure=cure)
    if processes == 1:
        yield ALONE
        return
    cpu, here = device == "cpu" or not torch.cuda.is_available(), int(os.environ.get("LOCAL_WORLD_SIZE", started))
    if not cpu and torch.cuda.device_count() < here:
        cure = "Set `[finetune] processes` and the launcher's --num_processes to the number of GPUs in `nvidia-smi`."
        raise SetupError(f"{here} processes for {torch.cuda.device_count()} GPUs", cure=cure)
    state = PartialState(cpu=cpu)
    yield Ranks(state.process_index, state.num_processes, str(state.device))
    state.destroy_process_group()
