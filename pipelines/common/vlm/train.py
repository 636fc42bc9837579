"""The training loop: gradient accumulation, checkpoints, exact resume. What is trained and on what comes from outside.

A step is a pure function of its number: `rows(step)` gives the samples of that step, so a resumed run sees just what
an undisturbed one would have seen. A checkpoint is a folder `<out>/step-000050` that appears whole: the trainable
weights (safetensors), the optimiser's state, the random state and the losses so far.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.common.errors import DataError
from pipelines.common.files import atomic_folder, read_json, remove_folder, remove_leftovers, write_json
from pipelines.common.vlm.encode import IGNORED, Encoded, Encoder, to_device
from pipelines.common.vlm.settings import LoopSettings

WEIGHTS, OPTIMISER, STATE = "weights.safetensors", "optimiser.pt", "state.json"

Say = Callable[[str], None]


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Linear warm-up, then a cosine down to `final_share`. A function of the step, so nothing of it need be saved."""
    share, warm = step / settings.steps, settings.warmup_share
    if share < warm:
        return settings.learning_rate * (step + 1) / (warm * settings.steps + 1)
    down = 0.5 * (1 + math.cos(math.pi * (share - warm) / (1 - warm)))
    return settings.learning_rate * (settings.final_share + (1 - settings.final_share) * down)


def loss_sum(model: Any, encoder: Encoder, rows: Sequence[Encoded], device: torch.device) -> torch.Tensor:
    """Summed cross-entropy of the answers' tokens. Logits are made for these positions only: with a vocabulary of
    150,000 they are otherwise the largest tensor of the step."""
    labels = encoder.labels(rows).to(device)
    keep = labels != IGNORED
    batch = to_device(encoder.collate(rows), device)
    logits = model(**batch, logits_to_keep=keep, use_cache=False).logits
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
) -> list[tuple[int, float]]:
    """Trains the parameters of `model` that want gradients; returns (step, mean loss a token) of every step.

    `rows(step)` gives batch_size × gradient_accumulation_steps encoded samples (fewer are allowed). Goes on from the
    newest checkpoint below `checkpoints`, if there is one.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimiser = torch.optim.AdamW(
        list(trained.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    torch.manual_seed(settings.seed)
    if settings.threads and device.type == "cpu":
        torch.set_num_threads(settings.threads)
    losses = _resume(checkpoints, trained, optimiser, progress)
    model.train()
    started, first = time.perf_counter(), len(losses)
    for step in range(first, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, settings)
        loss = _step(model, encoder, rows(step), settings, device)
        if not math.isfinite(loss):
            raise DataError(
                f"the loss of step {step} is {loss}", cure="Lower the learning rate; on float16 use bfloat16."
            )
        torch.nn.utils.clip_grad_norm_(trained.values(), settings.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append((step, loss))
        if (step + 1) % settings.save_steps == 0 or step + 1 == settings.steps:
            _save(checkpoints, trained, optimiser, losses, settings)
            progress(_line(losses, settings, time.perf_counter() - started, first, device))
    model.eval()
    return losses


def _step(model: Any, encoder: Encoder, rows: Sequence[Encoded], settings: LoopSettings, device: torch.device) -> float:
    """Backward over all micro-batches of one step; returns the mean loss a token. Every token weighs the same."""
    tokens = sum(len(row.ids) - row.prompt for row in rows)
    total = 0.0
    for start in range(0, len(rows), settings.batch_size):
        loss = loss_sum(model, encoder, rows[start : start + settings.batch_size], device) / tokens
        loss.backward()
        total += loss.item()
    return total


def _line(
    losses: list[tuple[int, float]], settings: LoopSettings, seconds: float, first: int, device: torch.device
) -> str:
    done = len(losses) - first
    clips = done * settings.batch_size * settings.gradient_accumulation_steps / seconds
    recent = [loss for _, loss in losses[-settings.save_steps :]]
    left = seconds / done * (settings.steps - len(losses))
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most" if device.type == "cuda" else ""
    return (
        f"step {len(losses)}/{settings.steps}: loss {sum(recent) / len(recent):.4f}, {clips:.1f} clips/s{memory}, "
        f"{left:.0f} s left"
    )


# --- checkpoints ---


def saved_steps(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(checkpoints.glob("step-*")) if checkpoints.is_dir() else []


def _save(
    checkpoints: Path,
    trained: dict[str, Any],
    optimiser: torch.optim.Optimizer,
    losses: list[tuple[int, float]],
    settings: LoopSettings,
) -> None:
    with atomic_folder(checkpoints / f"step-{len(losses):06d}") as folder:
        save_file({name: weight.detach().contiguous() for name, weight in trained.items()}, folder / WEIGHTS)
        torch.save({"optimiser": optimiser.state_dict(), "random": torch.get_rng_state()}, folder / OPTIMISER)
        write_json(folder / STATE, {"losses": losses})
    for old in saved_steps(checkpoints)[: -settings.save_total_limit]:
        shutil.rmtree(old)


def _resume(
    checkpoints: Path, trained: dict[str, Any], optimiser: torch.optim.Optimizer, progress: Say
) -> list[tuple[int, float]]:
    remove_leftovers(checkpoints)
    steps = saved_steps(checkpoints)
    if not steps:
        return []
    newest = steps[-1]
    weights = load_file(newest / WEIGHTS)
    if weights.keys() != trained.keys():
        cure = "Delete the checkpoints: they are of a model with other trained weights."
        raise DataError("the checkpoint does not fit the model", file=newest, cure=cure)
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(weights[name])
    saved = torch.load(newest / OPTIMISER, weights_only=True)
    optimiser.load_state_dict(saved["optimiser"])
    torch.set_rng_state(saved["random"])
    losses = [(step, loss) for step, loss in read_json(newest / STATE)["losses"]]
    progress(f"goes on after step {len(losses)} from {newest.name}")
    return losses


@contextmanager
def checkpoint_folder(out: Path, key: str) -> Iterator[Path]:
    """The folder for checkpoints of the training that makes `out`; gone once that succeeded, kept when it did not.

    `key` says what the checkpoints belong to (digest of settings and data): those of any other key are deleted,
    because a run must never go on from them.
    """
    folder = out.with_name(f"{out.name}.checkpoints")
    if folder.is_dir():
        for other in folder.iterdir():
            if other.name != key:
                shutil.rmtree(other)
    yield folder / key
    remove_folder(folder)  # in one step: a killed run must leave no half of a checkpoint to go on from
