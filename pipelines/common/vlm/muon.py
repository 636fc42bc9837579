"""Muon (Jordan 2024): momentum whose steps are made orthogonal, matrices of one shape together.

Belongs here: the optimiser alone; which weights it is for stands in `optimiser`. `torch.optim.Muon` takes one matrix
after the other, in bf16, in every process. An adapter has two hundred small matrices, processors without bf16
instructions take 13 to 23 times as long in it as in fp32, and of several processes each needs only a share of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from pipelines.common.vlm.precision import compute_dtype
from pipelines.common.vlm.ranks import ALONE, Ranks

# Coefficients of one quintic iteration each, best for singular values from LEAST to 1 by the rule of Polar Express
# (arXiv 2505.16932): each iteration brings what the ones before have left as near to 1 as one can. Three leave 0.96 to
# 1.04, torch's five 0.68 to 1.13. Three are enough since the largest singular value is brought near to 1 before, see
# `orthogonal`; torch divides by the Frobenius norm, eleven times the largest where 128 of them are alike.
LEAST = 0.03
COEFFICIENTS = (
    (7.362528, -20.743396, 15.160552),
    (2.917538, -2.182405, 0.475529),
    (2.04631, -1.429475, 0.393352),
)


class Muon(torch.optim.Optimizer):
    """Momentum, each step made orthogonal; for matrices only.

    Steps are as large as AdamW's, so that one learning rate serves both (Moonshot, arXiv 2502.16982). Each of `ranks`
    makes its share of the steps orthogonal and gets the others' from them; momentum is in all of them, so that a
    checkpoint of the first one is whole.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._ranks = ranks

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step(weights, group["lr"], group["weight_decay"], group["momentum"])

    def _step(self, weights: list[torch.nn.Parameter], rate: float, decay: float, momentum: float) -> None:
        """Nesterov's momentum, the orthogonal matrix next to it, and a step along that."""
        updates = []
        for weight in weights:
            assert weight.grad is not None
            kept = self._momentum(weight).lerp_(weight.grad, 1 - momentum)
            updates.append(weight.grad.lerp(kept, momentum))
        for weight, step in zip(weights, self._orthogonal(updates), strict=True):
            weight.mul_(1 - rate * decay).sub_(step, alpha=rate)

    def _momentum(self, weight: torch.nn.Parameter) -> torch.Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]

    def _orthogonal(self, updates: list[torch.Tensor]) -> list[torch.Tensor]:
        """Each update made orthogonal and scaled to a step of AdamW, by the process whose share it is in."""
        count = self._ranks.count
        if count == 1:
            return _by_shape(updates)
        parts = shares([update.shape for update in updates], count)
        made = _by_shape([updates[number] for number in parts[self._ranks.index]])
        sizes = [sum(updates[number].numel() for number in part) for part in parts]
        own = torch.cat([*(one.flatten() for one in made), updates[0].new_zeros(max(sizes) - sizes[self._ranks.index])])
        steps = list(updates)
        for part, flat in zip(parts, self._ranks.gather(own), strict=True):
            start = 0
            for number in part:
                size = updates[number].numel()
                steps[number] = flat[start : start + size].view_as(updates[number])
                start += size
        return steps


def shares(shapes: Sequence[torch.Size], count: int) -> list[list[int]]:
    """Numbers of matrices in `count` parts of about equal work: the most expensive first, each to who has least."""
    work = [min(shape) ** 2 * max(shape) for shape in shapes]
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for number in sorted(range(len(shapes)), key=lambda number: (-work[number], number)):
        least = loads.index(min(loads))
        parts[least].append(number)
        loads[least] += work[number]
    return parts


def _by_shape(updates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The steps of these updates, in order."""
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for number, update in enumerate(updates):
        alike[update.shape].append(number)
    steps = list(updates)
    for shape, numbers in alike.items():
        made = orthogonal(torch.stack([updates[number] for number in numbers]))
        for number, one in zip(numbers, made.mul_(0.2 * math.sqrt(max(shape))), strict=True):
            steps[number] = one
    return steps


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(n, rows, columns) → the same shape and type, each near the orthogonal matrix closest to it (Newton–Schulz).

    Iterates on the product of each matrix with its transpose, whose side is the smaller of the two: every polynomial
    that is applied is one of that product, so they are multiplied up first and applied to the matrix once. The first
    iteration needs the square of that product; the fourth root of its norm is the Schatten-8 norm of the matrix, at
    least the largest singular value and at most n^(1/8) times it.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    wide = (matrices.mT if tall else matrices).to(_dtype(matrices.device))
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)  # fourth powers of small steps are no numbers
    gram = wide @ wide.mT
    square = gram @ gram
    norm = square.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12).sqrt()  # of the squares of singular values
    gram, square, applied = gram / norm, square / norm**2, None
    for number, (a, b, c) in enumerate(COEFFICIENTS):
        polynomial = gram * b + square * c if number == 0 else torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        applied = polynomial if applied is None else polynomial @ applied
        if number + 1 < len(COEFFICIENTS):
            gram = polynomial @ gram @ polynomial
    assert applied is not None
    made = (applied @ (wide / norm.sqrt())).to(matrices.dtype)
    return made.mT.contiguous() if tall else made


def _dtype(device: torch.device) -> torch.dtype:
    """bf16 where there are instructions for it. On a CPU without them it takes 13 to 23 times as long as fp32, and on
    one with them the products are too small a part of a step to be worth another result."""
    return torch.bfloat16 if compute_dtype(device) == torch.bfloat16 else torch.float32
