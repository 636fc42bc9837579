"""Which frames of a clip a model gets to see, chosen from the picture alone.

A clip is divided into segments inside which the picture stays alike, and one pair of neighbouring frames is shown of
each segment: its most typical one. The division is the optimal piecewise-constant fit (least squares, dynamic
programming: Bellman 1961, "On the approximation of curves by line segments using dynamic programming") of a signal
that has one value a cell of a grid: the Shannon entropy of the grey values (method `entropy`) or the motion magnitude
(`motion`). A lasting change (another place, another thing on the bench) moves a cut; a gesture that repeats does not.
Frames near a cut count little for the fit: going over from one state to the next takes time, and would otherwise be a
segment of its own, with two cuts beside the boundary and none at it.
`stride` takes the frame richest in entropy from windows of fixed stride that overlap; `uniform` is evenly spaced and
exists as a control arm only.

Nothing here knows labels, and nothing here reads files: frames come in as arrays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from typing import Literal

import numpy as np
from pydantic import Field

from pipelines.common.errors import DataError
from pipelines.common.settings import Settings

LEVELS = 256  # of an 8-bit grey
SHORTEST = 5  # frames of a segment, where a video is too short for longer ones

Method = Literal["entropy", "motion", "stride", "uniform"]


class KeyframeSettings(Settings):
    """How the shown frames are chosen."""

    method: Method = "entropy"
    anchors: int = Field(default=4, ge=2)  # pairs shown: 4 × 2 frames × 72 tokens = 576 tokens in Qwen2-VL
    # frames; a shorter stretch (half a second) is a gesture or a passage, not a state. Of a video that has not so many
    # for each segment, an equal share
    min_segment: int = Field(default=12, ge=SHORTEST)
    passage: int = Field(default=5, ge=0)  # frames on either side of a cut that count as `passage_weight` of one
    passage_weight: float = Field(default=0.1, gt=0, lt=1)  # not 0, or a sudden change could be cut anywhere near it
    window_share: float = Field(default=0.4, gt=0, le=1)  # `stride`: a window's share of the clip; > 1/anchors overlaps

    @property
    def fewest(self) -> int:
        """Frames of the shortest clip that has its segments."""
        return self.anchors * SHORTEST


class SignalSettings(Settings):
    """How a picture becomes numbers."""

    grid: int = 8  # cells a side: a cell is about as large as a hand at the bench
    bins: int = 16  # grey levels of the histogram: coarse enough that sensor noise moves few pixels
    step: int = 2  # every second pixel each way: a quarter of the work, the same cuts in nearly all clips


@dataclass(frozen=True)
class Signal:
    """Per-frame picture features of a stretch of `n` frames, cells = grid².

    entropy: float32 (n, cells), bits. motion: float32 (n, cells), mean absolute grey difference to the frame before.
    fresh: bool (n,), False where the frame repeats the one before (a rate change did that; its motion says nothing).
    """

    entropy: np.ndarray
    motion: np.ndarray
    fresh: np.ndarray

    def __len__(self) -> int:
        return len(self.fresh)


@dataclass(frozen=True)
class Keyframes:
    """`pairs[i]` are two neighbouring frames inside segment i; segment i is `[bounds[i], bounds[i + 1])`."""

    bounds: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        return tuple(pairwise(self.bounds))

    @property
    def frames(self) -> tuple[int, ...]:
        return tuple(frame for pair in self.pairs for frame in pair)


class Meter:
    """Measures frames one after the other; holds a few hundred numbers a frame, until told to forget them, and no
    picture but the last."""

    def __init__(self, settings: SignalSettings | None = None) -> None:
        self._settings = settings or SignalSettings()
        self._entropy: deque[np.ndarray] = deque()
        self._motion: deque[np.ndarray] = deque()
        self._fresh: deque[bool] = deque()
        self._first = 0  # the frame whose values come first: those before are forgotten
        self._before: np.ndarray | None = None

    def add(self, frame: np.ndarray) -> None:
        """The next frame, uint8 (h, w, 3)."""
        step = self._settings.step
        # green carries most of the luminance; a copy, since the frame may be part of a batch that nobody else needs
        grey = np.ascontiguousarray(frame[::step, ::step, 1])
        self._entropy.append(_cell_entropy(grey, self._settings))
        self._motion.append(_cell_motion(grey, grey if self._before is None else self._before, self._settings))
        self._fresh.append(True)
        self._before = grey

    def again(self) -> None:
        """The next frame repeats the one before it, whose values it takes over."""
        self._entropy.append(self._entropy[-1])
        self._motion.append(self._motion[-1])
        self._fresh.append(False)

    def signal(self, start: int, end: int) -> Signal:
        """Frames [start, end), as if nothing came before them.

        So a clip that is cut out of a session and the same seconds sent to a service show the same frames.
        ValueError where one of them was forgotten.
        """
        if start < self._first:
            raise ValueError(f"frame {start} is forgotten, the first that is known is {self._first}")
        low, high = start - self._first, end - self._first
        entropy, motion = (np.array([*islice(row, low, high)], np.float32) for row in (self._entropy, self._motion))
        fresh = np.array([*islice(self._fresh, low, high)], bool)
        fresh[:1] = True
        still = 1 + int(np.argmax(np.append(fresh[1:], True)))  # the first picture and its repeats: moved from nothing
        motion[:still] = 0
        return Signal(entropy, motion, fresh)

    def forget(self, before: int) -> None:
        """Drops the values of all frames before that one, but for the last frame, which the next may repeat."""
        while self._first < before and len(self._fresh) > 1:
            for values in (self._entropy, self._motion, self._fresh):
                values.popleft()
            self._first += 1


def measure(frames: Iterable[np.ndarray], repeated: np.ndarray, settings: SignalSettings | None = None) -> Signal:
    """Features of a stretch: `repeated` bool (n,) says of each frame but the first if it shows the one before it.

    `frames` are the others in order, uint8 (h, w, 3). ValueError unless there are as many as flags ask for.
    """
    meter, pictures = Meter(settings), iter(frames)
    for number, again in enumerate(repeated.tolist()):
        if again and number:
            meter.again()
        elif (frame := next(pictures, None)) is not None:
            meter.add(frame)
        else:
            raise ValueError(f"frame {number} of {len(repeated)} is missing")
    if next(pictures, None) is not None:
        raise ValueError(f"more frames than the {len(repeated)} flags ask for")
    return meter.signal(0, len(repeated))


def choose(signal: Signal, settings: KeyframeSettings) -> Keyframes:
    """Segments and shown pairs of one clip, whose `signal` holds just its frames.

    Raises DataError where the clip has fewer frames than the segments need.
    """
    n, fewest = len(signal), settings.fewest
    if n < fewest:
        raise DataError(
            f"{n} frames are too few for {settings.anchors} segments of at least {SHORTEST} frames",
            cure=f"Give a clip of at least {fewest} frames.",
        )
    least = min(settings.min_segment, n // settings.anchors)
    if settings.method in ("entropy", "motion"):
        values = signal.entropy if settings.method == "entropy" else signal.motion
        passage = min(settings.passage, (least - 1) // 2)
        cost = _costs_with_passages(values, least, passage, settings.passage_weight)
        bounds = _optimal_bounds(cost, settings.anchors)
        anchors = [_most_typical(values, *_inner(low, high, passage, n)) for low, high in pairwise(bounds)]
    else:
        anchors = _uniform(n, settings.anchors) if settings.method == "uniform" else _stride(signal, settings, least)
        bounds = [0, *((a + b + 1) // 2 for a, b in pairwise(anchors)), n]
    parts = zip(anchors, bounds[:-1], bounds[1:], strict=True)
    return Keyframes(tuple(bounds), tuple(_neighbours(signal.fresh, *part) for part in parts))


def _cells(values: np.ndarray, grid: int) -> np.ndarray:
    """(h, w) → (grid, cell height, grid, cell width), cropping what does not divide."""
    height, width = values.shape[0] // grid, values.shape[1] // grid
    return values[: height * grid, : width * grid].reshape(grid, height, grid, width)


def _cell_entropy(grey: np.ndarray, settings: SignalSettings) -> np.ndarray:
    """Each pixel counts in the two bins around it, by its distance: noise at a bin's edge then changes nothing."""
    cells = _cells(grey, settings.grid)
    cell = np.arange(settings.grid**2).reshape(settings.grid, 1, settings.grid, 1)
    levels = np.bincount((cell * LEVELS + cells).ravel(), minlength=settings.grid**2 * LEVELS).reshape(-1, LEVELS)
    shares = levels @ _bin_shares(settings.bins) / (cells.shape[1] * cells.shape[3])
    return -(shares * np.log2(shares, out=np.zeros_like(shares), where=shares > 0)).sum(1)


@cache
def _bin_shares(bins: int) -> np.ndarray:
    """(levels, bins + 1): how much of a pixel of each grey level falls to each bin."""
    place = np.arange(LEVELS)[:, None] * (bins / LEVELS)
    return np.clip(1 - np.abs(place - np.arange(bins + 1)), 0, None)


def _cell_motion(grey: np.ndarray, before: np.ndarray, settings: SignalSettings) -> np.ndarray:
    difference = np.abs(grey.astype(np.int16) - before)
    return _cells(difference, settings.grid).mean((1, 3)).ravel()


def _optimal_bounds(cost: np.ndarray, segments: int) -> list[int]:
    """Bounds [0, …, n] of the partition with the smallest sum of `cost`, float64 (n + 1, n + 1), of [s, e)."""
    best, choices = cost[0].copy(), []  # best[e]: cheapest division of [0, e) so far
    for _ in range(segments - 1):
        total = best[:, None] + cost  # [s, e]: what came before s, then one segment [s, e)
        choices.append(total.argmin(0))
        best = total.min(0)
    bounds = [len(cost) - 1]
    for choice in reversed(choices):
        bounds.append(int(choice[bounds[-1]]))
    return [0, *reversed(bounds)]


def _costs_with_passages(values: np.ndarray, least: int, passage: int, weight: float) -> np.ndarray:
    """As `_segment_costs`, but what a segment costs without the `passage` frames at each of its inner ends, and
    `weight` of what it costs with them. Segments longer than two passages only, which `least` sees to."""
    n, whole = len(values), _segment_costs(values.astype(np.float64), least)
    if not passage:
        return whole
    edges = np.arange(n + 1)
    lows, highs = np.where(edges, edges + passage, 0), np.where(edges < n, edges - passage, n)
    inner = _segment_costs(values.astype(np.float64), 1)[lows.clip(0, n)[:, None], highs.clip(0, n)[None, :]]
    return np.where(np.isfinite(whole), (1 - weight) * inner + weight * whole, np.inf)


def _inner(low: int, high: int, passage: int, n: int) -> tuple[int, int]:
    """A segment without the passages at those of its ends that are cuts."""
    return low + passage * (low > 0), high - passage * (high < n)


def _segment_costs(values: np.ndarray, least: int) -> np.ndarray:
    """cost[s, e] of [s, e): Σ(x − mean)² over all cells; infinite where it is shorter than `least`."""
    n = len(values)
    sums = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(0)])
    squares = np.concatenate([[0.0], (values**2).sum(1).cumsum()])
    inner = sums @ sums.T  # |S_e − S_s|² without an (n, n, cells) array
    norm = np.diagonal(inner)
    length = np.arange(n + 1)[None, :] - np.arange(n + 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = squares[None, :] - squares[:, None] - (norm[None, :] + norm[:, None] - 2 * inner) / length
    return np.where(length >= least, cost, np.inf)


def _most_typical(values: np.ndarray, low: int, high: int) -> int:
    part = values[low:high].astype(np.float64)
    # rounded, so that of frames that are alike the first is taken, not the one that the last bit of a sum favours
    return low + int(((part - part.mean(0)) ** 2).sum(1).round(6).argmin())


def _uniform(n: int, anchors: int) -> list[int]:
    return [int((i + 0.5) * n / anchors) for i in range(anchors)]


def _stride(signal: Signal, settings: KeyframeSettings, least: int) -> list[int]:
    """The frame richest in entropy of each window; strictly increasing although windows overlap."""
    n, width = len(signal), round(len(signal) * settings.window_share)
    richness, anchors = signal.entropy.sum(1), []
    for i in range(settings.anchors):
        start = round(i * (n - width) / (settings.anchors - 1))
        low = max(start, anchors[-1] + least if anchors else 0)
        high = max(low + 1, min(start + width, n - least * (settings.anchors - 1 - i)))
        anchors.append(low + int(richness[low:high].argmax()))
    return anchors


def _neighbours(fresh: np.ndarray, anchor: int, low: int, high: int) -> tuple[int, int]:
    """The anchor's picture and the next different one of its segment [low, high), at its end the one before.

    A pair never crosses a cut: a model that reads frames in pairs would mix two operations. Where a whole segment
    shows one picture, the pair is that picture twice.
    """
    first = anchor
    while first > low and not fresh[first]:
        first -= 1
    later = np.flatnonzero(fresh[first + 1 : high])
    if len(later):
        return first, first + 1 + int(later[0])
    earlier = low + np.flatnonzero(fresh[low:first])
    if not len(earlier) and first > low:
        return low, first  # the segment begins with a repeat of the picture before it
    return (int(earlier[-1]), first) if len(earlier) else (first, first)
