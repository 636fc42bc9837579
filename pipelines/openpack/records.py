"""What an evaluation keeps of every clip and arm: one line of `records.jsonl`, from which all figures follow.

Belongs here: the format, reading and writing it. Who answered (`evaluate`, `baselines`) and how well (`metrics`) do
not. An arm is whoever answers: a model, or a baseline that sees no picture. Label sets stand side by side in a record,
so that a later change of the mapping does not rewrite what was answered.

Segments are half-open frames of the clip, at the rate of `preparation.json` beside the file; native labels are ids of
the taxonomy, `labels.json` beside the file, brief labels the names of its second set (the brief's ten, or the
recordings' own).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.common.errors import DataError
from pipelines.common.files import read_jsonl, write_jsonl
from pipelines.openpack.taxonomy import Taxonomy

LabelSet = Literal["brief", "native"]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NativeLabels(_Row):
    """Dominant and next operation, by ids of the taxonomy."""

    operation: int | None
    next: int | None


class BriefLabels(_Row):
    """Dominant and next operation, by names of the second label set."""

    operation: str | None
    next: str | None


class Reading(_Row):
    """What is said of a clip, by its annotation or by an arm; None where an arm does not speak of it."""

    start: int | None
    end: int | None
    native: NativeLabels
    brief: BriefLabels

    @property
    def segment(self) -> tuple[int, int] | None:
        return None if self.start is None or self.end is None else (self.start, self.end)


class Posterior(_Row):
    """What a model held probable: native id → share, for the operation and the next, and for each stretch that was
    shown, in order; [start, end, share] a segment."""

    seen: tuple[dict[int, float], ...]
    what: dict[int, float]
    next: dict[int, float]
    span: tuple[tuple[int, int, float], ...]


class Confidence(_Row):
    """Posterior of the answered operation, 0 to 1, by its name in each label set."""

    native: float
    brief: float


class ClipRecord(_Row):
    """One arm's answer for one clip, beside the truth.

    `session` is `user/session`, `start_frame` counts in its video. `first` marks the clips that `results.json` stands
    on. `kind` and `boundaries` are the clip's; `bounds` and `pairs` are the clip's too, unless the arm was shown other
    frames. `posterior`, `confidence`, `prompt` (digest of the prompt's text) and `model` (digests of base and adapter)
    are a model's alone; `text` is what it wrote where it answered freely.
    """

    clip_id: str
    session: str
    start_frame: int
    arm: str
    first: bool
    n_frames: int
    kind: str
    boundaries: tuple[int, ...]
    bounds: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    truth: Reading
    prediction: Reading
    posterior: Posterior | None = None
    confidence: Confidence | None = None
    prompt: str | None = None
    model: str | None = None
    text: str | None = None


def reading(
    taxonomy: Taxonomy,
    operation: int | None = None,
    segment: tuple[int, int] | None = None,
    following: int | None = None,
) -> Reading:
    """A reading from native ids, with the names that stand for them; DataError for an id that is not defined."""
    start, end = segment or (None, None)
    names = [None if op_id is None else taxonomy.brief_name(op_id) for op_id in (operation, following)]
    native = NativeLabels(operation=operation, next=following)
    brief = BriefLabels(operation=names[0], next=names[1])
    return Reading(start=start, end=end, native=native, brief=brief)


def write_clip_records(path: Path, records: Iterable[ClipRecord]) -> None:
    """Writes one record a line, in the order given; the file appears whole or not at all."""
    write_jsonl(path, [record.model_dump(mode="json") for record in records])


def read_clip_records(path: Path) -> list[ClipRecord]:
    """The records of a file in its order. DataError that names the first line that is no record, or an empty file."""
    cure = "Run the stage evaluation again."
    records = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            records.append(ClipRecord.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
            raise DataError(what, file=path, where=f"line {number}", cure=cure) from None
    if not records:
        raise DataError("there is no record in it", file=path, cure=cure)
    return records
