"""What changes the weights, and how far at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pipelines.common.vlm.muon import Muon
from pipelines.common.vlm.ranks import ALONE, Ranks
from pipelines.common.vlm.settings import LoopSettings

BETAS = (0.9, 0.98)
WIDEST = 256  # smaller side of a matrix for Muon, whose work grows with its square: a few wide ones took half the step


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Linear warm-up, then a cosine down to `final_share`. A function of the step, so nothing of it need be saved."""
    share, warm = step / settings.steps, settings.warmup_share
    if share < warm:
        return settings.learning_rate * (step + 1) / (warm * settings.steps + 1)
    down = 0.5 * (1 + math.cos(math.pi * (share - warm) / (1 - warm)))
    return settings.learning_rate * (settings.final_share + (1 - settings.final_share) * down)


class Optimisers:
    """One or several of torch's optimisers, each with its own weights, used as one with one learning rate."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts

    def step(self, rate: float) -> None:
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self._parts]

    def go_on(self, state: Sequence[dict[str, Any]]) -> None:
        """From what `state` gave."""
        for part, saved in zip(self._parts, state, strict=True):
            part.load_state_dict(saved)


def make_optimiser(weights: Sequence[torch.nn.Parameter], settings: LoopSettings, ranks: Ranks = ALONE) -> Optimisers:
    """The optimiser that the settings name; all of them run on GPUs and CPUs alike. `ranks` share Muon's work."""
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimiser == "adamw":
        return Optimisers(torch.optim.AdamW(weights, betas=BETAS, **options))
    if settings.optimiser == "adamw_8bit":
        from bitsandbytes.optim.adamw import AdamW8bit

        return Optimisers(AdamW8bit(weights, betas=BETAS, **options))
    fit = [one.ndim == 2 and min(one.shape) <= WIDEST for one in weights]
    matrices, rest = ([one for one, fits in zip(weights, fit, strict=True) if fits is kind] for kind in (True, False))
    muon = Muon(matrices, ranks=ranks, **options)
    # fused: one pass over the many small vectors, on CPUs too
    return Optimisers(muon, torch.optim.AdamW(rest, betas=BETAS, fused=True, **options)) if rest else Optimisers(muon)
