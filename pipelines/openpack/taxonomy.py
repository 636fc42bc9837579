"""What operations are called: the eleven of OpenPack with the brief's ten names, or those of someone's own recordings.

Belongs here: what the labels are. The doubts about the brief's names stand in `labels.json`, beside each row. What a
label means for a prompt, a picture or a score does not belong here.

Format of a file of labels: {"about", "brief": [names], "operations": [{id, code, name, brief, certainty, why}]}.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.common.errors import DataError
from pipelines.common.files import read_json

LABELS = "labels.json"  # its name wherever a stage keeps one
NULL_ID = 8100  # of every taxonomy: no operation was annotated
CODES = string.ascii_uppercase  # single letters, so that no answer is longer than another


@dataclass(frozen=True)
class Operation:
    """One annotated class. `code` is a single letter for prompts, `brief` its name in the second label set."""

    id: int
    name: str
    code: str
    brief: str
    certainty: str  # of the mapping to `brief`: certain, strong, moderate, weak or none
    why: str


@dataclass(frozen=True)
class Taxonomy:
    """The classes that a session's annotations know. `brief` are the names of the second label set, in order."""

    about: str
    brief: tuple[str, ...]
    operations: tuple[Operation, ...]

    @classmethod
    def of(cls, data: dict[str, Any]) -> Taxonomy:
        """From the file's content, other keys left aside. ValueError where that is no file of labels."""
        try:
            operations = tuple(Operation(**row) for row in data["operations"])
            return cls(data["about"], tuple(data["brief"]), operations)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a file of labels ({error!r})") from None

    @classmethod
    def read(cls, file: Path) -> Taxonomy:
        """DataError for a file that is missing or of another kind."""
        try:
            return cls.of(read_json(file))
        except ValueError as error:
            raise DataError(str(error), file=file, cure="Run the stage that wrote it again.") from None

    @classmethod
    def own(cls, names: Iterable[str]) -> Taxonomy:
        """Of someone's own names, which are both label sets. DataError for none, or more than there are letters for."""
        found = sorted({name for name in names if name.casefold() != "null"})
        if not 1 <= len(found) < len(CODES):
            cure = f"Give between 1 and {len(CODES) - 1} different labels."
            raise DataError(f"{len(found)} different labels", cure=cure)
        rows = [*enumerate(found, 1), (NULL_ID, "Null")]
        operations = tuple(
            Operation(op_id, name, code, name, "certain", "Its own name.")
            for (op_id, name), code in zip(rows, CODES, strict=False)
        )
        return cls("The recordings' own names.", tuple(name for _, name in rows), operations)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def by_id(self, op_id: int) -> Operation:
        """The operation of a numeric id; DataError for an id that is not defined."""
        if op_id not in self._by_id:
            known = ", ".join(str(operation.id) for operation in self.operations)
            raise DataError(f"unknown operation id {op_id}", cure=f"The ids are {known}; correct the annotation.")
        return self._by_id[op_id]

    def by_code(self, code: str) -> Operation:
        """The operation with a one-letter code; DataError for any other text."""
        if code not in self._by_code:
            cure = f"The codes are the letters of {''.join(self.codes)}."
            raise DataError(f"unknown operation code {code!r}", cure=cure)
        return self._by_code[code]

    def by_name(self, name: str) -> Operation:
        """The operation of that name, upper or lower case; DataError for any other."""
        for operation in self.operations:
            if operation.name.casefold() == name.casefold():
                return operation
        cure = f"The names are {', '.join(self.names)}."
        raise DataError(f"unknown operation {name!r}", cure=cure)

    def brief_name(self, op_id: int) -> str:
        """The name in the second label set for an operation id; DataError for an unknown id."""
        return self.by_id(op_id).brief

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(operation.name for operation in self.operations)

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(operation.code for operation in self.operations)

    @cached_property
    def _by_id(self) -> dict[int, Operation]:
        return {operation.id: operation for operation in self.operations}

    @cached_property
    def _by_code(self) -> dict[str, Operation]:
        return {operation.code: operation for operation in self.operations}


OPENPACK = Taxonomy.of(json.loads(Path(__file__).with_name(LABELS).read_text(encoding="utf-8")))
