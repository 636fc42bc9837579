"""`training_step_vs_forward_backward`: a whole training step against forward and backward pass alone of the same batch.

Belongs here: what a step costs beside what nothing can spare it: sums over processes, clipping, the optimiser. What
single measures inside of forward and backward are worth is in `measures`. The model is the embedded one with the
settings that `make demo` trains it with, in as many processes; batches are made beforehand on both sides.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.vlm import tiny
from pipelines.common.vlm.encode import Encoded, Encoder
from pipelines.common.vlm.load import linear_patches
from pipelines.common.vlm.ranks import joined, together
from pipelines.common.vlm.train import fit, loss_sum
from pipelines.openpack.pretrain import _drawn_rows, _nothing, _phrases
from pipelines.openpack.settings import PretrainSettings, load_settings

STEPS = 16
CPU = torch.device("cpu")


def run() -> dict[str, Any]:
    """Milliseconds of both sides, the median of 16 steps each in the first process."""
    settings = load_settings(preset="tiny").pretrain
    loop = settings.loop.model_copy(update={"steps": STEPS, "save_steps": STEPS})
    settings = settings.model_copy(update={"loop": loop})
    with tempfile.TemporaryDirectory() as folder:
        work = partial(_measure, settings, Path(folder))
        with together(settings.processes, work):
            ours, other = work()
    ours, other = round(1000 * ours, 1), round(1000 * other, 1)
    return {"ours": ours, "other": other, "unit": "ms", "ratio": round(other / ours, 2)}


def _measure(settings: PretrainSettings, folder: Path) -> tuple[float, float]:
    """Seconds of a whole step, and of forward and backward alone, in this process beside the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with joined("cpu", settings.processes) as ranks:
        processor = tiny.processor(_phrases(), settings.model, DEFAULT_FORMAT.frames)
        model, encoder = linear_patches(tiny.model(processor.tokenizer, settings.model)).train(), Encoder(processor)
        drawn = _drawn_rows(settings, DEFAULT_FORMAT.frames, ranks.index)
        batches = [drawn(step) for step in range(STEPS)]
        ranks.wait()
        alone = [_seconds(partial(_forward_backward, model, encoder, batch)) for batch in batches]
        model.zero_grad(set_to_none=True)
        began: list[float] = []

        def rows(step: int) -> list[Encoded]:
            began.append(time.perf_counter())
            return batches[step]

        fit(model, encoder, rows, settings.loop, folder, device=CPU, progress=_nothing, ranks=ranks)
        ranks.wait()
    torch.set_num_threads(threads)
    whole = [after - before for before, after in pairwise(began)]
    return median(whole[1:]), median(alone[1:])  # the first of each warms up


def _forward_backward(model: Any, encoder: Encoder, batch: list[Encoded]) -> None:
    loss_sum(model, encoder, batch, CPU).backward()


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
