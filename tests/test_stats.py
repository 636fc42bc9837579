"""Statistics against published values, their own equations, and scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from pipelines.common.stats import (
    calibration_error,
    macro_f1,
    mcnemar,
    mean,
    median,
    percentiles,
    reliability,
    resample,
    wilson,
)


def test_known_values():
    assert wilson(15, 30) == pytest.approx((0.3315, 0.6685), abs=1e-4)
    assert wilson(29, 30) == pytest.approx((0.8333, 0.9941), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


@given(st.integers(0, 500), st.integers(1, 500))
def test_bounds_solve_the_score_equation(successes, n):
    successes = min(successes, n)
    share = successes / n
    low, high = wilson(successes, n)
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):  # where the distance to the share is z standard errors, taken at the bound
        assert (share - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / n, abs=1e-9)


def test_more_samples_narrow_it_and_none_say_nothing():
    widths = [high - low for low, high in (wilson(n // 2, n) for n in (10, 30, 300))]
    assert widths == sorted(widths, reverse=True)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_what_is_no_proportion_is_refused(successes, n):
    with pytest.raises(ValueError, match="no proportion"):
        wilson(successes, n)


def test_mcnemar_is_the_sign_test_of_the_clips_that_differ():
    assert mcnemar(10, 3) == mcnemar(3, 10) == pytest.approx(0.09228515625)  # 2 · (1 + 13 + 78 + 286) / 2¹³
    assert mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1
    with pytest.raises(ValueError, match="k"):
        mcnemar(-1, 3)


def test_groups_are_drawn_whole_and_as_many_as_there_are():
    groups = ["b", "a", "b", "c", "a", "b"]
    weights = resample(groups, 5000, seed=1)
    assert weights.shape == (5000, 6)
    assert (weights[:, [0, 0, 1]] == weights[:, [2, 5, 4]]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    drawn, counts = np.unique(weights[:, [0, 1, 3]], axis=0, return_counts=True)
    shares = {tuple(row): count / 5000 for row, count in zip(drawn.tolist(), counts.tolist(), strict=True)}
    assert len(shares) == 10
    assert shares[1, 1, 1] == pytest.approx(6 / 27, abs=0.02)
    assert shares[3, 0, 0] == pytest.approx(1 / 27, abs=0.01)
    assert (resample(groups, 50, seed=1) == weights[:50]).all()
    assert (resample(groups, 50, seed=2) != weights[:50]).any()


def test_the_interval_of_a_mean_over_single_samples_is_the_textbook_one():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 400)
    low, high = percentiles(mean(values, resample(range(400), 4000, seed=3)))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_correlated_samples_get_the_interval_of_their_groups():
    groups = np.repeat(np.arange(20), 30)
    right = np.repeat(np.arange(20) % 4 > 0, 30)  # all samples of a group are alike: 20 samples, not 600
    low, high = percentiles(mean(right, resample(groups.tolist(), 4000, seed=3)))
    alone = percentiles(mean(right, resample(range(600), 4000, seed=3)))
    assert (low, high) == pytest.approx((0.55, 0.9), abs=0.051)
    assert high - low > 4 * (alone[1] - alone[0])


@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(0, 3)), min_size=1, max_size=12))
def test_weights_are_repetitions(pairs):
    values, times = (np.array(row) for row in zip(*pairs, strict=True))
    weights, repeated = times[None].astype(int), np.repeat(values, times)
    if len(repeated):
        assert mean(values, weights)[0] == pytest.approx(repeated.mean(), abs=1e-9)
        assert median(values, weights)[0] == pytest.approx(np.median(repeated), abs=1e-9)
    else:
        assert np.isnan([mean(values, weights)[0], median(values, weights)[0]]).all()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd"), st.integers(0, 2)), min_size=1, max_size=20))
def test_macro_f1_is_that_of_the_library_on_what_was_drawn(rows):
    true, said, times = (list(row) for row in zip(*rows, strict=True))
    if sum(times):
        drawn = [np.repeat(row, times) for row in (true, said)]
        expected = f1_score(*drawn, average="macro", zero_division=0)
        assert macro_f1(true, said, np.array([times]))[0] == pytest.approx(expected)


def test_no_answer_is_a_miss_of_its_class_alone():
    once = np.ones((1, 4), int)
    assert macro_f1("aabb", ["a", None, "b", "b"], once)[0] == pytest.approx((2 / 3 + 1) / 2)
    assert macro_f1("aabb", [None] * 4, once)[0] == 0


def test_calibration_by_hand():
    confidence, right = np.array([0.95, 0.91, 1.0, 0.55, 0.52]), np.array([True, False, True, True, True])
    once = np.ones((1, 5), int)
    # the upper bin: mean 2.86 / 3 against 2 / 3; the one from 0.5: 1.07 / 2 against 1
    assert calibration_error(confidence, right, once)[0] == pytest.approx((0.86 + 0.93) / 5)
    assert calibration_error(confidence, right, np.array([[0, 0, 0, 2, 0]]))[0] == pytest.approx(0.45)
    assert reliability(confidence, right) == [
        {"low": 0.5, "high": 0.6, "samples": 2, "confidence": pytest.approx(0.535), "right": 1.0},
        {"low": 0.9, "high": 1.0, "samples": 3, "confidence": pytest.approx(2.86 / 3), "right": pytest.approx(2 / 3)},
    ]


def test_resamples_without_a_value_are_left_out_of_the_interval():
    assert percentiles(np.array([np.nan, *np.linspace(0, 1, 101)])) == pytest.approx((0.025, 0.975))
