"""Where a release folder keeps what, and whether a stream's files are what they should be.

Belongs here: the layouts, and of each stream its files, their times and their form. Folders of images (`image_files`),
the form of a film (`common.containers`) and of a table (`operation_rows`), what is drawn from a stream (`streams`) and
what a session is made of (`sources`) have modules of their own.

Layout below `<root>/<user>/`; a release is one zip a user, unpacked into a folder of the user's name:

    annotation/openpack-operations/<session>.csv        v1.0.0, v1.1.0: events; v0.2.x of 2022: seconds
    annotation/openpack-operations-1hz/<session>.csv    v1.0.0, v1.1.0: the same in seconds
    annotation/activity-1s/<session>.csv                v0.3.x: seconds
    kinect/color-masked/frames/<session>/…/*.jpg        v1.0.0, v1.1.0: view rgb
    kinect/depth/frames/<session>/…/*.png               v0.3.x and later: view depth, 16 bit
    kinect/2d-kpt/<model>/single/<session>.json         all: view keypoints, COCO form

Of several tables of a session the first in this list that is there is read: it knows boundaries best. The places of
v0.2.x, v0.3.x and v1.0.0 are those that the dataset's own listings of these releases show; v1.1.0 is taken to be as
v1.0.0, since the toolkit loads both from the same places. One addition for cameras that record films, in mp4, mov, mkv
or avi:

    video/<session>.mp4 and video/<session>.json = {"start": "<ISO time of its first frame, with offset>"}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import digest, file_digest
from pipelines.openpack.image_files import SUFFIX, check_images, image_frames, list_images
from pipelines.openpack.settings import View
from pipelines.openpack.tables import parse_ms

JOINTS = 17  # of a person in COCO form: x and y in pixels of 1280×720, confidence
LAYOUTS = (  # a line each, for people whose folder is none of them
    "v1.0.0 and v1.1.0 keep annotation/openpack-operations/S0100.csv with a row an operation",
    "v0.3.x keeps annotation/activity-1s/S0100.csv with a row a second",
    "v0.2.x of 2022 keeps annotation/openpack-operations/S0100.csv with a row a second",
)
_TABLES = ("openpack-operations", "openpack-operations-1hz", "activity-1s")
_FOLDERS: dict[View, str] = {
    "video": "video",
    "rgb": "kinect/color-masked/frames",
    "depth": "kinect/depth/frames",
    "keypoints": "kinect/2d-kpt/mmpose-hrnet-w48-posetrack18-384x288-posewarper-stage2/single",
}
_ENDINGS: dict[View, tuple[str, ...]] = {  # of a session's file there, upper or lower case; the first is usual
    "video": (".mp4", ".mov", ".mkv", ".avi"),
    "rgb": ("",),
    "depth": ("",),
    "keypoints": (".json",),
}
_NAMED = 8  # names that an error lists of what it found
_AGAIN = "Copy it from the release again."


@dataclass(frozen=True)
class Keypoints:
    """Frames of a keypoint file as (unix ms, joints), by time; joints are float32 (persons, 17, 3).

    `recorded_ms` are the times in the file's own order; entries of one time that follow each other are one frame.
    """

    frames: list[tuple[int, np.ndarray]]
    recorded_ms: list[int]


def annotation_file(root: Path, user: str, session: str) -> Path:
    """The table of a session's operations: the best that is there, or where that of v1.0.0 would be."""
    files = [root / user / "annotation" / table / f"{session}.csv" for table in _TABLES]
    return next((file for file in files if file.exists()), files[0])


def stream_place(root: Path, user: str, session: str, view: View) -> Path:
    """The file (video, keypoints) or folder (rgb, depth) of one session's stream, there or not.

    DataError where two films have the session's name.
    """
    found = [path for name, path in _streams(root, user, view) if name == session]
    if len(found) > 1:
        what = f"two films of one session: {' and '.join(path.name for path in found)}"
        raise DataError(what, file=found[0].parent, cure="Keep one of them there.")
    return found[0] if found else root / user / _FOLDERS[view] / f"{session}{_ENDINGS[view][0]}"


def video_start_file(video: Path) -> Path:
    return video.with_suffix(".json")


def find_users(root: Path) -> list[str]:
    """Ids of the users whose folders lie in `root`, sorted. SetupError where there is none."""
    users = sorted(path.name for path in root.glob("U*") if path.is_dir() and re.fullmatch(r"U\d{4}", path.name))
    if not users:
        cure = "Set OPENPACK_ROOT to the folder that holds U0101, U0102, …: unpack <user>.zip into <root>/<user>/."
        raise SetupError(f"no user's folder is here, {_found(root)}", file=root, cure=f"{cure} {_expected()}")
    return users


def find_sessions(root: Path, user: str) -> dict[str, list[View]]:
    """Sessions of which there is an annotation or any stream, sorted, each with the views that it has."""
    tables = [path for table in _TABLES for path in (root / user / "annotation" / table).glob("S*.csv")]
    found: dict[str, list[View]] = {path.stem: [] for path in tables}
    for view in get_args(View):
        for name, _ in _streams(root, user, view):
            if view not in found.setdefault(name, []):
                found[name].append(view)
    return {name: found[name] for name in sorted(found) if re.fullmatch(r"S\d{4}", name)}


def check_layout(root: Path, user: str) -> None:
    """DataError that says what was found and what is known, where a user has no session, or annotations but none in a
    known place."""
    folder = root / user
    if not find_sessions(root, user):
        cure = f"Unpack {user}.zip into this folder, or leave the user out. {_expected()}"
        raise DataError(f"no session of this user is here, {_found(folder)}", file=folder, cure=cure)
    folder = folder / "annotation"
    if folder.is_dir() and not any((folder / table).is_dir() for table in _TABLES):
        cure = f"Take the annotations from the release again, or take this folder away. {_expected()}"
        raise DataError(f"annotations of an unknown layout, {_found(folder)}", file=folder, cure=cure)


def stream_files(root: Path, user: str, session: str, view: View) -> list[Path]:
    """Every file that belongs to a session's stream, sorted; empty where the stream is not there."""
    places = [path for name, path in _streams(root, user, view) if name == session]
    if view in SUFFIX:
        return [path for place in places for path in list_images(place, view)]
    return [path for place in places for path in _own_files(place, view)]


def stat_digest(root: Path, paths: Iterable[Path]) -> str:
    """Digest of names below `root`, sizes and times of change: tells a changed file without reading it."""
    stats = [(str(path.relative_to(root)), path.stat()) for path in paths]
    return digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def stream_digest(place: Path, view: View) -> str:
    """Digest of a stream that tells a changed one: of content; of a folder, whose content is too much to read just for
    this, of names, sizes and times of change. A frame that was mended often has the size that it had."""
    if view in SUFFIX:
        return stat_digest(place, list_images(place, view))
    return digest([file_digest(path) for path in _own_files(place, view)])


def frame_times(place: Path, view: View) -> list[int]:
    """Unix ms of every frame of a stream, in order; empty where it has none. Checks the files on the way.

    DataError for a file that is missing, empty, cut short or of another kind.
    """
    if view == "video":
        from pipelines.common.containers import check_film
        from pipelines.common.media import packet_times  # the decoder is loaded only where a film is read

        start_ms = read_video_start(place)
        check_film(place)
        return [start_ms + round(second * 1000) for second in packet_times(place)]
    if view == "keypoints":
        return [time for time, _ in read_keypoints(place).frames]
    frames = image_frames(place, view)
    check_images(path for _, path in frames)
    return [time for time, _ in frames]


def read_keypoints(path: Path) -> Keypoints:
    """The frames of a keypoint file.

    DataError for a file that is empty, cut short or of another form, with the entry that is wrong.
    """
    people: dict[int, list[np.ndarray]] = {}
    times: list[int] = []
    for index, entry in enumerate(_annotations(path)):
        try:
            joints = np.asarray(entry["keypoints"], dtype=np.float32)
            time = int(entry["image_id"])
        except (KeyError, TypeError, ValueError) as error:
            raise _bad_entry(path, index, f"no image_id or keypoints ({error!r})") from None
        if joints.shape != (JOINTS, 3) or not np.isfinite(joints).all():
            raise _bad_entry(path, index, f"keypoints of shape {joints.shape}, not {JOINTS} joints of x, y, confidence")
        people.setdefault(time, []).append(joints)
        times.append(time)
    frames = [(time, np.stack(people[time])) for time in sorted(people)]
    return Keypoints(frames, [time for time, _ in groupby(times)])


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


def _streams(root: Path, user: str, view: View) -> Iterator[tuple[str, Path]]:
    """Session and place of every stream of a view."""
    for path in sorted((root / user / _FOLDERS[view]).glob("S*")):
        if path.suffix.lower() in _ENDINGS[view]:
            yield path.stem, path


def _own_files(place: Path, view: View) -> list[Path]:
    names = [place, video_start_file(place)] if view == "video" else [place]
    return [path for path in names if path.is_file()]


def _found(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not names:
        return "and nothing is in it" if folder.is_dir() else "nor is the folder"
    return f"but {', '.join(names[:_NAMED])}{' and more' if len(names) > _NAMED else ''}"


def _expected() -> str:
    return f"Known layouts: {'; '.join(LAYOUTS)}; all keep {_FOLDERS['keypoints']}/S0100.json."
