"""What a training tells while it runs: lines for a person, and TensorBoard's curves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipelines.common.errors import SetupError
from pipelines.common.time_left import with_left
from pipelines.common.vlm.settings import LoopSettings

SILENCE_S = 60.0  # after which a line comes even where no checkpoint is due: a step at full size takes seconds

Say = Callable[[str], None]


class Progress:
    """Tells of each step; `clips` are those of a step in all processes, `first` the steps that an earlier run did."""

    def __init__(
        self, settings: LoopSettings, clips: int, first: int, device: torch.device, say: Say, board: Path | None
    ) -> None:
        self._settings, self._clips, self._first, self._device, self._say = settings, clips, first, device, say
        self._board = _writer(board, first) if board else None
        self._started = self._said = self._last = time.perf_counter()
        self._waited = 0.0

    def step(self, losses: list[tuple[int, float]], rate: float, waited: float, saved: bool) -> None:
        """After each step: the losses so far, the learning rate of the last one, how many seconds it waited for its
        samples, and whether a checkpoint was written."""
        now = time.perf_counter()
        self._waited += waited
        if self._board is not None:
            self._draw(losses[-1], rate, self._clips / (now - self._last), waited / (now - self._last))
        self._last = now
        if saved or now - self._said > SILENCE_S:
            self._said = now
            self._say(self._line(losses, now - self._started))

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _line(self, losses: list[tuple[int, float]], seconds: float) -> str:
        done, steps = len(losses) - self._first, self._settings.steps
        recent = [loss for _, loss in losses[-self._settings.save_steps :]]
        memory = f", {self._memory() / 2**30:.2f} GiB at most" if self._device.type == "cuda" else ""
        line = (
            f"step {len(losses)}/{steps}: loss {sum(recent) / len(recent):.4f}, "
            f"{done * self._clips / seconds:.1f} clips/s{memory}, input wait {self._waited / seconds:.0%}"
        )
        return with_left(line, seconds / done * (steps - len(losses)))

    def _draw(self, last: tuple[int, float], rate: float, speed: float, wait: float) -> None:
        assert self._board is not None
        step, loss = last
        figures = {"loss": loss, "learning_rate": rate, "clips_per_second": speed, "input_wait_share": wait}
        if self._device.type == "cuda":
            figures["peak_memory_gib"] = self._memory() / 2**30
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)

    def _memory(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)


def _writer(board: Path, first: int) -> Any:
    """TensorBoard's writer; what a killed run wrote of steps that are now done again is not shown twice."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        cure = "Install `tensorboard`, or set `[finetune.loop] tensorboard = false`."
        raise SetupError(f"TensorBoard's logs cannot be written ({error})", cure=cure) from None
    return SummaryWriter(str(board), purge_step=first, flush_secs=30)
