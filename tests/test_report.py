"""The readable report: what is picked for it, from hand-made records; the page itself is opened in `test_evaluate`."""

from typing import Any

import pytest

from pipelines.openpack.metrics import BASE, TUNED
from pipelines.openpack.records import ClipRecord, Confidence, reading
from pipelines.openpack.report import Cell, spoken_of, table, worst
from pipelines.openpack.summary import report_figures
from pipelines.openpack.taxonomy import OPENPACK

TRUTH = (100, (0, 80), 200)


def record(second: int, said: tuple[Any, ...] = TRUTH, confidence: float = 0.5, **more: Any) -> ClipRecord:
    fixed = {"arm": TUNED, "session": "U0108/S0100", "first": True, "n_frames": 125, "kind": "boundary"}
    fixed |= {"clip_id": f"U0108_S0100_t{second:04d}", "start_frame": 25 * second, "boundaries": (80,)}
    fixed |= {"bounds": (0, 80, 125), "pairs": ((1, 2), (90, 91)), "truth": reading(OPENPACK, *TRUTH)}
    sure = Confidence(native=confidence, brief=confidence)
    return ClipRecord(**{**fixed, **more}, prediction=reading(OPENPACK, *said), confidence=sure)


def test_the_worst_clips_have_least_right_and_of_equals_the_surest_comes_first():
    right, half = record(0), record(1, (100, (0, 41), 200))
    segment, following = record(2, (100, (100, 125), 200)), record(3, (100, (0, 80), 300))
    unsure, sure = (record(4 + more, (300, (0, 80), 300), confidence) for more, confidence in enumerate((0.2, 0.9)))
    nothing = record(6, (300, (100, 125), 300), 0.1)
    rows = [right, half, segment, following, unsure, sure, nothing]
    assert [one.start_frame // 25 for one in worst(rows)] == [6, 5, 4, 2, 3]
    assert worst(rows, 2) == [nothing, sure]
    assert worst([right, half]) == []


def test_a_session_is_told_by_its_clips_and_the_surest_counts_where_they_overlap():
    rows = [
        record(10, (100, (0, 100), 200), 0.6),
        record(12, (200, (25, 75), 300), 0.9),  # seconds 13 to 15
        record(20, (300, (50, 50), 300), 0.9),  # says nothing
    ]
    said, share = spoken_of(rows, "prediction", OPENPACK, 25)
    assert said == [("Picking", 10, 13), ("Relocate Item Label", 13, 15)]
    assert share == pytest.approx(5 / 15)  # of second 10 to 25
    true, share = spoken_of(rows, "truth", OPENPACK, 25)
    assert true == [("Picking", 10, 15.2), ("Picking", 20, 23.2)]
    assert share == pytest.approx((5.2 + 3.2) / 15)


def test_cells_have_wilsons_interval_for_the_first_clips_and_that_of_sessions_elsewhere():
    rows = [record(0), record(1, (300, (0, 20), 300)), record(2, session="U0108/S0200", first=False)]
    report = report_figures([*rows, *(one.model_copy(update={"arm": BASE}) for one in rows)], OPENPACK)
    names = list(report["all_clips"][TUNED])
    every, first = (
        dict(zip(names, table(report, scope)[TUNED], strict=True)) for scope in ("all_clips", "first_clips")
    )
    assert every["OCA"] == Cell(
        "0.667", "0.000 – 1.000"
    )  # of three clips in two sessions: no narrower than over single clips
    assert first["OCA"] == Cell("0.500", "0.095 – 0.905")
    assert first["macro_F1"] == Cell("0.333", "")  # one session
    assert first["median_boundary_error_frames"].value == "30.0"
