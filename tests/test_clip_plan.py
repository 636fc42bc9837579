"""Which stretches become clips, and what each is labelled with."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.openpack import clip_plan
from pipelines.openpack.annotations import Segment, Timeline, read_operations, write_operations
from pipelines.openpack.clip_plan import PlannedClip, Target, clip_id, describe, session_spans
from pipelines.openpack.settings import ClipSettings
from pipelines.openpack.splits import split_of

START = 1_648_531_522_143  # unix ms of the first operation
SETTINGS = ClipSettings(seed=7, boundary_clips=2, transition_clips=1, inside_clips=1, evaluation_slack_s=0.5)


def timeline(*parts: tuple[int, float], user: str = "U0101", session: str = "S0100") -> Timeline:
    """(operation id, seconds) one after the other."""
    times = [START + round(1000 * sum(seconds for _, seconds in parts[:i])) for i in range(len(parts) + 1)]
    segments = [Segment(op_id, *times[i : i + 2], box=1) for i, (op_id, _) in enumerate(parts)]
    return Timeline(user, session, tuple(segments))


def plan(line: Timeline, first_ms: int, n_frames: int, settings: ClipSettings) -> list[PlannedClip]:
    return clip_plan.plan(line, first_ms, n_frames, settings, DEFAULT_FORMAT, training=split_of(line.user) == "train")


def working_day(user: str, seed: int = 0, n: int = 60) -> Timeline:
    rng = np.random.default_rng(seed)
    order = [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
    parts = [(order[i % 10], max(0.6, float(seconds))) for i, seconds in enumerate(rng.gamma(2.0, 4.0, n))]
    return timeline(*parts, user=user)


def label(
    line: Timeline, start: int, first_ms: int = START
) -> tuple[Target, tuple[int, ...], tuple[int, ...], int | None] | None:
    return describe(session_spans(line, first_ms, 25), start, 125)


def target(operation: int, start: int, end: int, following: int) -> Target:
    return Target(operation=operation, start=start, end=end, next=following)


def test_around_a_boundary_the_longer_side_wins():
    line = timeline((100, 3), (200, 10), (300, 10))
    assert label(line, 0) == (target(100, 0, 75, 200), (75,), (100, 200), 300)
    assert label(line, 25) == (target(200, 50, 125, 300), (50,), (100, 200), 300)


def test_inside_an_operation_it_fills_the_clip_and_touching_edges_are_no_boundary():
    line = timeline((100, 3), (200, 5), (300, 10))
    assert label(line, 75) == (target(200, 0, 125, 300), (), (200,), 300)


def test_of_two_equal_operations_the_earlier_is_dominant():
    line = timeline((100, 2), (200, 1), (300, 2), (400, 9))
    assert label(line, 0) == (target(100, 0, 50, 200), (50, 75), (100, 200, 300), 400)


def test_instances_count_not_sums():
    line = timeline((700, 1.6), (1000, 1.8), (700, 1.6), (800, 9))
    assert label(line, 0) == (target(1000, 40, 85, 700), (40, 85), (700, 1000, 700), 800)


def test_a_gap_is_null_and_can_be_next_and_dominant(tmp_path: Path):
    path = tmp_path / "S0100.csv"
    before = Segment(900, START, START + 6000, 1)
    after = Segment(100, START + 9000, START + 20000, 2)
    write_operations(path, "U0101", "S0100", [before, after, Segment(200, START + 20000, START + 25000, 2)])
    line = read_operations(path)
    assert label(line, 25) == (target(900, 0, 125, 8100), (), (900,), 8100)
    assert label(line, 125) == (target(8100, 25, 100, 100), (25, 100), (900, 8100, 100), 200)


def test_two_neighbours_of_one_operation_are_one():
    line = timeline((900, 2), (8100, 1), (8100, 3), (100, 9), (200, 9))
    assert label(line, 0) == (target(8100, 50, 125, 100), (50,), (900, 8100), 100)


def test_a_boundary_between_two_frames_belongs_to_the_later_one():
    line = timeline((100, 3.001), (200, 10), (300, 10))
    # frame 75 is shown at 3.000 s, still the first operation
    assert label(line, 0) == (target(100, 0, 76, 200), (76,), (100, 200), 300)
    assert label(line, 0, first_ms=START + 1) == (target(100, 0, 75, 200), (75,), (100, 200), 300)


def test_where_the_session_ends_nothing_follows():
    line = timeline((100, 9), (200, 2))
    assert label(line, 150) == (target(100, 0, 75, 200), (75,), (100, 200), None)


def test_what_comes_next_is_known_beyond_the_end_of_the_video():
    line = timeline((100, 8), (200, 30), (300, 9))
    last = plan(line, START, 10 * 25, SETTINGS)[-1]
    assert (last.start_frame, last.target) == (125, target(100, 0, 75, 200))


def test_nothing_is_cut_outside_of_labels_and_video_or_where_nothing_follows():
    line = timeline((100, 20), (200, 20), (300, 20))
    assert label(line, 0, first_ms=START - 1) is None
    assert label(line, 50 * 25) is None  # all of it in the last operation
    assert label(line, 56 * 25) is None
    early = START - 7000  # the video starts 7 s before the first operation and ends within the last
    clips = plan(line, early, 55 * 25, ClipSettings(inside_clips=99, transition_clips=99, boundary_clips=99))
    starts = [clip.start_frame for clip in clips]
    assert starts == list(range(7 * 25, 45 * 25, 25))  # 44 s: three seconds of the second operation, two of the last
    assert plan(line, START + 60_000, 9999, SETTINGS) == []
    assert plan(line, START, 124, SETTINGS) == []
    assert plan(line, START - 60_000, 1500, SETTINGS) == []


@pytest.mark.parametrize("user", ["U0107", "U0108", "U0209"])
def test_evaluation_clips_have_each_boundary_within_half_a_second_of_the_middle(user):
    line = working_day(user)
    clips = [clip for clip in plan(line, START, 10**5, SETTINGS) if clip.kind == "boundary"]
    middles = [clip.start_frame + 62.5 for clip in clips]
    for clip, middle in zip(clips, middles, strict=True):
        assert min(abs(clip.start_frame + boundary - middle) for boundary in clip.boundaries) <= 12.5
    for span in session_spans(line, START, 25)[1:-3]:  # but for the end, where nothing may follow, none is left out
        assert min(abs(span.start_frame - middle) for middle in middles) <= 12.5 or span.start_frame < 50


def test_training_boundaries_spread_over_the_whole_clip():
    offsets: list[int] = []
    for number in range(20):
        seconds = np.random.default_rng(number).uniform(12, 20, 30)
        line = timeline(*((100 + 100 * (i % 3), float(s)) for i, s in enumerate(seconds)), session=f"S{number:02d}00")
        clips = [clip for clip in plan(line, START, 10**5, SETTINGS) if clip.kind == "boundary"]
        assert len(clips) == 2 * 29  # of each boundary, even the last
        offsets += [boundary for clip in clips for boundary in clip.boundaries]
    assert (min(offsets), max(offsets)) == (1, 124)
    shares = np.histogram(offsets, bins=5, range=(0, 125))[0] / len(offsets)
    assert shares.min() > 0.16
    assert shares.max() < 0.24


@pytest.mark.parametrize("user", ["U0101", "U0108"])
def test_kinds_are_what_they_say(user):
    line = working_day(user, seed=4)
    clips = plan(line, START, 10**5, SETTINGS)
    kinds = {kind: [clip for clip in clips if clip.kind == kind] for kind in ("boundary", "transition", "inside")}
    assert all(len(of_kind) > 5 for of_kind in kinds.values())
    assert all(clip.boundaries for clip in kinds["boundary"])
    assert all(len(clip.boundaries) == 1 for clip in kinds["transition"])
    assert all((clip.boundaries, clip.target.start, clip.target.end) == ((), 0, 125) for clip in kinds["inside"])


def test_targets_agree_with_the_timeline_frame_by_frame():
    line = working_day("U0101", seed=8)
    for clip in plan(line, START, 10**5, SETTINGS):
        seen = [line.at(START + 40 * (clip.start_frame + frame)) for frame in range(125)]
        instances = list(dict.fromkeys(seen))
        dominant = max(instances, key=seen.count)
        following = line.segments[line.segments.index(dominant) + 1]
        frames = [frame for frame, segment in enumerate(seen) if segment == dominant]
        assert clip.target == target(dominant.op_id, frames[0], frames[-1] + 1, following.op_id)
        assert clip.boundaries == tuple(frame for frame in range(1, 125) if seen[frame] != seen[frame - 1])
        assert clip.operations == tuple(instance.op_id for instance in instances)
        after = line.segments.index(instances[-1]) + 1
        assert clip.following == (line.segments[after].op_id if after < len(line.segments) else None)


def test_starts_are_whole_seconds_taken_once_and_in_order():
    settings = ClipSettings(boundary_clips=9, transition_clips=9, inside_clips=9)
    clips = plan(working_day("U0101"), START, 10**5, settings)
    starts = [clip.start_frame for clip in clips]
    assert all(before < after for before, after in pairwise(starts))
    assert all(start % 25 == 0 for start in starts)
    assert clip_id("U0108", "S0500", 35 * 25, 25) == "U0108_S0500_t0035"


def test_the_draw_depends_on_seed_and_session_alone():
    def starts(clips: list[PlannedClip]) -> list[int]:
        return [clip.start_frame for clip in clips]

    day = working_day("U0101")
    other = Timeline("U0101", "S0200", day.segments)
    plans = [
        plan(line, START, 10**5, SETTINGS.model_copy(update={"seed": seed}))
        for line, seed in ((day, 7), (day, 8), (other, 7))
    ]
    assert plan(day, START, 10**5, SETTINGS) == plans[0]
    assert len({tuple(starts(clips)) for clips in plans}) == 3


def test_the_real_session_is_planned_in_full(sample: Path):
    line = read_operations(sample / "U0209/annotation/openpack-operations/S0500.csv")
    length = (line.end_ms - line.start_ms) * 25 // 1000
    clips = plan(line, line.start_ms, length, SETTINGS)
    boundaries = [span.start_frame for span in session_spans(line, line.start_ms, 25)[1:]]
    assert len(boundaries) >= 192
    middles = {clip.start_frame + 62 for clip in clips if clip.kind == "boundary"}
    near = [min(abs(boundary - middle) for middle in middles) <= 12 for boundary in boundaries]
    assert sum(near) >= len(boundaries) - 1  # but for the last boundary, if its clip is mostly the last operation
    assert {clip.target.operation for clip in clips} >= set(range(100, 1100, 100))
