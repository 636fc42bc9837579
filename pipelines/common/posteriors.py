"""Posteriors that can be trusted: sharpened or flattened by a temperature, fused with a prior, both chosen by log loss.

Belongs here: arithmetic on arrays of probabilities. What a class means, and on which samples something is chosen, does
not. Arrays are (samples, classes), each row a posterior; `most_probable` is for a single one, by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

FLOOR = 1e-12  # of a probability: what float32 rounded to zero was still possible, and has a logarithm
# From a quarter to eight, eight steps an octave: between two neighbours the log loss is flat. A grid gives the same
# number on every machine, to the last digit, where a search follows its rounding.
TEMPERATURES = tuple(2 ** (step / 8) for step in range(-16, 25))
WEIGHTS = tuple(step / 20 for step in range(21))
TIE = 1e-9  # losses closer than this differ by rounding

Key = TypeVar("Key")


@dataclass(frozen=True)
class Fit:
    """What was chosen, and the mean log loss (nats a sample) without and with it."""

    weight: float
    temperature: float
    before: float
    after: float


def most_probable(posterior: Mapping[Key, float]) -> Key:
    """The first of the most probable."""
    return max(posterior, key=posterior.__getitem__)


def temper(shares: np.ndarray, temperature: float) -> np.ndarray:
    """∝ shares^(1 / temperature): above one less sure, below one surer; the order of classes stays."""
    return fuse(shares, shares, 0.0, temperature)


def fuse(shares: np.ndarray, prior: np.ndarray, weight: float, temperature: float = 1.0) -> np.ndarray:
    """∝ (shares^(1 - weight) · prior^weight)^(1 / temperature), the log-linear mixture of two posteriors."""
    logs = (1 - weight) * np.log(np.maximum(shares, FLOOR)) + weight * np.log(np.maximum(prior, FLOOR))
    raised = np.exp((logs - logs.max(-1, keepdims=True)) / temperature)
    return raised / raised.sum(-1, keepdims=True)


def log_loss(shares: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> float:
    """Mean of -log p of the true group. `groups` (classes,) says to which one a class belongs; `truth` (samples,)."""
    right = (shares * (groups[None] == truth[:, None])).sum(-1)
    return float(-np.log(np.maximum(right, FLOOR)).mean())


def fit(
    shares: np.ndarray, prior: np.ndarray, truth: np.ndarray, groups: np.ndarray, weights: Sequence[float] = WEIGHTS
) -> Fit:
    """The weight of `prior` (ascending `weights`) and the temperature with the least log loss of the true groups.

    Both at once, since a posterior that is too sure asks for more of a prior than one that is flattened first. Equal
    losses go to the smaller weight. ½·ln²(temperature) is added to the summed loss, a standard normal prior: a handful
    of samples that are all right would otherwise ask for certainty, and hundreds hardly feel it.
    """
    losses = np.array(
        [[log_loss(fuse(shares, prior, one, heat), truth, groups) for heat in TEMPERATURES] for one in weights]
    )
    held = losses + np.log(TEMPERATURES) ** 2 / (2 * len(truth))
    best = held.min(1)
    row = int(np.flatnonzero(best <= best.min() + TIE)[0])
    column = int(held[row].argmin())
    before = log_loss(shares, truth, groups)
    return Fit(weights[row], TEMPERATURES[column], before, float(losses[row, column]))
