"""Rows of a release's tables of operations, as segments of time.

Belongs here: the two forms of a row, and what must hold of it and of its neighbours. What is missing between segments
(`annotations`) does not.

Events, one operation a row (v1.0.0, v1.1.0): columns `uuid,user,session,box,id,operation,start,end,actions`, times in
ISO 8601 with offset and with or without a fraction (`2022-03-29 14:25:22.143000+09:00`, `2022-03-29 14:45:32+09:00`).

Seconds, one a row, so that a boundary is known to the second only:

    unixtime,user,session,box,id                 v1.0.0 and v1.1.0, beside the events
    unixtime,user,session,box,operation,action   v0.3.x
    unixtime,user,session,box,operation          v0.2.x of 2022, also with user `102` and session `500`

`unixtime` is in milliseconds, and its row speaks of the second that begins then. For the older two this, and that
`operation` is an id, follows from the configuration and the loader of the toolkit of their time; none of their tables
was at hand. A name in place of the id is read too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from pipelines.common.errors import DataError
from pipelines.openpack.tables import Rows, parse_ms, whole_number
from pipelines.openpack.taxonomy import NULL_ID, Operation, Taxonomy

_SECOND_MS = 1000


@dataclass(frozen=True)
class Segment:
    """One operation over `[start_ms, end_ms)` in unix milliseconds. A filled gap is Null and has no box."""

    op_id: int
    start_ms: int
    end_ms: int
    box: int | None


_Reader = Callable[[dict[str, str], Taxonomy], Segment]


def from_events(path: Path, rows: Rows, taxonomy: Taxonomy) -> list[Segment]:
    """The rows of a table of events, which may come in any order, as segments by time.

    DataError with file and row for an unknown id, an unreadable number or time, an end that is not after its start, and
    rows that overlap.
    """
    segments = [(number, _row(path, number, cells, taxonomy, _event)) for number, cells in rows]
    segments.sort(key=lambda pair: pair[1].start_ms)
    for (before, earlier), (number, later) in pairwise(segments):
        if later.start_ms < earlier.end_ms:
            what = f"starts {earlier.end_ms - later.start_ms} ms before row {before} ends"
            raise DataError(what, file=path, where=f"row {number}", cure="Correct the times so that rows only touch.")
    return [segment for _, segment in segments]


def from_seconds(path: Path, rows: Rows, taxonomy: Taxonomy) -> list[Segment]:
    """The rows of a table of seconds; those that follow each other with one operation and box are one segment.

    DataError with file and row for an unknown id or name, an unreadable number, a time that is no whole second, and
    seconds that come twice or out of order.
    """
    seconds = [(number, _row(path, number, cells, taxonomy, _second)) for number, cells in rows]
    runs = [seconds[0][1]]
    for (before, earlier), (number, second) in pairwise(seconds):
        if second.start_ms <= earlier.start_ms:
            relation = "is that" if second.start_ms == earlier.start_ms else "comes before that"
            what = f"its second {relation} of row {before}"
            raise DataError(what, file=path, where=f"row {number}", cure="Keep one row a second, in order.")
        run = runs[-1]
        if (run.end_ms, run.op_id, run.box) == (second.start_ms, second.op_id, second.box):
            runs[-1] = replace(run, end_ms=second.end_ms)
        else:
            runs.append(second)
    return runs


def _row(path: Path, number: int, cells: dict[str, str], taxonomy: Taxonomy, read: _Reader) -> Segment:
    """One row as a segment, everything in it checked that can be checked alone."""
    where = f"row {number}"
    try:
        return read(cells, taxonomy)
    except DataError as error:
        raise DataError(error.what, file=path, where=where, cure=error.cure) from None
    except ValueError as error:
        cure = "Correct the cell; times look like 2022-03-29 14:25:22.143000+09:00, unixtime like 1648531522000."
        raise DataError(f"a cell cannot be read ({error})", file=path, where=where, cure=cure) from None


def _event(cells: dict[str, str], taxonomy: Taxonomy) -> Segment:
    operation = taxonomy.by_id(int(cells["id"]))
    start_ms, end_ms = parse_ms(cells["start"]), parse_ms(cells["end"])
    if end_ms <= start_ms:
        what = f"the end {cells['end']} is not after the start {cells['start']}"
        raise DataError(what, cure="Correct the times of this row.")
    return Segment(operation.id, start_ms, end_ms, _box(cells))


def _second(cells: dict[str, str], taxonomy: Taxonomy) -> Segment:
    operation = _named(cells["id"] if "id" in cells else cells["operation"], taxonomy)
    start_ms = whole_number(cells["unixtime"])
    if start_ms % _SECOND_MS:
        raise ValueError(f"unixtime {start_ms} is no whole second in milliseconds")
    # a pause is one segment, whichever box it was counted to
    box = None if operation.id == NULL_ID else _box(cells)
    return Segment(operation.id, start_ms, start_ms + _SECOND_MS, box)


def _named(cell: str, taxonomy: Taxonomy) -> Operation:
    try:
        op_id = whole_number(cell)
    except ValueError:
        return taxonomy.by_name(cell)
    return taxonomy.by_id(op_id)


def _box(cells: dict[str, str]) -> int | None:
    return whole_number(cells["box"]) if cells["box"] else None
