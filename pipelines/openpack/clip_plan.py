"""What a clip is, and which stretches of a session become clips.

Belongs here: the clip as data (a line of `clips.jsonl`, `clip.json` in a shard), its label, and the choice of starts
from labels and lengths alone. Reads no file and sees no picture; keyframes are chosen elsewhere (`common.keyframes`),
and the two meet in `clips`.

Frames, rate and length are those of a `ClipFormat`. Inside a clip they count from 0, intervals are half-open. Clips
start on whole seconds of the video, so that the id names one stretch: `U0108_S0500_t0035` starts 35 s after the video's
first frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from pipelines.common.clip_format import ClipFormat
from pipelines.common.intervals import overlap
from pipelines.common.keyframes import Keyframes
from pipelines.openpack.annotations import FrameSpan, Timeline
from pipelines.openpack.settings import ClipSettings

Kind = Literal["boundary", "transition", "inside"]


class Target(BaseModel):
    """What a clip is to be answered with, in the operation ids of the session's taxonomy.

    `operation` fills [start, end) of the clip: the operation instance with the most frames in it, of two equal ones
    the earlier. `next` is the operation that follows this instance in the session.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: int
    start: int
    end: int
    next: int


class Clip(BaseModel):
    """A stretch of a session with what is shown of them and what they hold.

    `start_frame` counts from the start of the session's video, everything else from the start of the clip.
    `boundaries` are the true operation boundaries strictly inside, `operations` what is done before, between and after
    them, `following` what comes after the last of these (None where the session ends), by native id; `bounds` and
    `pairs` come from the picture alone
    (see `Keyframes`). `uniform` is the choice of a control arm, evenly spaced; training clips have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip_id: str
    user: str
    session: str
    start_frame: int
    n_frames: int
    kind: Kind
    target: Target
    boundaries: tuple[int, ...]
    operations: tuple[int, ...]
    following: int | None = None
    bounds: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    uniform: Keyframes | None = None

    @property
    def keyframes(self) -> Keyframes:
        return Keyframes(self.bounds, self.pairs)

    @model_serializer(mode="wrap")
    def _without_what_it_has_not(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


@dataclass(frozen=True)
class PlannedClip:
    """A clip before anything was seen of it; `start_frame` counts from the start of the session's video."""

    start_frame: int
    kind: Kind
    target: Target
    boundaries: tuple[int, ...]
    operations: tuple[int, ...]
    following: int | None


def clip_id(user: str, session: str, start_frame: int, fps: int) -> str:
    return f"{user}_{session}_t{start_frame // fps:04d}"


def plan(
    timeline: Timeline,
    first_ms: int,
    n_frames: int,
    settings: ClipSettings,
    clip_format: ClipFormat,
    *,
    training: bool,
) -> list[PlannedClip]:
    """The clips, in that format, of a session whose video has `n_frames` frames, the first at `first_ms` unix time; by
    start.

    For `training` boundaries come anywhere in the clip, for all others (validation, test, outside of the split) near
    its middle. A start is taken once, by the first kind that asks for it. Drawn from seed, user and session alone.
    """
    fps, frames = clip_format.fps, clip_format.frames
    spans = session_spans(timeline, first_ms, fps)
    labels = {start: label for start in _starts(0, n_frames - frames, fps) if (label := describe(spans, start, frames))}
    rng = Random(f"{settings.seed}/{timeline.user}/{timeline.session}")
    kinds: dict[int, Kind] = {}

    def take(kind: Kind, count: int, starts: Iterable[int]) -> None:
        free = [start for start in starts if start in labels and start not in kinds]
        kinds.update(dict.fromkeys(rng.sample(free, min(count, len(free))), kind))

    for _, after in pairwise(spans):
        if training:
            take("boundary", settings.boundary_clips, _starts_around(after.start_frame, clip_format))
        else:
            take("boundary", 1, _starts_centred(after.start_frame, settings.evaluation_slack_s, clip_format))
    for before, after in pairwise(spans):
        take("transition", settings.transition_clips, _starts_across(before, after, clip_format))
    for span in spans:
        take("inside", settings.inside_clips, _starts(span.start_frame, span.end_frame - frames, fps))
    return [PlannedClip(start, kinds[start], *labels[start]) for start in sorted(kinds)]


def session_spans(timeline: Timeline, first_ms: int, fps: int) -> list[FrameSpan]:
    """The timeline from `first_ms` to its end in frames of the session's video of `fps`, neighbours of one operation
    joined.

    Two neighbours of one operation (an annotated Null beside a gap) show no boundary, and the second is not "next".
    """
    n = max(0, timeline.end_ms - first_ms) * fps // 1000 + 1
    joined: list[FrameSpan] = []
    for span in timeline.frames(first_ms, fps, n):
        if joined and joined[-1].op_id == span.op_id:
            joined[-1] = replace(joined[-1], end_frame=span.end_frame, next_op_id=span.next_op_id)
        else:
            joined.append(span)
    return joined


def describe(
    spans: Sequence[FrameSpan], start: int, frames: int
) -> tuple[Target, tuple[int, ...], tuple[int, ...], int | None] | None:
    """Target, boundaries, operations and what follows these, of the clip of `frames` that starts at frame `start`.

    None where the clip reaches outside of the annotated time, or where nothing follows its dominant operation.
    """
    end = start + frames
    if not spans or start < spans[0].start_frame or end > spans[-1].end_frame:
        return None
    dominant = max(spans, key=lambda span: overlap((span.start_frame, span.end_frame), (start, end)))
    if dominant.next_op_id is None:
        return None
    target = Target(
        operation=dominant.op_id,
        start=max(0, dominant.start_frame - start),
        end=min(frames, dominant.end_frame - start),
        next=dominant.next_op_id,
    )
    inside = [span for span in spans if span.start_frame < end and span.end_frame > start]
    boundaries = tuple(span.start_frame - start for span in inside[1:])
    return target, boundaries, tuple(span.op_id for span in inside), inside[-1].next_op_id


def _starts(low: int, high: int, fps: int) -> range:
    """Whole seconds in [low, high], in frames."""
    return range(-(-low // fps) * fps, high + 1, fps)


def _starts_around(boundary: int, clip_format: ClipFormat) -> range:
    return _starts(boundary - clip_format.frames + 1, boundary - 1, clip_format.fps)


def _starts_centred(boundary: int, slack_s: float, clip_format: ClipFormat) -> range:
    middle, slack = clip_format.frames // 2, int(slack_s * clip_format.fps)
    return _starts(boundary - middle - slack, boundary - middle + slack, clip_format.fps)


def _starts_across(before: FrameSpan, after: FrameSpan, clip_format: ClipFormat) -> range:
    """Starts inside `before` of clips that end inside `after`."""
    low = max(before.start_frame, after.start_frame - clip_format.frames + 1)
    return _starts(low, min(after.start_frame - 1, after.end_frame - clip_format.frames), clip_format.fps)
