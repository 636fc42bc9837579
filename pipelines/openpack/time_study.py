"""The time study of a video: seconds of each operation and of each box, as rows and as CSV.

Belongs here: counts, sums, medians and spread of what `boxes` found. Who found the operations in a video does not
(`timeline`). A spread is the interquartile range, the distance of the quartiles as numpy's default has them.

An operation counts once for each time that it was done; its seconds are those at work, without pauses. A box lasts from
its first operation to the next box's first, pauses and all: the cycle time. One that the video cut off is listed, and
counts in no median of boxes.

Format of the CSV: `of` is operation or box, `name` the operation or the box's number; `count` how often an operation
was done; `start_s` and `end_s` of a box; `total_s`, `median_s`, `iqr_s` of an operation, of a box only `total_s`. Last
comes a row `box` without a number, for all finished boxes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipelines.openpack.boxes import Box, Stretch, works

COLUMNS = ("of", "name", "count", "start_s", "end_s", "total_s", "median_s", "iqr_s")
DIGITS = 3  # of seconds


def time_study(
    stretches: Sequence[Stretch], boxes: Sequence[Box], name: Callable[[int], str], fps: int
) -> dict[str, Any]:
    """{operations: [{operation, count, total_s, median_s, iqr_s}], boxes: [{box, start_s, end_s, seconds, operations:
    {name: seconds}}], box_median_s, box_iqr_s}; the last two are None without a finished box.

    `boxes` are those of `stretches`, in frames at `fps`; `name` gives what an operation is called: those that share a
    name count together. Operations are in the order in which the video first shows them.
    """
    times: dict[str, list[float]] = {}
    for work in works(stretches):
        times.setdefault(name(work.operation), []).append(work.frames / fps)
    finished = [(box.end - box.start) / fps for box in boxes if box.finished]
    median, spread = _middle(finished) if finished else (None, None)
    return {
        "operations": [
            dict(
                zip(
                    ("operation", "count", "total_s", "median_s", "iqr_s"),
                    (one, len(row), _s(sum(row)), *_middle(row)),
                    strict=True,
                )
            )
            for one, row in times.items()
        ],
        "boxes": [_box(box, name, fps) for box in boxes],
        "box_median_s": median,
        "box_iqr_s": spread,
    }


def as_csv(study: dict[str, Any]) -> str:
    """A `time_study` as the table that the module describes."""
    rows = [{"of": "operation", "name": one["operation"], **one} for one in study["operations"]]
    rows += [{"of": "box", "name": one["box"], "total_s": one["seconds"], **one} for one in study["boxes"]]
    rows.append({"of": "box", "median_s": study["box_median_s"], "iqr_s": study["box_iqr_s"]})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _box(box: Box, name: Callable[[int], str], fps: int) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    for work in box.works:
        seconds[name(work.operation)] = seconds.get(name(work.operation), 0.0) + work.frames / fps
    return {
        "box": box.number,
        "start_s": _s(box.start / fps),
        "end_s": _s(box.end / fps),
        "seconds": _s((box.end - box.start) / fps),
        "operations": {one: _s(value) for one, value in seconds.items()},
    }


def _middle(seconds: Sequence[float]) -> tuple[float, float]:
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return _s(median), _s(high - low)


def _s(seconds: float) -> float:
    return round(float(seconds), DIGITS)
