"""Who trains, validates and tests, and which ids are one person.

Belongs here: the brief's split by user and the persons that OpenPack recorded under two ids. Which clips a split gets
does not belong here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pipelines.common.errors import DataError

Split = Literal["train", "val", "test"]

SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("U0101", "U0102", "U0103", "U0104", "U0105", "U0106"),
    "val": ("U0107",),
    "test": ("U0108",),
}

# A later id and the first id of the same person, from the data set's own table of subjects.
PERSON: dict[str, str] = {
    "U0202": "U0105",
    "U0203": "U0108",
    "U0204": "U0110",
    "U0205": "U0107",
    "U0210": "U0103",
}


def person(user: str) -> str:
    """The first id of the person behind a user id, which is that id itself for most."""
    return PERSON.get(user, user)


def split_of(user: str) -> Split | None:
    """The split that the brief gives a user; None for users outside it, which enter no shard."""
    return next((split for split, users in SPLITS.items() if user in users), None)


def check_disjoint(splits: Mapping[str, Mapping[str, str]]) -> None:
    """Raises DataError where one person is in two of the splits, given as split → user id → person."""
    seen: dict[str, tuple[str, str]] = {}
    for split, users in splits.items():
        for user, one in users.items():
            other_user, other_split = seen.setdefault(one, (user, split))
            if other_split != split:
                who = user if user == other_user else f"{user}, the same person as {other_user},"
                raise DataError(
                    f"{who} is in {split} and in {other_split}",
                    cure=f"Take {user} out of {split}, or else {other_user} out of {other_split}.",
                )
