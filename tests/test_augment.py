"""Changes to training clips: the same for all frames of a clip, and none that changes an answer."""

from itertools import pairwise

import numpy as np
import pytest

from pipelines.common.keyframes import Keyframes
from pipelines.common.vlm.augment import MIN_SEGMENT, augment, renumber
from pipelines.common.vlm.settings import AugmentSettings

STILL = AugmentSettings(crop=0, light=0, colour=0, palette=0)
CLIP = np.stack([np.full((12, 12, 3), (200, 180, 40), np.uint8), np.full((12, 12, 3), (30, 90, 160), np.uint8)])


def changed(frames: np.ndarray, seed: int, **settings: float) -> np.ndarray:
    return augment(frames, STILL.model_copy(update=settings), np.random.default_rng(seed))


def test_without_any_strength_nothing_changes():
    assert not STILL.changes_pictures
    assert np.array_equal(changed(CLIP, 1), CLIP)


@pytest.mark.parametrize("what", ["crop", "light", "colour", "palette"])
def test_all_frames_of_a_clip_are_changed_alike(what):
    assert STILL.model_copy(update={what: 0.3}).changes_pictures
    pattern = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    seen = changed(np.stack([pattern, pattern]), 4, **{what: 0.3})
    assert seen.shape == (2, 24, 24, 3)
    assert seen.dtype == np.uint8
    assert seen.flags.writeable  # torch takes it over
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], pattern)
    assert np.array_equal(changed(np.stack([pattern, pattern]), 4, **{what: 0.3}), seen)
    assert not np.array_equal(changed(np.stack([pattern, pattern]), 5, **{what: 0.3}), seen)


def test_a_palette_moves_far_colours_apart_from_each_other_and_near_ones_together():
    near = CLIP + np.uint8(2)
    shifts = []
    for seed in range(40):
        here, there = (changed(frames, seed, palette=0.3).astype(int) for frames in (CLIP, near))
        assert np.abs(here - there).max() <= 12  # two grey levels stay a few
        shifts.append(here[:, 0, 0] - CLIP[:, 0, 0])
    one, other = np.array(shifts).transpose(1, 0, 2).reshape(2, -1)
    assert min(one.std(), other.std()) > 10
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


def test_other_frame_numbers_keep_the_order_of_things():
    given = Keyframes((0, 20, 60, 66, 125), ((3, 4), (30, 31), (61, 62), (90, 91)))
    moved = set()
    for seed in range(200):
        seen = renumber(given, AugmentSettings(renumber=10), np.random.default_rng(seed))
        assert (seen.bounds[0], seen.bounds[-1]) == (0, 125)
        assert min(high - low for low, high in seen.segments) >= MIN_SEGMENT
        assert max(abs(one - other) for one, other in zip(seen.bounds, given.bounds, strict=True)) <= 10
        for (low, high), (first, second) in zip(pairwise(seen.bounds), seen.pairs, strict=True):
            assert low <= first < second < high
        moved.add(seen.bounds)
    assert len(moved) > 100
    assert renumber(given, AugmentSettings(renumber=0), np.random.default_rng(1)).bounds == given.bounds
