"""Operation annotations: the release's CSV ↔ a gapless timeline.

Belongs here: `annotation/openpack-operations/<session>.csv`, its checks, its 1 Hz form, and questions to a timeline.
Where the file lies (`release`) and what clips make of it (`clips`) do not.

Format: columns `uuid,user,session,box,id,operation,start,end,actions`, one operation a row, times in ISO 8601 with
offset and with or without a fraction (`2022-03-29 14:25:22.143000+09:00`, `2022-03-29 14:45:32+09:00`). Rows in errors
are counted as a spreadsheet shows them: the header is row 1.
"""

from __future__ import annotations

import csv
import io
import uuid
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

from pipelines.common.errors import DataError
from pipelines.common.files import atomic_file
from pipelines.openpack.taxonomy import NULL_ID, OPENPACK, Taxonomy

COLUMNS = ("uuid", "user", "session", "box", "id", "operation", "start", "end", "actions")
COLUMNS_1HZ = ("unixtime", "user", "session", "box", "id")
JAPAN = timezone(timedelta(hours=9))  # the release writes all its times so
GAP_MS = 500  # real gaps last 2 to 4 s; below half a second two rows were meant to touch

_NEEDED = ("user", "session", "box", "id", "start", "end")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DOWNLOAD = "Take the file from the release again."


@dataclass(frozen=True)
class Segment:
    """One operation over `[start_ms, end_ms)` in unix milliseconds. A filled gap is Null and has no box."""

    op_id: int
    start_ms: int
    end_ms: int
    box: int | None


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
    """Reads and checks one session's operations, whose ids are those of `taxonomy`; rows may come in any order.

    Gaps of at least `GAP_MS` become Null segments, shorter ones are closed by extending the earlier segment. Raises
    DataError naming file, row and cure for: a file that is missing, empty, cut short or of another kind; a missing
    column; two users or sessions in one file; an unknown id, an unreadable number or time; an end that is not after
    its start; rows that overlap.
    """
    rows = _read_rows(path)
    users = {(cells["user"], cells["session"]) for _, cells in rows}
    if len(users) > 1:
        raise DataError(f"more than one session in one file: {sorted(users)}", file=path, cure="Split it by session.")
    numbered = [(number, _segment(path, number, cells, taxonomy)) for number, cells in rows]
    numbered.sort(key=lambda pair: pair[1].start_ms)
    for (before, earlier), (number, later) in pairwise(numbered):
        if later.start_ms < earlier.end_ms:
            what = f"starts {earlier.end_ms - later.start_ms} ms before row {before} ends"
            raise DataError(what, file=path, where=f"row {number}", cure="Correct the times so that rows only touch.")
    user, session = users.pop()
    return Timeline(user, session, _without_gaps([segment for _, segment in numbered]))


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
    _write_table(path, COLUMNS, rows)


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
    _write_table(path, COLUMNS_1HZ, rows)


def parse_ms(text: str) -> int:
    """Unix milliseconds of an ISO 8601 time with its offset; ValueError for other text or a time without offset."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} lacks its offset from UTC")
    return (time - _EPOCH) // timedelta(milliseconds=1)


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Row numbers and cells by column name, complete but unread."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError("the annotation file is missing", file=path, cure=_DOWNLOAD) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"not a readable CSV file ({error})", file=path, cure=_DOWNLOAD) from None
    if not text.strip():
        raise DataError("the annotation file is empty", file=path, cure=_DOWNLOAD)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        table = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        where = f"row {reader.line_num}"
        raise DataError(f"not a readable CSV file ({error})", file=path, where=where, cure=_DOWNLOAD) from None
    header, rows = table[0][1], table[1:]
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        cure = f"It must be `openpack-operations` of release v1.0.0 or later, columns {','.join(COLUMNS)}."
        raise DataError(f"the column {', '.join(missing)} is missing", file=path, where="row 1", cure=cure)
    if not rows:
        raise DataError("the file holds a header and no operation", file=path, cure=_DOWNLOAD)
    for number, cells in rows:
        if len(cells) != len(header):
            what = f"{len(cells)} cells where the header has {len(header)}: cut short or damaged"
            raise DataError(what, file=path, where=f"row {number}", cure=_DOWNLOAD)
    if not text.endswith("\n"):
        where = f"row {rows[-1][0]}"
        cure = f"{_DOWNLOAD} If it is whole, end it with a line break."
        raise DataError("the last row does not end: the file is cut short", file=path, where=where, cure=cure)
    return [(number, dict(zip(header, cells, strict=True))) for number, cells in rows]


def _segment(path: Path, number: int, cells: dict[str, str], taxonomy: Taxonomy) -> Segment:
    """One row as a segment, everything in it checked that can be checked alone."""
    where = f"row {number}"
    try:
        operation = taxonomy.by_id(int(cells["id"]))
        box = float(cells["box"]) if cells["box"] else None  # a CSV library writes 1.0 once a column has a blank
        if box is not None and not box.is_integer():
            raise ValueError(f"the box {cells['box']!r} is no whole number")
        start_ms, end_ms = parse_ms(cells["start"]), parse_ms(cells["end"])
    except DataError as error:
        raise DataError(error.what, file=path, where=where, cure=error.cure) from None
    except ValueError as error:
        cure = "Correct the cell; times look like 2022-03-29 14:25:22.143000+09:00."
        raise DataError(f"a cell cannot be read ({error})", file=path, where=where, cure=cure) from None
    if end_ms <= start_ms:
        what = f"the end {cells['end']} is not after the start {cells['start']}"
        raise DataError(what, file=path, where=where, cure="Correct the times of this row.")
    return Segment(operation.id, start_ms, end_ms, None if box is None else int(box))


def _without_gaps(segments: list[Segment]) -> tuple[Segment, ...]:
    """Sorted, disjoint segments made to touch; a gap beside a Null segment becomes part of it."""
    touching = segments[:1]
    for segment in segments[1:]:
        earlier = touching[-1]
        gap = segment.start_ms - earlier.end_ms
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
