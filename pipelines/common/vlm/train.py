"""The training loop: gradient accumulation, checkpoints, exact resume. What is trained and on what comes from outside.

A step is a pure function of its number: `rows(step)` gives the samples of that step and the random state is seeded by
it, so a resumed run sees just what an undisturbed one would have seen, and a step that ran out of memory can be done
again in smaller parts. A checkpoint is a folder `<out>/step-000050` that appears whole: the trainable weights
(safetensors), the optimiser's state, the losses so far, how many clips were on the device at once, and in fp16 the
scale of the loss.
"""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import atomic_folder, read_json, remove_leftovers, write_json
from pipelines.common.vlm.encode import IGNORED, Encoded, Encoder, to_device
from pipelines.common.vlm.optimiser import Optimisers, learning_rate, make_optimiser
from pipelines.common.vlm.precision import LossScale
from pipelines.common.vlm.progress import Progress
from pipelines.common.vlm.ranks import ALONE, Ranks
from pipelines.common.vlm.settings import LoopSettings

WEIGHTS, OPTIMISER, STATE = "weights.safetensors", "optimiser.pt", "state.json"

Say = Callable[[str], None]


def loss_sum(
    model: Any, encoder: Encoder, rows: Sequence[Encoded], device: torch.device, *, use_cache: bool = False
) -> torch.Tensor:
    """Summed cross-entropy of the answers' tokens. Logits are made for these positions only: with a vocabulary of
    150,000 they are otherwise the largest tensor of the step."""
    labels = encoder.labels(rows).to(device)
    keep = labels != IGNORED
    batch = to_device(encoder.collate(rows), device)
    logits = model(**batch, logits_to_keep=keep, use_cache=use_cache).logits
    return torch.nn.functional.cross_entropy(logits.float(), labels[keep], reduction="sum")


def fit(
    model: Any,
    encoder: Encoder,
    rows: Callable[[int], Sequence[Encoded]],
    settings: LoopSettings,
    checkpoints: Path,
    *,
    device: torch.device,
    progress: Say = print,
    ranks: Ranks = ALONE,
    board: Path | None = None,
    when_full: str = "Take a smaller model or a larger GPU.",
    look: Callable[[int, Sequence[Encoded]], Sequence[Encoded]] | None = None,
) -> list[tuple[int, float]]:
    """Trains the parameters of `model` that want gradients; returns (step, mean loss a token) of every step.

    `rows(step)` gives batch_size × gradient_accumulation_steps encoded samples (fewer are allowed), in each of `ranks`
    others. Goes on from the newest checkpoint below `checkpoints`; the first rank writes these, and curves to `board`.
    `look(step, rows)` is computed on a step's samples first, as by a frozen tower; it is not counted as input wait.
    SetupError, with `when_full` as what to do, where a single clip does not fit the GPU; DataError for a loss that is
    no number.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimiser = make_optimiser(list(trained.values()), settings, ranks)
    if settings.threads and device.type == "cpu":
        torch.set_num_threads(settings.threads)
    losses, batch_size, scale = _resume(checkpoints, trained, optimiser, settings, progress, ranks)
    scale = scale or LossScale.needed(model.parameters())
    ranks.same_as_first(trained.values())
    model.train()
    clips = settings.batch_size * settings.gradient_accumulation_steps * ranks.count
    told = Progress(settings, clips, len(losses), device, progress, board if ranks.first else None)
    for step in range(len(losses), settings.steps):
        rate, began = learning_rate(step, settings), time.perf_counter()
        samples = rows(step)
        waited = time.perf_counter() - began
        with _told_when_out_of_memory(when_full):
            samples = look(step, samples) if look else samples
            state = step, batch_size, scale.value if scale else 1.0
            loss, batch_size = _step(model, encoder, samples, *state, settings, device, ranks, progress)
            norm = torch.nn.utils.clip_grad_norm_(trained.values(), settings.max_grad_norm)
            if scale is None or bool(torch.isfinite(norm)):  # the same in all processes, whose gradients are one sum
                optimiser.step(rate)
                if scale:
                    scale.stepped()
            else:
                progress(scale.overflowed(step))
        optimiser.zero_grad()
        losses.append((step, loss))
        save = (step + 1) % settings.save_steps == 0 or step + 1 == settings.steps
        if save and ranks.first:
            _save(checkpoints, trained, optimiser, losses, batch_size, scale, settings)
        told.step(losses, rate, waited, save)
    told.close()
    model.eval()
    return losses


# --- a step ---


def _step(
    model: Any,
    encoder: Encoder,
    rows: Sequence[Encoded],
    step: int,
    batch_size: int,
    scale: float,
    settings: LoopSettings,
    device: torch.device,
    ranks: Ranks,
    progress: Say,
) -> tuple[float, int]:
    """Gradients of one step, every token weighing the same; returns the mean loss a token and the micro-batch that
    fitted: where memory ran out in any process, all of them do the step again with half of it. The backward pass goes
    through the loss times `scale`, which gradients are free of in the end."""
    tokens = ranks.total(sum(len(row.ids) - row.prompt for row in rows))
    while True:
        torch.manual_seed((settings.seed * settings.steps + step) * ranks.count + ranks.index)
        parts = _micro_batches(rows, batch_size, settings)
        loss = _backward(model, encoder, parts, tokens, scale, settings, device)
        if not ranks.any(loss is None):
            break
        model.zero_grad(set_to_none=True)
        gc.collect()  # an interrupted backward leaves activations in cycles
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if batch_size == 1:
            raise torch.OutOfMemoryError
        batch_size //= 2
        accumulated = math.ceil(len(rows) / batch_size)
        progress(f"step {step}: out of memory, goes on with micro-batches of {batch_size}, {accumulated} a step")
    assert loss is not None
    loss = ranks.total(loss)
    if not math.isfinite(loss):
        raise DataError(
            f"the loss of step {step} is {loss}", cure="Lower the learning rate; a GPU with bfloat16 takes more."
        )
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    ranks.sum_gradients(trained)
    if scale != 1:
        for weight in trained:
            if weight.grad is not None:
                weight.grad.div_(scale)
    return loss, batch_size


def _micro_batches(rows: Sequence[Encoded], batch_size: int, settings: LoopSettings) -> list[Sequence[Encoded]]:
    """The rows of a step in parts for the device; by length, so that little padding goes through the model."""
    if settings.by_length and len(rows) > batch_size:
        rows = sorted(rows, key=lambda row: len(row.ids))
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def _backward(
    model: Any,
    encoder: Encoder,
    parts: list[Sequence[Encoded]],
    tokens: float,
    scale: float,
    settings: LoopSettings,
    device: torch.device,
) -> float | None:
    """Adds up the gradients of all parts; their share of the mean loss a token, None where memory ran out."""
    total = 0.0
    try:
        for part in parts:
            loss = loss_sum(model, encoder, part, device, use_cache=settings.use_cache) / tokens
            (loss * scale).backward()
            total += loss.item()
    except torch.OutOfMemoryError:
        return None
    return total


@contextmanager
def _told_when_out_of_memory(cure: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        cure += " With the same settings the next run goes on from the last checkpoint, with others it starts anew."
        raise SetupError("out of memory with a single clip on the device", cure=cure) from None


# --- checkpoints ---


def saved_steps(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(checkpoints.glob("step-*")) if checkpoints.is_dir() else []


def _save(
    checkpoints: Path,
    trained: dict[str, Any],
    optimiser: Optimisers,
    losses: list[tuple[int, float]],
    batch_size: int,
    scale: LossScale | None,
    settings: LoopSettings,
) -> None:
    with atomic_folder(checkpoints / f"step-{len(losses):06d}") as folder:
        save_file({name: weight.detach().contiguous() for name, weight in trained.items()}, folder / WEIGHTS)
        torch.save(optimiser.state(), folder / OPTIMISER)
        write_json(folder / STATE, {"losses": losses, "batch_size": batch_size, "scale": scale and scale.state()})
    for old in saved_steps(checkpoints)[: -settings.save_total_limit]:
        shutil.rmtree(old)


def _resume(
    checkpoints: Path,
    trained: dict[str, Any],
    optimiser: Optimisers,
    settings: LoopSettings,
    progress: Say,
    ranks: Ranks,
) -> tuple[list[tuple[int, float]], int, LossScale | None]:
    """Takes over the newest checkpoint; returns its losses, how many clips fitted the device at once, and the scale of
    the loss where it had one."""
    if ranks.first:
        remove_leftovers(checkpoints)
    ranks.wait()
    steps = saved_steps(checkpoints)
    if not steps:
        return [], settings.batch_size, None
    newest = steps[-1]
    weights = load_file(newest / WEIGHTS)
    if weights.keys() != trained.keys():
        cure = "Delete the checkpoints: they are of a model with other trained weights."
        raise DataError("the checkpoint does not fit the model", file=newest, cure=cure)
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(weights[name])
    optimiser.go_on(torch.load(newest / OPTIMISER, map_location="cpu", weights_only=True))
    state = read_json(newest / STATE)
    losses = [(step, loss) for step, loss in state["losses"]]
    progress(f"goes on after step {len(losses)} from {newest.name}, with micro-batches of {state['batch_size']}")
    scale = state["scale"]
    return losses, state["batch_size"], LossScale(*scale) if scale else None
