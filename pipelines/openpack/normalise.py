"""Stage `normalized_video`: each session's stream as one video of known rate and size, with the true times kept.

Belongs here: the stage and its files. How ffmpeg is used (`common.media`) and what a frame of an image stream looks
like (`streams`) do not, nor a video that is looked at once (`common.frame_stream`).

Format of `<out>/<session>/`:

    video.mp4        H.264, in rate and size (square, stretched) of the clip format, a key frame every second, no audio
    frames.parquet   one row a frame of it: frame int32 (0, 1, …), source_frame int32 (which source frame it shows),
                     source_ms float64 (that one's time in ms after the session's first frame, whose unix time is
                     `first_ms` of session.json), repeated bool (shows the same source frame as the row before)
    normalised.json  `preparation.Normalised`: the format, and the settings
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.common.clip_format import DEFAULT_FORMAT, ClipFormat, VideoFormat
from pipelines.common.console import run
from pipelines.common.errors import DataError
from pipelines.common.frame_times import check_gaps, check_shown, hold_mapping, timing
from pipelines.common.incremental import Item, Record, Told, read_records, run_items, untold
from pipelines.common.media import VideoWriter, count_video_streams, packet_times, transcode
from pipelines.openpack.effective import in_effect
from pipelines.openpack.preparation import NORMALISED, Normalised
from pipelines.openpack.settings import STAGE_VERSIONS, NormaliseSettings
from pipelines.openpack.sources import RawSession, read_session
from pipelines.openpack.streams import open_pictures

VERSION = STAGE_VERSIONS["normalized_video"]
VIDEO = "video.mp4"
FRAMES = "frames.parquet"


@dataclass(frozen=True)
class _Job:
    raw: Path
    set_aside: str | None
    settings: NormaliseSettings
    video: VideoFormat


def run_user(
    user: str,
    raw_out: Path,
    out: Path,
    settings: NormaliseSettings,
    workers: int | None = None,
    progress: Told = untold,
    *,
    clip_format: ClipFormat = DEFAULT_FORMAT,
) -> list[Record]:
    """Brings `<out>/<session>/` up to date for every session of `raw_out`, both folders of this one user.

    Of the format, rate and size count here: clips of another length need no other video. Sessions run side by side, one
    a core by default. A session that was set aside before stays so, with its reason. DataError where `raw_out` holds no
    session.
    """
    items, video = [], clip_format.video
    for record in read_records(raw_out):
        inputs = {"raw_session": record.content(), **({"set_aside": record.reason} if record.reason else {})}
        items.append(Item(record.name, inputs, _Job(raw_out / record.name, record.reason, settings, video)))
    if not items:
        raise DataError(f"no session of {user} is here", file=raw_out, cure="Run the stage raw_session for this user.")
    recipe = f"{VERSION}+{settings.digest()}+{video.digest()}"
    return run_items(items, _normalise, out, recipe, workers=workers, progress=progress)


def read_frames(folder: Path) -> pd.DataFrame:
    """The frames of a session's video, as the module describes. DataError where the file is missing or unreadable."""
    path = folder / FRAMES
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        cure = "Run the stage normalized_video again."
        raise DataError(f"no readable table of frames ({error})", file=path, cure=cure) from None


def _normalise(job: _Job, folder: Path) -> dict[str, Any]:
    """One session into `folder`; returns its summary."""
    if job.set_aside:
        what, _, cure = job.set_aside.rpartition(". ")
        raise DataError(what, cure=cure)  # reads just as the reason that it was given
    raw = read_session(job.raw)
    place, target = job.raw / raw.stream.path, folder / VIDEO
    if raw.stream.kind == "video":
        times_s = _checked(packet_times(place), raw, place, job.settings)
        recorded_ms, more = times_s * 1000, {"source_video_streams": count_video_streams(place)}
        shown = _from_video(place, target, times_s, job)
    else:
        pictures = open_pictures(place, raw.stream.kind, job.settings, job.video.size)
        times_s = _checked((pictures.times_ms - pictures.times_ms[0]) / 1000, raw, place, job.settings)
        recorded_ms, more = pictures.recorded_ms, {}
        shown = _from_pictures(pictures.draw, target, times_s, place, job)
    table = _table(times_s, shown)
    table.to_parquet(folder / FRAMES, index=False)
    Normalised(video_format=job.video, normalise=job.settings).save(folder / NORMALISED)
    return {
        "frames": len(table),
        "source_frames": len(times_s),
        "repeated": int(np.count_nonzero(table["repeated"])),
        "fps": job.video.fps,
        "seconds": job.video.to_seconds(len(table)),
        "bytes": target.stat().st_size,
        **{f"source_{name}": value for name, value in asdict(timing(recorded_ms)).items()},
        **more,
    }


def _from_video(path: Path, target: Path, times_s: np.ndarray, job: _Job) -> np.ndarray:
    exact = {"size": job.video.size, "tolerance_s": job.settings.time_tolerance_ms / 1000}
    return transcode(path, target, times_s, **exact, **job.settings.encoding(job.video))


def _from_pictures(
    draw: Callable[[int], np.ndarray], target: Path, times_s: np.ndarray, place: Path, job: _Job
) -> np.ndarray:
    """Writes the frames that `draw` gives by the same rule as `transcode`; each is drawn once, however often shown."""
    sources, counts = np.unique(hold_mapping(times_s, job.video.fps), return_counts=True)
    shown: list[int] = []
    with VideoWriter(target, size=(job.video.size, job.video.size), **job.settings.encoding(job.video)) as writer:
        for source, count in zip(sources.tolist(), counts.tolist(), strict=True):
            writer.write(draw(source), repeat=count)
            shown += [source] * count
    written = np.array(shown, dtype=np.int64)
    check_shown(written, times_s, job.video.fps, job.settings.time_tolerance_ms / 1000, place)
    return written


def _checked(times_s: np.ndarray, raw: RawSession, place: Path, settings: NormaliseSettings) -> np.ndarray:
    """The times, if they are those that raw_session found and have no impossible gap."""
    found, known = round(times_s[-1] * 1000), raw.last_ms - raw.first_ms
    if len(times_s) != raw.n_frames or abs(found - known) > settings.time_tolerance_ms:
        what = f"{len(times_s)} frames over {found} ms, where raw_session found {raw.n_frames} over {known} ms"
        raise DataError(what, file=place, cure="Run the stage raw_session again.")
    check_gaps(times_s, place, settings.longest_gap_s)
    return times_s


def _table(times_s: np.ndarray, mapping: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "frame": np.arange(len(mapping), dtype=np.int32),
            "source_frame": mapping.astype(np.int32),
            "source_ms": np.round(times_s[mapping] * 1000, 3),
            "repeated": np.diff(mapping, prepend=-1) == 0,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Makes a user's sessions videos of one rate and size: normalized_video."
    )
    parser.add_argument("user", help="for example U0101")
    parser.add_argument("raw", type=Path, help="for example data/raw_session/U0101")
    parser.add_argument("out", type=Path, help="for example data/normalized_video/U0101")
    parser.add_argument("--settings", type=Path, help="a TOML file, sections [normalise] and [clip_format]")
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    options = parser.parse_args()
    settings = in_effect("normalise", "clip_format", path=options.settings)
    place = options.user, options.raw, options.out
    for record in run_user(*place, settings.normalise, options.workers, clip_format=settings.clip_format):
        print(record.name, record.status, record.reason or record.summary)


if __name__ == "__main__":
    run(main)
