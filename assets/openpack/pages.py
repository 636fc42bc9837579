"""What an asset's page shows: a stage's records and files, turned into metadata with the pictures of `views`.

Reading the stages' files belongs here, drawing does not. Every page lists sizes and times, and the files on which
`assets.plan` later looks.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from assets.openpack import views
from assets.outputs import OUTPUTS, folder_outputs
from pipelines.common.incremental import Record, content
from resources.paths import Paths

_SHOWN_SESSIONS = 6  # a user has at most five; more rows would not fit a page
_SHOWN_CLIPS = 3
FIGURES = ("OCA", "tIoU@0.5", "AA@1", "mean_tIoU", "mean_tIoU_boundary", "median_boundary_error_frames")


def result(paths: Paths, folder: Path, version: str, **shown: Any) -> dg.MaterializeResult:
    """A materialisation of what lies in `folder`, with content digest `version`. Strings are shown as Markdown."""
    metadata = {name: dg.MetadataValue.md(value) if isinstance(value, str) else value for name, value in shown.items()}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return dg.MaterializeResult(
        data_version=dg.DataVersion(version),
        metadata={
            **metadata,
            "folder": dg.MetadataValue.path(folder),
            "megabytes": round(size / 1e6, 3),
            OUTPUTS: dg.MetadataValue.json(folder_outputs(paths.root, folder)),
        },
    )


def sessions(stage: str, paths: Paths, user: str, records: Sequence[Record], picture: str) -> dg.MaterializeResult:
    """The page of one user: a row a session, those set aside with their reasons, and the stage's picture."""
    seconds = round(sum(record.seconds for record in records), 3)
    shown = {"sessions": _records(records), "picture": picture, "seconds": seconds}
    reasons = {record.name: record.reason or "" for record in records if not record.ok}
    return result(paths, paths.user(stage, user), content(records), **shown, **set_aside(reasons))


def timeline(records: Iterable[Record], out: Path) -> str:
    """The annotated operations of a user's sessions, in seconds of their video."""
    from pipelines.openpack.annotations import read_operations
    from pipelines.openpack.sources import read_session, read_taxonomy

    rows, names = [], []
    for record in _shown(records):
        raw, taxonomy = read_session(out / record.name), read_taxonomy(out / record.name)
        if raw.annotation:
            segments = read_operations(out / record.name / raw.annotation, taxonomy).segments
            times = [((one.start_ms - raw.first_ms) / 1000, (one.end_ms - raw.first_ms) / 1000) for one in segments]
            done = [taxonomy.by_id(one.op_id).name for one in segments]
            rows.append((record.name, [(name, *time) for name, time in zip(done, times, strict=True)]))
            names = taxonomy.names
    return views.timelines(rows, names) if rows else "No annotations."


def video_frames(records: Iterable[Record], out: Path) -> str:
    """Eight frames of each session's normalised video, evenly spaced."""
    from pipelines.common.media import VideoReader
    from pipelines.openpack.normalise import VIDEO

    strips = []
    for record in _shown(records):
        with VideoReader(out / record.name / VIDEO) as reader:
            numbers = [round((shown + 0.5) * len(reader) / 8) for shown in range(8)]
            numbers = sorted({min(number, len(reader) - 1) for number in numbers})
            strips.append(views.Strip(record.name, list(reader.frames(numbers)), numbers, len(reader)))
    return views.contact_sheet(strips)


def keyframes(records: Iterable[Record], out: Path) -> str:
    """Clips with a boundary in them: the shown frames, in red the true boundary, below it the labelled operation."""
    import numpy as np
    from PIL import Image

    from pipelines.openpack.clips import frame_file, read_clips
    from pipelines.openpack.sources import read_taxonomy

    clips = [(out / record.name, clip) for record in _shown(records) for clip in read_clips(out / record.name)]
    clips = [(folder, clip) for folder, clip in clips if clip.boundaries]
    strips = []
    for folder, clip in clips[:: max(1, len(clips) // _SHOWN_CLIPS)][:_SHOWN_CLIPS]:
        taxonomy = read_taxonomy(folder)
        names = [taxonomy.by_id(op_id).name for op_id in (clip.target.operation, clip.target.next)]
        frames = clip.keyframes.frames
        pictures = [np.asarray(Image.open(frame_file(folder, clip.start_frame + frame))) for frame in frames]
        span = clip.target.start, clip.target.end
        title = f"{clip.clip_id}: {names[0]}, then {names[1]}"
        strips.append(views.Strip(title, pictures, frames, clip.n_frames, clip.boundaries, span))
    return views.contact_sheet(strips)


def splits(contents: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a split of the shards' manifest."""
    header = ["split", "users", "persons", "sessions", "clips", "shards", "megabytes"]
    rows = [
        [
            split,
            ", ".join(content["persons"]),
            len(set(content["persons"].values())),
            len(content["sessions"]),
            len(content["samples"]),
            len(content["shards"]),
            sum(shard["bytes"] for shard in content["shards"]) / 1e6,
        ]
        for split, content in contents.items()
    ]
    return views.table(header, rows)


def figures(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for whoever answered: base, tuned, baselines; a column a figure."""
    rows = [[who, *(scores.get(name) for name in FIGURES)] for who, scores in answers.items()]
    return views.table(["", *FIGURES], rows)


def set_aside(reasons: Mapping[str, str]) -> dict[str, str]:
    """An entry that is there only when some session was set aside."""
    return {"set_aside": views.table(["session", "why"], list(reasons.items()))} if reasons else {}


def _shown(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.ok][:_SHOWN_SESSIONS]


def _records(records: Sequence[Record]) -> str:
    """A row a session: what its summary says in one value each."""
    names = dict.fromkeys(name for record in records for name in record.summary)
    columns = [name for name in names if not any(isinstance(r.summary.get(name), dict | list) for r in records)]
    rows = [
        [record.name, record.status, round(record.seconds, 1), *(record.summary.get(name) for name in columns)]
        for record in records
    ]
    return views.table(["session", "state", "work in s", *columns], rows)
