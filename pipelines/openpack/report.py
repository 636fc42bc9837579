"""`report.html`: an evaluation as a person reads it, in one file without scripts or links.

Belongs here: which figures, sessions and clips are shown, and how they are put. The figures come from `summary`, the
drawing from `common.pictures`, the page's text and form are in `report.html.jinja` beside this file. Pictures speak of
the tuned model and in native classes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.common import pictures
from pipelines.common.files import atomic_file
from pipelines.common.pictures import Strip
from pipelines.openpack.loader import ShardReader
from pipelines.openpack.metrics import BASE, TUNED, segment_iou
from pipelines.openpack.records import ClipRecord, Reading
from pipelines.openpack.summary import FEW_SESSIONS
from pipelines.openpack.taxonomy import Taxonomy
from pipelines.openpack.whole_sessions import Answered

PAGE = "report.html"
SESSIONS, WORST = 3, 8  # shown at most: the page stays below a megabyte


@dataclass(frozen=True)
class Cell:
    """A figure as text, with its interval where there is one."""

    value: str
    interval: str


def write_page(
    path: Path,
    report: Mapping[str, Any],
    records: Sequence[ClipRecord],
    taxonomy: Taxonomy,
    test: ShardReader,
    whole: Sequence[Answered] = (),
) -> None:
    """Writes the page of a `report` with the `records` and `whole` sessions that it follows from; `test` gives the
    worst clips' frames. A session that was answered as a whole is drawn so, any other as its clips tell it."""
    usual, clip_format = [one for one in whole if not one.planted], test.preparation.clip_format
    fps = clip_format.fps
    tuned = [record for record in records if record.arm == TUNED]
    bins = [(row["confidence"], row["right"], int(row["samples"])) for row in report["reliability"]["native"]]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.jinja").render(
        report=report,
        run=report["run"],
        counts=report["counts"],
        few=FEW_SESSIONS,
        tables={scope: table(report, scope) for scope in report["bootstrap"]},
        clip_format=clip_format,
        base=BASE,
        tuned=TUNED,
        confusion=_uri(pictures.confusion(report["confusion"]["names"], report["confusion"]["counts"])),
        reliability=_uri(pictures.reliability(bins)),
        sessions=[_session(name, tuned, taxonomy, fps) for name in _not_whole(tuned, usual)[:SESSIONS]],
        whole=[_whole(one, taxonomy, fps) for one in usual[:SESSIONS]],
        worst=list(_worst_clips(tuned, taxonomy, test)),
    )
    with atomic_file(path) as part:
        part.write_text(page, encoding="utf-8")


def table(report: Mapping[str, Any], scope: str) -> dict[str, list[Cell]]:
    """A row an arm, a cell a figure. Intervals are Wilson's where the scope has them, else over sessions."""
    rows = {}
    for arm, scores in report[scope].items():
        ends = {**report["bootstrap"][scope][arm], **scores.get("intervals", {})}
        rows[arm] = [_cell(value, ends[name]) for name, value in scores.items() if name != "intervals"]
    return rows


def worst(records: Sequence[ClipRecord], count: int = WORST) -> list[ClipRecord]:
    """The clips with the least right of operation, next operation and segment (by its IoU), surest first of equals;
    none with both operations right and at least half of the segment."""

    def rightness(record: ClipRecord) -> float:
        true, said = record.truth.native, record.prediction.native
        return (true.operation == said.operation) + (true.next == said.next) + segment_iou(record)

    def order(record: ClipRecord) -> tuple[float, float, str]:
        return rightness(record), -(record.confidence.native if record.confidence else 0.0), record.clip_id

    return sorted((record for record in records if rightness(record) < 2.5), key=order)[:count]


def spoken_of(
    records: Sequence[ClipRecord], what: str, taxonomy: Taxonomy, fps: int
) -> tuple[list[tuple[str, float, float]], float]:
    """One session as its clips tell it: (native name, start, end in seconds of video), and the share that is told of.

    `what` is `truth` or `prediction`. A clip speaks of the frames of its segment alone; where clips overlap, the surest
    one counts. The share is of the time from the first clip's start to the last one's end.
    """
    first = min(record.start_frame for record in records)
    last = max(record.start_frame + record.n_frames for record in records)
    told = np.full(last - first, -1)
    for record in sorted(records, key=lambda one: one.confidence.native if one.confidence else 0.0):
        said: Reading = getattr(record, what)
        if said.segment and said.native.operation is not None:
            start, end = (record.start_frame - first + frame for frame in said.segment)
            told[start:end] = said.native.operation
    parts, frame = [], first
    for op_id, run in groupby(told.tolist()):
        length = len(list(run))
        if op_id >= 0:
            parts.append((taxonomy.by_id(op_id).name, frame / fps, (frame + length) / fps))
        frame += length
    return parts, float((told >= 0).mean())


def _session(name: str, records: Sequence[ClipRecord], taxonomy: Taxonomy, fps: int) -> dict[str, Any]:
    clips = [record for record in records if record.session == name]
    (true, covered), (said, _) = (spoken_of(clips, what, taxonomy, fps) for what in ("truth", "prediction"))
    picture = pictures.timelines([("true", true), ("answered", said)], taxonomy.names)
    return {"name": name, "clips": len(clips), "covered": covered, "picture": _uri(picture)}


def _not_whole(records: Sequence[ClipRecord], whole: Sequence[Answered]) -> list[str]:
    drawn = {one.session for one in whole}
    return [name for name in dict.fromkeys(record.session for record in records) if name not in drawn]


def _whole(answered: Answered, taxonomy: Taxonomy, fps: int) -> dict[str, Any]:
    rows = [
        (title, [(taxonomy.by_id(one.operation).name, one.start / fps, one.end / fps) for one in stretches])
        for title, stretches in (("true", answered.truth), ("answered", answered.said), ("no grammar", answered.alone))
    ]
    return {"name": answered.session, "picture": _uri(pictures.timelines(rows, taxonomy.names))}


def _worst_clips(records: Sequence[ClipRecord], taxonomy: Taxonomy, test: ShardReader) -> Iterator[dict[str, str]]:
    from pipelines.openpack.predict import sample_frames

    for record in worst(records):
        frames = sample_frames(test.sample(test.keys.index(record.clip_id)))
        numbers = [frame for pair in record.pairs for frame in pair]
        spans = {"span": record.truth.segment, "answered": record.prediction.segment}
        strip = Strip(record.clip_id, list(frames), numbers, record.n_frames, record.boundaries, **spans)
        yield {
            "clip": record.clip_id,
            "truth": _sentence(record.truth, taxonomy),
            "answer": _sentence(record.prediction, taxonomy),
            "confidence": f"{record.confidence.native:.2f}" if record.confidence else "–",
            "picture": _uri(pictures.contact_sheet([strip])),
        }


def _sentence(said: Reading, taxonomy: Taxonomy) -> str:
    operation, following = (
        "nothing" if op_id is None else taxonomy.by_id(op_id).name
        for op_id in (said.native.operation, said.native.next)
    )
    return f"{operation} in frames [{said.start}, {said.end}), then {following}"


def _cell(value: float | None, ends: Sequence[float] | None) -> Cell:
    if value is None:
        return Cell("–", "")
    digits = 1 if value > 1 else 3
    return Cell(f"{value:.{digits}f}", " – ".join(f"{end:.{digits}f}" for end in ends) if ends else "")


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
