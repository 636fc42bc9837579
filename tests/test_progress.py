"""What is left of a whole run: told from the beginning, corrected on the way, scaled by machine and settings."""

import logging
from pathlib import Path

import dagster as dg
import pytest

from assets import progress
from assets.build import _Line
from assets.openpack.costs import FILE, KINDS, expected_seconds, require_room, take_over
from assets.plan import Target
from assets.progress import TIMES, WholeRun, show
from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import read_json, write_json
from pipelines.common.machine import GB, Machine
from pipelines.common.reference_work import Reference, measure
from pipelines.common.time_left import about, read_left, with_left
from pipelines.openpack.settings import AllSettings, load_settings

USERS = [f"U010{number}" for number in range(1, 9)]
SESSIONS = ("raw_session", "normalized_video", "clips")
AFTER = ("base_model", "shards", "adapter", "evaluation", "bento")
RECORDED = Reference(**read_json(FILE)["reference"])


def targets(*stages: str) -> list[Target]:
    keys = [dg.AssetKey(stage) for stage in stages]
    return [Target(key, user) for key in keys for user in (USERS if key.path[0] in SESSIONS else [None])]


WHOLE = targets(*SESSIONS, *AFTER)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def demo_seconds(here: Reference, settings: AllSettings | None = None) -> float:
    settings = settings or load_settings(preset="tiny")
    expected = expected_seconds(settings, "simulated", "tiny")
    run = WholeRun({stage: seconds for stage in KINDS if (seconds := expected(stage, here)) is not None})
    run.wait_for(WHOLE)
    left = run.left()
    assert left is not None
    return left


# --- before anything starts ---


def test_a_demo_takes_minutes_and_not_hours_on_the_machine_of_its_costs():
    assert 3 * 60 < demo_seconds(RECORDED) < 30 * 60


def test_half_the_speed_takes_twice_the_time():
    half = Reference(RECORDED.products * 2, RECORDED.video * 2)
    assert demo_seconds(half) == pytest.approx(2 * demo_seconds(RECORDED))
    slow_products = demo_seconds(Reference(RECORDED.products * 2, RECORDED.video))
    assert demo_seconds(RECORDED) < slow_products < demo_seconds(half)


def test_settings_that_ask_for_more_take_longer(tmp_path: Path):
    def with_settings(text: str) -> float:
        (tmp_path / "settings.toml").write_text(text)
        return demo_seconds(RECORDED, load_settings(tmp_path / "settings.toml", preset="tiny"))

    usual, costs = demo_seconds(RECORDED), read_json(FILE)["stages"]
    steps = load_settings(preset="tiny").finetune.loop.steps
    twice = with_settings(f"[finetune.loop]\nsteps = {2 * steps}\n")
    assert twice - usual == pytest.approx(costs["adapter"]["seconds"] * 1, rel=0.01)
    assert with_settings("[simulation]\nboxes = 6\n") > usual
    assert with_settings("[evaluation]\nviews = 1\n") < usual


def test_nothing_is_known_of_other_sources_and_models():
    settings = load_settings(preset="tiny")
    assert expected_seconds(settings, "zenodo", "tiny")("raw_session", RECORDED) is None
    assert expected_seconds(settings, "simulated", "Qwen/Qwen2-VL-2B-Instruct")("adapter", RECORDED) is None


def test_reference_work_is_about_a_second_of_real_work():
    made = measure(workers=1)
    assert 0.02 < made.products < 10
    assert 0.02 < made.video < 10


@pytest.mark.parametrize(("memory", "disk", "message"), [(1, 90, "GB of memory are needed"), (90, 0.1, "GB of disk")])
def test_too_little_memory_or_disk_is_said_before_anything_starts(tmp_path, memory, disk, message):
    machine = Machine(2, "AVX2", int(memory * GB), int(disk * GB), ())
    with pytest.raises(SetupError, match=message):
        require_room("simulated", "tiny", machine, tmp_path, {"base_model"})
    require_room("simulated", "tiny", machine, tmp_path, {"bento"})  # what is left is small
    require_room("local", "tiny", machine, tmp_path, {"base_model"})  # nobody knows


# --- on the way ---


@pytest.fixture
def run() -> tuple[WholeRun, Clock]:
    clock = Clock()
    made = WholeRun({"raw_session": 10, "shards": 20, "adapter": 100}, clock)
    made.wait_for(targets("raw_session", "shards", "adapter"))
    return made, clock


def test_what_is_left_shrinks_with_what_is_done_and_with_time(run):
    whole, clock = run
    assert whole.left() == 8 * 10 + 20 + 100
    first = targets("raw_session")[:1]
    assert whole.start(first) == "[1/10]"
    clock.now = 4
    assert whole.left() == 196
    clock.now = 10
    whole.finish({"raw_session": 10.0})
    assert whole.left() == 190
    assert whole.start(targets("raw_session")[1:4]) == "[2-4/10]"


def test_what_was_measured_corrects_what_is_expected(run):
    whole, _ = run
    whole.start(targets("raw_session")[:1])
    whole.finish({"raw_session": 20.0})
    left = whole.left()
    assert left == pytest.approx(7 * 20 + 120 * (20 + 30) / (10 + 30))  # the same stage as measured, others in part
    for _ in range(7):
        whole.start(whole._waiting[:1])
        whole.finish({"raw_session": 20.0})
    assert whole.left() == pytest.approx(120 * (160 + 30) / (80 + 30))


def test_a_training_s_own_word_goes_before_what_was_expected(run):
    whole, clock = run
    whole.wait_for(targets("adapter", "shards"))
    whole.start(targets("adapter"))
    whole.heard("    step 100/1000: loss 0.5, 30.0 clips/s, 300 s left")
    assert whole.left() == 300 + 20
    clock.now += 60
    assert whole.left() == 240 + 20


def test_what_nobody_knows_is_learned_from_the_first(run):
    whole, _ = run
    whole.wait_for(targets("clips"))
    assert whole.left() is None
    assert "is known after the first" in whole.told()
    whole.start(targets("clips")[:1])
    whole.finish({"clips": 5.0})
    assert whole.left() == 35
    assert whole.told() == "less than a minute left"


def test_every_line_of_a_stage_tells_of_the_whole(run):
    whole, _ = run
    line = logging.makeLogRecord({"dagster_meta": {"orig_message": with_left("step 1/2: loss 1.0", 50)}})
    form = _Line("    {dagster_meta[orig_message]}", style="{")
    assert form.format(line) == "    step 1/2: loss 1.0, 50 s left"
    whole.start(targets("adapter"))
    show(whole)
    try:
        assert form.format(line) == "    step 1/2: loss 1.0, 50 s left; of the whole run about 2 min left"
    finally:
        show(None)
    assert progress.suffix("") == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "less than a minute"), (60, "about 1 min"), (540, "about 9 min"), (9000, "about 2.5 h")]
)
def test_an_estimate_is_told_as_exactly_as_it_can_be(seconds, words):
    assert about(seconds) == words


def test_a_line_s_time_is_read_as_it_was_written():
    assert read_left(with_left("step 3/9: loss 0.1, 4.0 clips/s", 12.4)) == 12
    assert read_left("30 of 158 clips answered") is None


# --- afterwards ---


def test_the_costs_are_those_of_a_whole_run(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("assets.openpack.costs.FILE", tmp_path / "costs.json")
    write_json(tmp_path / "costs.json", read_json(FILE))
    whole = WholeRun({})
    for target in WHOLE:
        whole.start([target])
        whole.finish({target.asset.path[0]: 3.0 if target.partition else 50.0})
    whole.save(tmp_path, Reference(0.5, 0.25), whole=False)
    settings = load_settings(preset="tiny")
    with pytest.raises(DataError, match="not every stage ran"):
        take_over(tmp_path / TIMES, settings, "a test")
    whole.save(tmp_path, Reference(0.5, 0.25), whole=True)
    take_over(tmp_path / TIMES, settings, "a test")
    made = read_json(tmp_path / "costs.json")
    assert made["run"] == "a test"
    assert made["reference"] == {"products": 0.5, "video": 0.25}
    assert {stage: cost["seconds"] for stage, cost in made["stages"].items()} == {
        stage: 3.0 if stage in SESSIONS else 50.0 for stage in KINDS
    }
    assert demo_seconds(Reference(0.5, 0.25)) == pytest.approx(8 * 3 * 3.0 + 5 * 50.0)
