"""Stretches of a normalised video, one after the other and perhaps overlapping, while it is decoded once.

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

from pipelines.common.errors import DataError
from pipelines.common.keyframes import Meter, Signal
from pipelines.common.media import VideoReader
from pipelines.openpack.settings import CLIP_FRAMES, FPS

BATCH = 64  # frames in memory at a time beside those of a stretch: 22 MB at 336×336


@dataclass(frozen=True)
class Seen:
    """Frames `[start, start + len(frames))` of a video: pictures, uint8 (h, w, 3) each, and their `signal`."""

    start: int
    frames: tuple[np.ndarray, ...]
    signal: Signal


def look(video: Path, repeated: np.ndarray, starts: Sequence[int], length: int = CLIP_FRAMES) -> Iterator[Seen]:
    """The stretches of `length` frames that begin at `starts`, increasing, each as soon as its last frame was decoded.

    `repeated` bool (n,) says of each frame if it shows the one before. DataError where the video has not n frames.
    ValueError for a stretch that reaches beyond them.
    """
    if len(starts) and starts[-1] + length > len(repeated):
        raise ValueError(f"frames {starts[-1]} to {starts[-1] + length} of {len(repeated)}")
    meter, recent, waiting = Meter(), deque[np.ndarray](maxlen=length), deque(starts)
    with VideoReader(video) as reader:
        if len(reader) != len(repeated):
            what = f"the video has {len(reader)} frames and its table {len(repeated)}"
            raise DataError(what, file=video, cure="Run the stage normalized_video again.")
        batches = reader.batches(BATCH, np.flatnonzero(~repeated))
        pictures = (frame for batch in batches for frame in batch)
        for number, again in enumerate(repeated.tolist(), 1):
            if again:
                meter.again()
                recent.append(recent[-1])
            else:
                recent.append(next(pictures))
                meter.add(recent[-1])
            if waiting and waiting[0] + length == number:
                start = waiting.popleft()
                yield Seen(start, tuple(recent), meter.signal(start, number))
                meter.forget(waiting[0] if waiting else number)


def starts(n_frames: int, stride_s: float) -> list[int]:
    """Where the windows of a whole video begin: every `stride_s` seconds, and a last one that ends with the video.

    A video of less than five seconds is one window.
    """
    last = max(0, n_frames - CLIP_FRAMES)
    regular = (round(number * stride_s * FPS) for number in range(int(last / (stride_s * FPS)) + 2))
    return [*(start for start in regular if start < last), last]
