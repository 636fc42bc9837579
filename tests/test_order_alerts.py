"""Alerts: what was skipped, repeated or out of order, on planted deviations; thresholds; sessions drawn with them."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.common.files import folder_digests
from pipelines.openpack.alert_scores import Case, _best, alert_scores, choose_thresholds, every_deviation
from pipelines.openpack.annotations import read_operations
from pipelines.openpack.boxes import Stretch
from pipelines.openpack.deviations import Deviation, planted, possible, read_deviations
from pipelines.openpack.grammar import FIRST_THRESHOLD, KINDS, learn
from pipelines.openpack.order_alerts import Alert, find_alerts
from pipelines.openpack.settings import SimulationSettings
from pipelines.openpack.simulate import FIRST_DIALECT, SECOND_DIALECT, plan, write_session
from pipelines.openpack.taxonomy import NULL_ID, OPENPACK

BEGIN = (100, 200, 300, 400, 500, 600)
FIRST, SECOND = (*BEGIN, *FIRST_DIALECT), (*BEGIN, *SECOND_DIALECT)


def session(*boxes: tuple[int, ...], frames: int = 50) -> list[Stretch]:
    operations = [op_id for box in boxes for op_id in box]
    return [Stretch(op_id, frames * i, frames * (i + 1)) for i, op_id in enumerate(operations)]


GRAMMAR = learn([session(*[FIRST] * 10, *[SECOND] * 10, SECOND[:-1], FIRST)], OPENPACK)


def alerts(box: tuple[int, ...]) -> list[tuple]:
    """Of that box between two usual ones."""
    found = find_alerts(GRAMMAR.boxes_of(session(FIRST, box, FIRST)), GRAMMAR)
    assert all(one.box == 2 for one in found)
    return [(one.kind, one.operation, one.start - 500, one.end - 500) for one in found]


def without(op_id: int, box: tuple[int, ...] = FIRST) -> tuple[int, ...]:
    return tuple(one for one in box if one != op_id)


def test_usual_work_raises_nothing():
    assert alerts(FIRST) == alerts(SECOND) == alerts(SECOND[:-1]) == []  # the last was seen in one box of 22


def test_what_is_left_out_is_told_with_its_place():
    assert alerts(without(600)) == [("skipped", 600, 250, 250)]
    (one,) = find_alerts(GRAMMAR.boxes_of(session(FIRST, without(600), FIRST)), GRAMMAR)
    told = one.as_json(OPENPACK)
    assert list(told) == ["kind", "operation", "start_s", "end_s", "frame", "box", "surprise_bits", "message"]
    assert (told["operation"], told["start_s"], told["frame"], told["box"]) == ("Attach Box Label", 30.0, 750, 2)
    assert told["surprise_bits"] > 4
    assert told["message"] == ("Box 2: Attach Box Label is missing after Close Box: seen in 0 of 22 boxes in training.")
    assert one.as_json(OPENPACK, brief=True)["operation"] == "Label"
    (rarer,) = find_alerts(GRAMMAR.boxes_of(session(FIRST, without(900), FIRST)), GRAMMAR)
    assert (rarer.operation, rarer.seen, rarer.after) == (900, 1, 800)


def test_what_is_done_twice_and_what_changed_places_is_told():
    assert alerts((*BEGIN, 500, *FIRST_DIALECT)) == [("repeated", 500, 300, 350)]
    (kind, operation, start, _), *more = alerts((100, 200, 400, 300, 500, 600, *FIRST_DIALECT))
    assert (kind, operation in (300, 400), start in (100, 150), more) == ("out_of_order", True, True, [])


def test_a_pause_is_no_deviation():
    paused = session(FIRST, (*BEGIN, NULL_ID, *FIRST_DIALECT), (*BEGIN[:5], NULL_ID, *BEGIN[4:], *FIRST_DIALECT), FIRST)
    assert find_alerts(GRAMMAR.boxes_of(paused), GRAMMAR) == []


def test_a_box_that_the_video_cuts_off_may_still_get_the_rest():
    assert find_alerts(GRAMMAR.boxes_of(session(FIRST, FIRST[:4])), GRAMMAR) == []
    (one,) = find_alerts(GRAMMAR.boxes_of(session(FIRST, (100, 300, 400))), GRAMMAR)
    assert (one.kind, one.operation, one.box) == ("skipped", 200, 2)


@given(st.lists(st.sampled_from([op.id for op in OPENPACK.operations]), max_size=25))
def test_any_sequence_gives_alerts_inside_of_it_by_time_and_above_thresholds(operations: list[int]):
    found = find_alerts(GRAMMAR.boxes_of(session(tuple(operations))), GRAMMAR)
    assert [one.start for one in found] == sorted(one.start for one in found)
    assert all(0 <= one.start <= one.end <= 50 * len(operations) for one in found)
    assert all(one.bits >= GRAMMAR.thresholds[one.kind] for one in found)


# --- planting, thresholds ---


@given(st.lists(st.integers(), min_size=1, max_size=12, unique=True), st.data())
def test_a_deviation_changes_just_what_it_says(box: list[int], data):
    changes = possible(len(box))
    assert bool(changes) == (len(box) > 1)
    if not changes:
        return
    kind, place = data.draw(st.sampled_from(changes))
    made, shown = planted(box, kind, place)
    assert made[0] == box[0]
    assert made != box
    if kind == "skipped":
        assert [*made[:place], box[place], *made[place:]] == box
        assert not made[shown]
    elif kind == "repeated":
        assert made[shown] == [box[place]]
        assert made[: place + 2] + made[place + 3 :] == box
    else:
        assert sorted(made) == sorted(box)
        assert made[shown] == [box[place + 1], box[place]]
    with pytest.raises(ValueError, match="impossible"):
        planted(box, kind, len(box))


def test_thresholds_let_through_what_was_planted_and_nothing_usual():
    boxes = GRAMMAR.boxes_of(session(FIRST, SECOND, SECOND[:-1], FIRST))
    anything = [case for case in every_deviation(boxes, GRAMMAR, dict.fromkeys(KINDS, 0.0)) if not case.deviations]
    assert any(case.alerts for case in anything)  # usual, and yet less so than another order
    chosen = choose_thresholds([boxes], GRAMMAR)
    assert chosen.why is None
    cases = list(every_deviation(boxes, chosen))
    assert len(cases) == 3 * 25 + 22 + 4
    assert not any(case.alerts for case in cases if not case.deviations)
    figures = alert_scores(cases)
    assert {kind: one["planted"] for kind, one in figures.items()} == {
        "skipped": 35,
        "repeated": 31,
        "out_of_order": 31,
    }
    assert all(one["precision"] > 0.9 for one in figures.values())
    assert figures["repeated"]["recall"] > 0.9
    assert figures["out_of_order"]["recall"] > 0.8  # the orders of both dialects can be had by a change of places
    assert figures["skipped"]["recall"] > 0.7  # a box without 900 is usual in one order


def test_without_validation_sessions_the_thresholds_stay_and_it_is_said():
    assert choose_thresholds([], GRAMMAR) == GRAMMAR
    assert GRAMMAR.why
    assert alert_scores([])["skipped"] == {"planted": 0, "alerts": 0, "found": 0, "precision": None, "recall": None}


def test_an_alert_that_is_wrong_in_kind_operation_or_time_finds_nothing():
    cases = every_deviation(GRAMMAR.boxes_of(session(FIRST, FIRST[:3])), GRAMMAR)
    case = next(case for case in cases if [one.operations for one in case.deviations] == [(600,)])
    (one,) = case.alerts
    assert alert_scores([case])["skipped"]["found"] == 1
    for wrong in ({"kind": "repeated"}, {"operation": 500}, {"start": one.start + 200, "end": one.end + 200}):
        assert alert_scores([replace(case, alerts=(replace(one, **wrong),))])["skipped"]["found"] == 0
    assert alert_scores([replace(case, alerts=(one, one))])["skipped"]["found"] == 1  # one finds a deviation once


# --- drawn sessions ---


def test_without_deviations_a_session_is_planned_as_ever():
    def acts(share: float, seed: int) -> list:
        settings = SimulationSettings(deviations=share)
        return plan("U0101", settings, random.Random(7), 1.0, random.Random(seed))[0]

    assert acts(0.0, 1) == acts(0.0, 2)
    assert acts(1.0, 1) != acts(0.0, 1)


def test_a_drawn_session_tells_what_was_planted_in_it(tmp_path: Path):
    settings = SimulationSettings(boxes=3, duration_scale=0.1, fps=2, width=64, height=48, deviations=1.0)
    write_session(tmp_path, "U0108", "S0100", settings)
    told = read_deviations(tmp_path / "U0108/deviations/S0100.json")
    timeline = read_operations(tmp_path / "U0108/annotation/openpack-operations/S0100.csv")
    first_ms = timeline.start_ms - 1000
    assert [one.box for one in told] == [1, 2, 3]
    assert {one.kind for one in told} <= {*KINDS}
    for one in told:
        done = [part.op_id for part in timeline.operations if part.box == one.box]
        shown = timeline.at(first_ms + round(one.start_s * 1000) + 1)
        assert shown is not None
        if one.kind == "skipped":
            assert one.operations[0] not in done
        else:
            assert shown.op_id in one.operations
            assert done.count(one.operations[0]) == (2 if one.kind == "repeated" else 1)
    write_session(tmp_path / "usual", "U0108", "S0100", settings.model_copy(update={"deviations": 0.0}))
    assert not any("deviations" in name for name in folder_digests(tmp_path / "usual"))


def test_of_thresholds_with_equal_f1_the_middle_one_is_taken() -> None:
    def alert(bits: float, operation: int) -> Alert:
        return Alert("skipped", operation, 100, 0, 25, 1, bits, 0, 10, 25)

    right, wrong = (1.0, 5.0, 9.0, 10.0), (2.0, 3.0, 4.0, 6.0, 7.0, 8.0)
    planted_ones = tuple(Deviation("skipped", 1, (200,), 0.0, 1.0) for _ in range(6))
    alerts = (*(alert(bits, 200) for bits in right), *(alert(bits, 300) for bits in wrong))
    # above 0.5 bits 4 of 10 alerts are right, above 4.5 3 of 6, above 8.5 2 of 2; six were planted: F1 is 0.5 each time
    assert _best("skipped", [Case(alerts, planted_ones)]) == 4.5
    assert _best("repeated", [Case(alerts, planted_ones)]) == FIRST_THRESHOLD
