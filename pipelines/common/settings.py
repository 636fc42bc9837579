"""Typed, frozen settings: one object a stage, saved beside what it made, its digest part of the code version."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from pipelines.common.files import digest, read_json, write_json


class Settings(BaseModel):
    """Base of every stage's settings. Unknown names and changed values are errors; equal values, equal digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        return digest(self.model_dump(mode="json"))

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls.model_validate(read_json(path))
