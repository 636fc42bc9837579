"""Stage `raw_session` for one's own videos with one's own labels.

Belongs here: the source, and what one recording becomes. What the folder holds (`recordings_folder`) and the form of
`session.json` (`sources`) do not.

Format of `<out>/<session>/`:

    session.json      one `RawSession`; its stream is the video where it lies, whose first frame has unix time 0
    labels.json       the `Taxonomy` of the whole folder's labels
    operations.csv    the labelled segments as a release's operations; absent where nothing is labelled
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.common.console import run
from pipelines.common.errors import DataError
from pipelines.common.files import digest, file_digest, write_json
from pipelines.common.incremental import Item, Record, Told, run_items, untold
from pipelines.openpack.annotations import Segment, Timeline, read_operations, write_operations
from pipelines.openpack.effective import in_effect
from pipelines.openpack.recordings_folder import Recording, RecordingsFolder, read_folder
from pipelines.openpack.release import stat_digest
from pipelines.openpack.settings import RecordingsSettings
from pipelines.openpack.sources import SESSION, VERSION, RawSession, Stream
from pipelines.openpack.splits import Split
from pipelines.openpack.taxonomy import LABELS, Taxonomy

OPERATIONS = "operations.csv"


@dataclass(frozen=True)
class _Job:
    recording: Recording
    taxonomy: Taxonomy
    split: Split | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RecordingsSource:
    """A folder of one's own videos and their annotations; a user is a person."""

    root: Path
    settings: RecordingsSettings

    def users(self) -> list[str]:
        """As `Source.users`; errors as of `read_folder`."""
        return read_folder(self.root, self.settings).users

    def fingerprint(self, user: str) -> str:
        folder = read_folder(self.root, self.settings)
        return digest([VERSION, [[one.session, _inputs(folder, one)] for one in folder.of(user)]])

    def fetch(self, user: str, out: Path, workers: int | None = None, progress: Told = untold) -> list[Record]:
        """As `Source.fetch`. DataError for labels that make no `Taxonomy`, and where no video is this user's."""
        folder = read_folder(self.root, self.settings)
        taxonomy, split, items = folder.taxonomy(), folder.splits.get(user), []
        for one in folder.of(user):
            job = _Job(one, taxonomy, split, tuple(_notes(folder, one)))
            items.append(Item(one.session, _inputs(folder, one), job))
        if not items:
            cure = f"The users are {', '.join(folder.users)}."
            raise DataError(f"no video of {user} is here", file=self.root, cure=cure)
        return run_items(items, _inspect, out, VERSION, workers=workers, progress=progress)


def _inputs(folder: RecordingsFolder, recording: Recording) -> dict[str, str]:
    """All that decides what a recording becomes. Where a sound row stands is none of it: rows above may come and go."""
    said = [[one.start, one.end, one.unit, one.label] for one in recording.segments]
    return {
        "video": str(recording.video),
        "content": stat_digest(folder.root, [recording.video] if recording.video.is_file() else []),
        "segments": digest([said, str(recording.flaw)]),
        "labels": digest(folder.labels),
        "user": str([recording.user, folder.splits.get(recording.user)]),
        "notes": digest(_notes(folder, recording)),
    }


def _notes(folder: RecordingsFolder, recording: Recording) -> list[str]:
    """What a person should know of a recording because of the folder that it is in."""
    notes = []
    if recording.person is None and recording.segments:
        notes.append("nobody says who is in it, so it is a person of its own: the same person may be in two splits")
    if "test" not in folder.splits.values():
        notes.append("nobody is in test: nothing can be evaluated")
    return notes


def _inspect(job: _Job, folder: Path) -> dict[str, Any]:
    """Checks one recording, writes its session into `folder`, returns its summary."""
    from pipelines.common.containers import check_film  # what reads videos is loaded only where one is read
    from pipelines.common.media import packet_times

    recording = job.recording
    if recording.flaw:
        raise recording.flaw
    check_film(recording.video)
    times_s = packet_times(recording.video)
    usual_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0
    end_ms = round((times_s[-1] + usual_s) * 1000)
    fps = (len(times_s) - 1) / times_s[-1] if len(times_s) > 1 else 1.0
    timeline = _write_timeline(job, folder, fps, end_ms) if recording.segments else None
    raw = RawSession(
        source="recordings",
        user=recording.user,
        person=recording.user,
        split=job.split,
        session=recording.session,
        annotation=OPERATIONS if timeline else None,
        annotation_digest=file_digest(folder / OPERATIONS) if timeline else None,
        stream=Stream(kind="video", path=str(recording.video), start_ms=0, digest=file_digest(recording.video)),
        n_operations=len(timeline.operations) if timeline else 0,
        n_frames=len(times_s),
        first_ms=0,
        last_ms=round(times_s[-1] * 1000),
    )
    write_json(folder / SESSION, raw.model_dump(mode="json"))
    write_json(folder / LABELS, job.taxonomy.as_json())
    outside_ms = _outside(timeline, end_ms) if timeline else 0
    return {
        "view": "video",
        "frames": len(times_s),
        "seconds": round(float(times_s[-1]), 3),
        "operations": raw.n_operations,
        "seconds_outside": outside_ms / 1000,
        "note": "; ".join([*_own_notes(recording, fps, outside_ms, usual_s), *job.notes]) or None,
    }


def _write_timeline(job: _Job, folder: Path, fps: float, end_ms: int) -> Timeline:
    """The labelled segments as operations, all of them: what lies after the video's end gives no clips.

    DataError where all of it does.
    """
    segments = job.recording.segments
    if segments[0].in_ms(fps)[0] >= end_ms:
        what = f"the first label starts after the video's end at {end_ms / 1000:.3f} s"
        cure = "Times are in seconds from its start; look whether it is the right video, and whole."
        raise DataError(what, file=segments[0].file, where=segments[0].row, cure=cure)
    operations = [Segment(job.taxonomy.by_name(one.label).id, *one.in_ms(fps), None) for one in segments]
    path = folder / OPERATIONS
    write_operations(path, job.recording.user, job.recording.session, operations, job.taxonomy)
    return read_operations(path, job.taxonomy)


def _outside(timeline: Timeline, end_ms: int) -> int:
    """Labelled milliseconds after the video's end."""
    return sum(max(0, one.end_ms - max(one.start_ms, end_ms)) for one in timeline.operations)


def _own_notes(recording: Recording, fps: float, outside_ms: int, usual_s: float) -> list[str]:
    """What a person should know of a recording because of what is in it."""
    notes = []
    if not recording.segments:
        notes.append("no annotations: it is normalised and gives no clips")
    elif recording.segments[0].unit == "frames":
        notes.append(f"label_studio_fps is not set: frames are counted at the video's own rate, {fps:.3f} a second")
    if outside_ms > usual_s * 1000:  # less is how exactly a video's end can be labelled
        notes.append(f"{outside_ms / 1000:.3f} labelled seconds lie after the video's end")
    return notes


def main() -> None:
    parser = argparse.ArgumentParser(description="Finds and checks a user's own recordings: the stage raw_session.")
    parser.add_argument("root", type=Path, help="folder with videos and segments.csv, .eaf files or a .json export")
    parser.add_argument("user", help="one of its users; a wrong one is told which there are")
    parser.add_argument("out", type=Path, help="folder of this user's sessions, for example data/raw_session/worker-1")
    parser.add_argument("--settings", type=Path, help="a TOML file, section [recordings]; by default settings.toml")
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    options = parser.parse_args()
    source = RecordingsSource(options.root, in_effect("recordings", path=options.settings).recordings)
    for record in source.fetch(options.user, options.out, options.workers):
        print(record.name, record.status, record.reason or record.summary)


if __name__ == "__main__":
    run(main)
