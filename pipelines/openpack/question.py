"""Questions: from any video to the frames that are shown of its first clip, or of every window of it.

Belongs here: what is asked about a video, and the same for frames that were chosen before. It needs no torch, so that a
process that only decodes starts fast and small. What answers (`predict`, `timeline`) does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipelines.common.clip_format import ClipFormat
from pipelines.common.errors import DataError
from pipelines.common.keyframes import Keyframes, KeyframeSettings, choose
from pipelines.common.vlm.dialogue import Question
from pipelines.openpack.preparation import Preparation
from pipelines.openpack.prompt import instruction
from pipelines.openpack.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipelines.openpack.windows import Seen, Video

# Of a video that someone sends; told by its container, before anything is decoded.
LONGEST_S = 60
MOST_PIXELS = 4096 * 2304  # 4K; a frame of it takes 14 MB, and decoders hold up to sixteen
MOST_FPS = 240  # the fastest common cameras


def clip_question(frames: np.ndarray, keyframes: Keyframes, taxonomy: Taxonomy, fps: int) -> Question:
    """The question about shown `frames` (8, h, w, 3) that stand for the segments of `keyframes`, at `fps` a second."""
    videos = tuple(frames[2 * i : 2 * i + 2] for i in range(len(keyframes.pairs)))
    return Question(videos, keyframes.bounds, keyframes.pairs, instruction(taxonomy), fps)


def video_question(path: Path, preparation: Preparation, taxonomy: Taxonomy, size: int | None = None) -> Question:
    """The question about the first clip of a video file; DataError as `video_frames` raises it."""
    return clip_question(*video_frames(path, preparation, size), taxonomy, preparation.clip_format.fps)


def video_frames(path: Path, preparation: Preparation, size: int | None = None) -> tuple[np.ndarray, Keyframes]:
    """What is shown of the first clip of a video file: uint8 (8, h, w, 3), and what it stands for.

    The file goes through the same normalisation and the same choice of keyframes as a session; `size` as in `reduced`.
    DataError for a file that is too short for its segments, and as `normalised` raises it.
    """
    from pipelines.openpack.windows import look

    with normalised(path, LONGEST_S, preparation, frames=preparation.clip_format.frames) as video:
        _require_length(video, preparation)
        first = next(look(video, [0], len(video.repeated)))
    return shown_frames(first, preparation.keyframes, size)


def _require_length(video: Video, preparation: Preparation) -> None:
    frames, fewest = len(video.repeated), preparation.keyframes.fewest
    if frames < fewest:
        seconds, least = (preparation.clip_format.to_seconds(one) for one in (frames, fewest))
        what = f"the video lasts {seconds:.2f} s, too short to be looked at"
        raise DataError(what, cure=f"Give one of at least {least:.1f} s.")


@contextmanager
def normalised(path: Path, longest_s: float, preparation: Preparation, frames: int | None = None) -> Iterator[Video]:
    """The video as the stage normalized_video would make it, for the block; its first `frames` where that is given.

    DataError for a file that is no whole video, lasts longer than `longest_s`, or is over one of this module's limits.
    """
    # here: what runs ffmpeg, which who only asks about frames has no use for
    from pipelines.common.frame_stream import StreamLimits, frame_stream
    from pipelines.openpack.windows import Video

    target = preparation.clip_format
    limits = StreamLimits(longest_s, preparation.normalise.longest_gap_s, MOST_PIXELS, MOST_FPS)
    with frame_stream(path, fps=target.fps, size=target.size, limits=limits, frames=frames) as (pictures, repeated):
        yield Video(path.stem, pictures, repeated)


@dataclass(frozen=True)
class Shown:
    """What is shown of the window that begins at frame `start`: uint8 (8, h, w, 3), and what it stands for."""

    start: int
    frames: np.ndarray
    keyframes: Keyframes

    def question(self, taxonomy: Taxonomy, fps: int) -> Question:
        return clip_question(self.frames, self.keyframes, taxonomy, fps)


def shown_windows(
    video: Video, begins: list[int], preparation: Preparation, size: int | None = None
) -> Iterator[Shown]:
    """The windows of a video that begin at `begins`, in order, while it is decoded once."""
    from pipelines.openpack.windows import look

    _require_length(video, preparation)
    for stretch in look(video, begins, min(len(video.repeated), preparation.clip_format.frames)):
        yield Shown(stretch.start, *shown_frames(stretch, preparation.keyframes, size))


def shown_frames(stretch: Seen, settings: KeyframeSettings, size: int | None) -> tuple[np.ndarray, Keyframes]:
    """What is shown of a stretch of a normalised video; DataError for one that is too short for its segments."""
    chosen = choose(stretch.signal, settings)
    return np.stack([reduced(Image.fromarray(stretch.frames[frame]), size) for frame in chosen.frames]), chosen


def reduced(picture: Image.Image, size: int | None) -> np.ndarray:
    """The picture as uint8 (h, w, 3), `size` pixels a side, or as it is."""
    if size and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def drawn_question(taxonomy: Taxonomy, clip_format: ClipFormat, size: int | None) -> Question:
    """A question about a drawn clip of that format in which a box moves: for whether a model answers at all."""
    side = size or clip_format.size
    frames = np.full((8, side, side, 3), 90, np.uint8)
    for number, frame in enumerate(frames):
        left = number * side // 12
        frame[side // 3 : 2 * side // 3, left : left + side // 4] = (200, 160, 90)
    bounds = tuple(clip_format.frames * part // 4 for part in range(5))
    pairs = tuple((low, low + 1) for low in bounds[:-1])
    return clip_question(frames, Keyframes(bounds, pairs), taxonomy, clip_format.fps)
