"""The operations of labelled sessions, as stages hand them on in frames of the sessions' videos.

Belongs here: two files, written and read. From annotations to frames (`annotations`, `clip_plan`) and what is learned
from sequences (`grammar`) do not.

`operations.jsonl` of a session's folder in the stage clips, and one line of `sessions.jsonl` in the stage shards:

    {"operation": id, "start": frame, "end": frame}            a line a stretch, in order, touching; half-open
    {"user", "session", "split", "operations": [these]}        a line a session of a split, by user and session

Frames count from the start of the video, at the rate of the data's `Preparation`; it may end before the last operation
does, or begin after the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.common.errors import DataError
from pipelines.common.files import read_jsonl, write_jsonl
from pipelines.openpack.annotations import Timeline
from pipelines.openpack.boxes import Stretch
from pipelines.openpack.clip_plan import session_spans
from pipelines.openpack.splits import Split

OPERATIONS, SESSIONS = "operations.jsonl", "sessions.jsonl"
_CURE = "Run the stages clips and shards again."


@dataclass(frozen=True)
class LabelledSession:
    """A session of a split, and what its annotation says is done in it."""

    user: str
    session: str
    split: Split
    stretches: tuple[Stretch, ...]

    @property
    def name(self) -> str:
        return f"{self.user}/{self.session}"


def sequence(timeline: Timeline, first_ms: int, n_frames: int, fps: int) -> tuple[Stretch, ...]:
    """What a session's annotation says of a video of `n_frames` frames at `fps`, the first at `first_ms` unix time."""
    spans = session_spans(timeline, first_ms, fps)
    inside = (Stretch(one.op_id, one.start_frame, min(one.end_frame, n_frames)) for one in spans)
    return tuple(one for one in inside if one.frames > 0)


def write_sequence(path: Path, stretches: Iterable[Stretch]) -> None:
    write_jsonl(path, [asdict(one) for one in stretches])


def read_sequence(path: Path) -> tuple[Stretch, ...]:
    """DataError where the file is missing or of another kind."""
    return _stretches(read_jsonl(path), path)


def write_sessions(path: Path, sessions: Sequence[LabelledSession]) -> None:
    """Writes the sessions that have labels, by user and session."""
    labelled = sorted((one for one in sessions if one.stretches), key=lambda one: (one.user, one.session))
    rows = [{"user": one.user, "session": one.session, "split": one.split} for one in labelled]
    operations = [{"operations": [asdict(stretch) for stretch in one.stretches]} for one in labelled]
    write_jsonl(path, [{**row, **more} for row, more in zip(rows, operations, strict=True)])


def read_sessions(shards: Path, split: Split) -> list[LabelledSession]:
    """The labelled sessions of a split, by user and session. DataError where the file is missing or of another kind."""
    path, found = shards / SESSIONS, []
    for row in read_jsonl(path):
        if row.get("split") == split:
            found.append(LabelledSession(row["user"], row["session"], split, _stretches(row["operations"], path)))
    return found


def _stretches(rows: Iterable[dict[str, Any]], path: Path) -> tuple[Stretch, ...]:
    try:
        return tuple(Stretch(**row) for row in rows)
    except TypeError as error:
        raise DataError(f"a line is no stretch of an operation ({error})", file=path, cure=_CURE) from None
