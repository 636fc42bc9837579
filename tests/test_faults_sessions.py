"""Sessions with bad files, from release to shards: the good one of the same user goes through, the bad one is named in
every stage with file, place and cure, and once it is mended only it is done again.
"""

import re
import shutil
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fault_stages import CLIPS, SIMULATION, USER
from kills import hidden
from PIL import Image

from pipelines.common.incremental import RECORD, Record, read_records
from pipelines.common.keyframes import KeyframeSettings
from pipelines.common.media import VideoReader, packet_times
from pipelines.openpack import clips, normalise
from pipelines.openpack.annotations import JAPAN, read_operations
from pipelines.openpack.loader import ShardReader
from pipelines.openpack.release import annotation_file, read_video_start, stream_place
from pipelines.openpack.settings import ClipSettings, NormaliseSettings, ShardSettings, View
from pipelines.openpack.shards import write_shards
from pipelines.openpack.simulate import write_session
from pipelines.openpack.sources import LocalSource

GOOD, BAD = "S0100", "S0200"
STAGES = ("raw_session", "normalized_video", "clips")


class House:
    """A release and the stages' folders; `refresh` brings all up to date and notes which sessions were computed."""

    def __init__(self, root: Path, view: View) -> None:
        self.root, self.view = root, view
        self.computed: dict[str, list[str]] = {}

    def out(self, stage: str) -> Path:
        return self.root / stage / USER

    def refresh(self) -> dict[str, Any]:
        """The shards' manifest."""
        raw, video, cut = map(self.out, STAGES)
        before = self._written(raw)
        LocalSource(self.root / "release", self.view).fetch(USER, raw, workers=1)
        written = self._written(raw)
        self.computed = {"raw_session": [name for name in written if written[name] != before.get(name)]}
        normalise.run_user(USER, raw, video, NormaliseSettings(), 1, self._note("normalized_video"), clip_format=CLIPS)
        recipe = ClipSettings(), KeyframeSettings()
        clips.run_user(USER, video, raw, cut, *recipe, 1, self._note("clips"), clip_format=CLIPS)
        return write_shards(self.root / "clips", self.root / "shards", ShardSettings())

    def records(self) -> dict[str, dict[str, Record]]:
        return {stage: {record.name: record for record in read_records(self.out(stage))} for stage in STAGES}

    def _note(self, stage: str) -> Callable[[Record, bool], None]:
        names = self.computed[stage] = []
        return lambda record, fresh: names.append(record.name) if fresh else None

    @staticmethod
    def _written(out: Path) -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in sorted(out.glob(f"*/{RECORD}"))}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn sessions of one user as films and as folders of JPEG frames."""
    root = tmp_path_factory.mktemp("release")
    for session in (GOOD, BAD):
        write_session(root, USER, session, SIMULATION)
        film = stream_place(root, USER, session, "video")
        start = datetime.fromtimestamp(read_video_start(film) / 1000, JAPAN)
        times = [start + timedelta(seconds=float(second)) for second in packet_times(film)]
        with VideoReader(film) as reader:
            write_frames(stream_place(root, USER, session, "rgb"), times, reader.frames(range(len(reader))))
    return root


def write_frames(folder: Path, times: Iterable[datetime], frames: Iterable[Any]) -> None:
    for time, frame in zip(times, frames, strict=True):
        place = folder / time.strftime("%Y/%m/%d/%H/%M")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(place / f"{time:%Y%m%d_%H%M%S}_{time.microsecond // 1000:03d}.jpg", quality=90)


@pytest.fixture
def house(release: Path, tmp_path: Path) -> Callable[[View], House]:
    shutil.copytree(release, tmp_path / "release")
    return lambda view: House(tmp_path, view)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def overwritten(data: bytes) -> bytes:
    start, end = len(data) * 2 // 5, len(data) * 3 // 5
    return data[:start] + bytes(end - start) + data[end:]


def flipped(data: bytes) -> bytes:
    """Every bit of the middle. A few flipped bits of a JPEG are just another picture: it holds no check sum."""
    start, end = len(data) * 2 // 5, len(data) * 3 // 5
    return data[:start] + bytes(byte ^ 0xFF for byte in data[start:end]) + data[end:]


def emptied(data: bytes) -> bytes:
    return b""


def film(root: Path) -> Path:
    return stream_place(root, USER, BAD, "video")


def frame(root: Path) -> Path:
    return sorted(stream_place(root, USER, BAD, "rgb").rglob("*.jpg"))[40]


def table(root: Path) -> Path:
    return annotation_file(root, USER, BAD)


@pytest.mark.parametrize(
    ("view", "file", "damage", "stage", "words"),
    [
        ("video", film, cut, "raw_session", r": the film is cut short: \d+ of at least \d+ bytes\. Copy it"),
        ("video", film, overwritten, "normalized_video", r".* frames could be decoded.*Check that it plays to its end"),
        ("rgb", frame, flipped, "normalized_video", r", frame 40: the picture cannot be decoded \(.*\)\. Copy it"),
        ("video", table, emptied, "raw_session", r": the .* is empty\. Take the file"),
    ],
    ids=["film-cut", "film-overwritten", "jpeg-flipped", "table-empty"],
)
def test_the_good_session_goes_through_and_the_mended_one_follows_alone(
    house: Callable[[View], House], view: View, file: Callable[[Path], Path], damage, stage: str, words: str
):
    there = house(view)
    path = file(there.root / "release")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    manifest = there.refresh()
    records, told = there.records(), manifest["set_aside"]
    assert {name: [one[GOOD].status, one[BAD].status] for name, one in records.items()} == {
        name: ["ok", "ok" if STAGES.index(name) < STAGES.index(stage) else "set_aside"] for name in STAGES
    }
    assert list(told) == [f"{USER}/{BAD}"]
    reason = told[f"{USER}/{BAD}"]
    assert re.match(re.escape(str(path)) + words, reason)
    assert {records[name][BAD].reason for name in STAGES[STAGES.index(stage) :]} == {reason}
    assert [path.name for path in (there.out("clips") / BAD).iterdir()] == [RECORD]
    assert manifest["splits"]["train"]["sessions"] == [f"{USER}/{GOOD}"]
    path.write_bytes(whole)
    manifest = there.refresh()
    assert there.computed == {name: [BAD] for name in STAGES}
    assert (manifest["set_aside"], len(manifest["splits"]["train"]["sessions"])) == ({}, 2)
    assert not hidden(there.root)


def test_of_a_video_that_is_shorter_than_its_labels_the_recorded_part_is_kept(house: Callable[[View], House]):
    """As in the release itself: of one of its sessions the camera has the first nine boxes only."""
    there = house("rgb")
    frames = sorted(stream_place(there.root / "release", USER, BAD, "rgb").rglob("*.jpg"))
    lost = {path: path.read_bytes() for path in frames[len(frames) // 2 :]}
    for path in lost:
        path.unlink()
    manifest = there.refresh()
    assert manifest["set_aside"] == {}
    assert "operations lie outside of the recorded time" in there.records()["raw_session"][BAD].summary["note"]
    labels = read_operations(table(there.root / "release"))
    with VideoReader(there.out("normalized_video") / BAD / normalise.VIDEO) as reader:
        recorded = len(reader)
    assert recorded / 25 < 0.6 * (labels.end_ms - labels.start_ms) / 1000
    some = clips.read_clips(there.out("clips") / BAD)
    assert some
    assert max(clip.start_frame + clip.n_frames for clip in some) <= recorded
    for path, data in lost.items():
        path.write_bytes(data)
    there.refresh()
    assert there.computed == {name: [BAD] for name in STAGES}
    every = clips.read_clips(there.out("clips") / BAD)
    assert len(every) > len(some)
    reader = ShardReader(there.root / "shards", "train")
    assert {clip.clip_id for clip in every} <= set(reader.keys)
