"""No person on two sides of the split, whatever their ids."""

import pytest

from pipelines.common.errors import DataError
from pipelines.openpack.splits import PERSON, SPLITS, check_disjoint, person, split_of


def by_person(**splits):
    return {split: {user: person(user) for user in users} for split, users in splits.items()}


def test_the_split_of_the_brief():
    assert {user: split_of(user) for user in ("U0101", "U0106", "U0107", "U0108")} == {
        "U0101": "train",
        "U0106": "train",
        "U0107": "val",
        "U0108": "test",
    }
    assert [split_of(user) for user in ("U0109", "U0203", "U0210")] == [None, None, None]
    check_disjoint(by_person(**SPLITS))


def test_second_ids_point_to_first_ids():
    assert person("U0203") == person("U0108") == "U0108"
    assert person("U0101") == "U0101"
    assert not set(PERSON) & set(PERSON.values())


@pytest.mark.parametrize("leak", sorted(PERSON))
def test_a_person_under_a_second_id_is_caught(leak):
    splits = by_person(train=[leak], test=[PERSON[leak]])
    with pytest.raises(DataError, match=f"{PERSON[leak]}, the same person as {leak}, is in test and in train"):
        check_disjoint(splits)
    check_disjoint(by_person(train=[leak, PERSON[leak]], test=["U0101"]))


def test_the_same_id_twice_is_caught():
    with pytest.raises(DataError, match="U0108 is in val and in test"):
        check_disjoint(by_person(test=["U0108"], val=["U0108"]))
