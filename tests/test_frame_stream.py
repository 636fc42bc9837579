"""Videos that are looked at once: the frames of the stages, without a file; limits, damage, and nothing left behind."""

import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from media_samples import FORMATS, SOURCES, check_halves, damage, halves, make_source, read_numbers, run_ffmpeg

from pipelines.common.errors import DataError
from pipelines.common.frame_stream import StreamLimits, frame_stream
from pipelines.common.frame_times import hold_mapping
from pipelines.common.media import VideoReader, packet_times, transcode

LIMITS = StreamLimits(longest_s=60, longest_gap_s=900, pixels=640 * 480, fps=240)


def streamed(
    source: Path, frames: int | None = None, size: int = 112, limits: StreamLimits = LIMITS
) -> tuple[np.ndarray, np.ndarray]:
    with frame_stream(source, fps=25, size=size, limits=limits, frames=frames) as (pictures, repeated):
        return np.stack(list(pictures)), repeated


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("frames", [None, 40])
def test_it_shows_what_the_stage_would_write(name, frames, tmp_path):
    file, n, rate, options = SOURCES[name]
    source = make_source(tmp_path / file, n, rate, *options)
    mapping = hold_mapping(packet_times(source), 25)[:frames]
    pictures, repeated = streamed(source, frames)
    assert repeated.tolist() == [False, *(np.diff(mapping) == 0).tolist()]
    numbers = np.array(read_numbers(pictures))
    assert numbers[np.cumsum(~repeated) - 1].tolist() == mapping.tolist()  # read from the pixels


def test_its_pictures_are_the_stages_without_the_losses_of_a_codec(tmp_path):
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=640x480:r=15:d=2", "-c:v", "libx264", source)
    times = packet_times(source)
    transcode(source, target, times, fps=25, size=336, crf=1, preset="ultrafast", gop=25, threads=1, tolerance_s=0.001)
    pictures, repeated = streamed(source, size=336)
    with VideoReader(target) as reader:
        stage = reader.frames(np.flatnonzero(~repeated))
    assert np.abs(pictures.astype(int) - stage).mean() < 1.5  # grey levels


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc", "ycgco", "bt2020c", "ictcp", "chroma-derived-nc"])
def test_its_colours_are_the_stages_whatever_the_file_calls_them(matrix, tmp_path):
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    drawn = ("-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=0.4", "-vf", f"setparams=colorspace={matrix}")
    run_ffmpeg(*drawn, "-c:v", "libx264", source)
    times = packet_times(source)
    transcode(source, target, times, fps=25, size=112, crf=1, preset="ultrafast", gop=25, threads=1, tolerance_s=0.001)
    with VideoReader(target) as reader:
        stage = reader.frames(range(10)).astype(int)
    most = 3 if matrix != "bt2020c" else 8  # grey levels; of that matrix decord knows more than ffmpeg
    assert np.abs(streamed(source)[0] - stage).mean() < most


@pytest.mark.parametrize("pixels", FORMATS)
def test_any_pixel_format_and_an_odd_size_give_the_same_colours(pixels, tmp_path):
    pictures, _ = streamed(halves(tmp_path / "halves.nut", pixels))
    check_halves(pictures[0].astype(int), pixels)


def test_a_rotation_flag_turns_the_picture(tmp_path):
    upright, turned = tmp_path / "upright.mp4", tmp_path / "turned.mp4"
    white_top = "color=white:s=128x32:r=25:d=0.2[t];color=black:s=128x32:r=25:d=0.2[b];[t][b]vstack"
    run_ffmpeg("-filter_complex", white_top, "-c:v", "libx264", upright)
    run_ffmpeg("-display_rotation", "90", "-i", upright, "-c", "copy", turned)
    picture = streamed(turned)[0][0]
    assert picture[:, :40].min() > 200  # turned to the left
    assert picture[:, -40:].max() < 50


def test_frames_that_an_edit_list_hides_are_not_shown(tmp_path):
    first = make_source(tmp_path / "first.mp4", 60, "15", "-c:v", "libx264", "-bf", "2")
    run_ffmpeg("-ss", "1.2", "-i", first, "-c", "copy", tmp_path / "cut.mp4")
    pictures, _ = streamed(tmp_path / "cut.mp4")
    numbers = read_numbers(pictures)
    assert 10 < numbers[0] == numbers[-1] - len(numbers) + 1
    assert numbers[-1] == 59


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("kind", ["cut", "overwritten", "empty", "text"])
@pytest.mark.parametrize("frames", [None, 10])
def test_a_damaged_video_is_refused_wherever_the_damage_is(kind, suffix, frames, tmp_path):
    flags = ["-movflags", "+faststart"] if suffix == ".mp4" else []
    bad = damage(make_source(tmp_path / f"a{suffix}", 60, "15", "-c:v", "libx264", *flags), kind)
    with pytest.raises(DataError) as error:
        streamed(bad, frames)
    assert bad.name in str(error.value)


def test_a_picture_that_changes_its_size_midway_is_refused(tmp_path):
    parts = [tmp_path / "small.ts", tmp_path / "large.ts"]
    for part, size in zip(parts, ("160x120", "320x240"), strict=True):
        run_ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d=1", "-c:v", "libx264", "-bf", "0", part)
    both = tmp_path / "both.mkv"
    run_ffmpeg("-i", f"concat:{parts[0]}|{parts[1]}", "-c", "copy", "-bsf:v", "setts=ts=N*40/TB/1000", both)
    with pytest.raises(DataError, match="changes size or colours midway"):
        streamed(both)


def test_a_file_that_ffmpeg_crashes_on_is_a_bad_file(tmp_path):
    source = make_source(tmp_path / "a.mp4", 200, "25", "-c:v", "libx264")

    before = set(psutil.Process().children())

    def crash() -> None:
        with frame_stream(source, fps=25, size=336, limits=LIMITS) as (pictures, _):
            next(pictures)
            for child in set(psutil.Process().children()) - before:
                child.send_signal(signal.SIGSEGV)

    with pytest.raises(DataError, match="ffmpeg crashed on it") as raised:
        crash()
    assert type(raised.value) is DataError


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"longest_s": 3.9}, r"lasts 4\.0 s, more than 3\.9 s"),
        ({"pixels": 112 * 112 - 1}, "112×112 pixels"),
        ({"fps": 14}, "15 frames a second, more than 14"),
        ({"longest_gap_s": 0.05}, r"frame \d+: no frame for 0 s before this one"),
    ],
)
def test_what_is_over_a_limit_is_refused_before_anything_is_decoded(changed, what, tmp_path):
    source = make_source(tmp_path / "a.mp4", 60, "15", "-c:v", "libx264")
    limits = StreamLimits(**{**vars(LIMITS), **changed})
    with (
        pytest.raises(DataError, match=what),
        frame_stream(source, fps=25, size=112, limits=limits),
    ):
        pytest.fail("it began")


def test_who_leaves_early_leaves_no_process(tmp_path):
    source = make_source(tmp_path / "a.mp4", 200, "25", "-c:v", "libx264")

    before = set(psutil.Process().children())

    def leave_early() -> None:
        with frame_stream(source, fps=25, size=336, limits=LIMITS) as (pictures, _):
            next(pictures)
            assert set(psutil.Process().children()) - before
            raise KeyError

    with pytest.raises(KeyError):
        leave_early()
    assert not set(psutil.Process().children()) - before
