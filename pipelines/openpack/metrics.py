"""From records to figures: how often, how well and how far off an arm answered.

Belongs here: definitions, as pure functions of `records.ClipRecord`, so that every figure can be had again from the
file. Nothing here loads a model or picks anything. Statistics on plain numbers are in `common.stats`; how far a figure
can be trusted, and all of a report together, in `summary`.

A figure is None where an arm never speaks of what it measures (a whole clip names no operation) or where no clip
counts for it. On an arm that does speak, a clip without an answer is a miss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations, pairwise
from statistics import fmean
from typing import Any

import numpy as np

from pipelines.common import stats
from pipelines.common.intervals import iou, length
from pipelines.openpack.records import ClipRecord, LabelSet
from pipelines.openpack.taxonomy import Taxonomy

BASE, TUNED = "base_model", "finetuned_model"
BRIEF_METRICS = ("OCA", "tIoU@0.5", "AA@1")  # the brief's three, in its spelling: the keys of results.json
TIOU_THRESHOLDS = (0.5, 0.7, 0.9)  # the brief's, and two that the whole clip does not reach

Figure = Callable[[np.ndarray], np.ndarray]  # of weights, as `common.stats` has them
Values = Sequence[float | None]  # one a clip, None where it does not count


def figures(records: Sequence[ClipRecord], labels: LabelSet) -> dict[str, float | None]:
    """The figures of one arm, each of its records another clip.

    OCA: share of clips whose dominant operation is right. tIoU@0.5, @0.7, @0.9: share whose segment has at least that
    IoU with the true one. AA@1: share whose next operation is right. mean_tIoU: mean IoU, a miss counting 0;
    mean_tIoU_boundary: the same over clips with a true operation boundary strictly inside.
    median_boundary_error_frames: median of `boundary_error` over the clips that have one. macro_F1: of the operation.
    ECE and Brier: of the confidence in it, the expected calibration error and the mean of (confidence − right)².
    no_segment: share of clips without a segment or with an empty one.
    """
    once = np.ones((1, len(records)), int)
    values = {name: figure and float(figure(once)[0]) for name, figure in measures(records, labels).items()}
    return {name: None if value is None or np.isnan(value) else value for name, value in values.items()}


def measures(records: Sequence[ClipRecord], labels: LabelSet) -> dict[str, Figure | None]:
    """Each of `figures` as a function of how often every record counts: weights (resamples, records) → (resamples,)."""
    right, overlaps = hits(records, labels), _overlaps(records)
    pairs = list(zip(records, overlaps, strict=True))
    edges = [boundary_error(record) for record in records]
    empty = [None if overlap is None else not length(one.prediction.segment or (0, 0)) for one, overlap in pairs]
    more = [name for name in right if name not in BRIEF_METRICS]
    return {
        **{name: _over(right[name], stats.mean) for name in BRIEF_METRICS},
        "mean_tIoU": _over(overlaps, stats.mean),
        "mean_tIoU_boundary": _over([overlap if one.boundaries else None for one, overlap in pairs], stats.mean),
        "median_boundary_error_frames": _over(edges, stats.median),
        **{name: _over(right[name], stats.mean) for name in more},
        "macro_F1": _macro_f1(records, labels),
        **_calibration(records, labels),
        "no_segment": _over(empty, stats.mean),
    }


def hits(records: Sequence[ClipRecord], labels: LabelSet) -> dict[str, Values]:
    """For each metric that is right or wrong whether each clip is right; None where the arm never speaks of it."""
    overlaps = _overlaps(records)
    return {
        "OCA": _right(records, labels, "operation"),
        "AA@1": _right(records, labels, "next"),
        **{
            f"tIoU@{least}": [None if overlap is None else overlap >= least for overlap in overlaps]
            for least in TIOU_THRESHOLDS
        },
    }


def ceiling(records: Sequence[ClipRecord]) -> dict[str, float | None]:
    """What the choice of frames leaves possible, for records of an arm that was shown it: the answers of whoever knows
    every operation, and every boundary no better than its nearest cut.

    OCA: share of clips whose longest operation is still the longest so. mean_tIoU_boundary: mean IoU of the best span
    between cuts, over clips with a boundary inside. None without such clips.
    """
    kept, overlaps = [], []
    for record in records:
        edges = [0, *record.boundaries, record.n_frames]
        near = [min(record.bounds, key=lambda cut, edge=edge: abs(cut - edge)) for edge in edges]
        stretches = list(zip(pairwise(edges), pairwise(near), strict=True))
        longest = [max(stretches, key=lambda one, side=side: (length(one[side]), -one[side][0])) for side in (0, 1)]
        kept.append(longest[0] == longest[1])
        truth = record.truth.segment
        if record.boundaries and truth:
            overlaps.append(max(iou(span, truth) for span in combinations(record.bounds, 2)))
    return {"OCA": fmean(kept) if kept else None, "mean_tIoU_boundary": fmean(overlaps) if overlaps else None}


def reliability(records: Sequence[ClipRecord], labels: LabelSet) -> list[dict[str, float]]:
    """Bins of `stats.reliability` of the confidence in the operation; empty for an arm that has none."""
    confidence, right = _confidence(records, labels)
    return stats.reliability(confidence, right) if len(confidence) else []


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


def segment_iou(record: ClipRecord) -> float:
    """IoU of the answered segment with the true one; 0 without an answer."""
    truth, answered = record.truth.segment, record.prediction.segment
    return iou(truth, answered) if truth and answered else 0.0


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


def _right(records: Sequence[ClipRecord], labels: LabelSet, part: str) -> Values:
    pairs = [[getattr(getattr(of, labels), part) for of in (one.truth, one.prediction)] for one in records]
    speaks = _speaks(records, [said for _, said in pairs])
    return [true == said if speaks else None for true, said in pairs]


def _overlaps(records: Sequence[ClipRecord]) -> Values:
    """IoU of each clip's answered segment with the true one; None where the arm answers none."""
    speaks = _speaks(records, [record.prediction.segment for record in records])
    return [segment_iou(record) if speaks else None for record in records]


def _speaks(records: Sequence[ClipRecord], said: Sequence[object]) -> bool:
    """Whether an arm speaks of something: some answer has it, or it writes freely and may only have failed to."""
    return any(one is not None for one in said) or any(record.text is not None for record in records)


def _macro_f1(records: Sequence[ClipRecord], labels: LabelSet) -> Figure | None:
    true, said = ([getattr(getattr(one, of), labels).operation for one in records] for of in ("truth", "prediction"))
    return partial(stats.macro_f1, true, said) if _speaks(records, said) else None


def _calibration(records: Sequence[ClipRecord], labels: LabelSet) -> dict[str, Figure | None]:
    confidence, right = _confidence(records, labels)
    if not len(confidence):
        return {"ECE": None, "Brier": None}
    return {
        "ECE": partial(stats.calibration_error, confidence, right),
        "Brier": partial(stats.mean, (confidence - right) ** 2),
    }


def _confidence(records: Sequence[ClipRecord], labels: LabelSet) -> tuple[np.ndarray, np.ndarray]:
    """Confidence in the operation, and whether it is right; empty unless every record has one."""
    sure = [getattr(record.confidence, labels, None) for record in records]
    if any(one is None for one in sure):
        return np.empty(0), np.empty(0, bool)
    return np.array(sure, float), np.array(_right(records, labels, "operation"), bool)


def _over(values: Values, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Figure | None:
    """The statistic over the clips that count, as a function of all clips' weights; None where none counts."""
    counted = [index for index, value in enumerate(values) if value is not None]
    kept = np.array([values[index] for index in counted], float)
    return (lambda weights: statistic(kept, weights[:, counted])) if counted else None
