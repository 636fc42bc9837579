"""Frame times, the 25 fps rule proved on pixels, the writer, the reader, and files that are not what they should be."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import (
    FORMATS,
    SOURCES,
    check_halves,
    damage,
    halves,
    make_source,
    numbered,
    read_numbers,
    run_ffmpeg,
)

from pipelines.common.errors import DataError, SetupError
from pipelines.common.frame_times import hold_mapping
from pipelines.common.media import VideoReader, VideoWriter, packet_times, transcode

ENCODING = {"fps": 25, "size": 112, "crf": 20, "preset": "ultrafast", "gop": 25, "threads": 1, "tolerance_s": 0.0}


def all_numbers(path: Path) -> list[int]:
    with VideoReader(path) as reader:
        return [number for batch in reader.batches(64) for number in read_numbers(batch)]


def normalised(source: Path, **changes: int) -> tuple[Path, np.ndarray]:
    target = source.with_name("normalised.mp4")
    return target, transcode(source, target, packet_times(source), **{**ENCODING, **changes})


@pytest.mark.parametrize("name", SOURCES)
def test_what_ffmpeg_shows_is_what_the_times_say(name, tmp_path):
    file, n, rate, options = SOURCES[name]
    source = make_source(tmp_path / file, n, rate, *options)

    times = packet_times(source)
    assert len(times) == n
    if "variable" in name:
        true = [(70 * i + 30 * (i % 3) + 400 * (i >= 40)) / 1000 for i in range(n)]
    else:
        true = [float(i / Fraction(rate)) for i in range(n)]
    np.testing.assert_allclose(times, true, atol=0.0011)

    target, mapping = normalised(source)
    assert mapping.tolist() == hold_mapping(times, 25).tolist()
    assert all_numbers(target) == mapping.tolist()  # read from the pixels


@pytest.mark.parametrize(("rate", "n", "frames"), [(15, 75, 125), (25, 125, 125), (30, 150, 125), (10, 10, 25)])
def test_a_stretch_keeps_its_length(rate, n, frames):
    mapping = hold_mapping(np.arange(n) / rate, 25)
    assert len(mapping) == frames
    assert mapping[0] == 0
    if rate <= 25:
        assert set(mapping.tolist()) == set(range(n))  # none lost


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=60), st.sampled_from([25, 15, 30]))
def test_each_frame_shows_the_last_that_has_begun(steps, fps):
    times_ms = np.concatenate([[0], np.cumsum(steps)]).astype(int)
    for n, source in enumerate(hold_mapping(times_ms / 1000, fps).tolist()):
        begun = [i for i, time in enumerate(times_ms.tolist()) if time * fps <= n * 1000]  # whole numbers: exact
        assert source == begun[-1]


@pytest.mark.parametrize("times", [[], [0.0, 0.0], [0.0, 0.2, 0.1]])
def test_times_that_do_not_increase_have_no_mapping(times):
    with pytest.raises(ValueError, match="increase"):
        hold_mapping(np.array(times), 25)


def test_first_video_stream_without_audio_or_cut_off_frames(tmp_path):
    first = make_source(tmp_path / "first.mp4", 60, "15", "-c:v", "libx264", "-bf", "2")
    cut = tmp_path / "cut.mp4"  # cut without coding: an edit list hides the frames before the cut
    run_ffmpeg("-ss", "1.2", "-i", first, "-c", "copy", cut)
    both = tmp_path / "both.mkv"
    inputs = ("-f", "lavfi", "-i", "sine=d=6", "-itsoffset", "0.5", "-i", cut, "-i", first)
    run_ffmpeg(*inputs, "-map", "0", "-map", "1", "-map", "2", "-c:v", "copy", both)
    target, mapping = normalised(cut)
    offset = all_numbers(target)[0]
    assert offset > 10
    assert all_numbers(target) == (mapping + offset).tolist()
    target, mapping = normalised(both)
    assert len(packet_times(both)) == 60  # mkv has no edit list: here the hidden frames are shown
    assert all_numbers(target) == mapping.tolist()


def test_rotation_flag_turns_the_picture(tmp_path):
    upright = tmp_path / "upright.mp4"
    frame = np.zeros((64, 128, 3), dtype=np.uint8)
    frame[:32] = 255  # the top is white
    with VideoWriter(upright, 25, (128, 64)) as writer:
        writer.write(frame, repeat=5)
    turned = tmp_path / "turned.mp4"
    run_ffmpeg("-display_rotation", "90", "-i", upright, "-c", "copy", turned)
    target, _ = normalised(turned)
    with VideoReader(target) as reader:
        picture = reader.frames([0])[0].mean(-1)
    assert picture.shape == (112, 112)
    assert picture[:, :40].min() > 200  # turned to the left: the white top is the left side now
    assert picture[:, -40:].max() < 50


@pytest.mark.parametrize("pixels", FORMATS)
def test_any_pixel_format_and_an_odd_size_give_the_same_colours(pixels, tmp_path):
    source = halves(tmp_path / "halves.nut", pixels)
    target, _ = normalised(source)
    with VideoReader(target) as reader:
        picture = reader.frames([0])[0].astype(int)
    check_halves(picture, pixels)


def test_equal_input_gives_equal_bytes_and_no_traces(tmp_path):
    source = make_source(tmp_path / "a.mkv", 40, "15", "-c:v", "libx264", "-metadata", "title=secret")
    first = normalised(source)[0].read_bytes()
    assert normalised(source)[0].read_bytes() == first
    assert b"secret" not in first
    assert b"Lavf" not in first  # no version of a tool, whose update would change every file


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("kind", ["cut", "overwritten", "empty", "text"])
def test_damaged_video_is_refused_and_leaves_nothing(kind, suffix, tmp_path):
    flags = ["-movflags", "+faststart"] if suffix == ".mp4" else []  # index first: a cut file still opens
    bad = damage(make_source(tmp_path / f"a{suffix}", 60, "15", "-c:v", "libx264", *flags), kind)
    target = bad.with_name("normalised.mp4")
    with pytest.raises(DataError) as error:
        normalised(bad)
    assert bad.name in str(error.value)
    assert not target.exists()


def test_a_frame_that_the_decoder_patched_up_is_refused(tmp_path):
    source = tmp_path / "a.mp4"
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=640x480:r=15:d=4", "-c:v", "libx264", "-preset", "veryfast", source)
    data = bytearray(source.read_bytes())
    middle = len(data) // 2  # bits that decode to something, only not to what was recorded
    data[middle : middle + 200] = np.random.default_rng(2).bytes(200)
    source.write_bytes(data)
    with pytest.raises(DataError, match="60 of 60 frames could be decoded, and ffmpeg says: corrupt decoded frame"):
        normalised(source)


def test_what_is_no_video_is_told_apart(tmp_path):
    sound = tmp_path / "sound.m4a"
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=1", sound)
    with pytest.raises(DataError, match="no video stream"):
        packet_times(sound)
    with pytest.raises(DataError, match=r"cannot be opened \(No such file"):
        packet_times(tmp_path / "missing.mp4")


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"]
)
def test_a_playlist_opens_no_other_file(text, tmp_path):
    # given by its path, ffmpeg plays the other file for both lists
    secret = make_source(tmp_path / "secret.ts", 30, "15", "-c:v", "libx264")
    for name in ("upload.mp4", "upload.m3u8"):
        (tmp_path / name).write_text(text.format(secret.name))
        with pytest.raises(DataError, match="not a readable video"):
            packet_times(tmp_path / name)


def test_two_frames_of_one_time_are_refused(tmp_path):
    whole = make_source(tmp_path / "whole.mkv", 12, "25", "-c:v", "mjpeg")
    source = tmp_path / "twice.mkv"
    run_ffmpeg("-i", whole, "-c", "copy", "-bsf:v", "setts=ts='40*(N-eq(N,7))'", source)
    with pytest.raises(DataError, match="frame 7: two frames have the same time"):
        packet_times(source)


def test_written_frames_are_read_back_by_number(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 15, (112, 112), gop=10) as writer:
        for number in range(40):
            writer.write(numbered(number), repeat=2)
    np.testing.assert_allclose(packet_times(path), np.arange(80) / 15, atol=1e-4)
    with VideoReader(path) as reader:
        assert len(reader) == 80
        wanted = [79, 3, 3, 41, 40, 0]
        frames = reader.frames(wanted)
        assert (frames.dtype, frames.shape) == (np.uint8, (6, 112, 112, 3))
        assert read_numbers(frames) == [number // 2 for number in wanted]
        assert [len(batch) for batch in reader.batches(32)] == [32, 32, 16]
        for outside in ([80], [-1], []):
            with pytest.raises(IndexError, match="which has 80"):
                reader.frames(outside)


def test_a_seek_decodes_at_most_one_group(tmp_path):
    path = tmp_path / "a.mp4"
    rng = np.random.default_rng(0)
    with VideoWriter(path, 25, (112, 112), gop=25) as writer:
        for _ in range(80):
            writer.write(rng.integers(0, 255, (112, 112, 3), dtype=np.uint8))  # a new scene each time
    with VideoReader(path) as reader:
        assert reader._reader.get_key_indices() == [0, 25, 50, 75]


def write_numbers(path: Path, numbers: Iterable[int]) -> None:
    with VideoWriter(path, 25, (112, 112)) as writer:
        for number in numbers:
            writer.write(numbered(number))


def test_a_writer_that_fails_leaves_no_file(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(ZeroDivisionError):
        write_numbers(path, (1 // (3 - i) for i in range(9)))
    assert not path.exists()
    with pytest.raises(DataError, match="no frame was written"):
        write_numbers(path, [])
    assert not path.exists()
    with VideoWriter(path, 25, (112, 112)) as writer:
        writer.write(numbered(1))
        for bad in (numbered(1).astype(float), numbered(1, 56)):
            with pytest.raises(ValueError, match="must be uint8"):
                writer.write(bad)


def test_a_place_that_cannot_be_written_stops_the_run(tmp_path):
    target = tmp_path / "missing" / "a.mp4"
    with pytest.raises(SetupError, match="cannot write"):
        write_numbers(target, range(200))
    source = make_source(tmp_path / "s.mp4", 20, "15", "-c:v", "libx264")
    with pytest.raises(SetupError, match="cannot write"):
        transcode(source, target, packet_times(source), **ENCODING)


def test_an_unreadable_video_cannot_be_opened(tmp_path):
    with pytest.raises(DataError, match="missing"):
        VideoReader(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="not a readable video"):
        VideoReader(tmp_path / "a.mp4")


def test_batches_are_the_frames_in_order_also_past_where_decord_is_emptied(tmp_path: Path):
    path = tmp_path / "long.mp4"
    with VideoWriter(path, 25, (32, 32), gop=25) as writer:
        for number in range(600):
            writer.write(np.full((32, 32, 3), (number * 7) % 250, np.uint8))
    with VideoReader(path) as reader:
        levels = np.concatenate([batch.mean((1, 2, 3)) for batch in reader.batches(64)])
        alone = np.array([reader.frames([number]).mean() for number in range(0, 600, 37)])
    assert len(levels) == 600
    np.testing.assert_allclose(levels[::37], alone, atol=1)
    np.testing.assert_allclose(levels, np.arange(600) * 7 % 250, atol=6)
