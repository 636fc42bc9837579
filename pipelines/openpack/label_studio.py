"""Label Studio's exports (JSON and JSON-MIN) as labelled segments.

Belongs here: the two forms, what their numbers mean, and how an uploaded file was called before. What must hold of any
segment (`segments`) does not.

Read of the form: a list of tasks. A task's data, in `data` or in JSON-MIN in the task itself, names one video by path
or URL, and perhaps `user`. Its results, in `annotations[].result[].value` or in JSON-MIN in the lists of the task, are

    {"ranges": [{"start": 1, "end": 250}], "timelinelabels": ["Tape"]}    of `TimelineLabels`, in frames
    {"start": 0.0, "end": 10.0, "labels": ["Tape"]}                       of `Labels` on the video's sound, in seconds

Frames count from 1 and both ends belong to the range. They are not frames of the file: the browser's time is divided by
the `frameRate` of the labelling configuration, which no export tells.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipelines.common.errors import DataError
from pipelines.openpack.segments import VIDEO_SUFFIXES, Flaw, LabelledSegment, Unit, labelled

_EXPORT = "Export it again as JSON or JSON-MIN, or take it out of the folder."
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # what Label Studio puts before the name of an uploaded file


def read_export(file: Path, videos: Collection[str], fps: float | None) -> list[LabelledSegment | Flaw]:
    """The labelled stretches of an export; `videos` are the file names that there are.

    With the frame rate `fps` of the labelling project all times come in seconds, without it ranges come in frames.
    DataError for a file that is no such export or where a task names no video; a task that cannot be used is a flaw of
    its video.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:  # both JSON and Unicode errors are ValueErrors
        raise DataError(f"not a readable JSON file ({error})", file=file, cure=_EXPORT) from None
    tasks = content if isinstance(content, list) else [content]
    if not tasks or not all(isinstance(task, dict) and ("data" in task or "annotations" not in task) for task in tasks):
        raise DataError("no task is in it: not an export of Label Studio", file=file, cure=_EXPORT)
    flat = Counter(task.get("id") for task in tasks if "annotations" not in task)
    found: list[LabelledSegment | Flaw] = []
    for number, task in enumerate(tasks, 1):
        task = {"id": number, **task}
        row, data = f"task {task['id']}", task["data"] if "annotations" in task else task
        name, user = _video(data, videos, file, row), data.get("user")
        try:
            if flat[task["id"]] > 1:  # JSON-MIN repeats the task for each of its annotations
                raise DataError("it has several annotations", cure="Delete all but one, and export again.")
            found += _segments(task, fps, (name,), None if user is None else str(user), file, row)
        except DataError as error:
            found.append(Flaw((name,), user, DataError(error.what, file=file, where=row, cure=error.cure)))
    return found


def _segments(
    task: dict[str, Any], fps: float | None, names: tuple[str, ...], user: str | None, file: Path, row: str
) -> list[LabelledSegment | Flaw]:
    try:
        stretches = list(_stretches(list(_values(task)), fps))
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"its results are not of Label Studio's form ({error!r})", cure=_EXPORT) from None
    return [
        labelled(names, start, end, label, user, file, f"{row}, {where}", unit)
        for where, label, start, end, unit in stretches
    ]


def _values(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The results of a task: of its one annotation, or of the one that is the ground truth."""
    if "annotations" not in task:
        yield from (value for values in task.values() if isinstance(values, list) for value in values if _is(value))
        return
    kept = [one for one in task["annotations"] if not one.get("was_cancelled")]
    truths = [one for one in kept if one.get("ground_truth")]
    if len(kept) > 1 and len(truths) != 1:
        what = f"{len(kept)} annotations, {len(truths)} of them marked as ground truth"
        raise DataError(what, cure="Mark one as the ground truth, or delete the others, and export again.")
    for one in truths or kept:
        values = (result.get("value") for result in one.get("result") or ())
        yield from (value for value in values if _is(value))


def _is(value: Any) -> bool:
    """Whether this is a labelled stretch, and no other thing that a project may ask for."""
    return isinstance(value, dict) and ("ranges" in value or {"start", "end", "labels"} <= value.keys())


def _stretches(values: list[dict[str, Any]], fps: float | None) -> Iterator[tuple[str, str, Any, Any, Unit]]:
    """Each stretch as (where, label, start, end, unit), half-open and counted from 0. DataError for one of many labels.

    Where one range ends on the very frame on which another starts, as when they are drawn edge to edge, the frame goes
    to the later one.
    """
    first_frames = {part["start"] for value in values for part in value.get("ranges", ())}
    for number, value in enumerate(values, 1):
        label, *more = value.get("timelinelabels", value.get("labels")) or [""]
        if more:
            raise DataError(f"region {number} has {1 + len(more)} labels", cure="Leave one, and export again.")
        if "ranges" not in value:
            yield f"region {number}", label, value["start"], value["end"], "seconds"
        for part in value.get("ranges", ()):
            start, end = part["start"], part["end"]
            if None not in (start, end):  # of a range that was not drawn to its end
                shared = end in first_frames and end > start
                start, end = start - 1, end - 1 if shared else end
                if fps:
                    start, end = start / fps, end / fps
            yield f"region {number}", label, start, end, "seconds" if fps else "frames"


def _video(data: dict[str, Any], videos: Collection[str], file: Path, row: str) -> str:
    """The name of the task's video, as it is called in the folder where it is there."""
    texts = [value for value in data.values() if isinstance(value, str)]
    found = {name for name in map(_file_name, texts) if name.lower().endswith(VIDEO_SUFFIXES)}
    if len(found) != 1:
        what = f"the task names {'several videos' if found else 'no video'}"
        raise DataError(what, file=file, where=row, cure=f"Its data must name one file of {', '.join(VIDEO_SUFFIXES)}.")
    name = found.pop()
    uploaded = _UPLOADED.fullmatch(name)
    if name in videos or uploaded is None:
        return name
    original = uploaded[1]
    return original if original in videos else next((one for one in videos if _cleaned(one) == original), original)


def _file_name(text: str) -> str:
    """The last part of a path or URL; Label Studio's local files stand in the query, as `?d=`. Empty for other text."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    return unquote(parse_qs(parts.query).get("d", [parts.path])[0]).replace("\\", "/").rpartition("/")[2]


def _cleaned(name: str) -> str:
    """A name as Label Studio stores it: blanks become underscores, and only letters, digits and `-_.` stay."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))
