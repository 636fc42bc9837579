"""The benchmark of the demo's stages: what it calls slow, and that it measures every stage that has a cost."""

from assets.openpack.costs import KINDS as COSTS
from bench.demo_stages import KINDS, SLOW, Steps, slow


def test_a_stage_that_takes_far_more_than_recorded_is_told():
    recorded = {"stages": {"clips": 10.0, "adapter": 15.0, "shards": 4.0}}
    measured = {"stages": {"clips": 10.0 * SLOW + 1, "adapter": 15.0 * SLOW, "shards": 1.0, "evaluation": 9.0}}
    assert slow(measured, recorded) == ["slow: clips takes 21.0 times the reference work, 2.1 times what is recorded"]
    assert slow(measured, {}) == []


def test_each_stage_of_the_demo_is_set_against_the_same_work_as_in_its_estimate():
    assert {stage: kind for stage, kind in COSTS.items() if stage != "bento"} == KINDS


def test_of_a_training_the_steps_between_checkpoints_are_timed(monkeypatch):
    times = iter([10.0, 13.5, 17.0])
    monkeypatch.setattr("bench.demo_stages.time.perf_counter", lambda: next(times))
    heard = Steps()
    for line in ("goes on", "step 8/24: loss 1", "step 16/24: loss 1", "step 24/24: loss 1", "base model tiny"):
        heard(line)
    assert heard.seconds() == 7.0
