"""The grammar of operations: what follows what, what a box holds, and how short an operation can be.

Belongs here: counting the labels of training sessions, `grammar.json`, and the probability of an order. What reads a
whole video by it (`decode`), what is unusual about a video (`order_alerts`) and which thresholds tell so do not.

The cycle's first operation is the one that most sessions of training begin with, Null apart; of equals the one that
more operations follow. In OpenPack that is Picking. A label set of one's own has no cycle written down, so all go by
this rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from math import log2
from typing import Literal, get_args

import numpy as np
from pydantic import Field

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.settings import Settings
from pipelines.openpack.boxes import Box, Stretch, boxes, works
from pipelines.openpack.calibrate import Transitions, smoothed
from pipelines.openpack.taxonomy import NULL_ID, Taxonomy

GRAMMAR = "grammar.json"
SHORTEST = 0.05  # quantile of an operation's lengths that counts as its least: the shortest alone may be a slip
FIRST_THRESHOLD = 4.0  # bits, 1 to 16: of an alert as long as no validation session has chosen better

Kind = Literal["skipped", "repeated", "out_of_order"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Counts = dict[int, dict[int, int]]


class Grammar(Settings):
    """The content of grammar.json, by native ids. Counts are of training sessions.

    `first`: the operation that begins a box. `boxes`: how many there were; `containing` and `repeated`: in how many of
    them an operation occurs at all, and more than once. `order`: operation → how often which one came next, pauses left
    out, a box's last one before the next box's first. `stretches`: the same with Null as it is in the labels.
    `least_frames`: the shortest that an operation takes, at `fps` frames a second. `thresholds`: bits from which a
    deviation is told, `why` they were not chosen where they were not.
    """

    first: int
    boxes: int
    containing: dict[int, int]
    repeated: dict[int, int]
    order: Counts
    stretches: Counts
    least_frames: dict[int, int]
    fps: int = DEFAULT_FORMAT.fps
    thresholds: dict[Kind, float] = Field(default_factory=lambda: dict.fromkeys(KINDS, FIRST_THRESHOLD))
    why: str | None = "no validation session was there to choose thresholds on"

    @property
    def ids(self) -> list[int]:
        """All operations of the taxonomy, Null among them."""
        return list(self.least_frames)

    @cached_property
    def last(self) -> frozenset[int]:
        """The operations after which a box began."""
        return frozenset(one for one, row in self.order.items() if row.get(self.first))

    @cached_property
    def transitions(self) -> Transitions:
        """P(next stretch | stretch), Null among them, smoothed."""
        return smoothed(_pairs(self.stretches), self.ids)

    def boxes_of(self, stretches: Iterable[Stretch]) -> list[Box]:
        return boxes(stretches, self.first, self.last)

    def bits(self, operations: Sequence[int]) -> float:
        """-log2 of the probability that each of `operations` follows the one before it: how unusual the order is."""
        return sum(self._surprise[pair] for pair in pairwise(operations))

    @cached_property
    def _surprise(self) -> dict[tuple[int, int], float]:
        rows = smoothed(_pairs(self.order), [op_id for op_id in self.ids if op_id != NULL_ID])
        return {(one, after): -log2(share) for one, row in rows.items() for after, share in row.items()}


def learn(sessions: Sequence[Sequence[Stretch]], taxonomy: Taxonomy, fps: int = DEFAULT_FORMAT.fps) -> Grammar:
    """The grammar of labelled (training) `sessions` in frames at `fps`. ValueError where no operation was labelled."""
    ids = [operation.id for operation in taxonomy.operations]
    done = [works(session) for session in sessions]
    order = Counter(pair for one in done for pair in pairwise(work.operation for work in one))
    starts = Counter(one[0].operation for one in done if one)
    if not starts:
        raise ValueError("a grammar needs at least one labelled operation")
    followed = Counter(before for before, _ in order.elements())
    first = max(starts, key=lambda op_id: (starts[op_id], followed[op_id], -op_id))
    last = {one for one, after in order if after == first}
    found = [box for session in sessions for box in boxes(session, first, last) if box.finished]
    held = [Counter(box.operations) for box in found]
    return Grammar(
        first=first,
        boxes=len(found),
        containing={op_id: sum(op_id in one for one in held) for op_id in ids if op_id != NULL_ID},
        repeated={op_id: sum(one[op_id] > 1 for one in held) for op_id in ids if op_id != NULL_ID},
        order=_counts(order),
        stretches=_counts(Counter(pair for one in sessions for pair in pairwise(part.operation for part in one))),
        least_frames=_least_frames(sessions, ids),
        fps=fps,
    )


def _least_frames(sessions: Iterable[Iterable[Stretch]], ids: Sequence[int]) -> dict[int, int]:
    """By id; an operation that training lacks can be as short as the shortest of the others."""
    lengths: dict[int, list[int]] = {}
    for stretch in (stretch for session in sessions for stretch in session):
        lengths.setdefault(stretch.operation, []).append(stretch.frames)
    least = {op_id: int(np.quantile(row, SHORTEST, method="lower")) for op_id, row in lengths.items()}
    return {op_id: max(1, least.get(op_id, min(least.values()))) for op_id in ids}


def _counts(pairs: Mapping[tuple[int, int], int]) -> Counts:
    counts: Counts = {}
    for one, after in sorted(pairs):
        counts.setdefault(one, {})[after] = pairs[one, after]
    return counts


def _pairs(counts: Counts) -> Counter[tuple[int, int]]:
    return Counter({(one, after): count for one, row in counts.items() for after, count in row.items()})
