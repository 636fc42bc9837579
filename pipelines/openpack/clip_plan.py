"""What a clip is, and which stretches of a session become clips.

Belongs here: the clip as data (a line of `clips.jsonl`, `clip.json` in a shard), its label, and the choice of starts
from labels and lengths alone. Reads no file and sees no picture; keyframes are chosen elsewhere (`common.keyframes`),
and the two meet in `clips`.

All frames count at 25 fps. Inside a clip they run over [0, 125), intervals are half-open. Clips start on whole
seconds of the video, so that the id names one stretch: `U0108_S0500_t0035` starts 35 s after the video's first frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from pipelines.common.intervals import overlap
from pipelines.common.keyframes import Keyframes
from pipelines.openpack.annotations import FrameSpan, Timeline
from pipelines.openpack.settings import CLIP_FRAMES, FPS, ClipSettings

Kind = Literal["boundary", "transition", "inside"]
MIDDLE = CLIP_FRAMES // 2  # frame 62: with whole-second starts each boundary comes within 12 frames (0.48 s) of it


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
    """Five seconds of a session with what is shown of them and what they hold.

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
    n_frames: int = CLIP_FRAMES
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
    """A clip before anything was seen of it: frames [start_frame, start_frame + 125) of the session's video."""

    start_frame: int
    kind: Kind
    target: Target
    boundaries: tuple[int, ...]
    operations: tuple[int, ...]
    following: int | None


def clip_id(user: str, session: str, start_frame: int) -> str:
    return f"{user}_{session}_t{start_frame // FPS:04d}"


def plan(
    timeline: Timeline, first_ms: int, n_frames: int, settings: ClipSettings, *, training: bool
) -> list[PlannedClip]:
    """The clips of a session whose video has `n_frames` frames, the first at `first_ms` unix time; by start.

    For `training` boundaries come anywhere in the clip, for all others (validation, test, outside of the split) near
    its middle. A start is taken once, by the first kind that asks for it. Drawn from seed, user and session alone.
    """
    spans = session_spans(timeline, first_ms)
    labels = {start: label for start in _starts(0, n_frames - CLIP_FRAMES) if (label := describe(spans, start))}
    rng = Random(f"{settings.seed}/{timeline.user}/{timeline.session}")
    kinds: dict[int, Kind] = {}

    def take(kind: Kind, count: int, starts: Iterable[int]) -> None:
        free = [start for start in starts if start in labels and start not in kinds]
        kinds.update(dict.fromkeys(rng.sample(free, min(count, len(free))), kind))

    for _, after in pairwise(spans):
        if training:
            take("boundary", settings.boundary_clips, _starts_around(after.start_frame))
        else:
            take("boundary", 1, _starts_centred(after.start_frame, settings.evaluation_slack))
    for before, after in pairwise(spans):
        take("transition", settings.transition_clips, _starts_across(before, after))
    for span in spans:
        take("inside", settings.inside_clips, _starts(span.start_frame, span.end_frame - CLIP_FRAMES))
    return [PlannedClip(start, kinds[start], *labels[start]) for start in sorted(kinds)]


def session_spans(timeline: Timeline, first_ms: int) -> list[FrameSpan]:
    """The timeline from `first_ms` to its end in frames of the session's video, neighbours of one operation joined.

    Two neighbours of one operation (an annotated Null beside a gap) show no boundary, and the second is not "next".
    """
    n = max(0, timeline.end_ms - first_ms) * FPS // 1000 + 1
    joined: list[FrameSpan] = []
    for span in timeline.frames(first_ms, FPS, n):
        if joined and joined[-1].op_id == span.op_id:
            joined[-1] = replace(joined[-1], end_frame=span.end_frame, next_op_id=span.next_op_id)
        else:
            joined.append(span)
    return joined


def describe(
    spans: Sequence[FrameSpan], start: int
) -> tuple[Target, tuple[int, ...], tuple[int, ...], int | None] | None:
    """Target, boundaries, operations and what follows these, of the clip that starts at frame `start` of the session.

    None where the clip reaches outside of the annotated time, or where nothing follows its dominant operation.
    """
    end = start + CLIP_FRAMES
    if not spans or start < spans[0].start_frame or end > spans[-1].end_frame:
        return None
    dominant = max(spans, key=lambda span: overlap((span.start_frame, span.end_frame), (start, end)))
    if dominant.next_op_id is None:
        return None
    target = Target(
        operation=dominant.op_id,
        start=max(0, dominant.start_frame - start),
        end=min(CLIP_FRAMES, dominant.end_frame - start),
        next=dominant.next_op_id,
    )
    inside = [span for span in spans if span.start_frame < end and span.end_frame > start]
    boundaries = tuple(span.start_frame - start for span in inside[1:])
    return target, boundaries, tuple(span.op_id for span in inside), inside[-1].next_op_id


def _starts(low: int, high: int) -> range:
    """Whole seconds in [low, high], in frames."""
    return range(-(-low // FPS) * FPS, high + 1, FPS)


def _starts_around(boundary: int) -> range:
    return _starts(boundary - CLIP_FRAMES + 1, boundary - 1)


def _starts_centred(boundary: int, slack: int) -> range:
    return _starts(boundary - MIDDLE - slack, boundary - MIDDLE + slack)


def _starts_across(before: FrameSpan, after: FrameSpan) -> range:
    """Starts inside `before` of clips that end inside `after`."""
    low = max(before.start_frame, after.start_frame - CLIP_FRAMES + 1)
    return _starts(low, min(after.start_frame - 1, after.end_frame - CLIP_FRAMES))
