"""Deviations from the work cycle, planted on purpose, so that what finds them can be measured.

Belongs here: which deviations a box can have, putting one in, and the truth about it. Drawing a session with them
(`simulate`) and finding them (`order_alerts`) do not.

    skipped        an operation is left out
    repeated       an operation is done once more after the one that follows it
    out_of_order   two neighbours change places

None touches the box's first operation, with which a box begins. A planted box may come out as one that is quite usual,
as when an operation is left out that often is: then nobody can tell, and it counts as missed.

Format of a file of deviations: [{"kind", "box", "operations": [ids], "start_s", "end_s"}], seconds of video from its
first frame; `operations` are those that may be named for it, both of two that changed places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipelines.common.files import read_json, write_json
from pipelines.openpack.grammar import KINDS, Kind

Item = TypeVar("Item")


@dataclass(frozen=True)
class Deviation:
    """What was planted: in seconds of video the operation that is one too many, the two that changed places, or the
    moment at which the one that was left out would have begun."""

    kind: Kind
    box: int
    operations: tuple[int, ...]
    start_s: float
    end_s: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def possible(length: int) -> list[tuple[Kind, int]]:
    """Every deviation of a box of `length` operations: its kind and the place of the operation that it begins at."""
    last = {"skipped": length - 1, "repeated": length - 2, "out_of_order": length - 2}
    return [(kind, place) for kind in KINDS for place in range(1, last[kind] + 1)]


def planted(box: Sequence[Item], kind: Kind, place: int) -> tuple[list[Item], slice]:
    """The box with the deviation, and where in it that shows: the item too many, the two that changed places, nothing
    (an empty slice) where one was left out. ValueError where `possible` has no such deviation."""
    if (kind, place) not in possible(len(box)):
        raise ValueError(f"{kind} at {place} is impossible in a box of {len(box)}")
    one, after = box[place], box[place + 1 :]
    if kind == "skipped":
        return [*box[:place], *after], slice(place, place)
    if kind == "repeated":
        return [*box[: place + 2], one, *box[place + 2 :]], slice(place + 2, place + 3)
    return [*box[:place], after[0], one, *after[1:]], slice(place, place + 2)


def write_deviations(path: Path, deviations: Sequence[Deviation]) -> None:
    write_json(path, [one.as_json() for one in deviations])


def read_deviations(path: Path) -> list[Deviation]:
    """DataError where the file is missing or no JSON."""
    return [Deviation(**{**row, "operations": tuple(row["operations"])}) for row in read_json(path)]
