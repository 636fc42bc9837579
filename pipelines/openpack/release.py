"""Where a release folder keeps what, and whether a stream's files are what they should be.

Belongs here: paths, file names and their times, the checks of a file's form. What is drawn from a stream (`streams`)
and what a session is made of (`sources`) do not.

Layout below `<root>/<user>/`, as OpenPack v1.0.0 has it (one zip a user, unpacked into a folder of the user's name):

    annotation/openpack-operations/<session>.csv
    kinect/color-masked/frames/<session>/%Y/%m/%d/%H/%M/%Y%m%d_%H%M%S_<ms>.jpg     view rgb, times of Japan
    kinect/depth/frames/<session>/%Y/%m/%d/%H/%M/%Y%m%d_%H%M%S_<ms>.png            view depth, 16 bit
    kinect/2d-kpt/<model>/single/<session>.json                                    view keypoints, COCO form

and one addition for cameras that record films:

    video/<session>.mp4 and video/<session>.json = {"start": "<ISO time of its first frame, with offset>"}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import digest, file_digest
from pipelines.openpack.annotations import JAPAN, parse_ms
from pipelines.openpack.settings import View

JOINTS = 17  # of a person in COCO form: x and y in pixels of 1280×720, confidence
_PLACES: dict[View, str] = {
    "video": "video/{}.mp4",
    "rgb": "kinect/color-masked/frames/{}",
    "depth": "kinect/depth/frames/{}",
    "keypoints": "kinect/2d-kpt/mmpose-hrnet-w48-posetrack18-384x288-posewarper-stage2/single/{}.json",
}
_IMAGE_SUFFIX: dict[View, str] = {"rgb": ".jpg", "depth": ".png"}
_IMAGE_ENDS = {".jpg": (b"\xff\xd8\xff", b"\xff\xd9"), ".png": (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82")}
_AGAIN = "Copy it from the release again."


def annotation_file(root: Path, user: str, session: str) -> Path:
    return root / user / f"annotation/openpack-operations/{session}.csv"


def stream_place(root: Path, user: str, session: str, view: View) -> Path:
    """The file (video, keypoints) or folder (rgb, depth) of one session's stream, there or not."""
    return root / user / _PLACES[view].format(session)


def video_start_file(video: Path) -> Path:
    return video.with_suffix(".json")


def find_users(root: Path) -> list[str]:
    """Ids of the users whose folders lie in `root`, sorted. SetupError where there is none."""
    users = sorted(path.name for path in root.glob("U*") if path.is_dir() and re.fullmatch(r"U\d{4}", path.name))
    if not users:
        cure = "Set OPENPACK_ROOT to the folder that holds U0101, U0102, …: unpack <user>.zip into <root>/<user>/."
        raise SetupError("no user's folder is here", file=root, cure=cure)
    return users


def find_sessions(root: Path, user: str) -> dict[str, list[View]]:
    """Sessions of which there is an annotation or any stream, sorted, each with the views that it has."""
    found: dict[str, list[View]] = {path.stem: [] for path in annotation_file(root, user, "x").parent.glob("S*.csv")}
    for view in get_args(View):
        place = stream_place(root, user, "S*", view)
        for path in place.parent.glob(place.name):
            found.setdefault(path.stem, []).append(view)
    return {name: found[name] for name in sorted(found) if re.fullmatch(r"S\d{4}", name)}


def stream_files(place: Path, view: View) -> list[Path]:
    """Every file of a stream, sorted; empty where the stream is not there. Hidden files are none of it."""
    if view in _IMAGE_SUFFIX:
        return sorted(path for path in place.rglob(f"*{_IMAGE_SUFFIX[view]}") if not path.name.startswith("."))
    names = [place, video_start_file(place)] if view == "video" else [place]
    return [path for path in names if path.is_file()]


def stat_digest(root: Path, paths: Iterable[Path]) -> str:
    """Digest of names below `root`, sizes and times of change: tells a changed file without reading it."""
    stats = [(str(path.relative_to(root)), path.stat()) for path in paths]
    return digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def stream_digest(place: Path, view: View) -> str:
    """Digest of a stream that a copy of the same files has too: of content, for a folder of names and sizes."""
    files = stream_files(place, view)
    if place.is_dir():
        return digest([[str(path.relative_to(place)), path.stat().st_size] for path in files])
    return digest([file_digest(path) for path in files])


def frame_times(place: Path, view: View) -> list[int]:
    """Unix ms of every frame of a stream, in order; empty where it has none. Checks the files on the way.

    DataError for a file that is missing, empty, cut short or of another kind.
    """
    if view == "video":
        from pipelines.common.media import packet_times  # the decoder is loaded only where a film is read

        start_ms = read_video_start(place)
        check_mp4(place)
        return [start_ms + round(second * 1000) for second in packet_times(place)]
    if view == "keypoints":
        return [time for time, _ in read_keypoints(place)]
    frames = image_frames(place, view)
    check_images(path for _, path in frames)
    return [time for time, _ in frames]


def image_frames(folder: Path, view: View) -> list[tuple[int, Path]]:
    """Frames of a folder of images as (unix ms, file), by time. DataError for a name without time or a time twice."""
    frames = sorted((_time_in_name(path), path) for path in stream_files(folder, view))
    for (time, path), (later, other) in pairwise(frames):
        if time == later:
            raise DataError(f"same time as {path}", file=other, cure="Delete one of the two.")
    return frames


def check_images(paths: Iterable[Path]) -> None:
    """Looks at both ends of every image file. DataError for one that is empty, cut short or of another kind."""
    for path in paths:
        head, tail = _IMAGE_ENDS[path.suffix]
        try:
            with path.open("rb") as stream:
                start = stream.read(len(head))
                size = stream.seek(0, 2)
                stream.seek(max(0, size - len(tail)))
                end = stream.read()
        except OSError as error:
            raise DataError(f"the frame cannot be read ({error})", file=path, cure=_AGAIN) from None
        if size == 0:
            raise DataError("the frame is empty", file=path, cure=_AGAIN)
        if start != head:
            raise DataError(f"not a {path.suffix[1:]} picture", file=path, cure=_AGAIN)
        if end != tail:
            raise DataError("the frame is cut short", file=path, cure=_AGAIN)


def check_mp4(path: Path) -> None:
    """Walks the file's boxes (length, four letters, content) to its end. DataError where it ends too early or late.

    A decoder plays what there is of a film that was cut short, so only the box lengths tell.
    """
    size = path.stat().st_size
    if size == 0:
        raise DataError("the film is empty", file=path, cure=_AGAIN)
    end = 0
    with path.open("rb") as stream:
        while end < size:
            stream.seek(end)
            header = stream.read(16)
            length, name = int.from_bytes(header[:4], "big"), header[4:8]
            if end == 0 and name != b"ftyp":
                raise DataError("not an mp4 film", file=path, cure=_AGAIN)
            if length == 1:  # the length stands in 64 bits after the name
                length = int.from_bytes(header[8:], "big")
            if not name.isalnum() or 0 < length < 8:
                raise DataError("the film is damaged", file=path, where=f"byte {end}", cure=_AGAIN)
            end = end + length if length else size  # 0: until the end of the file
    if end > size:
        raise DataError(f"the film is cut short: {size} of at least {end} bytes", file=path, cure=_AGAIN)


def read_keypoints(path: Path) -> list[tuple[int, np.ndarray]]:
    """Frames of a keypoint file as (unix ms, joints), by time; joints are float32 (persons, 17, 3).

    DataError for a file that is empty, cut short or of another form, with the entry that is wrong.
    """
    people: dict[int, list[np.ndarray]] = {}
    for index, entry in enumerate(_annotations(path)):
        try:
            joints = np.asarray(entry["keypoints"], dtype=np.float32)
            time = int(entry["image_id"])
        except (KeyError, TypeError, ValueError) as error:
            raise _bad_entry(path, index, f"no image_id or keypoints ({error!r})") from None
        if joints.shape != (JOINTS, 3) or not np.isfinite(joints).all():
            raise _bad_entry(path, index, f"keypoints of shape {joints.shape}, not {JOINTS} joints of x, y, confidence")
        people.setdefault(time, []).append(joints)
    return [(time, np.stack(people[time])) for time in sorted(people)]


def read_video_start(video: Path) -> int:
    """Unix ms of a film's first frame, from the file beside it. DataError where that is missing or unreadable."""
    path = video_start_file(video)
    example = '{"start": "2022-03-29 14:25:11.030+09:00"}'
    try:
        return parse_ms(json.loads(path.read_text(encoding="utf-8"))["start"])
    except FileNotFoundError:
        what = "the file that says when the film starts is missing"
    except (OSError, KeyError, TypeError, ValueError) as error:
        what = f"no start time in it ({error})"
    raise DataError(what, file=path, cure=f"Write {example} into it.")


def _annotations(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise DataError("the keypoint file is empty", file=path, cure=_AGAIN)
        content = json.loads(text)
    except (OSError, ValueError) as error:  # both JSON and Unicode errors are ValueErrors
        raise DataError(f"not a readable keypoint file ({error}), perhaps cut short", file=path, cure=_AGAIN) from None
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise DataError("no list `annotations`: not a keypoint file in COCO form", file=path, cure=_AGAIN)
    return content["annotations"]


def _bad_entry(path: Path, index: int, what: str) -> DataError:
    return DataError(what, file=path, where=f"annotations[{index}]", cure=_AGAIN)


def _time_in_name(path: Path) -> int:
    try:
        time = datetime.strptime(path.stem, "%Y%m%d_%H%M%S_%f").replace(tzinfo=JAPAN)
    except ValueError:
        cure = "Frames are called like 20220329_142511_030.jpg; take other files out of the folder."
        raise DataError("the file name holds no time", file=path, cure=cure) from None
    return round(time.timestamp() * 1000)
