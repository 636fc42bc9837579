"""Both label sets and their mapping, against openpack-toolkit and the sample."""

import csv

import pytest

from pipelines.common.errors import DataError
from pipelines.openpack import taxonomy
from pipelines.openpack.taxonomy import BRIEF_NAMES, NULL_ID, OPERATIONS, brief_name, by_code, by_id


def test_operations_are_those_of_openpack_toolkit():
    from openpack_toolkit import OPENPACK_OPERATIONS
    from openpack_toolkit.activity import ActSet

    official = ActSet(OPENPACK_OPERATIONS)
    assert [(op.id, op.name) for op in OPERATIONS] == [(label.id, label.name) for label in official.classes]
    assert official.get_ignore_class_id() == NULL_ID


def test_operations_are_those_of_the_sample(sample):
    with (sample / "U0209/annotation/openpack-operations/S0500.csv").open() as stream:
        seen = {(int(row["id"]), row["operation"]) for row in csv.DictReader(stream)}
    assert seen == {(op.id, op.name) for op in OPERATIONS} - {(NULL_ID, "Null")}


def test_codes_are_letters_in_the_order_of_ids():
    assert "".join(op.code for op in OPERATIONS) == "ABCDEFGHIJK"
    assert [op.id for op in OPERATIONS] == [*range(100, 1001, 100), 8100]
    assert all(by_code(op.code) is op is by_id(op.id) for op in OPERATIONS)


def test_mapping_to_the_brief():
    assert {op.id: brief_name(op.id) for op in OPERATIONS} == {
        100: "Unknown",
        200: "Inner Packing",
        300: "Box Setup",
        400: "Put Items",
        500: "Tape",
        600: "Label",
        700: "Final Check",
        800: "Label",
        900: "Pack",
        1000: "Final Check",
        8100: "Idle",
    }


def test_every_row_says_how_sure_it_is_and_only_wrap_is_left_over():
    assert all(op.certainty in {"certain", "strong", "moderate", "weak", "none"} and op.why for op in OPERATIONS)
    assert len(set(BRIEF_NAMES)) == 10
    assert set(BRIEF_NAMES) - {op.brief for op in OPERATIONS} == {"Wrap"} == set(taxonomy._DATA["without_counterpart"])


@pytest.mark.parametrize("ask", [lambda: by_id(150), lambda: brief_name(0), lambda: by_code("Z"), lambda: by_code("")])
def test_unknown_labels_are_refused_with_the_known_ones(ask):
    with pytest.raises(DataError, match="unknown operation") as caught:
        ask()
    assert "8100" in caught.value.cure or "ABCDEFGHIJK" in caught.value.cure
