"""Operation annotations: a release's tables ↔ a gapless timeline.

Belongs here: `annotation/…/<session>.csv` as a whole, and questions to a timeline. Where a table lies (`release`), what
one row says (`operation_rows`) and what clips make of it (`clips`) do not.
"""

from __future__ import annotations

import uuid
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from pipelines.common.errors import DataError
from pipelines.openpack.operation_rows import Segment, from_events, from_seconds
from pipelines.openpack.tables import read_table, write_table
from pipelines.openpack.taxonomy import NULL_ID, OPENPACK, Taxonomy

COLUMNS = ("uuid", "user", "session", "box", "id", "operation", "start", "end", "actions")
COLUMNS_1HZ = ("unixtime", "user", "session", "box", "id")
JAPAN = timezone(timedelta(hours=9))  # the release writes all its times so
GAP_MS = 500  # real gaps last 2 to 4 s; below half a second two rows were meant to touch

_EVENTS = ("user", "session", "box", "id", "start", "end")
_SECONDS = ("user", "session", "box", "unixtime")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class FrameSpan:
    """The part of a segment inside a stretch of video: frames `[start_frame, end_frame)` of that stretch.

    `next_op_id` is the operation of the segment that follows on the timeline, None for the last one.
    """

    op_id: int
    start_frame: int
    end_frame: int
    next_op_id: int | None


@dataclass(frozen=True)
class Timeline:
    """A session's segments, sorted, each starting where the one before ends."""

    user: str
    session: str
    segments: tuple[Segment, ...]

    @property
    def start_ms(self) -> int:
        return self.segments[0].start_ms

    @property
    def end_ms(self) -> int:
        return self.segments[-1].end_ms

    @property
    def operations(self) -> tuple[Segment, ...]:
        """The segments in which something is done: all but Null."""
        return tuple(segment for segment in self.segments if segment.op_id != NULL_ID)

    def at(self, ms: int) -> Segment | None:
        """The segment at a unix time in milliseconds; None before the first and from the end of the last."""
        index = bisect_right(self.segments, ms, key=lambda segment: segment.start_ms) - 1
        return self.segments[index] if index >= 0 and ms < self.segments[index].end_ms else None

    def frames(self, start_ms: int, fps: int, n: int) -> list[FrameSpan]:
        """What happens in `n` frames, the first at `start_ms`, as spans in order.

        A frame belongs to the segment that holds its time. A segment too short to hold a frame's time is left out, and
        frames outside the timeline belong to no span.
        """
        spans = []
        following = [segment.op_id for segment in self.segments[1:]] + [None]
        for segment, next_op_id in zip(self.segments, following, strict=True):
            start = max(0, _first_frame_from(segment.start_ms - start_ms, fps))
            end = min(n, _first_frame_from(segment.end_ms - start_ms, fps))
            if start < end:
                spans.append(FrameSpan(segment.op_id, start, end, next_op_id))
        return spans


def read_operations(path: Path, taxonomy: Taxonomy = OPENPACK) -> Timeline:
    """Reads and checks one session's operations in either form; their ids or names are those of `taxonomy`.

    Gaps of at least `GAP_MS` become Null segments, shorter ones are closed by extending the earlier segment. Raises
    DataError naming file, row and cure for: what `read_table`, `from_events` and `from_seconds` refuse; a missing
    column; two users or sessions in one file.
    """
    header, rows = read_table(path)
    seconds = "unixtime" in header
    missing = [name for name in (_SECONDS if seconds else _EVENTS) if name not in header]
    if seconds and not {"id", "operation"} & {*header}:
        missing.append("operation")
    if missing:
        cure = f"Give the columns {','.join(COLUMNS)}, or {','.join(COLUMNS_1HZ)} of a table of seconds."
        raise DataError(f"the column {', '.join(missing)} is missing", file=path, where="row 1", cure=cure)
    users = {(_long("U", cells["user"]), _long("S", cells["session"])) for _, cells in rows}
    if len(users) > 1:
        raise DataError(f"more than one session in one file: {sorted(users)}", file=path, cure="Split it by session.")
    user, session = users.pop()
    segments = (from_seconds if seconds else from_events)(path, rows, taxonomy)
    return Timeline(user, session, _without_gaps(segments))


def write_operations(
    path: Path, user: str, session: str, segments: Iterable[Segment], taxonomy: Taxonomy = OPENPACK
) -> None:
    """Writes segments in the release's columns, in Japan time; reading them gives the same timeline.

    The uuid is derived from the row, so that the same segments give the same bytes; `actions` stays empty. DataError
    for an unknown operation id.
    """
    rows = []
    for segment in segments:
        key = f"{user}/{session}/{segment.op_id}/{segment.start_ms}"
        box = "" if segment.box is None else segment.box
        times = (_EPOCH.astimezone(JAPAN) + timedelta(milliseconds=ms) for ms in (segment.start_ms, segment.end_ms))
        name = taxonomy.by_id(segment.op_id).name
        rows.append([f"op:{uuid.uuid5(uuid.NAMESPACE_URL, key)}", user, session, box, segment.op_id, name, *times, ""])
    write_table(path, COLUMNS, rows)


def write_operations_1hz(path: Path, user: str, session: str, segments: Iterable[Segment]) -> None:
    """Writes the table that openpack-toolkit loads labels from: one row a second, from the first start to the last end.

    As in the release, the row of a second names the operation that has begun by its end, also through a gap.
    """
    starts = [segment for segment in segments if segment.box is not None]
    first, last = starts[0].start_ms // 1000, starts[-1].end_ms // 1000
    rows = []
    for second in range(first, last):
        at = bisect_right(starts, (second + 1) * 1000, key=lambda segment: segment.start_ms) - 1
        rows.append([second * 1000, user, session, starts[at].box, starts[at].op_id])
    write_table(path, COLUMNS_1HZ, rows)


def _long(letter: str, cell: str) -> str:
    """U0102 for the `102` of 2022."""
    return f"{letter}{int(cell):04d}" if cell.isdecimal() else cell


def _without_gaps(segments: list[Segment]) -> tuple[Segment, ...]:
    """Sorted, disjoint segments made to touch; a gap beside a Null segment becomes part of it."""
    touching = segments[:1]
    for segment in segments[1:]:
        earlier = touching[-1]
        gap = segment.start_ms - earlier.end_ms
        if gap and earlier.op_id == segment.op_id == NULL_ID:
            touching[-1] = replace(earlier, end_ms=segment.end_ms)
            continue
        if 0 < gap < GAP_MS or (gap and earlier.op_id == NULL_ID):
            touching[-1] = replace(earlier, end_ms=segment.start_ms)
        elif gap and segment.op_id == NULL_ID:
            segment = replace(segment, start_ms=earlier.end_ms)
        elif gap:
            touching.append(Segment(NULL_ID, earlier.end_ms, segment.start_ms, None))
        touching.append(segment)
    return tuple(touching)


def _first_frame_from(ms: int, fps: int) -> int:
    """Number of the first frame at or after `ms` from frame 0, in whole numbers: no rounding at a boundary."""
    return -(-ms * fps // 1000)
