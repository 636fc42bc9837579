"""How well alerts find planted deviations, and from how many bits on a deviation is told.

Belongs here: labelled boxes with every deviation planted in turn, counting what was found, and choosing thresholds.
Finding (`order_alerts`) and planting (`deviations`) do not, nor whole sessions (`whole_sessions`).

An alert finds a deviation of its kind that may be named by its operation and that lies no further than `NEAR_S` away;
each finds one at most. Precision is the share of the alerts that found one, recall that of the deviations that were
found, each None where there is nothing to have a share of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipelines.openpack.boxes import Box, Stretch, Work
from pipelines.openpack.deviations import Deviation, planted, possible
from pipelines.openpack.grammar import FIRST_THRESHOLD, KINDS, Grammar, Kind
from pipelines.openpack.order_alerts import Alert, find_alerts

NEAR_S = 5.0  # a window of usual length: further apart nothing was seen together


@dataclass(frozen=True)
class Case:
    """Boxes with what was planted in them, nothing in most; `alerts` are those that were raised."""

    alerts: tuple[Alert, ...]
    deviations: tuple[Deviation, ...]


def every_deviation(
    boxes: Sequence[Box], grammar: Grammar, thresholds: Mapping[Kind, float] | None = None
) -> Iterator[Case]:
    """Each finished box of a labelled session as it is, and once with every deviation that it can have; `thresholds` as
    in `find_alerts`."""
    for box in boxes:
        if not box.finished:
            continue
        yield Case(tuple(find_alerts([box], grammar, thresholds)), ())
        for kind, place in possible(len(box.works)):
            other, deviation = _with(box, kind, place, grammar.fps)
            yield Case(tuple(find_alerts([other], grammar, thresholds)), (deviation,))


def choose_thresholds(sessions: Iterable[Sequence[Box]], grammar: Grammar) -> Grammar:
    """The grammar with the threshold of each kind that has the best F1 on every deviation of (validation) `sessions`.

    Of equals the middle one is taken, halfway between two alerts. Without a finished box the grammar stays as it is,
    with why.
    """
    any_gain: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    cases = [case for boxes in sessions for case in every_deviation(boxes, grammar, any_gain)]
    if not cases:
        return grammar
    thresholds = {kind: _best(kind, cases) for kind in KINDS}
    return grammar.model_copy(update={"thresholds": thresholds, "why": None})


def alert_scores(cases: Iterable[Case]) -> dict[str, dict[str, Any]]:
    """By kind {planted, alerts, found, precision, recall}."""
    counts: dict[str, dict[str, Any]] = {kind: dict.fromkeys(("planted", "alerts", "found"), 0) for kind in KINDS}
    for case in cases:
        for deviation in case.deviations:
            counts[deviation.kind]["planted"] += 1
        for alert in case.alerts:
            counts[alert.kind]["alerts"] += 1
        for alert in found(case):
            counts[alert.kind]["found"] += 1
    for one in counts.values():
        one["precision"] = one["found"] / one["alerts"] if one["alerts"] else None
        one["recall"] = one["found"] / one["planted"] if one["planted"] else None
    return counts


def found(case: Case) -> list[Alert]:
    """The alerts that found a deviation, the most surprising first."""
    left, right = list(case.deviations), []
    for alert in sorted(case.alerts, key=lambda one: -one.bits):
        hit = next((one for one in left if _finds(alert, one)), None)
        if hit:
            left.remove(hit)
            right.append(alert)
    return right


def _finds(alert: Alert, deviation: Deviation) -> bool:
    apart = max(alert.start_s - deviation.end_s, deviation.start_s - alert.end_s)
    return alert.kind == deviation.kind and alert.operation in deviation.operations and apart <= NEAR_S


def _best(kind: Kind, cases: Sequence[Case]) -> float:
    total = sum(one.kind == kind for case in cases for one in case.deviations)
    right = [one.bits for case in cases for one in found(case) if one.kind == kind]
    every = [one.bits for case in cases for one in case.alerts if one.kind == kind]
    edges = [0.0, *sorted(set(every))]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]

    def f1(least: float) -> float:
        kept = sum(bits >= least for bits in right)
        return 2 * kept / (total + sum(bits >= least for bits in every))

    best = max(map(f1, middles), default=0.0)
    equal = [least for least in middles if f1(least) == best]
    return equal[len(equal) // 2] if total and equal else FIRST_THRESHOLD


def _with(box: Box, kind: Kind, place: int, fps: int) -> tuple[Box, Deviation]:
    """The box with a deviation, its operations as long as they are and one straight after the other."""
    items, shown = planted(box.works, kind, place)
    works, at = [], box.start
    for item in items:
        works.append(Work(item.operation, (Stretch(item.operation, at, at + item.frames),)))
        at += item.frames
    visible = works[shown]
    start = visible[0].start if visible else works[place - 1].end
    named = box.operations[place : place + 2] if kind == "out_of_order" else box.operations[place : place + 1]
    told = Deviation(kind, box.number, named, start / fps, (visible[-1].end if visible else start) / fps)
    return Box(box.number, tuple(works), at, box.finished), told
