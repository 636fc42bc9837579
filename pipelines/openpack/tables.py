"""Tables of a release: CSV files of which every row is whole.

Belongs here: rows, and what a cell says. What a row means (`operation_rows`) does not. Rows in errors are counted as a
spreadsheet shows them: the header is row 1.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipelines.common.errors import DataError
from pipelines.common.files import atomic_file

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DOWNLOAD = "Take the file from the release again."

Rows = list[tuple[int, dict[str, str]]]


def read_table(path: Path) -> tuple[list[str], Rows]:
    """The header, and every row's number with its cells by column name, complete but unread.

    DataError for a file that is missing, empty, no CSV or without a row, and for a row that is cut short.
    """
    text = _read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        table = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        where = f"row {reader.line_num}"
        raise DataError(f"not a readable CSV file ({error})", file=path, where=where, cure=_DOWNLOAD) from None
    header, rows = table[0][1], table[1:]
    if not rows:
        raise DataError("the table holds no row below its header", file=path, where="row 1", cure=_DOWNLOAD)
    for number, cells in rows:
        if len(cells) != len(header):
            what = f"{len(cells)} cells where the header has {len(header)}: cut short or damaged"
            raise DataError(what, file=path, where=f"row {number}", cure=_DOWNLOAD)
    if not text.endswith("\n"):
        where = f"row {rows[-1][0]}"
        cure = f"{_DOWNLOAD} If it is whole, end it with a line break."
        raise DataError("the last row does not end: the file is cut short", file=path, where=where, cure=cure)
    return header, [(number, dict(zip(header, cells, strict=True))) for number, cells in rows]


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a table that appears whole or not at all; equal rows give equal bytes."""
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def whole_number(cell: str) -> int:
    """A cell's number; ValueError for other text. A CSV library writes 1.0 once a column has a blank."""
    number = float(cell)
    if not number.is_integer():
        raise ValueError(f"{cell!r} is no whole number")
    return int(number)


def parse_ms(text: str) -> int:
    """Unix milliseconds of an ISO 8601 time with its offset; ValueError for other text or a time without offset."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} lacks its offset from UTC")
    return (time - _EPOCH) // timedelta(milliseconds=1)


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError("the table is missing", file=path, cure=_DOWNLOAD) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"not a readable CSV file ({error})", file=path, cure=_DOWNLOAD) from None
    if not text.strip():
        raise DataError("the table is empty", file=path, cure=_DOWNLOAD)
    return text
