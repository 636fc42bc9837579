"""Operations in the frames of a video, and the boxes that they pack: runs through the work cycle.

Belongs here: the sequence of operations as data, and where in it one box ends and the next begins. What usually follows
what (`grammar`), how long it takes (`time_study`) and what is unusual about it (`order_alerts`) do not.

The rule of a box: it begins with the cycle's first operation (in OpenPack Picking; in general what sessions of training
most often begin with, see `grammar.learn`) and lasts until the next one begins. What comes before the first of them is
part of no box, since nobody saw that box begin. Null is no operation: one that goes on after a pause is still the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from pipelines.openpack.taxonomy import NULL_ID


@dataclass(frozen=True)
class Stretch:
    """Frames `[start, end)` of a video in which one operation (an id of the taxonomy), or Null, goes on."""

    operation: int
    start: int
    end: int

    @property
    def frames(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Work:
    """One time that an operation was done: its stretches in order, with pauses between them where there is more than
    one."""

    operation: int
    parts: tuple[Stretch, ...]

    @property
    def start(self) -> int:
        return self.parts[0].start

    @property
    def end(self) -> int:
        return self.parts[-1].end

    @property
    def frames(self) -> int:
        """At work, without the pauses."""
        return sum(part.frames for part in self.parts)


@dataclass(frozen=True)
class Box:
    """The work on one box, from 1 in the order of the video; it ends where the next box begins.

    The last one of a video ends with its last operation, and is `finished` if boxes do end with that one.
    """

    number: int
    works: tuple[Work, ...]
    end: int
    finished: bool

    @property
    def start(self) -> int:
        return self.works[0].start

    @property
    def operations(self) -> tuple[int, ...]:
        return tuple(work.operation for work in self.works)


def works(stretches: Iterable[Stretch]) -> list[Work]:
    """What was done, in order; Null is left out and parts a pause does not part."""
    done: list[Work] = []
    for stretch in stretches:
        if stretch.operation == NULL_ID:
            continue
        if done and done[-1].operation == stretch.operation:
            done[-1] = Work(stretch.operation, (*done[-1].parts, stretch))
        else:
            done.append(Work(stretch.operation, (stretch,)))
    return done


def boxes(stretches: Iterable[Stretch], first: int, last: Collection[int]) -> list[Box]:
    """The boxes of a video; `first` is the operation that begins one, `last` are those that one can end with."""
    found: list[list[Work]] = []
    for work in works(stretches):
        if work.operation == first:
            found.append([])
        if found:
            found[-1].append(work)
    ends = [after[0].start for after in found[1:]] + [box[-1].end for box in found[-1:]]
    return [
        Box(number, tuple(box), end, finished=number < len(found) or box[-1].operation in last)
        for number, (box, end) in enumerate(zip(found, ends, strict=True), 1)
    ]


def within(stretches: Iterable[Stretch], start: int, end: int) -> list[Stretch]:
    """The part of `stretches` inside frames `[start, end)`."""
    cut = (Stretch(one.operation, max(one.start, start), min(one.end, end)) for one in stretches)
    return [one for one in cut if one.frames > 0]


def joined(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Neighbours of one operation that touch, as one."""
    made: list[Stretch] = []
    for one in stretches:
        if made and made[-1].operation == one.operation and made[-1].end == one.start:
            made[-1] = Stretch(one.operation, made[-1].start, one.end)
        else:
            made.append(one)
    return made
