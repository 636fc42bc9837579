"""The two label sets and the mapping between them, read from `labels.json`.

Belongs here: what the labels are. The doubts about the mapping stand in the data, beside each row. What a label means
for a prompt, a picture or a score does not belong here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.common.errors import DataError

LABELS = Path(__file__).with_name("labels.json")


@dataclass(frozen=True)
class Operation:
    """One annotated class of OpenPack. `code` is a single letter for prompts, `brief` its name in the brief's set."""

    id: int
    name: str
    code: str
    brief: str
    certainty: str  # of the mapping to `brief`: certain, strong, moderate, weak or none
    why: str


_DATA = json.loads(LABELS.read_text(encoding="utf-8"))

OPERATIONS: tuple[Operation, ...] = tuple(Operation(**row) for row in _DATA["operations"])
BRIEF_NAMES: tuple[str, ...] = tuple(_DATA["brief"])
NULL_ID = 8100

_BY_ID = {operation.id: operation for operation in OPERATIONS}
_BY_CODE = {operation.code: operation for operation in OPERATIONS}


def by_id(op_id: int) -> Operation:
    """The operation with OpenPack's numeric id; DataError for an id that OpenPack does not define."""
    if op_id not in _BY_ID:
        known = ", ".join(str(operation.id) for operation in OPERATIONS)
        raise DataError(f"unknown operation id {op_id}", cure=f"The ids are {known}; correct the annotation.")
    return _BY_ID[op_id]


def by_code(code: str) -> Operation:
    """The operation with a one-letter code; DataError for any other text."""
    if code not in _BY_CODE:
        known = "".join(operation.code for operation in OPERATIONS)
        raise DataError(f"unknown operation code {code!r}", cure=f"The codes are the letters of {known}.")
    return _BY_CODE[code]


def brief_name(op_id: int) -> str:
    """The brief's name for an operation id; DataError for an unknown id."""
    return by_id(op_id).brief
