"""Both label sets and their mapping, against openpack-toolkit and the sample."""

import csv
from pathlib import Path

import pytest

from pipelines.common.errors import DataError
from pipelines.common.files import read_json, write_json
from pipelines.openpack import taxonomy
from pipelines.openpack.taxonomy import NULL_ID, OPENPACK, Taxonomy

FILE = Path(taxonomy.__file__).with_name("labels.json")


def test_operations_are_those_of_openpack_toolkit():
    from openpack_toolkit import OPENPACK_OPERATIONS
    from openpack_toolkit.activity import ActSet

    official = ActSet(OPENPACK_OPERATIONS)
    assert [(op.id, op.name) for op in OPENPACK.operations] == [(label.id, label.name) for label in official.classes]
    assert official.get_ignore_class_id() == NULL_ID


def test_operations_are_those_of_the_sample(sample):
    with (sample / "U0209/annotation/openpack-operations/S0500.csv").open() as stream:
        seen = {(int(row["id"]), row["operation"]) for row in csv.DictReader(stream)}
    assert seen == {(op.id, op.name) for op in OPENPACK.operations} - {(NULL_ID, "Null")}


def test_codes_are_letters_in_the_order_of_ids():
    assert "".join(op.code for op in OPENPACK.operations) == "ABCDEFGHIJK"
    assert [op.id for op in OPENPACK.operations] == [*range(100, 1001, 100), 8100]
    assert all(OPENPACK.by_code(op.code) is op is OPENPACK.by_id(op.id) for op in OPENPACK.operations)


def test_mapping_to_the_brief():
    assert {op.id: OPENPACK.brief_name(op.id) for op in OPENPACK.operations} == {
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
    assert all(
        op.certainty in {"certain", "strong", "moderate", "weak", "none"} and op.why for op in OPENPACK.operations
    )
    assert len(set(OPENPACK.brief)) == 10
    assert (
        set(OPENPACK.brief) - {op.brief for op in OPENPACK.operations}
        == {"Wrap"}
        == set(read_json(FILE)["without_counterpart"])
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda: OPENPACK.by_id(150),
        lambda: OPENPACK.brief_name(0),
        lambda: OPENPACK.by_code("Z"),
        lambda: OPENPACK.by_code(""),
    ],
)
def test_unknown_labels_are_refused_with_the_known_ones(ask):
    with pytest.raises(DataError, match="unknown operation") as caught:
        ask()
    assert "8100" in caught.value.cure or "ABCDEFGHIJK" in caught.value.cure


def test_own_names_are_both_label_sets_and_null_stays_null():
    own = Taxonomy.own(["tape", "pick", "tape", "null"])
    assert [(op.id, op.name, op.code, op.brief) for op in own.operations] == [
        (1, "pick", "A", "pick"),
        (2, "tape", "B", "tape"),
        (NULL_ID, "Null", "C", "Null"),
    ]
    assert own.by_name("TAPE").id == 2
    with pytest.raises(DataError, match=r"unknown operation 'wrap'\. The names are pick, tape, Null"):
        own.by_name("wrap")


@pytest.mark.parametrize("names", [[], ["Null"], [f"step {i}" for i in range(26)]])
def test_more_or_fewer_own_names_than_letters_are_refused(names):
    with pytest.raises(DataError, match=r"different labels\. Give between 1 and 25"):
        Taxonomy.own(names)


def test_a_file_of_labels_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "labels.json", OPENPACK.as_json())
    assert Taxonomy.read(tmp_path / "labels.json") == OPENPACK
    write_json(tmp_path / "labels.json", {"brief": []})
    with pytest.raises(DataError, match="not a file of labels"):
        Taxonomy.read(tmp_path / "labels.json")
