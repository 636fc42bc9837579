"""The Wilson interval against published values and its own equation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.common.stats import wilson


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
