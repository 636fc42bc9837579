"""Streams that are folders of image files: which files, at which times, and whether they are whole.

Belongs here: names, folders and ends of the files of the views rgb and depth. Where such a folder lies (`release`) and
what a picture shows (`streams`) do not.

    <folder>/%Y/%m/%d/%H/%M/%Y%m%d_%H%M%S_<ms>.jpg|png      times of Japan
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from pipelines.common.errors import DataError
from pipelines.openpack.annotations import JAPAN
from pipelines.openpack.settings import View

SUFFIX: dict[View, str] = {"rgb": ".jpg", "depth": ".png"}
_ENDS = {".jpg": (b"\xff\xd8\xff", b"\xff\xd9"), ".png": (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82")}
_AGAIN = "Copy it from the release again."


def list_images(folder: Path, view: View) -> list[Path]:
    """Every image file of a stream, sorted; empty where the folder is not there. Hidden files are none of it."""
    return sorted(path for path in folder.rglob(f"*{SUFFIX[view]}") if not path.name.startswith("."))


def image_frames(folder: Path, view: View) -> list[tuple[int, Path]]:
    """Frames of a folder of images as (unix ms, file), by time.

    DataError for a name without time, a name and folders that tell different times, or two files of one time.
    """
    frames = sorted((_time(path, folder), path) for path in list_images(folder, view))
    for (time, path), (later, other) in pairwise(frames):
        if time == later:
            raise DataError(f"same time as {path}", file=other, cure="Delete one of the two.")
    return frames


def check_images(paths: Iterable[Path]) -> None:
    """Looks at both ends of every image file. DataError for one that is empty, cut short or of another kind."""
    for path in paths:
        head, tail = _ENDS[path.suffix]
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


def _time(path: Path, folder: Path) -> int:
    """Unix ms that the name tells; the folders may leave parts of the time out, but not tell another."""
    try:
        time = datetime.strptime(path.stem, "%Y%m%d_%H%M%S_%f").replace(tzinfo=JAPAN)
    except ValueError:
        cure = "Frames are called like 20220329_142511_030.jpg; take other files out of the folder."
        raise DataError("the file name holds no time", file=path, cure=cure) from None
    told = [part for part in path.parent.relative_to(folder).parts if part.isdigit()]
    own = time.strftime("%Y %m %d %H %M").split()
    if told != own[: len(told)]:
        cure = f"It belongs into {'/'.join(own)}, or is called wrongly: see which, and move or rename it."
        raise DataError(f"its folder tells another time, {'/'.join(told)}", file=path, cure=cure)
    return round(time.timestamp() * 1000)
