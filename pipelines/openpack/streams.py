"""Frames of the image streams, drawn as the pictures that a model sees: view rgb, depth and keypoints.

Belongs here: how one frame of such a stream looks, and at which time it is. Where a release keeps the files
(`release`), what their names say (`image_files`), the frame rate and the writing of a video (`normalise`) do not. The
view `video` needs no drawing: ffmpeg makes it in one go.

No view shows a label, a clock or a name of anything: what a person would have to read is not in the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.errors import DataError
from pipelines.openpack.image_files import image_frames
from pipelines.openpack.release import read_keypoints
from pipelines.openpack.settings import NormaliseSettings

Colour = tuple[int, int, int]
WIDTH, HEIGHT = 1280, 720  # of every Kinect picture; keypoints and masks are told in its pixels
FARTHEST_GREY = 64  # of 255: the step down to a hole, black, survives compression
GROUND: Colour = (24, 24, 24)
LEFT, RIGHT, MIDDLE = (255, 150, 40), (70, 160, 255), (225, 225, 225)  # sides told apart, as a model must
LIMBS: tuple[tuple[int, int, Colour], ...] = (  # COCO joints, 0 = nose, odd = left, even = right
    *((0, 1, LEFT), (1, 3, LEFT), (5, 7, LEFT), (7, 9, LEFT), (11, 13, LEFT), (13, 15, LEFT)),
    *((0, 2, RIGHT), (2, 4, RIGHT), (6, 8, RIGHT), (8, 10, RIGHT), (12, 14, RIGHT), (14, 16, RIGHT)),
    *((5, 6, MIDDLE), (11, 12, MIDDLE), (5, 11, MIDDLE), (6, 12, MIDDLE)),
)
HANDS = (9, 10)  # wrists, drawn larger: the work is done with them
DRAWN = DEFAULT_FORMAT.size  # in whose pixels widths of lines and dots are told
FINER = 2  # drawn so many times larger, then averaged: PIL's own lines are jagged


@dataclass(frozen=True)
class Pictures:
    """A stream as pictures.

    `times_ms` int64 (n,): unix milliseconds, strictly increasing. `recorded_ms` int64 (m,): the same as the source
    keeps them, perhaps repeated or out of order. `draw(i)`: frame i as uint8 (size, size, 3) RGB; DataError with file
    and frame where it cannot be read.
    """

    times_ms: np.ndarray
    recorded_ms: np.ndarray
    draw: Callable[[int], np.ndarray]


def open_pictures(
    place: Path, kind: Literal["rgb", "depth", "keypoints"], settings: NormaliseSettings, size: int
) -> Pictures:
    """The stream at `place`, drawn `size` pixels a side: a folder of frames (rgb, depth) or a keypoint file. Reads no
    pixel yet.

    DataError for a stream without a frame, for two frames of one time, and as `release` says of names and forms.
    """
    if kind == "keypoints":
        keypoints = read_keypoints(place)
        frames, recorded = keypoints.frames, keypoints.recorded_ms
        draw = partial(_keypoint_frame, [joints for _, joints in frames], settings, size)
    else:
        frames = image_frames(place, kind)
        recorded = [time for time, _ in frames]  # files have no order but that of their names
        decode = {"rgb": _rgb_decoder, "depth": _depth_decoder}[kind](settings, size)
        draw = partial(_image_frame, [path for _, path in frames], decode)
    if not frames:
        raise DataError(f"no frame of the view {kind} is here", file=place, cure="Run the stage raw_session again.")
    times = np.array([time for time, _ in frames], dtype=np.int64)
    return Pictures(times, np.array(recorded, dtype=np.int64), draw)


def draw_skeleton(joints: np.ndarray, settings: NormaliseSettings, size: int) -> np.ndarray:
    """People as lines and dots on plain ground: joints (persons, 17, 3) → uint8 (size, size, 3).

    x and y are pixels of the 1280×720 picture and are stretched with it; a joint below the confidence of the settings
    is left out, and so are the limbs that end in it.
    """
    side = size * FINER
    image = Image.new("RGB", (side, side), GROUND)
    canvas, unit = ImageDraw.Draw(image), side / DRAWN  # widths below are in pixels of a picture of this size
    for person in joints:
        places = [(float(x) * side / WIDTH, float(y) * side / HEIGHT) for x, y, _ in person]
        seen = person[:, 2] >= settings.joint_confidence
        for start, end, colour in LIMBS:
            if seen[start] and seen[end]:
                canvas.line((places[start], places[end]), fill=colour, width=round(4 * unit))
        for joint, (x, y) in enumerate(places):
            if seen[joint]:
                radius = (5 if joint in HANDS else 3) * unit
                canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_side(joint))
    return np.asarray(image.reduce(FINER))


def _side(joint: int) -> Colour:
    return MIDDLE if joint == 0 else LEFT if joint % 2 else RIGHT


def _keypoint_frame(people: list[np.ndarray], settings: NormaliseSettings, size: int, index: int) -> np.ndarray:
    return draw_skeleton(people[index], settings, size)


def _image_frame(paths: list[Path], decode: Callable[[Image.Image], np.ndarray], index: int) -> np.ndarray:
    path = paths[index]
    try:
        with Image.open(path) as image:
            return decode(image)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's ways of saying that bytes are missing or wrong
        what = f"the picture cannot be decoded ({error})"
        raise DataError(what, file=path, where=f"frame {index}", cure="Copy it from the release again.") from None


def _rgb_decoder(settings: NormaliseSettings, size: int) -> Callable[[Image.Image], np.ndarray]:
    """Colour at the target size, masked."""
    across, down = size / WIDTH, size / HEIGHT
    masks = [
        (slice(int(y0 * down), int(np.ceil(y1 * down))), slice(int(x0 * across), int(np.ceil(x1 * across))))
        for x0, y0, x1, y1 in settings.rgb_masks
    ]

    def decode(image: Image.Image) -> np.ndarray:
        image.draft("RGB", (size, size))  # JPEG decodes at half size, which is still above the target
        picture = np.array(image.convert("RGB").resize((size, size), Image.Resampling.BOX))
        for mask in masks:
            picture[mask] = 0
        return picture

    return decode


def _depth_decoder(settings: NormaliseSettings, size: int) -> Callable[[Image.Image], np.ndarray]:
    """Millimetres as greys, near bright; a pixel without a measurement (0) is black, darker than the farthest."""
    near, far = settings.depth_range_mm
    share = (np.clip(np.arange(2**16), near, far) - near) / (far - near)
    grey = np.round(255 - share * (255 - FARTHEST_GREY)).astype(np.uint8)
    grey[0] = 0
    middles = (np.arange(size) + 0.5) / size

    def decode(image: Image.Image) -> np.ndarray:
        depth = np.asarray(image)
        if depth.dtype != np.uint16 or depth.ndim != 2:
            raise ValueError(f"16-bit depth is asked for, this is {depth.dtype} in mode {image.mode}")
        rows, columns = ((middles * length).astype(int) for length in depth.shape)
        # one measurement a pixel: a mean over an edge or a hole would be a distance at which nothing is
        return np.repeat(grey[depth[np.ix_(rows, columns)]][..., None], 3, axis=2)

    return decode
