"""From the answers to overlapping windows to one gapless sequence of operations. Pure: no torch, no video, no file.

Belongs here: how windows vote for each frame, and the most probable sequence under the grammar. Who answers the windows
and what is made of the sequence (`timeline`) do not.

A window, as long as a clip, says of each stretch of it what is seen there. A frame's evidence is the mean over the
windows that hold it. Between two neighbouring bounds of any windows it is constant, so that all work is done on such
cells, and a boundary of the sequence lies on a cut of some window's picture.

The sequence is the one with the largest Σ evidence_weight · seconds · log evidence + Σ log P(next | operation), among
those in which no operation is shorter than its least length, but where the video cuts it off (Viterbi's algorithm over
segments, Ostendorf et al. 1996, "From HMM's to segment models").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.common.intervals import overlap
from pipelines.common.posteriors import most_probable
from pipelines.openpack.boxes import Stretch, joined
from pipelines.openpack.grammar import Grammar

LEAST_EVIDENCE = 1e-3  # of a frame for any operation: no window is so sure that nothing could outvote it


@dataclass(frozen=True)
class Window:
    """The answer to frames `[start, start + frames)` of a video: posteriors by native id, `seen` of each of its
    stretches, and `span` over segments of it."""

    start: int
    frames: int
    seen: Mapping[tuple[int, int], Mapping[int, float]]
    what: Mapping[int, float]
    span: Mapping[tuple[int, int], float]
    next_share: Mapping[int, float]


@dataclass(frozen=True)
class Decoded:
    """An operation of the sequence: the one that the windows expect next, and how sure they are of it, 0 to 1."""

    stretch: Stretch
    next: int
    confidence: float


@dataclass(frozen=True)
class Evidence:
    """What windows say of `[0, edges[-1])`: `shares` float64 (cells, operations), a row of sum 1 for each cell between
    two `edges` int64 (cells + 1,); `ids` are the operations of its columns."""

    edges: np.ndarray
    shares: np.ndarray
    ids: tuple[int, ...]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.edges)


def gather(windows: Sequence[Window], n_frames: int, grammar: Grammar) -> Evidence:
    """The evidence for `n_frames` frames. ValueError where a frame is in no window."""
    ids = tuple(grammar.ids)
    inner = {one.start + bound for one in windows for stretch in one.seen for bound in stretch}
    edges = np.array(sorted({0, n_frames} | {edge for edge in inner if 0 < edge < n_frames}))
    total, count = np.zeros((len(edges) - 1, len(ids))), np.zeros(len(edges) - 1)
    for one in windows:
        low, high = np.searchsorted(edges, [one.start, min(one.start + one.frames, n_frames)])
        total[low:high] += _votes(one, edges[low:high] - one.start, ids)
        count[low:high] += 1
    if not count.all():
        raise ValueError(f"frame {edges[count.argmin()]} of {n_frames} is in no window")
    return Evidence(edges, total / total.sum(1, keepdims=True), ids)


def decode(evidence: Evidence, grammar: Grammar, weight: float) -> list[Stretch]:
    """The most probable sequence: stretches that cover all frames, in order, no two neighbours of one operation.

    `weight` is that of a second of evidence beside one transition.
    """
    ids, edges = evidence.ids, evidence.edges
    logs = np.log(np.maximum(evidence.shares, LEAST_EVIDENCE)) * (weight * evidence.lengths / grammar.fps)[:, None]
    sums = np.concatenate([np.zeros((1, len(ids))), logs.cumsum(0)])
    follows = np.log([[grammar.transitions[one][after] for after in ids] for one in ids])
    np.fill_diagonal(follows, -np.inf)
    least, cells = np.array([grammar.least_frames[one] for one in ids]), len(edges) - 1
    entered = np.full((cells + 1, len(ids)), -np.inf)  # best value of all before a segment that begins at an edge
    began, came = (np.zeros((cells + 1, len(ids)), int) for _ in range(2))
    # of each operation: the best edge to have begun at, and how many edges are far enough behind to be one. The video
    # may cut its first and its last segment short, so there any length will do
    best, since, ready = np.zeros(len(ids)), np.zeros(len(ids), int), np.ones(len(ids), int)
    value = best
    for edge in range(1, cells + 1):
        behind = np.searchsorted(edges, edges[edge] - (least if edge < cells else 1), side="right")
        for column in np.flatnonzero(behind > ready):
            fresh = slice(ready[column], np.broadcast_to(behind, len(ids))[column])
            values = entered[fresh, column] - sums[fresh, column]
            if values.max() > best[column]:
                best[column], since[column] = values.max(), ready[column] + values.argmax()
            ready[column] = fresh.stop
        value, began[edge] = best + sums[edge], since
        onward = value[:, None] + follows
        came[edge], entered[edge] = onward.argmax(0), onward.max(0)
    return _traced(evidence, int(value.argmax()), began, came)


def alone(evidence: Evidence) -> list[Stretch]:
    """The operation with the most evidence at each frame, without any grammar: what the decoding has to beat."""
    said = (evidence.ids[column] for column in evidence.shares.argmax(1))
    edges = evidence.edges.tolist()
    return joined([Stretch(*one) for one in zip(said, edges[:-1], edges[1:], strict=True)])


def described(
    sequence: Sequence[Stretch], evidence: Evidence, windows: Sequence[Window], grammar: Grammar
) -> list[Decoded]:
    """What the windows say of each stretch of a `sequence`: its confidence is the mean evidence for its operation, its
    next operation the one that windows expect most, each as far as it speaks of this stretch; of one that none speaks
    of, what most often follows in training. `windows` are in the order of their starts."""
    starts, longest = [one.start for one in windows], max(one.frames for one in windows)

    def near(one: Stretch) -> Sequence[Window]:
        return windows[bisect_left(starts, one.start - longest) : bisect_left(starts, one.end)]

    return [Decoded(one, _expected(one, near(one), grammar), _mean_share(one, evidence)) for one in sequence]


def _votes(window: Window, places: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """What a window says of the frames at `places` (m,) of it: float64 (m, operations)."""
    shares = np.array([[seen.get(one, 0.0) for one in ids] for seen in window.seen.values()])
    return shares[np.searchsorted([start for start, _ in window.seen], places, side="right") - 1]


def _traced(evidence: Evidence, column: int, began: np.ndarray, came: np.ndarray) -> list[Stretch]:
    """The sequence that ends with the operation in `column`, followed back to its beginning."""
    stretches, end = [], len(evidence.edges) - 1
    while end:
        start = int(began[end, column])
        stretches.append(Stretch(evidence.ids[column], int(evidence.edges[start]), int(evidence.edges[end])))
        column, end = int(came[start, column]), start
    return stretches[::-1]


def _mean_share(stretch: Stretch, evidence: Evidence) -> float:
    low, high = np.searchsorted(evidence.edges, [stretch.start, stretch.end])
    column = evidence.ids.index(stretch.operation)
    return float(np.average(evidence.shares[low:high, column], weights=evidence.lengths[low:high]))


def _expected(stretch: Stretch, windows: Sequence[Window], grammar: Grammar) -> int:
    votes = dict.fromkeys(grammar.ids, 0.0)
    for window in windows:
        held = sum(
            share * overlap((window.start + start, window.start + end), (stretch.start, stretch.end))
            for (start, end), share in window.span.items()
        )
        for one, share in window.next_share.items():
            votes[one] += held * window.what.get(stretch.operation, 0.0) * share
    votes = votes if any(votes.values()) else dict(grammar.transitions[stretch.operation])
    return most_probable({one: share for one, share in votes.items() if one != stretch.operation})
