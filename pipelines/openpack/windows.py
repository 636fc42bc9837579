"""Stretches of a video, one after the other and perhaps overlapping, while it is decoded once.

Belongs here: the pictures of a stretch and what was measured of them, with memory that does not grow with the video.
Which stretches are looked at, and what is made of them, do not: clips of a session (`clips`), the windows of a whole
video (`timeline`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.common.clip_format import ClipFormat
from pipelines.common.errors import DataError, SetupError
from pipelines.common.keyframes import Meter, Signal
from pipelines.common.media import VideoReader

BATCH = 64  # frames in memory at a time beside those of a stretch: 22 MB at the usual size


@dataclass(frozen=True)
class Seen:
    """Frames `[start, start + len(frames))` of a video: pictures, uint8 (h, w, 3) each, and their `signal`."""

    start: int
    frames: tuple[np.ndarray, ...]
    signal: Signal


@dataclass(frozen=True)
class Video:
    """A normalised video of n frames that is looked at once: `repeated` bool (n,) says of each frame if it shows
    the one before, `pictures` are the others in order, uint8 (h, w, 3)."""

    name: str
    pictures: Iterator[np.ndarray]
    repeated: np.ndarray


def stored(path: Path, repeated: np.ndarray, name: str = "") -> Video:
    """A normalised video and what its table says is `repeated`. DataError, once it is looked at, where the two do not
    have equally many frames."""
    return Video(name or path.stem, _read(path, repeated), repeated)


def look(video: Video, starts: Sequence[int], length: int) -> Iterator[Seen]:
    """The stretches of `length` frames that begin at `starts`, increasing, each as soon as its last frame was decoded.

    DataError as the video's pictures raise it. ValueError for a stretch that reaches beyond its frames.
    """
    frames = len(video.repeated)
    if len(starts) and starts[-1] + length > frames:
        raise ValueError(f"frames {starts[-1]} to {starts[-1] + length} of {frames}")
    meter, recent, waiting = Meter(), deque[np.ndarray](maxlen=length), deque(starts)
    for number, again in enumerate(video.repeated.tolist(), 1):
        if again:
            meter.again()
            recent.append(recent[-1])
        else:
            recent.append(next(video.pictures))
            meter.add(recent[-1])
        if waiting and waiting[0] + length == number:
            start = waiting.popleft()
            yield Seen(start, tuple(recent), meter.signal(start, number))
            meter.forget(waiting[0] if waiting else number)


def starts(n_frames: int, stride_s: float, clip_format: ClipFormat) -> list[int]:
    """Where the windows of a whole video begin: every `stride_s` seconds, and a last one that ends with the video.

    A video that is shorter than a clip is one window. SetupError where frames between windows would be in none.
    """
    if stride_s > clip_format.seconds:
        what = f"a window every {stride_s:g} s leaves out what is between them: windows last {clip_format.seconds:g} s"
        raise SetupError(what, cure="Set [evaluation.timeline] stride_s to no more than that.")
    last, fps = max(0, n_frames - clip_format.frames), clip_format.fps
    regular = (round(number * stride_s * fps) for number in range(int(last / (stride_s * fps)) + 2))
    return [*(start for start in regular if start < last), last]


def _read(path: Path, repeated: np.ndarray) -> Iterator[np.ndarray]:
    with VideoReader(path) as reader:
        if len(reader) != len(repeated):
            what = f"the video has {len(reader)} frames and its table {len(repeated)}"
            raise DataError(what, file=path, cure="Run the stage normalized_video again.")
        for batch in reader.batches(BATCH, np.flatnonzero(~repeated)):
            yield from batch
