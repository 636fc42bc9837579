"""The stage normalized_video: every view by one rule, only what changed, and bad sessions set aside."""

import sys
from pathlib import Path

import numpy as np
import pytest
from media_samples import START_MS, frame_path, make_source, numbered, read_numbers
from PIL import Image

from pipelines.common.clip_format import ClipFormat
from pipelines.common.errors import DataError
from pipelines.common.frame_times import hold_mapping
from pipelines.common.incremental import RECORD, Record, read_records
from pipelines.common.media import VideoReader, packet_times
from pipelines.openpack import normalise
from pipelines.openpack.normalise import FRAMES, VIDEO, read_frames, run_user
from pipelines.openpack.preparation import NORMALISED
from pipelines.openpack.settings import NormaliseSettings
from pipelines.openpack.sources import LocalSource

SETTINGS, SMALL = NormaliseSettings(), ClipFormat(size=112)
START = '{"start": "2022-03-29 14:25:11.030+09:00"}'


@pytest.fixture
def release(tmp_path) -> Path:
    """Two sessions of films: S0100 at 15 fps, S0200 at 30."""
    folder = tmp_path / "release" / "U0101" / "video"
    folder.mkdir(parents=True)
    make_source(folder / "S0100.mp4", 45, "15", "-c:v", "libx264")
    make_source(folder / "S0200.mp4", 60, "30", "-c:v", "libx264")
    for name in ("S0100", "S0200"):
        (folder / f"{name}.json").write_text(START)
    return tmp_path / "release"


def run(release: Path, settings: NormaliseSettings = SETTINGS, view="video") -> tuple[list[Record], list[str], Path]:
    """Both stages on U0101: records, names of the sessions that were computed, and the stage's folder."""
    data = release.parent / "data"
    raw, out = data / "raw_session/U0101", data / "normalized_video/U0101"
    LocalSource(release, view).fetch("U0101", raw, workers=1)
    computed: list[str] = []
    records = run_user(
        "U0101",
        raw,
        out,
        settings,
        workers=1,
        progress=lambda record, new: computed.extend([record.name] * new),
        clip_format=SMALL,
    )
    return records, computed, out


def check_session(folder: Path, times_s: np.ndarray) -> None:
    """The video shows the numbered source frames that its table says, which are those of the times."""
    table = read_frames(folder)
    mapping = hold_mapping(times_s, 25)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == {
        "frame": "int32", "source_frame": "int32", "source_ms": "float64", "repeated": "bool",
    }  # fmt: skip
    assert table["frame"].tolist() == list(range(len(mapping)))
    assert table["source_frame"].tolist() == mapping.tolist()
    np.testing.assert_allclose(table["source_ms"], times_s[mapping] * 1000, atol=0.001)
    again = [False, *(a == b for a, b in zip(mapping[1:], mapping[:-1], strict=True))]
    assert table["repeated"].tolist() == again
    with VideoReader(folder / VIDEO) as reader:
        frames = reader.frames(range(len(reader)))
    assert frames.shape == (len(mapping), 112, 112, 3)
    assert read_numbers(frames) == mapping.tolist()
    np.testing.assert_allclose(packet_times(folder / VIDEO), np.arange(len(mapping)) / 25, atol=1e-6)


def test_films_become_one_rate_and_size(release):
    records, _, out = run(release)
    assert [(record.name, record.status) for record in records] == [("S0100", "ok"), ("S0200", "ok")]
    check_session(out / "S0100", np.arange(45) / 15)
    check_session(out / "S0200", np.arange(60) / 30)
    size = (out / "S0100" / VIDEO).stat().st_size
    expected = {"frames": 75, "source_frames": 45, "repeated": 30, "fps": 25, "seconds": 3.0, "bytes": size}
    times = {"usual_ms": 66.667, "gaps": 0, "missing_frames": 0, "longest_gap_s": 0, "repeated": 0, "out_of_order": 0}
    told = {f"source_{name}": value for name, value in times.items()}
    assert records[0].summary == {**expected, **told, "source_video_streams": 1}
    assert records[1].summary["frames"] == 50
    assert records[1].summary["repeated"] == 0
    assert sorted(path.name for path in (out / "S0100").iterdir()) == [FRAMES, NORMALISED, RECORD, VIDEO]


def test_only_what_changed_runs_again(release):
    records, computed, out = run(release)
    assert computed == ["S0100", "S0200"]
    before = (out / "S0100" / VIDEO).read_bytes()
    assert run(release)[1] == []
    make_source(release / "U0101/video/S0200.mp4", 30, "30", "-c:v", "libx264")
    changed, computed, _ = run(release)
    assert computed == ["S0200"]
    assert changed[0].content() == records[0].content()
    assert changed[1].summary["source_frames"] == 30
    assert run(release, NormaliseSettings(crf=21))[1] == ["S0100", "S0200"]
    run(release)
    assert (out / "S0100" / VIDEO).read_bytes() == before  # same input, same bytes


def test_a_frame_folder_follows_the_same_rule_with_a_gap(tmp_path):
    times = [0, 66, 133, 200, 266, 1000, 1067, 1133]  # ms; no frame for 0.7 s in the middle
    folder = tmp_path / "release/U0101/kinect/color-masked/frames/S0100"
    for number, ms in enumerate(times):
        Image.fromarray(numbered(number, 720)).resize((1280, 720)).save(frame_path(folder, ms, ".jpg"), quality=95)
    [record], _, out = run(tmp_path / "release", NormaliseSettings(rgb_masks=()), "rgb")
    assert record.ok, record.reason
    check_session(out / "S0100", np.array(times) / 1000)


def test_bad_sessions_are_set_aside_and_the_others_go_on(release):
    films = release / "U0101/video"
    film = bytearray(make_source(films / "S0300.mp4", 60, "30", "-c:v", "libx264").read_bytes())
    film[len(film) // 3 : len(film) // 2] = bytes(len(film) // 2 - len(film) // 3)  # opens, with rubbish inside
    (films / "S0300.mp4").write_bytes(film)
    (films / "S0300.json").write_text(START)
    (films / "S0400.mp4").write_text("no video")
    (films / "S0400.json").write_text(START)
    records, _, out = run(release)
    assert [record.status for record in records] == ["ok", "ok", "set_aside", "set_aside"]
    assert "S0300.mp4" in records[2].reason
    assert "could be decoded" in records[2].reason
    upstream = {record.name: record for record in read_records(release.parent / "data/raw_session/U0101")}
    assert records[3].reason == upstream["S0400"].reason  # not a new one about a missing session.json
    for name in ("S0300", "S0400"):
        assert [path.name for path in (out / name).iterdir()] == [RECORD]
    make_source(films / "S0400.mp4", 30, "15", "-c:v", "libx264")
    records, computed, _ = run(release)
    assert computed == ["S0400"]
    assert records[3].ok


def test_a_stream_that_changed_after_its_inspection_is_refused(release):
    _, _, out = run(release)
    raw = release.parent / "data/raw_session/U0101"
    make_source(release / "U0101/video/S0100.mp4", 44, "15", "-c:v", "libx264")
    records = run_user("U0101", raw, out, SETTINGS, workers=1, clip_format=ClipFormat(size=96))
    assert "44 frames over 2867 ms, where raw_session found 45 over 2933 ms" in records[0].reason
    assert records[1].ok


def test_a_time_that_cannot_be_is_refused(tmp_path):
    folder = tmp_path / "release/U0101/kinect/color-masked/frames/S0100"
    for ms in (0, 66, 133, 90_000_000):  # a day later
        Image.new("RGB", (128, 72)).save(frame_path(folder, ms, ".jpg"))
    [record], _, _ = run(tmp_path / "release", view="rgb")
    assert "frame 3: no frame for 90000 s before this one" in record.reason


def test_without_sessions_it_says_which_stage_to_run(tmp_path):
    with pytest.raises(DataError, match="Run the stage raw_session"):
        run_user("U0101", tmp_path, tmp_path / "out", SETTINGS)
    with pytest.raises(DataError, match="Run the stage normalized_video"):
        read_frames(tmp_path)


def test_it_runs_by_hand(release, tmp_path, monkeypatch, capsys):
    run(release)
    raw, out = release.parent / "data/raw_session/U0101", tmp_path / "by_hand"
    (tmp_path / "settings.toml").write_text("[clip_format]\nsize = 96\n")
    arguments = [
        "normalise",
        "U0101",
        str(raw),
        str(out),
        "--workers",
        "2",
        "--settings",
        str(tmp_path / "settings.toml"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    normalise.main()
    assert "S0100 ok" in capsys.readouterr().out
    with VideoReader(out / "S0200" / VIDEO) as reader:
        assert reader.frames([0]).shape == (1, 96, 96, 3)


@pytest.mark.parametrize(
    ("view", "user", "session", "n", "frames"),
    [("rgb", "U0209", "S0500", 15, 25), ("depth", "U0209", "S0500", 15, 25), ("keypoints", "U0102", "S0100", 100, 167)],
)
def test_the_real_sample_in_every_view(sample, tmp_path, view, user, session, n, frames):
    raw, out = tmp_path / "raw", tmp_path / "out"
    LocalSource(sample, view).fetch(user, raw, workers=1)
    records = run_user(user, raw, out, NormaliseSettings(), workers=1)
    assert [(record.name, record.status) for record in records] == [(session, "ok")]
    assert (records[0].summary["source_frames"], records[0].summary["frames"]) == (n, frames)
    table = read_frames(out / session)
    assert sorted(set(table["source_frame"])) == list(range(n))  # 15 fps goes up to 25: no frame is lost
    assert (table["source_ms"] <= table["frame"] * 40).all()
    with VideoReader(out / session / VIDEO) as reader:
        pictures = reader.frames(range(len(reader)))
    assert pictures.shape == (frames, 336, 336, 3)
    assert pictures[0].std() > 10
    changes = np.abs(np.diff(pictures[:, ::8, ::8].astype(np.int16), axis=0)).mean((1, 2, 3))
    assert (
        changes[table["repeated"].to_numpy()[1:]].max() < 2
    )  # the same picture, but for what the coder still sharpens


def test_times_are_told_from_the_first_frame(tmp_path):
    folder = tmp_path / "release/U0101/kinect/color-masked/frames/S0100"
    for ms in (500, 566):
        Image.new("RGB", (128, 72)).save(frame_path(folder, ms, ".jpg"))
    _, _, out = run(tmp_path / "release", view="rgb")
    assert read_frames(out / "S0100")["source_ms"].tolist() == [0, 0, 66, 66]
    session = (tmp_path / "data/raw_session/U0101/S0100/session.json").read_text()
    assert str(START_MS + 500) in session
