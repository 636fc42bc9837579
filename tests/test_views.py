"""Streams of every kind through the first two stages: containers, odd films, odd times, and how each view looks."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_samples import START_MS, frame_path, make_source, numbered, read_numbers, run_ffmpeg
from PIL import Image

from pipelines.common.clip_format import DEFAULT_FORMAT, ClipFormat
from pipelines.common.containers import check_film
from pipelines.common.errors import DataError
from pipelines.common.ffmpeg_process import ffmpeg_exe
from pipelines.common.frame_times import check_shown, hold_mapping, timing
from pipelines.common.incremental import Record
from pipelines.common.media import VideoReader, VideoWriter, packet_times
from pipelines.openpack import release
from pipelines.openpack.normalise import VIDEO, read_frames, run_user
from pipelines.openpack.settings import NormaliseSettings
from pipelines.openpack.sources import LocalSource
from pipelines.openpack.streams import FARTHEST_GREY, GROUND, draw_skeleton, open_pictures

SETTINGS, SIZE = NormaliseSettings(), DEFAULT_FORMAT.size
BARE, SMALL = NormaliseSettings(rgb_masks=()), ClipFormat(size=112)
CONTAINERS = (".mp4", ".mov", ".mkv", ".avi")
CODECS = {".avi": ["-c:v", "mpeg4", "-q:v", "3"]}
H264 = ["-c:v", "libx264", "-preset", "ultrafast"]
UNEVEN = "settb=1/1000,setpts='70*N+30*mod(N,3)+400*gte(N,40)'"  # ms: steps of 100, 100, 10, and one gap of 500
TICKS = ["-fps_mode", "passthrough", "-enc_time_base", "1:1000"]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """The folder of U0101's films, each with its start beside it."""
    folder = tmp_path / "release" / "U0101" / "video"
    folder.mkdir(parents=True)
    for session in ("S0100", "S0200"):
        (folder / f"{session}.json").write_text('{"start": "2022-03-29 14:25:11.030+09:00"}')
    return folder


def both_stages(root: Path, view: str = "video", settings: NormaliseSettings = BARE) -> list[Record]:
    """Records of normalized_video, into `<root>/../out`."""
    raw, out = root.parent / "raw", root.parent / "out"
    LocalSource(root, view).fetch("U0101", raw, workers=1)
    return run_user("U0101", raw, out, settings, workers=1, clip_format=SMALL)


def shown_numbers(folder: Path) -> list[int]:
    with VideoReader(folder / VIDEO) as reader:
        return read_numbers(reader.frames(range(len(reader))))


def check_frames(root: Path, session: str, times_s: np.ndarray) -> None:
    """Pixels and table say the same: each frame shows the source frame that its time asks for."""
    mapping = hold_mapping(times_s, 25).tolist()
    folder = root.parent / "out" / session
    assert read_frames(folder)["source_frame"].tolist() == mapping
    np.testing.assert_allclose(read_frames(folder)["source_ms"], times_s[mapping] * 1000, atol=0.7)  # whole ms in mkv
    assert shown_numbers(folder) == mapping


@pytest.mark.parametrize("ending", [*CONTAINERS, ".MOV"])
def test_a_film_with_a_second_stream_a_cover_and_sound(films: Path, tmp_path: Path, ending: str) -> None:
    codec = CODECS.get(ending, H264)
    one = make_source(tmp_path / f"one{ending}", 40, "15", *codec)
    other = make_source(tmp_path / f"other{ending}", 90, "30", "-vf", "negate", *codec)
    inputs = ["-i", one, "-i", other, "-f", "lavfi", "-i", "sine=d=2"]
    if ending == ".mp4":
        Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "cover.png")
        cover = ["-i", tmp_path / "cover.png", "-map", "3", "-disposition:v:0", "attached_pic"]
        run_ffmpeg(*inputs, *cover, "-map", "0", "-map", "1", "-map", "2", "-c:v", "copy", films / f"S0100{ending}")
    else:
        maps = ["-map", "0", "-map", "1", "-map", "2"]
        run_ffmpeg(*inputs, *maps, "-c:v", "copy", films / f"S0100{ending}")
    [record] = [record for record in both_stages(films.parents[1]) if record.name == "S0100"]
    assert record.ok, record.reason
    assert record.summary["source_video_streams"] == 2
    assert record.summary["source_usual_ms"] == pytest.approx(1000 / 15, abs=1)
    assert record.summary["source_gaps"] == (ending == ".avi")  # whose writer puts in an empty frame beside sound
    check_frames(films.parents[1], "S0100", packet_times(films / f"S0100{ending}"))


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
def test_a_film_of_no_steady_rate(films: Path, ending: str) -> None:
    make_source(films / f"S0100{ending}", 80, "25", "-vf", UNEVEN, *TICKS, *H264)
    [record] = both_stages(films.parents[1])
    assert record.ok, record.reason
    times = np.array([70 * i + 30 * (i % 3) + 400 * (i >= 40) for i in range(80)])
    check_frames(films.parents[1], "S0100", times / 1000)
    found = {name: record.summary[f"source_{name}"] for name in ("usual_ms", "gaps", "missing_frames", "longest_gap_s")}
    assert found == {"usual_ms": 100, "gaps": 1, "missing_frames": 4, "longest_gap_s": 0.5}


@pytest.mark.parametrize("rate", ["10", "25", "30000/1001", "60"])
def test_a_film_of_any_rate(films: Path, rate: str) -> None:
    make_source(films / "S0100.mp4", 60, rate, *H264)
    [record] = both_stages(films.parents[1])
    assert record.ok, record.reason
    frames, per_second = (int(part) for part in f"{rate}/1".split("/")[:2])
    check_frames(films.parents[1], "S0100", np.arange(60) * per_second / frames)
    assert record.summary["source_gaps"] == 0


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
def test_a_rotation_flag_turns_the_film(films: Path, tmp_path: Path, ending: str) -> None:
    frame = np.zeros((64, 128, 3), dtype=np.uint8)
    frame[:32] = 255  # the top is white
    with VideoWriter(tmp_path / "upright.mp4", 25, (128, 64)) as writer:
        writer.write(frame, repeat=5)
    film = films / f"S0100{ending}"
    run_ffmpeg("-display_rotation", "90", "-i", tmp_path / "upright.mp4", "-c", "copy", film)
    [record] = both_stages(films.parents[1])
    assert record.ok, record.reason
    with VideoReader(films.parents[2] / "out" / "S0100" / VIDEO) as reader:
        picture = reader.frames([0])[0].mean(-1)
    assert picture[:, :40].min() > 200  # turned to the left: the white top is the left side now
    assert picture[:, -40:].max() < 50


def test_two_films_of_one_session_set_it_aside_and_the_other_goes_on(films: Path) -> None:
    for name in ("S0100.mp4", "S0100.avi", "S0200.mkv"):
        make_source(films / name, 10, "15", *CODECS.get(Path(name).suffix, H264))
    first, second = both_stages(films.parents[1])
    assert second.ok, second.reason
    assert first.status == "set_aside"
    assert f"{films}: two films of one session: S0100.avi and S0100.mp4" in str(first.reason)
    (films / "S0100.avi").unlink()
    assert [record.ok for record in both_stages(films.parents[1])] == [True, True]


@pytest.mark.parametrize("ending", [*CONTAINERS, ".mkv written in one go", ".mp4 with its index first"])
def test_a_film_that_is_cut_in_the_middle_is_never_silently_shorter(films: Path, tmp_path: Path, ending: str) -> None:
    suffix = ending.split()[0]
    film = make_source(films / f"S0100{suffix}", 90, "15", *CODECS.get(suffix, H264))
    if "one go" in ending:
        command = [ffmpeg_exe(), "-v", "error", "-i", film, "-c", "copy", "-f", "matroska", "-"]
        film.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    if "index" in ending:
        run_ffmpeg("-i", film, "-c", "copy", "-movflags", "+faststart", tmp_path / "first.mp4")
        (tmp_path / "first.mp4").replace(film)
    whole = film.read_bytes()
    [record] = both_stages(films.parents[1])
    assert record.summary["source_frames"] == 90
    film.write_bytes(whole[: len(whole) * 6 // 10])
    [record] = both_stages(films.parents[1])
    assert record.status == "set_aside"
    assert film.name in str(record.reason)


@pytest.mark.parametrize("ending", CONTAINERS)
def test_a_film_is_whole_only_at_its_own_length(tmp_path: Path, ending: str) -> None:
    film = make_source(tmp_path / f"a{ending}", 20, "15", *CODECS.get(ending, H264))
    whole = film.read_bytes()
    check_film(film)
    refused = []
    for length in range(0, len(whole), 97):
        film.write_bytes(whole[:length])
        try:
            check_film(film)
        except DataError:
            refused.append(length)
    passed = {*range(0, len(whole), 97)} - {*refused}
    assert all(whole[end + 4 : end + 8] in (b"mdat", b"moov", b"free") for end in passed)  # between two boxes of an mp4
    film.write_bytes(whole + bytes(40))
    with pytest.raises(DataError, match=f"byte {len(whole)}: the film is damaged"):
        check_film(film)


def test_the_container_counts_and_not_the_name(films: Path) -> None:
    make_source(films / "S0100.mkv", 10, "15", *H264).rename(films / "S0100.avi")
    (films / "S0200.mkv").write_text("<html>404 Not Found</html>")
    first, second = both_stages(films.parents[1])
    assert first.ok, first.reason
    assert "S0200.mkv: not an mkv film. Give an mp4, mov, mkv, webm or avi." in str(second.reason)


def test_pictures_out_of_their_times_are_an_error_that_names_frame_and_time(films: Path, tmp_path: Path) -> None:
    whole = make_source(tmp_path / "whole.mp4", 12, "25", "-c:v", "mjpeg")
    swapped = "setts=pts='512*(2+N+eq(N,7)-eq(N,8))'"  # the eighth picture at the ninth's time and the other way round
    run_ffmpeg("-i", whole, "-c", "copy", "-bsf:v", swapped, films / "S0100.mp4")
    [record] = both_stages(films.parents[1])
    assert record.status == "set_aside"
    assert "S0100.mp4, source frame 10 of 0.400 s: it is shown at 0.320 s, 80.0 ms too early" in str(record.reason)


def test_the_tolerance_decides_what_is_off() -> None:
    times = np.array([0.0, 0.0405, 0.08, 0.12])  # the second is half a millisecond late for frame 1
    by_the_rule = hold_mapping(times, 25)
    assert by_the_rule.tolist() == [0, 0, 2, 3]
    check_shown(by_the_rule, times, 25, 0.0, Path("a.mp4"))
    shown = np.array([0, 1, 2, 3])
    check_shown(shown, times, 25, 0.001, Path("a.mp4"))
    with pytest.raises(
        DataError, match=r"a\.mp4, source frame 1 of 0\.041 s: it is shown at 0\.040 s, 0\.5 ms too early"
    ):
        check_shown(shown, times, 25, 0.0004, Path("a.mp4"))
    with pytest.raises(DataError, match=r"source frame 0 of 0\.000 s: it is shown at 0\.080 s, 39\.5 ms too late"):
        check_shown(np.array([0, 0, 0, 3]), times, 25, 0.001, Path("a.mp4"))


@given(st.lists(st.integers(1, 400), max_size=60), st.sampled_from([25, 15, 30]), st.data())
def test_the_rule_is_held_by_its_own_mapping_and_by_no_other(steps: list[int], fps: int, data: st.DataObject) -> None:
    times = np.concatenate([[0], np.cumsum(steps)]) / 1000
    mapping = hold_mapping(times, fps)
    check_shown(mapping, times, fps, 0.0, Path("a.mp4"))
    n = data.draw(st.integers(0, len(mapping) - 1))
    other = data.draw(st.integers(0, len(times) - 1))
    at, lasts = n / fps, np.append(times[1:], np.inf)
    off = max(times[other] - at, at - lasts[other])
    mapping[n] = other
    if off > 1e-6:
        with pytest.raises(DataError, match=f"source frame {other} of"):
            check_shown(mapping, times, fps, off / 2, Path("a.mp4"))


def test_gaps_are_counted_by_the_usual_step() -> None:
    found = timing(np.array([0, 66, 133, 200, 266, 1000, 1067, 1133, 1300]))
    assert (found.usual_ms, found.gaps, found.missing_frames, found.longest_gap_s) == (67, 2, 11, 0.734)
    assert (found.repeated, found.out_of_order) == (0, 0)
    assert timing(np.array([5])).usual_ms is None


def write_keypoints(root: Path, entries: list[tuple[int, np.ndarray]]) -> Path:
    path = release.stream_place(root, "U0101", "S0100", "keypoints")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"image_id": START_MS + ms, "keypoints": joints.tolist()} for ms, joints in entries]
    path.write_text(json.dumps({"annotations": rows}))
    return path


def person(x: float, confidence: float = 0.9) -> np.ndarray:
    return np.array([[x + 5 * j, 100 + 30 * j, confidence] for j in range(release.JOINTS)])


def test_entries_out_of_order_are_put_right_and_told(tmp_path: Path) -> None:
    root = tmp_path / "release"
    times = [0, 66, 66, 200, 133, 266, 66]  # two persons at 66, a third one later; 200 comes too early
    write_keypoints(root, [(ms, person(100 + ms)) for ms in times])
    [record] = both_stages(root, "keypoints")
    assert record.ok, record.reason
    assert record.summary["source_frames"] == 5
    assert record.summary["source_out_of_order"] == 2
    assert record.summary["source_repeated"] == 1
    assert read_frames(tmp_path / "out/S0100")["source_ms"].tolist() == [0, 0, 66, 66, 133, 200, 200, 266, 266]


def test_gaps_of_a_frame_folder_are_told(tmp_path: Path) -> None:
    root = tmp_path / "release"
    for number, ms in enumerate([0, 66, 133, 200, 600, 666]):
        path = frame_path(release.stream_place(root, "U0101", "S0100", "rgb"), ms, ".jpg")
        Image.fromarray(numbered(number, 720)).save(path, quality=95)
    [record] = both_stages(root, "rgb")
    assert (record.summary["source_gaps"], record.summary["source_missing_frames"]) == (1, 5)
    assert record.summary["source_longest_gap_s"] == 0.4
    assert "source_video_streams" not in record.summary
    check_frames(root, "S0100", np.array([0, 66, 133, 200, 600, 666]) / 1000)


@pytest.mark.parametrize(
    ("view", "user", "usual"), [("rgb", "U0209", 67), ("depth", "U0209", 67), ("keypoints", "U0102", 67)]
)
def test_the_real_streams_have_no_gap(sample: Path, tmp_path: Path, view: str, user: str, usual: float) -> None:
    LocalSource(sample, view).fetch(user, tmp_path / "raw", workers=1)
    tiny = ClipFormat(size=56)
    [record] = run_user(user, tmp_path / "raw", tmp_path / "out", SETTINGS, workers=1, clip_format=tiny)
    assert record.summary["source_usual_ms"] == usual
    assert [record.summary[f"source_{name}"] for name in ("gaps", "repeated", "out_of_order")] == [0, 0, 0]


def test_every_person_is_drawn_and_a_doubtful_joint_leaves_no_pixel() -> None:
    two = draw_skeleton(np.stack([person(200), person(900)]), SETTINGS, SIZE)
    alone = [draw_skeleton(person(x)[None], SETTINGS, SIZE) for x in (200, 900)]
    assert (two[:, :150] == alone[0][:, :150]).all()
    assert (two[:, 150:] == alone[1][:, 150:]).all()
    doubtful = np.stack([person(200), person(900, SETTINGS.joint_confidence - 0.01)])
    assert (draw_skeleton(doubtful, SETTINGS, SIZE) == alone[0]).all()
    for joint in range(release.JOINTS):
        single = person(500, 0.1)
        single[joint, 2] = SETTINGS.joint_confidence
        drawn = (draw_skeleton(single[None], SETTINGS, SIZE) != GROUND).any(-1)
        rows, columns = np.nonzero(drawn)
        x, y = single[joint, 0] * 336 / 1280, single[joint, 1] * 336 / 720
        assert np.hypot(columns - x, rows - y).max() < 7  # one dot and no limb
        single[joint, 2] = 0.1
        assert (draw_skeleton(single[None], SETTINGS, SIZE) == GROUND).all()


def test_doubtful_joints_of_the_real_worker_are_not_drawn(sample: Path) -> None:
    place = release.stream_place(sample, "U0102", "S0100", "keypoints")
    pictures = open_pictures(place, "keypoints", SETTINGS, SIZE)
    frames = release.read_keypoints(place).frames
    doubted = 0
    for i in range(0, 100, 9):
        joints = frames[i][1].copy()
        hidden = joints[..., 2] < SETTINGS.joint_confidence
        doubted += int(hidden.sum())
        joints[hidden, :2] = 0  # wherever they are said to be, it makes no difference
        assert (pictures.draw(i) == draw_skeleton(joints, SETTINGS, SIZE)).all()
    assert doubted > 10


def test_holes_of_the_real_depth_frames_are_black_and_nothing_else_is(sample: Path) -> None:
    place = release.stream_place(sample, "U0209", "S0500", "depth")
    pictures = open_pictures(place, "depth", SETTINGS, SIZE)
    near, far = SETTINGS.depth_range_mm
    for i in (0, 7, 14):
        depth = np.asarray(Image.open(sorted(place.rglob("*.png"))[i]))
        picture = pictures.draw(i)
        rows, columns = (
            ((np.arange(336) + 0.5) / 336 * 720).astype(int),
            ((np.arange(336) + 0.5) / 336 * 1280).astype(int),
        )
        taken = depth[np.ix_(rows, columns)].astype(float)
        assert ((picture == 0).all(-1) == (taken == 0)).all()
        assert 0.4 < (taken == 0).mean() < 0.6  # half of the picture the camera cannot measure
        seen = taken > 0
        expected = 255 - (taken.clip(near, far) - near) / (far - near) * (255 - FARTHEST_GREY)
        np.testing.assert_allclose(picture[..., 0][seen], expected[seen], atol=0.51)


def test_the_mask_hides_the_burnt_in_clock_and_changes_nothing_else(sample: Path) -> None:
    place = release.stream_place(sample, "U0209", "S0500", "rgb")
    files = sorted(place.rglob("*.jpg"))
    [(left, top, right, bottom)] = SETTINGS.rgb_masks
    for file in files:
        white = np.asarray(Image.open(file)).min(-1) > 200
        assert white[top:bottom, left:right].sum() > 3000  # the figures
        white[top:bottom, left:right] = False
        assert not white[: bottom + 16].any()  # and none beside or below the mask
    masked, bare = (
        open_pictures(place, "rgb", SETTINGS, SIZE),
        open_pictures(place, "rgb", BARE, SIZE),
    )
    covered = np.zeros((336, 336), dtype=bool)
    covered[: int(np.ceil(bottom * 336 / 720)), : int(np.ceil(right * 336 / 1280))] = True
    for i in range(0, len(files), 5):
        hidden, seen = masked.draw(i), bare.draw(i)
        assert not hidden[covered].any()
        assert (hidden[~covered] == seen[~covered]).all()
