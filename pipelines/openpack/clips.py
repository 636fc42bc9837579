"""Stage `clips`: cuts a session's normalised video into clips with their keyframes and their labels.

Belongs here: where labels (`clip_plan`) and picture (`common.keyframes`) meet, and the files that come of it. The
keyframes of a clip depend on its picture alone, never on a label. Packing clips for training (`shards`) does not
belong here.

Format of `<out>/<session>/`:

    clips.jsonl         one `Clip` a line, by start
    operations.jsonl    all that the annotation says is done in the video: see `sequences`
    labels.json         the session's `Taxonomy`, in whose ids the clips speak
    preparation.json    the `Preparation`: in which format clips are, and how they came to be
    frames/000123.jpg   each shown frame once, by its number in the session's video; overlapping clips share it

Clips of all but training users also have the evenly spaced choice, for the control arm of an evaluation.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from pipelines.common.clip_format import DEFAULT_FORMAT, ClipFormat
from pipelines.common.console import run
from pipelines.common.errors import DataError
from pipelines.common.files import file_digest, read_jsonl, write_json, write_jsonl
from pipelines.common.incremental import Item, Record, Told, read_records, run_items, untold
from pipelines.common.keyframes import KeyframeSettings, Signal, choose
from pipelines.openpack.annotations import Timeline, read_operations
from pipelines.openpack.clip_plan import Clip, PlannedClip, clip_id, plan
from pipelines.openpack.effective import in_effect
from pipelines.openpack.normalise import VIDEO, read_frames
from pipelines.openpack.preparation import PREPARATION, Preparation, read_normalised
from pipelines.openpack.sequences import OPERATIONS, sequence, write_sequence
from pipelines.openpack.settings import STAGE_VERSIONS, ClipSettings
from pipelines.openpack.sources import RawSession, read_session, read_taxonomy
from pipelines.openpack.taxonomy import LABELS, Taxonomy
from pipelines.openpack.windows import look, stored

VERSION = STAGE_VERSIONS["clips"]
CLIPS = "clips.jsonl"
FRAMES = "frames"


@dataclass(frozen=True)
class _Job:
    raw: Path
    normalized: Path
    set_aside: str | None
    clip: ClipSettings
    keyframes: KeyframeSettings
    clip_format: ClipFormat


def run_user(
    user: str,
    normalized_out: Path,
    raw_out: Path,
    out: Path,
    clip_settings: ClipSettings,
    keyframe_settings: KeyframeSettings,
    workers: int | None = None,
    progress: Told = untold,
    *,
    clip_format: ClipFormat = DEFAULT_FORMAT,
) -> list[Record]:
    """Brings `<out>/<session>/` up to date for a user's sessions, given the folders of the two stages before.

    A session that was set aside before stays so, with the reason. One without labels gives no clips and says why in
    its summary. DataError where the two folders do not hold the same sessions, and where a video is in another format
    than clips are to be cut in.
    """
    raw, normalized = ({record.name: record for record in read_records(folder)} for folder in (raw_out, normalized_out))
    if not raw or raw.keys() != normalized.keys():
        have, done = (", ".join(records) or "none" for records in (raw, normalized))
        what = f"raw sessions of {user}: {have}; normalised: {done}"
        raise DataError(what, file=normalized_out, cure="Run raw_session, then normalized_video, for this user.")
    _require_format(clip_format, [normalized_out / name for name, record in normalized.items() if record.ok])
    items = []
    for name, record in normalized.items():
        inputs = {"raw_session": raw[name].content(), "normalized_video": record.content()}
        inputs |= {"set_aside": record.reason} if record.reason else {}
        job = _Job(raw_out / name, normalized_out / name, record.reason, clip_settings, keyframe_settings, clip_format)
        items.append(Item(name, inputs, job))
    recipe = f"{VERSION}+{clip_settings.digest()}+{keyframe_settings.digest()}+{clip_format.digest()}"
    return run_items(items, _cut, out, recipe, workers=workers, progress=progress)


def read_clips(folder: Path) -> list[Clip]:
    """The clips of one session's folder, by start. DataError where the file is missing or not of this version."""
    rows = read_jsonl(folder / CLIPS)
    try:
        return [Clip.model_validate(row) for row in rows]
    except ValidationError as error:
        what = f"{error.error_count()} fields are not of this version"
        raise DataError(what, file=folder / CLIPS, cure="Run the stage clips again.") from None


def frame_file(folder: Path, frame: int) -> Path:
    """The picture of a frame of the session, counted from the start of its video."""
    return folder / FRAMES / f"{frame:06d}.jpg"


def _require_format(clip_format: ClipFormat, videos: list[Path]) -> None:
    for folder in videos:
        found = read_normalised(folder).video_format
        if found != clip_format.video:
            what = f"the video has {found.told()}, and clips are to have {clip_format.video.told()}"
            cure = "Run the stage normalized_video again for this user, or set [clip_format] to what the videos have."
            raise DataError(what, file=folder / VIDEO, cure=cure)


def _cut(job: _Job, folder: Path) -> dict[str, Any]:
    """One session, clips and frames into `folder`; returns its summary."""
    if job.set_aside:
        what, _, cure = job.set_aside.rpartition(". ")
        raise DataError(what, cure=cure)  # reads just as the reason that it was given
    raw, taxonomy = read_session(job.raw), read_taxonomy(job.raw)
    frames, fps = read_frames(job.normalized), job.clip_format.fps
    write_json(folder / LABELS, taxonomy.as_json())
    made = read_normalised(job.normalized).normalise
    Preparation(clip_format=job.clip_format, normalise=made, keyframes=job.keyframes).save(folder / PREPARATION)
    origin = {"source": raw.source, "view": raw.stream.kind, "split": raw.split, "person": raw.person}
    origin["annotated"] = raw.n_operations
    timeline = _timeline(raw, taxonomy, job)
    write_sequence(folder / OPERATIONS, sequence(timeline, raw.first_ms, len(frames), fps) if timeline else ())
    planned = _plan(raw, timeline, job, len(frames))
    if isinstance(planned, str):
        write_jsonl(folder / CLIPS, [])
        return {**origin, "clips": 0, "why": planned}
    clips, written = _look(raw, planned, job, frames["repeated"].to_numpy(bool), folder)
    write_jsonl(folder / CLIPS, [clip.model_dump(mode="json") for clip in clips])
    settings = {"clips": job.clip.model_dump(mode="json"), "keyframes": job.keyframes.model_dump(mode="json")}
    return {**origin, **_summary(clips, taxonomy, written, len(frames) / fps), "settings": settings}


def _timeline(raw: RawSession, taxonomy: Taxonomy, job: _Job) -> Timeline | None:
    """The annotation, None where the session has none. DataError where it is not the one that raw_session saw."""
    if raw.annotation is None:
        return None
    path = job.raw / raw.annotation
    if not path.is_file() or file_digest(path) != raw.annotation_digest:
        raise DataError("the annotations have changed since raw_session", file=path, cure="Run raw_session again.")
    return read_operations(path, taxonomy)


def _plan(raw: RawSession, timeline: Timeline | None, job: _Job, n_frames: int) -> list[PlannedClip] | str:
    """The session's clips, or why there are none."""
    if timeline is None:
        return "the session has no annotations"
    planned = plan(timeline, raw.first_ms, n_frames, job.clip, job.clip_format, training=raw.split == "train")
    length = f"{job.clip_format.seconds:g} s"
    return planned or f"no {length} of the video lie within the annotated time before the last operation"


def _look(
    raw: RawSession, planned: list[PlannedClip], job: _Job, repeated: np.ndarray, folder: Path
) -> tuple[list[Clip], int]:
    """The clips with their keyframes, and how many frames were written; each picture of the video is decoded once.

    A clip is settled as soon as its last frame was seen, while its pictures are still at hand. DataError where the
    video has not the frames of its table.
    """
    (folder / FRAMES).mkdir()
    clips, written = [], set[int]()
    seen = look(stored(job.normalized / VIDEO, repeated), [one.start_frame for one in planned], job.clip_format.frames)
    for one, stretch in zip(planned, seen, strict=True):
        clip = _clip(raw, one, stretch.signal, job)
        clips.append(clip)
        frames = clip.keyframes.frames + (clip.uniform.frames if clip.uniform else ())
        for shown in sorted({clip.start_frame + frame for frame in frames} - written):
            picture = Image.fromarray(stretch.frames[shown - clip.start_frame])
            picture.save(frame_file(folder, shown), "JPEG", quality=job.clip.jpeg_quality)
            written.add(shown)
    return clips, len(written)


def _clip(raw: RawSession, planned: PlannedClip, signal: Signal, job: _Job) -> Clip:
    keyframes, uniform = choose(signal, job.keyframes), job.keyframes.model_copy(update={"method": "uniform"})
    return Clip(
        clip_id=clip_id(raw.user, raw.session, planned.start_frame, job.clip_format.fps),
        user=raw.user,
        session=raw.session,
        start_frame=planned.start_frame,
        n_frames=job.clip_format.frames,
        kind=planned.kind,
        target=planned.target,
        boundaries=planned.boundaries,
        operations=planned.operations,
        following=planned.following,
        bounds=keyframes.bounds,
        pairs=keyframes.pairs,
        uniform=None if raw.split == "train" else choose(signal, uniform),
    )


def _summary(clips: list[Clip], taxonomy: Taxonomy, frames_written: int, seconds: float) -> dict[str, Any]:
    return {
        "clips": len(clips),
        "seconds": seconds,
        "frames": frames_written,
        "kinds": dict(sorted(Counter(clip.kind for clip in clips).items())),
        "operations": {
            operation.name: count
            for operation in taxonomy.operations
            if (count := sum(clip.target.operation == operation.id for clip in clips))
        },
        "boundary_to_cut_frames": _boundary_to_cut(clips),
    }


def _boundary_to_cut(clips: list[Clip]) -> float | None:
    """Median distance of a true boundary to the nearest cut, in frames: says how well the picture tells, no more."""
    distances = [
        min(abs(boundary - cut) for cut in clip.bounds[1:-1]) for clip in clips for boundary in clip.boundaries
    ]
    return float(median(distances)) if distances else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Cuts a user's sessions into clips with keyframes: the stage clips.")
    parser.add_argument("user", help="for example U0101")
    parser.add_argument("normalized", type=Path, help="for example data/normalized_video/U0101")
    parser.add_argument("raw", type=Path, help="for example data/raw_session/U0101")
    parser.add_argument("out", type=Path, help="for example data/clips/U0101")
    parser.add_argument("--settings", type=Path, help="a TOML file, sections [clips], [keyframes] and [clip_format]")
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    options = parser.parse_args()
    settings = in_effect("clips", "keyframes", "clip_format", path=options.settings)
    place = options.user, options.normalized, options.raw, options.out
    recipe = settings.clips, settings.keyframes, options.workers
    for record in run_user(*place, *recipe, clip_format=settings.clip_format):
        print(record.name, record.status, record.reason or record.summary)


if __name__ == "__main__":
    run(main)
