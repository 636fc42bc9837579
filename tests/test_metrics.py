"""Figures from hand-made records; every expected value was worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.common.errors import DataError
from pipelines.common.stats import wilson
from pipelines.openpack.metrics import BASE, TUNED, boundary_error, ceiling, confusion, figures, reliability
from pipelines.openpack.records import ClipRecord, Confidence, Posterior, read_clip_records, reading, write_clip_records
from pipelines.openpack.summary import compare, intervals, report_figures, session_intervals
from pipelines.openpack.taxonomy import OPENPACK

Said = tuple[int | None, tuple[int, int] | None, int | None]

TRUTH: tuple[Said, ...] = (
    (100, (0, 80), 200),
    (600, (40, 125), 700),  # Label, then Final Check
    (700, (0, 125), 800),  # Final Check, then Label; no boundary
    (300, (30, 100), 400),  # two edges inside
)
ANSWERS: tuple[Said, ...] = (
    (100, (0, 80), 300),  # next wrong
    (800, (30, 125), 1000),  # both right by the brief's names alone; IoU 85/95
    (700, (0, 50), 800),  # IoU 0.4
    (400, (40, 90), 400),  # operation wrong; IoU 50/70
)


def record(number: int, truth: Said, said: Said, arm: str = TUNED, **more: Any) -> ClipRecord:
    start, end = truth[1] or (0, 0)
    fixed = {"first": number < 2, "n_frames": 125, "kind": "boundary", "bounds": (0, 31, 62, 93, 125), "pairs": ()}
    inside = tuple(edge for edge in (start, end) if 0 < edge < 125)
    of_clip = {"clip_id": f"U0108_S0100_t{number:04d}", "session": "U0108/S0100", "start_frame": 25 * number}
    of_clip |= {"boundaries": inside}
    return ClipRecord(
        **{**fixed, **of_clip, **more}, arm=arm, truth=reading(OPENPACK, *truth), prediction=reading(OPENPACK, *said)
    )


def records(answers: tuple[Said, ...] = ANSWERS, arm: str = TUNED) -> list[ClipRecord]:
    return [record(number, *both, arm=arm) for number, both in enumerate(zip(TRUTH, answers, strict=True))]


def test_figures_by_hand_in_both_label_sets():
    shared = {
        "tIoU@0.5": 3 / 4,
        "mean_tIoU": pytest.approx((1 + 85 / 95 + 0.4 + 50 / 70) / 4),
        "mean_tIoU_boundary": pytest.approx((1 + 85 / 95 + 50 / 70) / 3),
        "median_boundary_error_frames": 10,  # of 0, 10 and (10 + 10) / 2
        "tIoU@0.7": 3 / 4,
        "tIoU@0.9": 1 / 4,
        "no_segment": 0,
        "ECE": None,
        "Brier": None,
    }
    # two of the classes 100, 300, 400, 600, 700, 800; three of Unknown, Label, Final Check, Box Setup, Put Items
    assert figures(records(), "native") == {"OCA": 2 / 4, "AA@1": 2 / 4, "macro_F1": pytest.approx(2 / 6), **shared}
    assert figures(records(), "brief") == {"OCA": 3 / 4, "AA@1": 3 / 4, "macro_F1": pytest.approx(3 / 5), **shared}


def test_confidence_by_hand_in_both_label_sets():
    sure = [(0.9, 0.9), (0.5, 0.8), (0.6, 0.7), (0.9, 0.9)]  # native, brief
    made = [
        record.model_copy(update={"confidence": Confidence(native=native, brief=brief)})
        for record, (native, brief) in zip(records(), sure, strict=True)
    ]
    native, brief = figures(made, "native"), figures(made, "brief")
    assert native["Brier"] == pytest.approx((0.01 + 0.25 + 0.16 + 0.81) / 4)  # right: first and third
    assert native["ECE"] == pytest.approx((0.8 + 0.5 + 0.4) / 4)  # the two of 0.9 share a bin and are right once
    assert brief["Brier"] == pytest.approx((0.01 + 0.04 + 0.09 + 0.81) / 4)
    assert brief["ECE"] == pytest.approx((0.8 + 0.2 + 0.3) / 4)
    assert [(row["samples"], row["right"]) for row in reliability(made, "native")] == [(1, 0), (1, 1), (2, 0.5)]
    assert reliability(records(), "native") == []


def test_perfect_and_wrong_answers():
    perfect = figures(records(TRUTH), "native")
    assert perfect.pop("median_boundary_error_frames") == perfect.pop("no_segment") == 0
    assert perfect.pop("ECE") is perfect.pop("Brier") is None
    assert set(perfect.values()) == {1.0}
    wrong = figures(records(((8100, (100, 100), 8100),) * 4), "brief")  # an empty segment agrees with nothing
    wrong.pop("median_boundary_error_frames")
    assert wrong.pop("no_segment") == 1
    assert wrong.pop("ECE") is wrong.pop("Brier") is None
    assert set(wrong.values()) == {0.0}


def test_half_of_the_union_is_enough_and_a_frame_less_is_not():
    both = [record(0, (100, (0, 100), 200), (100, (0, end), 200)) for end in (50, 49)]
    assert [figures([one], "brief")["tIoU@0.5"] for one in both] == [1, 0]


@pytest.mark.parametrize(
    ("truth", "said", "error"),
    [
        ((0, 80), (0, 95), 15),  # the edge at the clip's start is no boundary
        ((0, 80), (20, 80), 0),
        ((30, 125), (20, 60), 10),
        ((30, 100), (20, 106), 8),  # both inside: the mean of 10 and 6
        ((1, 124), (0, 125), 1),
        ((0, 125), (40, 50), None),
        ((0, 80), None, None),
    ],
)
def test_boundary_error_counts_edges_inside_the_clip(truth, said, error):
    assert boundary_error(record(0, (100, truth, 200), (100, said, 200))) == error


def test_of_two_middle_errors_the_median_is_between():
    both = [record(number, (100, (0, 80), 200), (100, (0, end), 200)) for number, end in enumerate((81, 84))]
    assert figures(both, "brief")["median_boundary_error_frames"] == 2.5


def test_what_an_arm_never_speaks_of_is_null_and_what_it_leaves_out_is_a_miss():
    whole = figures(records(((None, (0, 125), None),) * 4), "brief")
    assert (whole["OCA"], whole["AA@1"], whole["tIoU@0.5"]) == (None, None, 1.0)  # 0.64, 0.68, 1, 0.56
    assert whole["mean_tIoU"] == pytest.approx((80 + 85 + 125 + 70) / 125 / 4)
    table = figures(records(((None, None, 200), (None, None, 300), (None, None, None), (None, None, 400))), "native")
    assert table["AA@1"] == 2 / 4
    assert all(value is None for name, value in table.items() if name != "AA@1")
    half = figures(records((*ANSWERS[:3], (300, None, 400))), "native")
    assert half["mean_tIoU"] == pytest.approx((1 + 85 / 95 + 0.4) / 4)
    assert half["no_segment"] == 1 / 4


def test_without_a_boundary_clip_its_figures_are_null():
    inside = figures(records()[2:3], "brief")
    assert (inside["mean_tIoU"], inside["mean_tIoU_boundary"], inside["median_boundary_error_frames"]) == (
        0.4,
        None,
        None,
    )


def test_intervals_are_wilsons():
    thirty = [record(number, TRUTH[0], (100 if number < 15 else 200, None, 200)) for number in range(30)]
    found = intervals(thirty, "brief")
    assert found["OCA"] == pytest.approx([0.3315, 0.6685], abs=1e-4)
    assert found["AA@1"] == pytest.approx([1 - 0.1135, 1], abs=1e-4)  # 30 of 30: 30 / (30 + 1.96²)
    assert found["tIoU@0.5"] is None


def test_the_ceiling_is_what_the_nearest_cuts_allow():
    late = record(4, (100, (0, 63), 200), (100, (0, 62), 200))  # at the cut before, the second operation is longer
    found = ceiling([*records(), late])
    assert found["OCA"] == 4 / 5
    best = (80 / 93, 85 / 94, 62 / 70, 62 / 63)
    assert found["mean_tIoU_boundary"] == pytest.approx(sum(best) / 4)
    assert ceiling([]) == {"OCA": None, "mean_tIoU_boundary": None}


def test_confusion_counts_true_rows_and_answered_columns_in_native_classes():
    made = confusion([*records(), record(9, TRUTH[0], (None, None, 200))], OPENPACK)
    place = {name: index for index, name in enumerate(made["names"])}
    assert made["names"] == list(OPENPACK.names)
    assert sum(map(sum, made["counts"])) == 4
    assert made["counts"][place["Attach Box Label"]][place["Attach Shipping Label"]] == 1
    assert made["counts"][place["Assemble Box"]][place["Insert Items"]] == 1
    assert made["counts"][place["Picking"]][place["Picking"]] == 1


def test_the_report_keeps_arms_apart_and_knows_the_first_clips():
    report = report_figures([*records(TRUTH, BASE), *records()], OPENPACK)
    assert list(report["all_clips"]) == [BASE, TUNED]
    assert (report["all_clips"][BASE]["OCA"], report["all_clips"][TUNED]["OCA"]) == (1, 3 / 4)
    assert report["all_clips_native"][TUNED]["OCA"] == 2 / 4
    first = report["first_clips"][TUNED]
    assert (first["OCA"], first["AA@1"]) == (1, 1 / 2)  # of the first two
    assert first["intervals"] == intervals(records()[:2], "brief")
    assert report["first_clips_native"][TUNED]["OCA"] == 1 / 2
    counted = {"clips": 4, "boundary_clips": 3, "first_clips": 2, "sessions": 1, "first_sessions": 1}
    assert report["counts"] == counted
    assert report["confusion"] == confusion(records(), OPENPACK)
    json.dumps(report, allow_nan=False)


def test_base_and_tuned_are_compared_clip_by_clip():
    arms = {BASE: records(), TUNED: records(TRUTH)[::-1]}  # in whatever order
    assert compare(arms, "native") == {
        "OCA": {"gains": 2, "losses": 0, "p": 0.5},
        "tIoU@0.5": {"gains": 1, "losses": 0, "p": 1.0},
        "AA@1": {"gains": 2, "losses": 0, "p": 0.5},
    }
    swapped = compare({BASE: records(TRUTH), TUNED: records()}, "brief")
    assert swapped["OCA"] == {"gains": 0, "losses": 1, "p": 1.0}
    assert compare({TUNED: records()}, "brief") == {}


def test_intervals_resample_sessions():
    def made(session: str, right: int, of: int) -> list[ClipRecord]:
        said = [TRUTH[0] if number < right else ANSWERS[3] for number in range(of)]
        return [record(number, TRUTH[0], one, session=session) for number, one in enumerate(said)]

    two = [*made("U0108/S0100", 6, 10), *made("U0108/S0200", 8, 10)]
    found = session_intervals(two, "native")
    # two sessions alone say 0.6 to 0.8; Wilson's interval of 14 of 20 is wider, and of two alike it is no point
    assert found["OCA"]
    low, high = found["OCA"]
    assert low <= wilson(14, 20)[0] < 0.6
    assert high >= wilson(14, 20)[1] > 0.8
    alike = session_intervals([*made("U0108/S0100", 7, 10), *made("U0108/S0200", 7, 10)], "native")["OCA"]
    assert alike
    assert alike[1] - alike[0] >= 0.37
    assert (found["ECE"], found["no_segment"]) == (None, [0, 0])
    assert session_intervals(two, "native") == found
    many = [clip for number in range(40) for clip in made(f"U0108/S{number:04d}", 1 + number % 2 * 8, 10)]
    low, high = session_intervals(many, "native")["OCA"]  # half of the sessions 0.1, half 0.9
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.4 / 40**0.5, 0.5 + 1.96 * 0.4 / 40**0.5), abs=0.03)
    assert set(session_intervals(records(), "brief").values()) == {None}  # one session: nothing to draw


def test_records_come_back_as_they_were_written(tmp_path: Path):
    posterior = Posterior(
        seen=({100: 1.0}, {8100: 1.0}), what={100: 0.75, 8100: 0.25}, next={200: 1.0}, span=((0, 31, 0.5), (0, 62, 0.5))
    )
    made = [*records(), record(7, TRUTH[0], ANSWERS[0]).model_copy(update={"posterior": posterior, "model": "a+b"})]
    write_clip_records(tmp_path / "records.jsonl", made)
    assert read_clip_records(tmp_path / "records.jsonl") == made
    first = json.loads((tmp_path / "records.jsonl").read_text().splitlines()[1])
    assert first["truth"] == {
        "start": 40,
        "end": 125,
        "native": {"operation": 600, "next": 700},
        "brief": {"operation": "Label", "next": "Final Check"},
    }


def test_a_line_that_is_no_record_is_named(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    write_clip_records(path, records())
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace('"arm": "finetuned_model"', '"arm": 3')]))
    with pytest.raises(DataError, match=r"records\.jsonl, line 2: arm: .*Run the stage evaluation again"):
        read_clip_records(path)
    path.write_text("")
    with pytest.raises(DataError, match="no record in it"):
        read_clip_records(path)
