"""What is unusual about the order of a box: an operation skipped, repeated or out of order.

Belongs here: finding deviations under a grammar, and saying them. The grammar itself (`grammar`), planting deviations
(`deviations`) and choosing thresholds by them (`alert_scores`) do not.

A box is held against what it would be with one operation put in, taken out or moved. The change that makes it most
probable under the grammar names the deviation, and the bits that it gains are its surprise: how much less probable the
grammar finds the box as it was done than as it is usually done. Then the next one, on the box as changed, as long as
there is one that gains its kind's threshold. The operation that begins a box is never changed: without it there would
be no box to hold against anything. A box that the video cut off may still get what it lacks at its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.openpack.boxes import Box, Work
from pipelines.openpack.grammar import Grammar, Kind
from pipelines.openpack.taxonomy import Taxonomy

DIGITS = 2  # of bits


@dataclass(frozen=True)
class Alert:
    """A deviation: frames `[start, end)`, at `fps`, of the operation, or the gap where a skipped one was to be
    expected.

    `after` is the operation before that place, `seen` in how many of `boxes` boxes of training the same was seen: no
    such operation (skipped), it more than once (repeated), it straight after `after` (out of order).
    """

    kind: Kind
    operation: int
    after: int
    start: int
    end: int
    box: int
    bits: float
    seen: int
    boxes: int
    fps: int

    @property
    def start_s(self) -> float:
        return self.start / self.fps

    @property
    def end_s(self) -> float:
        return self.end / self.fps

    def as_json(self, taxonomy: Taxonomy, *, brief: bool = False) -> dict[str, Any]:
        """{kind, operation, start_s, end_s, frame, box, surprise_bits, message}, with native names or the brief's."""

        def name(op_id: int) -> str:
            return taxonomy.brief_name(op_id) if brief else taxonomy.by_id(op_id).name

        one, before = name(self.operation), name(self.after)
        what = {"skipped": "is missing after", "repeated": "again after", "out_of_order": "straight after"}[self.kind]
        message = f"Box {self.box}: {one} {what} {before}: seen in {self.seen} of {self.boxes} boxes in training."
        return {
            "kind": self.kind,
            "operation": one,
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "frame": self.start,
            "box": self.box,
            "surprise_bits": round(self.bits, DIGITS),
            "message": message,
        }


@dataclass(frozen=True)
class _Place:
    """An operation of a box as it is changed: the work that shows it, None where it was put in."""

    operation: int
    work: Work | None


_Change = tuple[Kind, int, list[_Place]]  # what was wrong, at which place of the box as it was, and the box without it


def find_alerts(boxes: Sequence[Box], grammar: Grammar, thresholds: Mapping[Kind, float] | None = None) -> list[Alert]:
    """The alerts of all boxes, by time. `thresholds` in bits are the grammar's unless others are given."""
    least = grammar.thresholds if thresholds is None else thresholds
    found = [alert for box in boxes for alert in _of_box(box, grammar, least)]
    return sorted(found, key=lambda alert: (alert.start, alert.end, alert.kind))


def _of_box(box: Box, grammar: Grammar, least: Mapping[Kind, float]) -> Iterator[Alert]:
    places = [_Place(work.operation, work) for work in box.works]
    for _ in box.works:  # more deviations than operations would be another box
        bits = _bits(places, box, grammar)
        gains = [(bits - _bits(change[2], box, grammar), change) for change in _changes(places, box, grammar)]
        enough = [one for one in gains if one[0] >= least[one[1][0]]]
        if not enough:
            return
        gain, (kind, at, changed) = max(enough, key=lambda one: one[0])
        yield _alert(kind, at, places, changed, box, grammar, gain)
        places = changed


def _bits(places: Sequence[_Place], box: Box, grammar: Grammar) -> float:
    operations = [place.operation for place in places]
    return grammar.bits([*operations, grammar.first] if box.finished else operations)


def _changes(places: list[_Place], box: Box, grammar: Grammar) -> Iterator[_Change]:
    """Every single change of a box, the simplest kind first."""
    present = [place.operation for place in places]
    for op_id, boxes in grammar.containing.items():
        if boxes and op_id not in present:
            for at in range(1, len(places) + box.finished):
                yield "skipped", at, [*places[:at], _Place(op_id, None), *places[at:]]
    for at in range(1, len(places)):
        if places[at].work and present.count(present[at]) > 1:
            yield "repeated", at, [*places[:at], *places[at + 1 :]]
    for at in range(1, len(places)):
        rest = [*places[:at], *places[at + 1 :]]
        for to in range(1, len(places)):
            if places[at].work and to not in (at, at - 1):  # one place to the left is its neighbour moved right
                yield "out_of_order", at, [*rest[:to], places[at], *rest[to:]]


def _alert(
    kind: Kind, at: int, places: list[_Place], changed: list[_Place], box: Box, grammar: Grammar, gain: float
) -> Alert:
    place = changed[at] if kind == "skipped" else places[at]
    before = [one.work for one in places[:at] if one.work][-1]
    later = next((one.work.start for one in places[at:] if one.work), box.end)
    # what was moved before may have brought the neighbours out of their order in time
    start, end = (place.work.start, place.work.end) if place.work else (before.end, max(before.end, later))
    seen = {
        "skipped": grammar.boxes - grammar.containing[place.operation],
        "repeated": grammar.repeated[place.operation],
        "out_of_order": grammar.order.get(before.operation, {}).get(place.operation, 0),
    }[kind]
    counted = seen, grammar.boxes, grammar.fps
    return Alert(kind, place.operation, before.operation, start, end, box.number, gain, *counted)
