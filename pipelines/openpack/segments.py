"""Labelled stretches of one's own videos: the row that every annotation tool is read into, and `segments.csv`.

Belongs here: that row, what must hold of one alone and of all rows of a video, and the plainest way to write them. The
forms of ELAN (`elan`) and Label Studio (`label_studio`) and what a folder holds besides (`recordings_folder`) do not.

Format of `segments.csv`: UTF-8, cells divided by commas, a header with the columns `video`, `start`, `end`, `label` and
perhaps `user`; any others are left aside. `video` is a path below the folder, or a file's name alone where only one
file has it. Times are decimal seconds from the video's first frame. Rows in errors are counted as a spreadsheet shows
them: the header is row 1.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pipelines.common.errors import DataError

SEGMENTS = "segments.csv"
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")  # of the files that count as videos, in lower or upper case

Unit = Literal["seconds", "frames"]
_NEEDED = ("video", "start", "end", "label")
_FORM = f"It must be a table of {','.join(_NEEDED)} and perhaps user, divided by commas, in UTF-8."


@dataclass(frozen=True)
class LabelledSegment:
    """One labelled stretch `[start, end)` of a video, counted in `unit` from the video's first frame.

    `names` are those by which its video may be found, the surest first; `user` is the person in it, None where nobody
    says. `file` and `row` are where it stands.
    """

    names: tuple[str, ...]
    start: float
    end: float
    unit: Unit
    label: str
    user: str | None
    file: Path
    row: str

    def in_ms(self, fps: float) -> tuple[int, int]:
        """Start and end in whole milliseconds; `fps` is the video's frame rate, for those that count in frames."""
        rate = 1 if self.unit == "seconds" else fps
        return round(self.start / rate * 1000), round(self.end / rate * 1000)


@dataclass(frozen=True)
class Flaw:
    """What keeps a video's annotations from being used, with its names and its user as a segment has them."""

    names: tuple[str, ...]
    user: str | None
    error: DataError


def labelled(
    names: tuple[str, ...],
    start: object,
    end: object,
    label: str,
    user: str | None,
    file: Path,
    row: str,
    unit: Unit = "seconds",
) -> LabelledSegment | Flaw:
    """A row as a segment, or what is wrong with it: a time that is no number or negative, an end that is not after
    the start, an empty label. Times may be numbers or text; blanks around label and user do not count.
    """
    label, user = label.strip(), (user or "").strip() or None
    try:
        times = _number(start), _number(end)
        if times[0] < 0:
            raise DataError(f"the start {start} is negative", cure="A video starts at 0.")
        if round(times[1] * 1000) <= round(times[0] * 1000):  # whole milliseconds are what is kept
            raise DataError(f"the end {end} is not after the start {start}", cure="Correct the times of this row.")
        if not label:
            raise DataError("the label is empty", cure="Write one, or delete this row.")
    except DataError as error:
        return Flaw(names, user, DataError(error.what, file=file, where=row, cure=error.cure))
    return LabelledSegment(names, *times, unit, label, user, file, row)


def check_together(segments: Iterable[LabelledSegment]) -> tuple[LabelledSegment, ...]:
    """A video's segments by start. DataError with file and row where two overlap, name different users or differ in
    unit."""
    ordered = tuple(sorted(segments, key=lambda segment: segment.start))
    known = [segment for segment in ordered if segment.user]
    for before, after in pairwise(known):
        if before.user != after.user:
            what = f"the user is {after.user}, and {before.user} in {before.row}"
            raise DataError(what, file=after.file, where=after.row, cure="A video shows one person: name one.")
    for before, after in pairwise(ordered):
        if before.unit != after.unit:
            what, cure = f"it counts in {after.unit}, {before.row} in {before.unit}", "Label a video in one way."
            raise DataError(what, file=after.file, where=after.row, cure=cure)
        if after.in_ms(fps=1)[0] < before.in_ms(fps=1)[1]:
            other = before.row if before.file == after.file else f"{before.row} of {before.file}"
            what = f"it starts before {other} ends"
            raise DataError(what, file=after.file, where=after.row, cure="Correct the times so that rows only touch.")
    return ordered


def read_csv(file: Path) -> list[LabelledSegment | Flaw]:
    """The rows of a `segments.csv`, in its order.

    DataError for a file that is unreadable, empty or without a row, for a missing column, and for a row that names no
    video or is of another length than the header: then nobody knows whose it is.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        table = [(f"row {reader.line_num}", cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"not a readable CSV file ({error})", file=file, cure=_FORM) from None
    if not table:
        raise DataError("the file is empty", file=file, cure=_FORM)
    header, rows = [cell.strip() for cell in table[0][1]], table[1:]
    if missing := [name for name in _NEEDED if name not in header]:
        raise DataError(f"the column {', '.join(missing)} is missing", file=file, where=table[0][0], cure=_FORM)
    if not rows:
        raise DataError("the file holds a header and no row", file=file, cure="Write a row for each labelled stretch.")
    for row, cells in rows:
        if len(cells) != len(header):
            what = f"{len(cells)} cells where the header has {len(header)}"
            cure = "Complete the row; a cell that holds a comma stands in double quotes."
            raise DataError(what, file=file, where=row, cure=cure)
        if not cells[header.index("video")].strip():
            raise DataError("the video is not named", file=file, where=row, cure="Name it, or delete this row.")
    named = [(row, dict(zip(header, cells, strict=True))) for row, cells in rows]
    return [
        labelled((one["video"].strip(),), one["start"], one["end"], one["label"], one.get("user"), file, row)
        for row, one in named
    ]


def _number(value: object) -> float:
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]: whatever is no number raises
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        cure = "Write it with a decimal point, as 12.5."
        raise DataError(f"the time {value!r} is not a number", cure=cure)
    return number
