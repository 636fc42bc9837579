"""Any video as pictures of one rate and size, one after the other, while it is decoded: for who looks at it once.

Belongs here: what a video may be that nobody has seen before, and its way from ffmpeg to arrays without a file between.
Videos that are kept are written and read by `media`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.common.errors import DataError
from pipelines.common.ffmpeg_process import FfmpegProcess, file_input
from pipelines.common.frame_times import check_gaps, hold_mapping
from pipelines.common.media import MEND, Probe, check_decoded, probe, stretching

_AGAIN = "non monotonically increasing dts"
_NO_PATH = "code 3074"  # zscale's: no path between colorspaces, or an invalid definition of one


@dataclass(frozen=True)
class StreamLimits:
    """Of a video, told by its container before anything is decoded: its length and longest time without a frame in
    seconds, pixels of a frame, frames a second."""

    longest_s: float
    longest_gap_s: float
    pixels: int
    fps: float


@contextmanager
def frame_stream(
    source: Path, *, fps: int, size: int, limits: StreamLimits, frames: int | None = None
) -> Iterator[tuple[Iterator[np.ndarray], np.ndarray]]:
    """The pictures of a video at `fps` frames a second, uint8 (size, size, 3) each, and `repeated`, bool (n,), that
    says of each of its n frames if it shows the picture before it: there are as many pictures as frames that do not.

    The frames are those that `media.transcode` would write, without the losses of a codec and without its check that
    they are decoded in the order of their times; of them the first `frames` where that is given. All of the file is
    decoded, also then: DataError at the end of the block for a file that is not whole, or whose picture changes its
    size. DataError at its beginning for one that is no video or over a limit.
    """
    found = probe(source)
    check_gaps(found.times_s, source, limits.longest_gap_s)
    mapping = hold_mapping(found.times_s, fps)
    _check_limits(found, len(mapping) / fps, fps, source, limits)
    repeated = (np.diff(mapping, prepend=-1) == 0)[:frames]
    pictures = _pictures(source, len(found.times_s), mapping[: len(repeated)][~repeated], size)
    try:
        yield pictures, repeated
        for _ in pictures:  # to the end, where it shows whether the file is whole
            pass
    finally:
        pictures.close()


def _check_limits(found: Probe, seconds: float, fps: int, source: Path, limits: StreamLimits) -> None:
    width, height = found.size
    rate = (len(found.times_s) - 1) / found.times_s[-1] if len(found.times_s) > 1 else 0.0
    if seconds > limits.longest_s:
        what = f"the video lasts {seconds:.1f} s, more than {limits.longest_s:.1f} s"
        raise DataError(what, file=source, cure="Cut it into shorter ones.")
    if not width * height:
        raise DataError("nothing says how large its picture is", file=source, cure="Write it anew as mp4.")
    if width * height > limits.pixels:
        what = f"the picture has {width}×{height} pixels, more than {limits.pixels / 1e6:.1f} million"
        raise DataError(what, file=source, cure="Send it smaller; the model sees a few hundred pixels a side.")
    if rate > limits.fps:
        what = f"{rate:.0f} frames a second, more than {limits.fps:.0f}"
        raise DataError(what, file=source, cure=f"Send it at a lower rate; {fps} a second are looked at.")


def _pictures(source: Path, n_source: int, numbers: np.ndarray, size: int) -> Generator[np.ndarray, None, None]:
    """The source frames of these `numbers`, int64 (m,), increasing; all `n_source` of them are decoded."""
    shown = 0
    try:
        for picture in _decoded(source, n_source, numbers, size):
            shown += 1
            yield picture
    except DataError as error:
        if shown or _NO_PATH not in error.what:
            raise
        # a matrix that ffmpeg names and cannot convert from: read as the usual one, which is a few grey levels off
        yield from _decoded(source, n_source, numbers, size, ("setparams", {"colorspace": "unknown"}))


def _decoded(
    source: Path, n_source: int, numbers: np.ndarray, size: int, *first: tuple[str, dict[str, Any]]
) -> Generator[np.ndarray, None, None]:
    """The same, after the filters `first`."""
    video = file_input(threads=1)["V:0"].filter("select", f"lt(n,{numbers[-1] + 1})")  # what is not shown is not scaled
    for name, options in (*first, *stretching(size)):
        video = video.filter(name, **options)
    # counted instead of timed: raw video keeps no times, and ffmpeg would complain of those that fall on one tick
    video = video.filter("settb", "1/1").filter("setpts", "N")
    raw = {"format": "rawvideo", "pix_fmt": "rgb24", "fps_mode": "passthrough", "enc_time_base": "1:1", "threads": 1}
    with FfmpegProcess(video.output("pipe:", **raw), source) as process:
        wanted = iter(numbers.tolist())
        following = next(wanted)
        for number in range(numbers[-1] + 1):
            data = process.read(size * size * 3)
            if len(data) < size * size * 3:
                break
            if number == following:
                following = next(wanted, None)
                yield np.frombuffer(data, np.uint8).reshape(size, size, 3)
    process.check_written(source)
    if _AGAIN in (process.first_complaint or ""):  # frames were counted from 0 once more: the filters were set up anew
        raise DataError("its picture changes size or colours midway", file=source, cure=MEND)
    check_decoded(process, source, n_source)
    if following is not None:
        raise DataError(f"frame {following} of {n_source} is never shown", file=source, cure=MEND)
