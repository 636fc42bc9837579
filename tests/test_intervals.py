"""Interval arithmetic against the plain meaning of a set of frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.common.intervals import iou, length, overlap

intervals = st.tuples(st.integers(-5, 40), st.integers(-5, 40))


def frames(interval):
    return set(range(*interval))


@given(intervals, intervals)
def test_agrees_with_sets_of_frames(a, b):
    both, either = frames(a) & frames(b), frames(a) | frames(b)
    assert length(a) == len(frames(a))
    assert overlap(a, b) == len(both)
    assert iou(a, b) == pytest.approx(len(both) / len(either) if both else 0.0)


@given(intervals, intervals)
def test_iou_is_symmetric_and_one_only_for_the_same_frames(a, b):
    assert iou(a, b) == iou(b, a)
    assert (iou(a, b) == 1.0) == (bool(frames(a)) and frames(a) == frames(b))


@pytest.mark.parametrize("prediction", [(10, 10), (20, 5)])
def test_an_empty_or_inverted_prediction_scores_nothing(prediction):
    assert iou(prediction, (0, 125)) == 0.0
    assert iou(prediction, prediction) == 0.0


def test_touching_intervals_share_no_frame():
    assert overlap((0, 62), (62, 125)) == 0


def test_the_whole_clip_passes_half_where_the_operation_fills_half():
    assert iou((0, 125), (62, 125)) == pytest.approx(63 / 125)
