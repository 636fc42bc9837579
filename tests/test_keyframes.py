"""Keyframes: what is measured of pictures, where cuts fall, which frames are shown."""

from itertools import combinations, pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.common.errors import DataError
from pipelines.common.keyframes import KeyframeSettings, Meter, Method, Signal, SignalSettings, choose, measure

METHODS = get_args(Method)
SIZE = 64  # pixels a side: 8×8 cells of 4×4 looked-at pixels


def picture(seed: int) -> np.ndarray:
    """A still bench: every cell has its own number of grey levels, so its own entropy."""
    rng = np.random.default_rng(seed)
    levels = np.kron(rng.integers(1, 16, (8, 8)), np.ones((8, 8), int))
    grey = (rng.integers(0, 16, (SIZE, SIZE)) % levels) * 16
    return np.repeat(grey[:, :, None], 3, 2).astype(np.uint8)


def film(*stretches: tuple[int, int]) -> np.ndarray:
    """(seed of the picture, frames) a stretch, under sensor noise."""
    frames = np.concatenate([np.repeat(picture(seed)[None], n, 0) for seed, n in stretches])
    noise = np.random.default_rng(0).integers(-1, 2, frames.shape)
    return np.clip(frames + 8 + noise, 0, 255).astype(np.uint8)  # 8: the middle of a grey level


def signal_of(frames: np.ndarray, repeated: np.ndarray | None = None) -> Signal:
    return measure(frames, np.zeros(len(frames), bool) if repeated is None else repeated)


def random_signal(seed: int, n: int, repeat_share: float) -> Signal:
    rng = np.random.default_rng(seed)
    source = np.cumsum(rng.random(n) >= repeat_share)
    fresh = np.diff(source, prepend=source[0] - 1) > 0
    entropy, motion = rng.random((2, source[-1] + 1, 64)).astype(np.float32)
    return Signal(entropy[source], motion[source], fresh)


def test_entropy_is_shannons_in_bits():
    flat = np.full((SIZE, SIZE, 3), 96, np.uint8)
    halves = flat.copy()
    halves[::4] = 192  # of the looked-at rows every other one
    ramp = np.broadcast_to((np.arange(SIZE) // 2 % 4 * 64)[None, :, None], flat.shape).astype(np.uint8)
    entropy = signal_of(np.stack([flat, halves, ramp])).entropy
    assert entropy.shape == (3, 64)
    np.testing.assert_allclose(entropy, np.array([[0.0], [1.0], [2.0]]) * np.ones((1, 64)), atol=1e-6)


def test_motion_is_the_grey_difference_to_the_frame_before():
    frames = np.full((3, SIZE, SIZE, 3), 100, np.uint8)
    frames[1, :8, :8] = 90  # the first cell darkens by 10, which must not wrap around
    motion = signal_of(frames).motion
    assert motion[0].max() == 0
    assert motion[1, 0] == motion[2, 0] == 10
    assert motion[1:, 1:].max() == 0


@pytest.mark.parametrize("start", [0, 4, 13])  # a fresh frame, a repeated one, one whose next is repeated
def test_a_part_of_a_film_is_measured_as_if_it_stood_alone(start: int):
    frames, repeated = film((1, 20), (2, 13)), np.arange(33) % 5 == 4
    frames[repeated] = frames[np.flatnonzero(repeated) - 1]
    meter = Meter()
    for frame, again in zip(frames, repeated, strict=True):
        meter.again() if again else meter.add(frame)
    shown = ~repeated[start:30]
    shown[0] = True
    part, alone = meter.signal(start, 30), measure(frames[start:30][shown], repeated[start:30])
    for name in ("entropy", "motion", "fresh"):
        np.testing.assert_array_equal(getattr(part, name), getattr(alone, name))


def test_a_repeated_frame_takes_over_the_values_before_it():
    frames = film((1, 2), (2, 2))
    signal = measure(frames[[0, 1, 3]], np.array([True, False, True, False]))  # the third would be another picture
    assert signal.fresh.tolist() == [True, True, False, True]  # nothing comes before the first
    np.testing.assert_array_equal(signal.entropy[2], signal.entropy[1])
    np.testing.assert_array_equal(signal.motion[2], signal.motion[1])
    assert signal.motion[3].max() > 10  # compared with the last frame that was looked at


def test_as_many_flags_as_frames_are_needed():
    with pytest.raises(ValueError, match="frame 33 of 34 is missing"):
        signal_of(film((1, 33)), np.zeros(34, bool))
    with pytest.raises(ValueError, match="more frames than the 32 flags"):
        signal_of(film((1, 33)), np.zeros(32, bool))


@pytest.mark.parametrize("changes", [(30, 62, 100), (14, 50, 64), (12, 24, 113)])
def test_entropy_cuts_where_the_picture_changed_for_good(changes):
    low, middle, high = changes
    frames = film((1, low), (2, middle - low), (3, high - middle), (4, 125 - high))
    assert choose(signal_of(frames), KeyframeSettings()).bounds == (0, low, middle, high, 125)


def passages(large: int, small: int) -> np.ndarray:
    """A still picture that goes over into another within six frames on either side of `large`, and around `small` once
    more, in its corner only."""
    shares = np.clip((np.arange(125)[:, None] - np.array([large, small]) + 6) / 12, 0, 1)
    first, second = (picture(seed).astype(float) for seed in (1, 2))
    third = second.copy()
    third[:8, :16] = picture(9)[:8, :16]
    steps = np.stack([second - first, third - second])
    return (first + np.einsum("nm,mhwc->nhwc", shares, steps)).astype(np.uint8)


def test_a_passage_is_cut_in_its_middle_and_is_no_segment_of_its_own():
    signal = signal_of(passages(35, 85))
    bounds = choose(signal, KeyframeSettings(anchors=3)).bounds
    assert np.abs(np.array(bounds) - [0, 35, 85, 125]).max() <= 2
    without = choose(signal, KeyframeSettings(anchors=3, min_segment=5, passage=0)).bounds
    assert without[2] < 50  # both cuts are spent on the large one


def test_no_passage_is_shown():
    for pair in choose(signal_of(passages(35, 85)), KeyframeSettings(anchors=3)).pairs:
        assert all(abs(frame - middle) > 4 for frame in pair for middle in (35, 85))


def test_a_short_video_is_divided_into_shorter_segments():
    frames = film((1, 6), (2, 6), (3, 7), (4, 6))
    assert choose(signal_of(frames), KeyframeSettings()).bounds == (0, 6, 12, 19, 25)


def test_motion_cuts_where_the_pace_changed():
    rng = np.random.default_rng(3)
    pace = np.repeat([2, 40, 10, 80], [25, 40, 35, 25])
    frames = (100 + rng.integers(0, 2, (125, SIZE, SIZE, 1)) * pace[:, None, None, None]).repeat(3, 3).astype(np.uint8)
    bounds = choose(signal_of(frames), KeyframeSettings(method="motion")).bounds
    assert np.abs(np.array(bounds) - [0, 25, 65, 100, 125]).max() <= 1  # motion into a stretch has the old pace in it


def test_a_gesture_that_repeats_moves_no_cut():
    frames = film((1, 50), (2, 75))
    for start in range(0, 125, 10):  # a hand over two cells, three frames in ten
        frames[start : start + 3, :8, :16] = picture(9)[:8, :16]
    assert choose(signal_of(frames), KeyframeSettings(anchors=2)).bounds == (0, 50, 125)


def test_the_division_is_the_best_of_all():
    signal, chosen = (
        random_signal(5, 26, 0.0),
        KeyframeSettings(anchors=3, min_segment=6, passage=2, passage_weight=0.2),
    )

    def fit(low: int, high: int) -> float:
        part = signal.entropy[low:high]
        return ((part - part.mean(0)) ** 2).sum()

    def cost(bounds: tuple[int, ...]) -> float:
        inner = [(low + 2 * (low > 0), high - 2 * (high < 26)) for low, high in pairwise(bounds)]
        return sum(0.8 * fit(*one) + 0.2 * fit(*whole) for one, whole in zip(inner, pairwise(bounds), strict=True))

    every = [(0, *cuts, 26) for cuts in combinations(range(1, 26), 2)]
    allowed = [bounds for bounds in every if np.diff(bounds).min() >= 6]
    assert choose(signal, chosen).bounds == min(allowed, key=cost)


def test_the_shown_pair_is_the_most_typical_of_its_segment():
    signal = random_signal(2, 125, 0.0)
    keyframes = choose(signal, KeyframeSettings(passage=3))
    for (start, end), pair in zip(keyframes.segments, keyframes.pairs, strict=True):
        low, high = start + 3 * (start > 0), end - 3 * (end < 125)
        distance = ((signal.entropy[low:high] - signal.entropy[low:high].mean(0)) ** 2).sum(1)
        assert low + distance.argmin() in pair
        assert pair[1] == pair[0] + 1


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(20, 125), repeat_share=st.sampled_from([0.0, 0.4, 0.9, 1.0]))
def test_pairs_are_neighbouring_pictures_of_one_segment(method, seed, n, repeat_share):
    signal = random_signal(seed, n, repeat_share)
    keyframes = choose(signal, KeyframeSettings(method=method))
    source = np.cumsum(signal.fresh)
    assert (keyframes.bounds[0], keyframes.bounds[-1], len(keyframes.frames)) == (0, n, 8)
    assert np.diff(keyframes.bounds).min() >= (5 if method in ("entropy", "motion") else 1)
    assert list(keyframes.frames) == sorted(keyframes.frames)
    for (low, high), (first, second) in zip(keyframes.segments, keyframes.pairs, strict=True):
        assert low <= first <= second < high
        step, new = source[second] - source[first], signal.fresh[low:high].sum()
        assert step == 1 if new > 1 else step in (0, 1)


def test_frames_that_the_rate_change_repeated_are_skipped():
    source = np.arange(125) * 15 // 25  # 15 pictures a second shown at 25: 40 % are repeats
    repeated = np.diff(source, prepend=-1) == 0
    pictures = np.stack([picture(7)] * 75)
    pictures[np.arange(75), :, :, :] += (np.arange(75) % 3).astype(np.uint8)[:, None, None, None]
    for method in METHODS:
        keyframes = choose(signal_of(pictures, repeated), KeyframeSettings(method=method))
        for first, second in keyframes.pairs:
            assert source[second] == source[first] + 1
            assert second - first <= 2


def test_uniform_is_evenly_spaced_and_blind_to_the_picture():
    chosen = {choose(random_signal(seed, 125, 0.0), KeyframeSettings(method="uniform")) for seed in range(3)}
    assert len(chosen) == 1
    assert [first for first, _ in chosen.pop().pairs] == [15, 46, 78, 109]


def test_stride_takes_the_richest_frame_of_overlapping_windows():
    signal = random_signal(1, 125, 0.0)
    signal.entropy[[30, 48, 70, 90]] += [[8], [7], [6], [5]]  # beyond all others
    anchors = [first for first, _ in choose(signal, KeyframeSettings(method="stride")).pairs]
    assert anchors == [30, 48, 70, 90]  # windows [0, 50), [25, 75), [50, 100), [75, 125): neighbours overlap


def test_too_few_frames_is_an_error_with_its_cure():
    with pytest.raises(DataError, match=r"19 frames are too few for 4 segments.*at least 20 frames"):
        choose(random_signal(0, 19, 0.0), KeyframeSettings())


def test_a_grid_that_does_not_divide_the_picture_crops_it():
    frames = film((1, 3))[:, :61, :59]
    assert measure(frames, np.zeros(3, bool), SignalSettings(grid=4)).entropy.shape == (3, 16)
