"""Muon (Jordan 2024), matrices of one shape together.

Belongs here: the optimiser alone; which weights it is for stands in `optimiser`. `torch.optim.Muon` gives the same
steps and goes from matrix to matrix: an adapter has two hundred small ones, and they took a fifth of a step on a CPU.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic iteration, steepest at zero (Jordan 2024)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, each step made orthogonal; for matrices only.

    Steps are as large as AdamW's, so that one learning rate serves both (Moonshot, arXiv 2502.16982).
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for weights in alike.values():
                self._step(weights, group["lr"], group["weight_decay"], group["momentum"])

    def _step(self, weights: list[torch.nn.Parameter], rate: float, decay: float, momentum: float) -> None:
        """Nesterov's momentum, the orthogonal matrix next to it, and a step along that."""
        gradients = torch.stack([weight.grad for weight in weights])  # pyright: ignore[reportArgumentType]
        states = [self.state[weight] for weight in weights]
        kept = torch.stack(
            [state.get("momentum_buffer", torch.zeros_like(w)) for state, w in zip(states, weights, strict=True)]
        )
        kept.lerp_(gradients, 1 - momentum)
        for state, own in zip(states, kept, strict=True):
            state["momentum_buffer"] = own.clone()
        update = orthogonal(gradients.lerp_(kept, momentum)).to(kept.dtype)
        for weight, own in zip(weights, update, strict=True):
            weight.mul_(1 - rate * decay)
            weight.add_(own, alpha=-rate * 0.2 * math.sqrt(max(weight.shape)))


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(n, rows, columns) → bf16 of the same shape, each near the orthogonal matrix closest to it (Newton–Schulz)."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    made = matrices.to(torch.bfloat16)
    made = made.mT if tall else made
    made = made / made.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = made @ made.mT
        made = torch.baddbmm(made, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), made, beta=a)
    return made.mT if tall else made
