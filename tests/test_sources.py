"""Finding and checking sessions: the real sample, one small release of our own broken in many ways, the simulation."""

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import DataError, SetupError
from pipelines.openpack import release
from pipelines.openpack.annotations import JAPAN, Segment, read_operations, write_operations
from pipelines.openpack.settings import SimulationSettings
from pipelines.openpack.sources import SESSION, LocalSource, SimulatedSource, main, read_session

START = 1648531511030  # 2022-03-29 14:25:11.030+09:00


def frame_path(root, user, session, view, ms):
    time = datetime.fromtimestamp(ms / 1000, UTC).astimezone(JAPAN)
    name = f"{time:%Y/%m/%d/%H/%M/%Y%m%d_%H%M%S}_{ms % 1000:03d}{'.jpg' if view == 'rgb' else '.png'}"
    return release.stream_place(root, user, session, view) / name


@pytest.fixture
def root(tmp_path):
    """A release with two sessions of U0101, each annotated, with ten RGB frames."""
    for session, hour in (("S0100", 0), ("S0200", 1)):
        start = START + hour * 3_600_000
        segments = [Segment(100, start, start + 400, 1), Segment(200, start + 400, start + 900, 1)]
        write_operations(release.annotation_file(tmp_path, "U0101", session), "U0101", session, segments)
        for i in range(10):
            path = frame_path(tmp_path, "U0101", session, "rgb", start + i * 67)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((24, 32, 3), 20 * i, np.uint8)).save(path)
    return tmp_path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fetch(root, out, view="rgb", user="U0101"):
    return {record.name: record for record in LocalSource(root, view).fetch(user, out, workers=1)}


@pytest.mark.parametrize(
    ("user", "view", "frames", "first", "last"),
    [
        ("U0209", "rgb", 15, START, START + 933),
        ("U0209", "depth", 15, START, START + 933),
        ("U0102", "keypoints", 100, 1634869193039, 1634869199641),
    ],
)
def test_the_real_streams(sample, out, user, view, frames, first, last):
    (record,) = LocalSource(sample, view).fetch(user, out)
    assert record.ok, record.reason
    session = read_session(out / record.name)
    assert (session.n_frames, session.first_ms, session.last_ms) == (frames, first, last)
    assert (out / record.name / session.stream.path).exists()
    assert session.stream.start_ms is None
    assert record.summary["frames"] == frames
    assert "gives no clips" in record.summary["note"]  # of U0102 no annotations; U0209's frames end before the first
    assert record.summary["operations"] == (193 if user == "U0209" else 0)
    assert (session.annotation is None) == (user == "U0102")


def test_what_the_sample_lacks_is_said(sample, out):
    assert LocalSource(sample, "rgb").users() == ["U0102", "U0209"]
    (record,) = LocalSource(sample, "keypoints").fetch("U0209", out)
    assert record.status == "set_aside"
    assert "no frame in the view keypoints" in record.reason
    assert "OPENPACK_VIEW to rgb or depth" in record.reason


def test_sessions_of_a_release(root, out):
    records = fetch(root, out)
    assert [record.name for record in records.values() if record.ok] == ["S0100", "S0200"]
    session = read_session(out / "S0200")
    assert (session.user, session.session, session.n_frames) == ("U0101", "S0200", 10)
    assert session.last_ms - session.first_ms == 9 * 67
    assert read_operations(out / "S0200" / session.annotation).start_ms == session.first_ms
    assert records["S0200"].summary == {"view": "rgb", "frames": 10, "seconds": 0.603, "operations": 2, "note": None}


def test_depth_keypoints_and_film_give_the_same_times(root, out):
    times = [START + i * 67 for i in range(10)]
    for ms in times:
        path = frame_path(root, "U0101", "S0100", "depth", ms)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 32), 3000, np.uint16)).save(path)
    write_keypoints(root, times)
    write_film(root, START, rate="1000/67")
    for view in ("depth", "keypoints", "video"):
        record = fetch(root, out, view)["S0100"]
        assert record.ok, record.reason
        session = read_session(out / "S0100")
        assert (session.n_frames, session.first_ms, session.last_ms) == (10, times[0], times[-1])
    assert session.stream.start_ms == START


def write_keypoints(root, times, session="S0100"):
    path = release.stream_place(root, "U0101", session, "keypoints")
    path.parent.mkdir(parents=True, exist_ok=True)
    joints = [[float(i), 2.0 * i, 0.9] for i in range(release.JOINTS)]
    entries = [{"id": ms * 1000, "image_id": ms, "keypoints": joints} for ms in times]
    path.write_text(json.dumps({"info": {}, "annotations": entries}))
    return path


def write_film(root, start_ms, rate="15", options=()):
    path = release.stream_place(root, "U0101", "S0100", "video")
    path.parent.mkdir(parents=True, exist_ok=True)
    source = ["-f", "lavfi", "-i", f"testsrc2=size=64x48:rate={rate}", "-frames:v", "10", "-pix_fmt", "yuv420p"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, *options, "-y", path], check=True)
    start = datetime(1970, 1, 1, tzinfo=UTC).astimezone(JAPAN) + timedelta(milliseconds=start_ms)
    release.video_start_file(path).write_text(json.dumps({"start": str(start)}))
    return path


def broken(path, how):
    """Damages one file as disks, copies and people do, and returns it."""
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    elif how == "wrong":
        path.write_bytes(b"<html>404 Not Found</html>" * 20)
    return path


def assert_set_aside(records, out, file, words):
    """S0100 is listed with file and cure and leaves nothing but its record; S0200 goes on."""
    assert records["S0200"].ok, records["S0200"].reason
    record = records["S0100"]
    assert record.status == "set_aside"
    assert str(file) in record.reason
    assert words in record.reason
    assert names(out / "S0100") == ["record.json"]
    assert names(out) == ["S0100", "S0200"]


@pytest.mark.parametrize(
    ("how", "words"), [("empty", "is empty"), ("truncated", "cut short"), ("wrong", "not a jpg picture")]
)
def test_a_bad_frame_sets_its_session_aside(root, out, how, words):
    frame = broken(sorted(root.rglob("*.jpg"))[4], how)
    assert_set_aside(fetch(root, out), out, frame, words)


def test_frames_whose_names_cannot_be_right_set_the_session_aside(root, out):
    first = sorted(root.rglob("*.jpg"))[0]
    stray = shutil.copy(first, first.with_name("IMG_0001.jpg"))
    assert_set_aside(fetch(root, out), out, stray, "holds no time")
    Path(stray).unlink()
    twice = first.parents[1] / first.name
    shutil.copy(first, twice)
    assert_set_aside(fetch(root, out), out, first, "same time as")
    twice.unlink()
    first.with_name("._" + first.name).write_bytes(b"left by a file manager")
    assert fetch(root, out)["S0100"].ok


@pytest.mark.parametrize("how", ["empty", "truncated", "wrong"])
def test_a_bad_annotation_sets_its_session_aside(root, out, how):
    path = broken(release.annotation_file(root, "U0101", "S0100"), how)
    words = {"empty": "is empty", "truncated": "row 3", "wrong": "row 1"}[how]
    assert_set_aside(fetch(root, out), out, path, words)


def test_rows_that_overlap_or_are_of_another_session_set_it_aside(root, out):
    path = release.annotation_file(root, "U0101", "S0100")
    write_operations(path, "U0101", "S0100", [Segment(100, START, START + 900, 1), Segment(200, START, START + 9, 1)])
    assert_set_aside(fetch(root, out), out, path, "row 3: starts 900 ms before row 2 ends")
    write_operations(path, "U0101", "S0300", [Segment(100, START, START + 900, 1)])
    assert_set_aside(fetch(root, out), out, path, "its rows are of U0101 S0300")


def test_a_session_without_frames_is_set_aside(root, out):
    place = release.stream_place(root, "U0101", "S0100", "rgb")
    shutil.rmtree(place)
    assert_set_aside(fetch(root, out), out, place, "no frame in the view rgb")
    place.mkdir()
    assert_set_aside(fetch(root, out), out, place, "no frame in the view rgb")


@pytest.mark.parametrize(
    ("how", "words"), [("empty", "is empty"), ("truncated", "perhaps cut short"), ("wrong", "not a readable keypoint")]
)
def test_bad_keypoints_set_the_session_aside(root, out, how, words):
    write_keypoints(root, [START], "S0200")
    path = broken(write_keypoints(root, [START, START + 67]), how)
    assert_set_aside(fetch(root, out, "keypoints"), out, path, words)


def test_a_keypoint_entry_of_the_wrong_form_is_named(root, out):
    write_keypoints(root, [START], "S0200")
    path = write_keypoints(root, [START, START + 67])
    content = json.loads(path.read_text())
    content["annotations"][1]["keypoints"].pop()
    path.write_text(json.dumps(content))
    assert_set_aside(fetch(root, out, "keypoints"), out, path, "annotations[1]: keypoints of shape (16, 3)")
    path.write_text(json.dumps({"images": []}))
    assert_set_aside(fetch(root, out, "keypoints"), out, path, "not a keypoint file in COCO form")


def test_several_persons_in_a_frame_are_one_frame(root):
    path = write_keypoints(root, [START + 67, START, START])
    frames = release.read_keypoints(path).frames
    assert [(time, joints.shape) for time, joints in frames] == [(START, (2, 17, 3)), (START + 67, (1, 17, 3))]


@pytest.mark.parametrize("index_first", [False, True])  # a film with its index first plays even when it is cut
@pytest.mark.parametrize(
    ("how", "words"), [("empty", "is empty"), ("truncated", "cut short"), ("wrong", "not an mp4 film")]
)
def test_a_bad_film_sets_its_session_aside(root, out, how, words, index_first):
    path = broken(write_film(root, START, options=["-movflags", "+faststart"] if index_first else []), how)
    record = fetch(root, out, "video")["S0100"]
    assert record.status == "set_aside"
    assert str(path) in record.reason
    assert words in record.reason


def test_a_film_without_a_start_sets_its_session_aside(root, out):
    path = release.video_start_file(write_film(root, START))
    for text, words in (
        ('{"start": "2022-03-29 14:25:11"}', "lacks its offset"),
        ("[]", "no start time"),
        (None, "missing"),
    ):
        path.write_text(text) if text else path.unlink()
        record = fetch(root, out, "video")["S0100"]
        assert record.status == "set_aside"
        assert str(path) in record.reason
        assert words in record.reason


def test_only_a_changed_session_is_inspected_again(root, out):
    source = LocalSource(root, "rgb")
    before, first = source.fingerprint("U0101"), fetch(root, out)
    assert source.fingerprint("U0101") == before
    again = fetch(root, out)
    assert again == first  # with the same times taken: neither was done again
    sorted((root / "U0101/kinect/color-masked/frames/S0200").rglob("*.jpg"))[-1].unlink()
    assert source.fingerprint("U0101") != before
    changed = fetch(root, out)
    assert changed["S0100"] == first["S0100"]
    assert changed["S0200"].summary["frames"] == 9
    assert changed["S0200"].content() != first["S0200"].content()


def test_a_touched_file_changes_no_content(root, out):
    first = fetch(root, out)
    os.utime(release.annotation_file(root, "U0101", "S0100"))
    touched = fetch(root, out)
    assert touched["S0100"].inputs != first["S0100"].inputs
    assert touched["S0100"].content() == first["S0100"].content()


def test_a_session_that_is_gone_leaves_no_folder(root, out):
    fetch(root, out)
    release.annotation_file(root, "U0101", "S0200").unlink()
    shutil.rmtree(release.stream_place(root, "U0101", "S0200", "rgb"))
    assert list(fetch(root, out)) == ["S0100"]
    assert names(out) == ["S0100"]
    shutil.rmtree(root / "U0101")
    (root / "U0101").mkdir()
    with pytest.raises(DataError, match=r"no session of this user.*Unpack U0101\.zip"):
        fetch(root, out)
    assert names(out) == []


def test_a_root_without_users_says_what_to_set(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SetupError, match="OPENPACK_ROOT"):
            LocalSource(root, "rgb").users()


def test_a_session_file_of_another_version_says_so(root, out):
    fetch(root, out)
    path = out / "S0100" / SESSION
    path.write_text(path.read_text().replace("n_frames", "frames"))
    with pytest.raises(DataError, match="raw_session again") as caught:
        read_session(out / "S0100")
    assert caught.value.file == path


def test_by_hand(root, out, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["sources", "U0101", str(out), "--root", str(root), "--view", "rgb", "--workers", "1"]
    )
    main()
    assert capsys.readouterr().out.count(" ok ") == 2


SHORT = SimulationSettings(sessions=1, boxes=1, duration_scale=0.05, width=96, height=72)


def test_a_simulated_session_is_a_release_that_passes_the_same_checks(out):
    source = SimulatedSource(SHORT)
    assert source.users() == [f"U010{i}" for i in range(1, 9)]
    (record,) = source.fetch("U0107", out, workers=1)
    assert record.ok, record.reason
    session = read_session(out / "S0100")
    assert session.stream.kind == "video"
    assert (out / "S0100" / session.stream.path).is_file()
    timeline = read_operations(out / "S0100" / session.annotation)
    assert session.first_ms <= timeline.start_ms < timeline.end_ms <= session.last_ms + 1000
    assert LocalSource(out / "S0100", "video").users() == ["U0107"]


def test_one_more_simulated_session_costs_one_session(out):
    (first,) = SimulatedSource(SHORT).fetch("U0101", out, workers=1)
    two = SHORT.model_copy(update={"sessions": 2})
    records = SimulatedSource(two).fetch("U0101", out, workers=1)
    assert records[0] == first
    assert [record.name for record in records] == ["S0100", "S0200"]
    assert SimulatedSource(two).fingerprint("U0101") != SimulatedSource(SHORT).fingerprint("U0101")
    other_seed = SimulatedSource(SHORT.model_copy(update={"seed": 8}))
    assert other_seed.fingerprint("U0101") != SimulatedSource(SHORT).fingerprint("U0101")
    assert len(other_seed.fetch("U0101", out, workers=1)) == 1
    assert names(out) == ["S0100"]
