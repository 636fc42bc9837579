"""The time study: seconds of operations and boxes, as rows and as a table."""

import csv
import io

from pipelines.openpack.boxes import Stretch, boxes
from pipelines.openpack.taxonomy import NULL_ID, OPENPACK
from pipelines.openpack.time_study import as_csv, time_study

# two boxes and one that is cut off; the second box pauses within an operation
DONE = [
    Stretch(100, 0, 100),
    Stretch(600, 100, 150),
    Stretch(800, 150, 250),
    Stretch(100, 250, 300),
    Stretch(NULL_ID, 300, 325),
    Stretch(100, 325, 350),
    Stretch(800, 350, 500),
    Stretch(100, 500, 525),
]
BOXES = boxes(DONE, 100, last={800})


def native(op_id: int) -> str:
    return OPENPACK.by_id(op_id).name


def test_operations_have_count_sum_median_and_spread():
    rows = {row["operation"]: row for row in time_study(DONE, BOXES, native, 25)["operations"]}
    assert list(rows) == ["Picking", "Attach Box Label", "Attach Shipping Label"]
    # 4, 3 (the pause does not count) and 1 s; quartiles at 2 and 3.5
    assert rows["Picking"] == {"operation": "Picking", "count": 3, "total_s": 8.0, "median_s": 3.0, "iqr_s": 1.5}
    assert rows["Attach Box Label"]["iqr_s"] == 0


def test_a_box_lasts_until_the_next_one_and_one_that_is_cut_off_counts_in_no_median():
    study = time_study(DONE, BOXES, native, 25)
    assert [(one["box"], one["start_s"], one["end_s"], one["seconds"]) for one in study["boxes"]] == [
        (1, 0.0, 10.0, 10.0),
        (2, 10.0, 20.0, 10.0),
        (3, 20.0, 21.0, 1.0),
    ]
    assert study["boxes"][1]["operations"] == {"Picking": 3.0, "Attach Shipping Label": 6.0}
    assert (study["box_median_s"], study["box_iqr_s"]) == (10.0, 0.0)
    assert time_study(DONE[:2], boxes(DONE[:2], 100, last={800}), native, 25)["box_median_s"] is None


def test_classes_that_share_a_name_count_together():
    study = time_study(DONE, BOXES, OPENPACK.brief_name, 25)
    assert [(row["operation"], row["count"]) for row in study["operations"]] == [("Unknown", 3), ("Label", 3)]
    assert study["boxes"][0]["operations"] == {"Unknown": 4.0, "Label": 6.0}


def test_the_table_has_a_row_an_operation_a_box_and_one_for_all_boxes():
    rows = list(csv.DictReader(io.StringIO(as_csv(time_study(DONE, BOXES, native, 25)))))
    assert [(row["of"], row["name"]) for row in rows] == [
        ("operation", "Picking"),
        ("operation", "Attach Box Label"),
        ("operation", "Attach Shipping Label"),
        ("box", "1"),
        ("box", "2"),
        ("box", "3"),
        ("box", ""),
    ]
    assert (rows[0]["count"], rows[0]["median_s"], rows[0]["start_s"]) == ("3", "3.0", "")
    assert (rows[3]["start_s"], rows[3]["total_s"], rows[3]["median_s"]) == ("0.0", "10.0", "")
    assert rows[-1]["median_s"] == "10.0"
