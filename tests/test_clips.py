"""The stage clips on films that are drawn here: what is written, from what, and when it is computed again."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import DataError
from pipelines.common.files import folder_digests
from pipelines.common.incremental import Record, read_records
from pipelines.common.keyframes import KeyframeSettings, Meter, choose, measure
from pipelines.common.media import VideoReader, VideoWriter
from pipelines.openpack import clips, normalise
from pipelines.openpack.annotations import Segment, write_operations
from pipelines.openpack.clip_plan import Clip
from pipelines.openpack.settings import ClipSettings, NormaliseSettings
from pipelines.openpack.sources import LocalSource

START = 1_648_531_511_030
CHANGES = (4.0, 9.0, 13.0)  # seconds at which the picture changes for good; 18 s in all, at 15 frames a second
LENGTH = 18
EVERY = ClipSettings(boundary_clips=9, transition_clips=9, inside_clips=9)  # every second at which a clip can start
LABELS = {  # operation and seconds, none of them where the picture changes
    "S0100": [(100, 6), (200, 5), (300, 4), (400, 9)],
    "S0200": [(500, 3), (600, 7.5), (8100, 3), (700, 9)],
}


def draw(path: Path) -> None:
    """Four still scenes one after the other, and a dot that is elsewhere on every frame."""
    rng = np.random.default_rng(1)
    scenes = [np.kron(rng.integers(0, 2, (12, 16)) * rng.integers(40, 200), np.ones((6, 6))) for _ in range(4)]
    with VideoWriter(path, 15, (96, 72)) as writer:
        for index in range(LENGTH * 15):
            scene = scenes[sum(index / 15 >= change for change in CHANGES)].copy()
            scene[30:38, 7 * index % 80 : 7 * index % 80 + 8] = 255
            writer.write(np.repeat(scene[:, :, None], 3, 2).astype(np.uint8))
    path.with_suffix(".json").write_text('{"start": "2022-03-29 14:25:11.030+09:00"}')


def annotate(root: Path, session: str, parts: list[tuple[int, float]]) -> Path:
    path = root / f"U0101/annotation/openpack-operations/{session}.csv"
    ends = np.cumsum([0, *(seconds for _, seconds in parts)])
    times = [START + round(1000 * float(end)) for end in ends]
    operations = [op_id for op_id, _ in parts]
    write_operations(path, "U0101", session, map(Segment, operations, times[:-1], times[1:], [1] * len(parts)))
    return path


@dataclass
class World:
    """A release and the folders of its stages; each call brings one stage up to date."""

    root: Path

    def fetch(self) -> list[Record]:
        return LocalSource(self.root / "release", "video").fetch("U0101", self.root / "raw", workers=1)

    def normalise(self) -> list[Record]:
        return normalise.run_user("U0101", self.root / "raw", self.root / "normalized", NormaliseSettings(), 1)

    def cut(
        self,
        out: str = "clips",
        settings: ClipSettings = EVERY,
        keyframes: KeyframeSettings | None = None,
        progress: Callable[[Record, bool], None] = lambda record, fresh: None,
    ) -> dict[str, Record]:
        before = self.root / "normalized", self.root / "raw"
        recipe = settings, keyframes or KeyframeSettings()
        records = clips.run_user("U0101", *before, self.root / out, *recipe, workers=1, progress=progress)
        return {record.name: record for record in records}

    def clips(self, session: str, out: str = "clips") -> list[Clip]:
        return clips.read_clips(self.root / out / session)


@pytest.fixture(scope="module")
def cut_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Sessions of one film: two with labels, one without, one with labels that cannot be read. Read only."""
    world = World(tmp_path_factory.mktemp("world"))
    videos = world.root / "release/U0101/video"
    videos.mkdir(parents=True)
    draw(videos / "S0100.mp4")
    for session in ("S0200", "S0300", "S0400"):
        for suffix in (".mp4", ".json"):
            shutil.copy(videos / f"S0100{suffix}", videos / f"{session}{suffix}")
    for session, parts in LABELS.items():
        annotate(world.root / "release", session, parts)
    broken = annotate(world.root / "release", "S0400", LABELS["S0100"])
    broken.write_text(broken.read_text().replace(",300,", ",301,"))
    world.fetch()
    world.normalise()
    world.cut()
    return world


@pytest.fixture
def world(cut_world: World, tmp_path: Path) -> World:
    """A copy that a test may change."""
    shutil.copytree(cut_world.root, tmp_path / "world")
    world = World(tmp_path / "world")
    world.fetch()  # session.json names the release by its place
    world.normalise()
    world.cut()
    return world


def test_clips_are_those_of_the_labels(cut_world: World):
    first, *_, last = cut_world.clips("S0100")
    assert [clip.start_frame for clip in cut_world.clips("S0100")] == list(range(0, 13 * 25, 25))
    assert (first.clip_id, first.user, first.session, first.n_frames) == ("U0101_S0100_t0000", "U0101", "S0100", 125)
    assert (first.kind, first.boundaries, first.target.model_dump()) == (
        "inside",
        (),
        {"operation": 100, "start": 0, "end": 125, "next": 200},
    )
    assert (last.start_frame, last.boundaries) == (300, (75,))
    assert last.target.model_dump() == {"operation": 300, "start": 0, "end": 75, "next": 400}


def test_keyframes_depend_on_the_picture_and_not_on_labels(cut_world: World):
    ours, others = ({clip.start_frame: clip for clip in cut_world.clips(session)} for session in LABELS)
    shared = ours.keys() & others.keys()
    assert len(shared) > 8
    assert all(ours[start].keyframes == others[start].keyframes for start in shared)
    assert all(ours[start].target != others[start].target for start in shared)


def test_cuts_are_where_the_picture_changes(cut_world: World):
    for clip in cut_world.clips("S0100"):
        for change in CHANGES:
            frame = round(change * 25) - clip.start_frame
            if 5 <= frame <= 120:
                assert min(abs(frame - cut) for cut in clip.bounds[1:-1]) <= 1


def test_no_pair_crosses_a_cut_or_shows_one_source_frame_twice(cut_world: World):
    source = normalise.read_frames(cut_world.root / "normalized/S0100")["source_frame"]
    for clip in cut_world.clips("S0100"):
        for (low, high), (first, second) in zip(clip.keyframes.segments, clip.pairs, strict=True):
            assert low <= first < second < high
            assert source[clip.start_frame + second] == source[clip.start_frame + first] + 1


@pytest.mark.parametrize("method", ["entropy", "motion", "stride"])
def test_a_clip_alone_gives_the_same_keyframes(cut_world: World, method: str):
    settings = KeyframeSettings.model_validate({"method": method})
    repeated = normalise.read_frames(cut_world.root / "normalized/S0100")["repeated"].to_numpy(bool)
    with VideoReader(cut_world.root / "normalized/S0100" / normalise.VIDEO) as reader:
        whole = Meter()
        for batch, first in zip(reader.batches(50), range(0, len(reader), 50), strict=True):
            for frame, again in zip(batch, repeated[first : first + 50], strict=True):
                whole.again() if again else whole.add(frame)
        for start in (0, 25, 100, 201):  # frame 201 repeats the one before it
            shown = [start, *(start + 1 + np.flatnonzero(~repeated[start + 1 : start + 125]))]
            alone = measure(reader.frames(shown), repeated[start : start + 125])
            part = whole.signal(start, start + 125)
            np.testing.assert_array_equal(part.fresh, alone.fresh)
            np.testing.assert_array_equal(part.motion[:2], alone.motion[:2])
            assert choose(part, settings) == choose(alone, settings)
    assert repeated[201]


def test_the_frames_on_disk_are_the_shown_ones_of_the_video(cut_world: World):
    folder = cut_world.root / "clips/S0200"
    shown = {clip.start_frame + frame for clip in cut_world.clips("S0200") for frame in clip.keyframes.frames}
    assert {int(path.stem) for path in (folder / clips.FRAMES).iterdir()} == shown
    with VideoReader(cut_world.root / "normalized/S0200" / normalise.VIDEO) as reader:
        for number in sorted(shown):
            jpeg = np.asarray(Image.open(clips.frame_file(folder, number)), int)
            own, other = (np.abs(jpeg - picture).mean() for picture in reader.frames([number, number + 2]))
            assert own < 3
            assert own < other  # whose dot is elsewhere


def test_clips_outside_of_training_also_have_evenly_spaced_frames(cut_world: World, tmp_path: Path):
    assert {clip.uniform for clip in cut_world.clips("S0100")} == {None}
    assert "uniform" not in (cut_world.root / "clips/S0100" / clips.CLIPS).read_text()
    shutil.copytree(cut_world.root / "raw", tmp_path / "raw")
    file = tmp_path / "raw/S0100/session.json"
    file.write_text(file.read_text().replace('"split": "train"', '"split": "test"'))
    before = cut_world.root / "normalized", tmp_path / "raw"
    clips.run_user("U0101", *before, tmp_path / "out", EVERY, KeyframeSettings(), 1)
    folder = tmp_path / "out/S0100"
    cut = clips.read_clips(folder)
    assert {clip.uniform.bounds for clip in cut if clip.uniform} == {(0, 31, 62, 94, 125)}
    shown = {clip.start_frame + frame for clip in cut for frame in (*clip.keyframes.frames, *clip.uniform.frames)}
    assert {int(path.stem) for path in (folder / clips.FRAMES).iterdir()} == shown
    ours = {clip.start_frame: clip for clip in cut_world.clips("S0100")}
    same = [clip for clip in cut if clip.start_frame in ours]
    assert same
    assert all(clip.keyframes == ours[clip.start_frame].keyframes for clip in same)


def test_the_summary_counts_what_there_is(cut_world: World):
    summary = {record.name: record.summary for record in read_records(cut_world.root / "clips")}["S0100"]
    found = cut_world.clips("S0100")
    assert (summary["clips"], summary["seconds"]) == (len(found), LENGTH)
    assert sum(summary["kinds"].values()) == sum(summary["operations"].values()) == len(found)
    assert summary["operations"]["Picking"] == sum(clip.target.operation == 100 for clip in found)
    distances = [min(abs(b - cut) for cut in clip.bounds[1:-1]) for clip in found for b in clip.boundaries]
    assert summary["boundary_to_cut_frames"] == np.median(distances)
    assert summary["settings"]["keyframes"]["method"] == "entropy"


def test_sessions_without_use_say_why_and_hold_up_no_other(cut_world: World):
    records = {record.name: record for record in read_records(cut_world.root / "clips")}
    raw = {record.name: record for record in read_records(cut_world.root / "raw")}
    summary = records["S0300"].summary
    assert (summary["clips"], summary["why"]) == (0, "the session has no annotations")
    assert cut_world.clips("S0300") == []
    assert (records["S0400"].status, records["S0400"].reason) == ("set_aside", raw["S0400"].reason)
    assert "row 4: unknown operation id 301" in str(records["S0400"].reason)
    assert [records[name].ok for name in LABELS] == [True, True]


def test_a_video_outside_of_the_annotated_time_gives_no_clips(world: World):
    annotate(world.root / "release", "S0100", [(100, 3), (200, 4)])
    world.fetch()
    record = world.cut()["S0100"]
    assert record.summary["clips"] == 1  # the five seconds from 0 s on; after them lies mostly the last operation
    annotate(world.root / "release", "S0100", [(100, 3)])
    world.fetch()
    assert "no 5 s of the video" in world.cut()["S0100"].summary["why"]


def test_the_real_second_of_video_lies_before_its_labels_and_gives_no_clips(sample: Path, tmp_path: Path):
    raw, normalized = tmp_path / "raw", tmp_path / "normalized"
    LocalSource(sample, "rgb").fetch("U0209", raw, workers=1)
    normalise.run_user("U0209", raw, normalized, NormaliseSettings(), 1)
    (record,) = clips.run_user("U0209", normalized, raw, tmp_path / "out", EVERY, KeyframeSettings(), 1)
    assert (record.status, record.summary["clips"]) == ("ok", 0)
    assert "within the annotated time" in record.summary["why"]


def test_the_same_input_gives_the_same_bytes(cut_world: World, tmp_path: Path):
    def without_times(folder: Path) -> dict[str, str]:
        return {name: value for name, value in folder_digests(folder).items() if not name.endswith("record.json")}

    again = World(cut_world.root)
    again.cut(out=str(tmp_path / "again"))
    assert without_times(tmp_path / "again") == without_times(cut_world.root / "clips")


def test_only_what_changed_is_computed_again(world: World):
    def computed(**recipe: ClipSettings | KeyframeSettings) -> list[str]:
        names: list[str] = []
        world.cut(progress=lambda record, fresh: names.append(record.name) if fresh else None, **recipe)
        return names

    assert computed() == []
    annotate(world.root / "release", "S0200", LABELS["S0100"])
    world.fetch()
    assert computed() == ["S0200"]
    method = KeyframeSettings(method="uniform")
    assert computed(keyframes=method) == ["S0100", "S0200", "S0300", "S0400"]
    assert {clip.bounds for clip in world.clips("S0200")} == {(0, 31, 62, 94, 125)}


def test_annotations_that_changed_behind_raw_session_are_not_used(world: World):
    annotate(world.root / "release", "S0100", LABELS["S0200"])
    record = world.cut(settings=ClipSettings())["S0100"]
    assert record.status == "set_aside"
    assert "have changed since raw_session. Run raw_session again." in str(record.reason)


def test_a_stage_before_that_is_behind_is_an_error(world: World):
    shutil.rmtree(world.root / "normalized/S0200")
    with pytest.raises(DataError, match=r"S0200.*Run raw_session, then normalized_video, for this user"):
        world.cut()


def test_the_stage_runs_by_hand(cut_world: World, tmp_path: Path, monkeypatch, capsys):
    toml = tmp_path / "settings.toml"
    toml.write_text('[clips]\nboundary_clips = 1\n[keyframes]\nmethod = "stride"\n')
    folders = [cut_world.root / "normalized", cut_world.root / "raw", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["clips", "U0101", *map(str, folders), "--settings", str(toml), "--workers", "1"])
    clips.main()
    assert "no annotations" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/S0100/record.json").read_text())
    assert record["summary"]["settings"]["keyframes"]["method"] == "stride"
