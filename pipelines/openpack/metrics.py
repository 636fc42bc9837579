"""From records to figures: how often, how well and how far off an arm answered.

Belongs here: definitions, as pure functions of `records.ClipRecord`, so that every figure can be had again from the
file. Nothing here loads a model or picks anything. Statistics on plain numbers are in `common.stats`.

A figure is None where an arm never speaks of what it measures (a whole clip names no operation) or where no clip
counts for it. On an arm that does speak, a clip without an answer is a miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from pipelines.common.intervals import iou
from pipelines.common.stats import wilson
from pipelines.openpack.records import ClipRecord, LabelSet
from pipelines.openpack.taxonomy import Taxonomy

BASE, TUNED = "base_model", "finetuned_model"
BRIEF_METRICS = ("OCA", "tIoU@0.5", "AA@1")  # the brief's three, in its spelling: the keys of results.json
TIOU_THRESHOLD = 0.5


def report_figures(records: Sequence[ClipRecord], taxonomy: Taxonomy) -> dict[str, Any]:
    """Everything in `report.json` that follows from records and taxonomy; arms in the order of their first record.

    `all_clips` and `all_clips_native`: `figures` by arm, in the brief's names and in OpenPack's classes. `first_clips`:
    the same on the clips marked `first`, with `intervals`. `confusion`: of the tuned model. `counts`: of clips.
    """
    arms: dict[str, list[ClipRecord]] = {}
    for record in records:
        arms.setdefault(record.arm, []).append(record)
    first = {arm: [record for record in rows if record.first] for arm, rows in arms.items()}
    clips = {record.clip_id: record for record in records}.values()
    return {
        "all_clips": {arm: figures(rows, "brief") for arm, rows in arms.items()},
        "all_clips_native": {arm: figures(rows, "native") for arm, rows in arms.items()},
        "first_clips": {
            arm: {**figures(rows, "brief"), "intervals": intervals(rows, "brief")} for arm, rows in first.items()
        },
        "confusion": confusion(arms.get(TUNED, []), taxonomy),
        "counts": {
            "clips": len(clips),
            "boundary_clips": sum(bool(clip.boundaries) for clip in clips),
            "first_clips": sum(clip.first for clip in clips),
        },
    }


def figures(records: Sequence[ClipRecord], labels: LabelSet) -> dict[str, float | None]:
    """The figures of one arm, each of its records another clip.

    OCA: share of clips whose dominant operation is right. tIoU@0.5: share whose segment has an IoU of at least 0.5
    with the true one. AA@1: share whose next operation is right. mean_tIoU: mean IoU, a miss counting 0;
    mean_tIoU_boundary: the same over clips with a true operation boundary strictly inside.
    median_boundary_error_frames: median of `boundary_error` over the clips that have one.
    """
    overlaps = _overlaps(records)
    at_boundaries = _overlaps([record for record in records if record.boundaries])
    errors = [error for record in records if (error := boundary_error(record)) is not None]
    shares = {name: _mean(hits) for name, hits in _hits(records, labels).items()}
    return {
        **shares,
        "mean_tIoU": _mean(overlaps),
        "mean_tIoU_boundary": _mean(at_boundaries),
        "median_boundary_error_frames": float(median(errors)) if errors else None,
    }


def intervals(records: Sequence[ClipRecord], labels: LabelSet) -> dict[str, list[float] | None]:
    """Wilson's 95 % interval [low, high] of each of the brief's three metrics.

    It takes clips as independent. Neighbours of one session are not, so the truth is wider rather than narrower.
    """
    hits = _hits(records, labels)
    return {name: list(wilson(sum(flags), len(flags))) if flags else None for name, flags in hits.items()}


def boundary_error(record: ClipRecord) -> float | None:
    """How far, in frames, the segment's edges inside the clip were missed; the mean where both edges are inside.

    Only edges of the true segment strictly inside the clip count, each against the same edge of the answered segment:
    an edge at the clip's border is no boundary that could be found. None without such an edge or without an answer.
    """
    truth, answered = record.truth.segment, record.prediction.segment
    if truth is None or answered is None:
        return None
    pairs = zip(truth, answered, strict=True)
    distances = [abs(true - said) for true, said in pairs if 0 < true < record.n_frames]
    return fmean(distances) if distances else None


def confusion(records: Iterable[ClipRecord], taxonomy: Taxonomy) -> dict[str, Any]:
    """`counts[t][a]`: clips of the true class `names[t]` answered as `names[a]`, in native classes by their ids.

    Clips without an answered operation are in no column.
    """
    operations = taxonomy.operations
    place = {operation.id: index for index, operation in enumerate(operations)}
    counts = [[0] * len(operations) for _ in operations]
    for record in records:
        true, answered = record.truth.native.operation, record.prediction.native.operation
        if true is not None and answered is not None:
            counts[place[true]][place[answered]] += 1
    return {"names": list(taxonomy.names), "counts": counts}


def _hits(records: Sequence[ClipRecord], labels: LabelSet) -> dict[str, list[bool]]:
    """For each of the brief's metrics whether each clip counts; empty where the arm never speaks of it."""
    pairs = [(getattr(record.truth, labels), getattr(record.prediction, labels)) for record in records]
    operation = [said.operation for _, said in pairs]
    following = [said.next for _, said in pairs]
    hits = (
        _right([true.operation for true, _ in pairs], operation),
        [overlap >= TIOU_THRESHOLD for overlap in _overlaps(records)],
        _right([true.next for true, _ in pairs], following),
    )
    return dict(zip(BRIEF_METRICS, hits, strict=True))


def _right(truth: Sequence[int | str], said: Sequence[int | str | None]) -> list[bool]:
    if all(answer is None for answer in said):
        return []
    return [true == answer for true, answer in zip(truth, said, strict=True)]


def _overlaps(records: Sequence[ClipRecord]) -> list[float]:
    """IoU of each clip's answered segment with the true one; empty where the arm answers none."""
    if all(record.prediction.segment is None for record in records):
        return []
    pairs = [(record.truth.segment, record.prediction.segment) for record in records]
    return [iou(true, said) if true and said else 0.0 for true, said in pairs]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
