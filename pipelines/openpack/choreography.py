"""What the simulated worker does at each moment: from operations on a time line to a `Bench` and a `Pose`.

The bench keeps what has been done, so the past can be seen: box flat, open, filled, closed, labelled; order sheet near
the box or at the far end, signed or not; back table with room or full. The same code draws a planned session and one
that follows a real annotation file. Nothing here chooses an order or a duration: `simulate` does.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipelines.openpack.draw import (
    BACK_TABLE,
    BACK_TABLE_HOLDS,
    BENCH_BOX,
    ITEMS,
    PRINTER,
    SHEET_FAR,
    SHEET_NEAR,
    Bench,
    Colour,
    Point,
    Pose,
)

MOVE_S = 0.24  # half of the time in which the worker goes over from one operation to the next, around the boundary
STANDING = 165.0  # y of the shoulders


@dataclass(frozen=True)
class Act:
    """One operation as it is played: seconds from the start of the session, and the box it belongs to."""

    op_id: int
    start: float
    end: float
    box: int


class Choreography:
    """State of the scene at any time of one session. Deterministic in its arguments."""

    def __init__(self, acts: Sequence[Act], *, pace: float = 1.0, reach: float = 1.0, seed: int = 0) -> None:
        """`acts` in order of time, not overlapping; `pace` in gestures a second, `reach` scales the gestures."""
        self._acts, self._pace, self._reach = list(acts), pace, reach
        self._starts = [act.start for act in acts]
        rng = random.Random(seed)
        self._phases = [(rng.uniform(0, 2 * math.pi), rng.uniform(-9, 9), rng.uniform(-6, 6)) for _ in acts]
        self._before = self._benches(rng)

    def at(self, time: float) -> tuple[Bench, Pose]:
        i = bisect_right(self._starts, time) - 1
        if i < 0 or time >= self._acts[i].end:
            return self._between(i), _idle(_Moment(0, 0, 0, self._reach, Bench()))
        act = self._acts[i]
        bench = _during(act.op_id, self._share(i, time), self._before[i])
        return bench, self._pose(i, time, bench)

    def _share(self, i: int, time: float) -> float:
        act = self._acts[i]
        return min(1.0, max(0.0, (time - act.start) / (act.end - act.start)))

    def _between(self, i: int) -> Bench:
        return self._before[0] if i < 0 else _during(self._acts[i].op_id, 1.0, self._before[i])

    def _benches(self, rng: random.Random) -> list[Bench]:
        """The bench at the start of each act."""
        benches: list[Bench] = []
        bench, box, stack = Bench(sheet_present=False), None, rng.randrange(BACK_TABLE_HOLDS)
        for act in self._acts:
            if act.box != box:
                stack = _stack(stack, bench, self._ids(act.box))
                bench, box = _new_box(self._ids(act.box), stack, rng), act.box
            benches.append(bench)
            bench = _during(act.op_id, 1.0, bench)
        return benches

    def _ids(self, box: int) -> list[int]:
        return [act.op_id for act in self._acts if act.box == box]

    def _pose(self, i: int, time: float, bench: Bench) -> Pose:
        """The act's own pose, blended with its neighbour's within MOVE_S of the boundary."""
        act, here = self._acts[i], self._raw_pose(i, time, bench)
        if time - act.start < MOVE_S and i > 0:
            there, share = self._raw_pose(i - 1, time, bench), 0.5 + (time - act.start) / (2 * MOVE_S)
            return _blend(there, here, share)
        if act.end - time < MOVE_S and i + 1 < len(self._acts):
            there, share = self._raw_pose(i + 1, time, bench), 0.5 - (act.end - time) / (2 * MOVE_S)
            return _blend(here, there, share)
        return here

    def _raw_pose(self, i: int, time: float, bench: Bench) -> Pose:
        phase, dx, dy = self._phases[i]
        angle = 2 * math.pi * self._pace * time + phase
        pose = POSES[self._acts[i].op_id](_Moment(self._share(i, time), angle, time, self._reach, bench))
        left, right = ((x + dx, y + dy) for x, y in (pose.left, pose.right))
        return replace(pose, body=(pose.body[0] + dx, pose.body[1]), left=left, right=right)


def _stack(stack: int, done: Bench, operations: list[int]) -> int:
    """Boxes on the back table when a box begins. Where this box is not put there, the table is full: that is why."""
    stack = (stack + 1 if done.box_at >= 1 else stack) % (BACK_TABLE_HOLDS + 1)
    if 900 not in operations and 800 in operations:
        return BACK_TABLE_HOLDS
    return 0 if stack >= BACK_TABLE_HOLDS else stack


def _new_box(operations: list[int], stack: int, rng: random.Random) -> Bench:
    """Whoever fills out the order before the shipping label lays the sheet beside the box from the start."""
    near = 1000 in operations and 800 in operations and operations.index(1000) < operations.index(800)
    colours: list[Colour] = [(rng.randint(30, 230), rng.randint(30, 230), rng.randint(30, 230)) for _ in range(5)]
    return Bench(items=tuple(colours[: rng.randint(2, 5)]), sheet_near=near, stack=stack, items_in_box=99)


def _during(op_id: int, share: float, bench: Bench) -> Bench:
    """The bench when `share` (0 to 1) of an operation is done that began with `bench`."""
    if op_id == 100:
        return replace(bench, items_in_box=0) if share > 0.8 else bench
    if op_id == 200:
        return replace(bench, items_in_box=0, tags_moved=share)
    if op_id == 300:
        if share < 0.15:
            return bench
        return replace(bench, box="flat", flaps=share) if share < 0.6 else replace(bench, box="open", flaps=0.0)
    if op_id == 400:
        return replace(bench, box="open", items_in_box=min(len(bench.items), int(share * (len(bench.items) + 0.5))))
    if op_id == 500:
        if share < 0.35:
            return replace(bench, box="open", flaps=share / 0.35)
        return replace(bench, box="closed" if share < 0.8 else "taped", flaps=1.0)
    if op_id == 600:
        return replace(bench, box_label=share > 0.5 or bench.box_label)
    if op_id == 700:
        return replace(bench, shipping_label="printer") if share > 0.6 else bench
    if op_id == 800:
        return replace(bench, shipping_label="box" if share > 0.5 else "none" if share > 0.25 else "printer")
    if op_id == 900:
        return replace(bench, box_at=_smooth((share - 0.1) / 0.6))
    if op_id == 1000:
        return replace(bench, signed=share)
    return bench


@dataclass(frozen=True)
class _Moment:
    share: float
    angle: float
    time: float
    reach: float
    bench: Bench

    def swing(self, size: float, pace: float = 1.0, turn: float = 0.0) -> float:
        return size * self.reach * math.sin(self.angle * pace + turn)


def _pick(now: _Moment) -> Pose:
    return Pose(
        (120, STANDING + 8),
        (48 + now.swing(14), 205 + now.swing(70, 0.6)),
        (84 + now.swing(12, 1.0, 1.5), 235 + now.swing(70, 0.6, 2.0)),
        "item" if now.share > 0.3 else "none",
    )


def _relocate(now: _Moment) -> Pose:
    sheet, share = _sheet(now.bench), 0.5 + now.swing(0.45, 0.8)
    right = _mix((ITEMS[0] + 10, ITEMS[1] - 6), (sheet[0], sheet[1] - 10), share)
    return Pose((232, STANDING), (ITEMS[0] - 40 + now.swing(10), ITEMS[1] - 5), right)


def _assemble(now: _Moment) -> Pose:
    x, y = BENCH_BOX
    lift = 22 * now.share
    return Pose(
        (x - 25, STANDING - 6),
        (x - 72 + now.swing(16), y + 4 - lift + now.swing(20, 1.0, 0.7)),
        (x + 66 + now.swing(16, 1.0, 1.0), y + 4 - lift + now.swing(20, 1.0, 2.2)),
    )


def _insert(now: _Moment) -> Pose:
    share = 0.5 + now.swing(0.5, 0.8)
    right = _mix((ITEMS[0] + 20, ITEMS[1] - 8), (BENCH_BOX[0] - 12, BENCH_BOX[1] - 38), share)
    return Pose((290, STANDING), (BENCH_BOX[0] - 58, BENCH_BOX[1] - 14 + now.swing(6)), right, "item")


def _close(now: _Moment) -> Pose:
    x, y = BENCH_BOX
    if now.share < 0.35:
        return Pose((x + 46, STANDING - 2), (x - 40 + now.swing(20), y - 46), (x + 40 - now.swing(20), y - 46))
    sweep = now.swing(52, 0.8)
    return Pose((x + 46, STANDING - 2), (x - 52, y - 24), (x + sweep, y - 40), "tape")


def _label(now: _Moment) -> Pose:
    x, y = BENCH_BOX
    return Pose((x - 5, STANDING + 8), (x - 52, y - 22), (x - 28 + now.swing(5), y + 20 + now.swing(6)), "label")


def _scan(now: _Moment) -> Pose:
    left = (PRINTER[0] - 16, PRINTER[1] - 18) if now.share > 0.6 else (474.0, 300.0)
    right = (418 + now.swing(16, 0.7), 318 + now.swing(12, 0.9))
    return Pose((474, STANDING), left, right, "scanner", beam=math.sin(now.angle * 1.7) > -0.5)


def _ship(now: _Moment) -> Pose:
    x, y = BENCH_BOX
    if now.share < 0.25:
        return Pose((468, STANDING), (x + 30, y - 10), (PRINTER[0] - 10, PRINTER[1] - 18), "label")
    return Pose((x + 30, STANDING), (x + 2, y + 6), (x + 38 + now.swing(14), y + 2 + now.swing(12)), "label")


def _put_away(now: _Moment) -> Pose:
    (x0, y0), (x1, y1), share = BENCH_BOX, (BACK_TABLE[0] - 10, BACK_TABLE[1] - 20), now.bench.box_at
    x, y = x0 + (x1 - x0) * share, y0 + (y1 - y0) * share
    body = (x0 + 10 + (x1 - 30 - x0) * share, STANDING - 6)
    return Pose(body, (x - 50, y + 14 + now.swing(4)), (x + 50, y + 14 + now.swing(4, 1.0, 1.0)))


def _sign(now: _Moment) -> Pose:
    x, y = _sheet(now.bench)
    right = (x - 18 + 36 * now.share + now.swing(6, 2.0), y + 4 + now.swing(5, 2.6))
    return Pose((x + 26, STANDING + 10), (x - 34, y - 8), right, "pen")


def _idle(now: _Moment) -> Pose:
    return Pose((300, STANDING), (255, 296 + now.swing(3, 0.3)), (345, 296 + now.swing(3, 0.3)))


POSES: dict[int, Callable[[_Moment], Pose]] = {
    100: _pick,
    200: _relocate,
    300: _assemble,
    400: _insert,
    500: _close,
    600: _label,
    700: _scan,
    800: _ship,
    900: _put_away,
    1000: _sign,
    8100: _idle,
}


def _sheet(bench: Bench) -> Point:
    return SHEET_NEAR if bench.sheet_near else SHEET_FAR


def _smooth(share: float) -> float:
    share = min(1.0, max(0.0, share))
    return share * share * (3 - 2 * share)


def _mix(a: Point, b: Point, share: float) -> Point:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share


def _blend(a: Pose, b: Pose, share: float) -> Pose:
    share = _smooth(share)
    main = a if share < 0.5 else b
    return Pose(
        _mix(a.body, b.body, share), _mix(a.left, b.left, share), _mix(a.right, b.right, share), main.tool, main.beam
    )
