"""Temperatures, priors and their choice, on numbers that can be followed by hand or that are known to be right."""

import numpy as np
import pytest

from pipelines.common.posteriors import TEMPERATURES, fit, fuse, log_loss, temper

EACH = np.arange(4)  # every class its own group


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def drawn(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One class a row, as likely as the row says."""
    return (shares.cumsum(1) < rng.random((len(shares), 1))).sum(1)


def test_a_temperature_of_two_takes_square_roots():
    assert temper(np.array([[0.9, 0.1]]), 2) == pytest.approx(np.array([[0.75, 0.25]]))  # 3 to 1
    assert temper(np.array([[0.75, 0.25]]), 0.5) == pytest.approx(np.array([[0.9, 0.1]]))


def test_fusion_is_a_weighted_geometric_mean():
    model, prior = np.array([[0.8, 0.2]]), np.array([[0.5, 0.5]])
    assert fuse(model, prior, 0.5) == pytest.approx(np.array([[2 / 3, 1 / 3]]))  # √(0.8·0.5) to √(0.2·0.5) is 2 to 1
    assert fuse(model, prior, 0.5, 0.5) == pytest.approx(np.array([[0.8, 0.2]]))
    assert fuse(model, prior, 0.0) == pytest.approx(model)
    assert fuse(model, prior, 1.0) == pytest.approx(prior)


def test_what_was_rounded_to_zero_stays_possible():
    fused = fuse(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), 0.5)
    assert fused == pytest.approx(np.array([[0.5, 0.5]]))
    assert np.isfinite(log_loss(np.array([[1.0, 0.0]]), np.array([1]), EACH[:2]))


def test_classes_of_one_group_count_together():
    shares, groups = np.array([[0.3, 0.2, 0.5]]), np.array([0, 0, 1])
    assert log_loss(shares, np.array([0]), groups) == pytest.approx(np.log(2))
    assert log_loss(shares, np.array([0]), EACH[:3]) == pytest.approx(-np.log(0.3))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_the_temperature_of_drawn_posteriors_is_found(temperature: float):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (3000, 4))
    truth, said = drawn(softmax(logits), rng), softmax(logits * temperature)
    found = fit(said, said, truth, EACH, weights=(0.0,))
    assert found.temperature == pytest.approx(temperature, rel=0.1)  # a step of the grid is nine parts in a hundred
    assert found.after <= found.before
    assert found.after == pytest.approx(log_loss(softmax(logits), truth, EACH), abs=1e-3)


def test_the_weight_of_drawn_posteriors_is_found():
    rng = np.random.default_rng(2)
    model, prior = softmax(rng.normal(0, 2, (6000, 4))), softmax(rng.normal(0, 2, (6000, 4)))
    found = fit(model, prior, drawn(fuse(model, prior, 0.3), rng), EACH)
    assert found.weight == pytest.approx(0.3, abs=0.051)
    assert found.temperature == pytest.approx(1, abs=0.1)


def test_a_prior_that_says_nothing_new_gets_no_weight():
    rng = np.random.default_rng(3)
    shares = softmax(rng.normal(0, 1, (200, 4)))
    assert fit(shares, shares, drawn(shares, rng), EACH).weight == 0


def test_a_few_right_answers_are_no_reason_for_certainty():
    def found(n: int) -> float:
        shares = np.tile([0.9, 0.1], (n, 1))
        return fit(shares, shares, np.zeros(n, int), EACH[:2], weights=(0.0,)).temperature

    assert 0.5 < found(5) < 1
    assert found(1000) == TEMPERATURES[0]
