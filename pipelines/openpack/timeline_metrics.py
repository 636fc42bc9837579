"""How well a sequence of operations agrees with the labels: frame accuracy, edit score, segmental F1.

Belongs here: definitions, as pure functions of two lists of stretches. They are the field's for temporal action
segmentation (Lea et al. 2017, "Temporal convolutional networks for action segmentation and detection"; Farha and Gall
2019, "MS-TCN"), as shares and not in percent. Which sessions are measured (`whole_sessions`) does not belong here.

As there the background, Null, is no segment: it counts for frames alone. Only frames with a label are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.common.intervals import iou, overlap
from pipelines.openpack.boxes import Stretch, joined, within
from pipelines.openpack.taxonomy import NULL_ID

LEAST_IOU = 0.5  # of F1@50


def scores(truth: Sequence[Stretch], said: Sequence[Stretch]) -> dict[str, float]:
    """{frame_accuracy, edit, F1@50} of one video. ValueError without labels; `truth` leaves no frame out between its
    first and its last."""
    if not truth:
        raise ValueError("there is no label to compare with")
    inside = joined(within(said, truth[0].start, truth[-1].end))
    return {
        "frame_accuracy": frame_accuracy(truth, inside),
        "edit": edit_score([one.operation for one in _acts(truth)], [one.operation for one in _acts(inside)]),
        "F1@50": segmental_f1(_acts(truth), _acts(inside)),
    }


def frame_accuracy(truth: Sequence[Stretch], said: Sequence[Stretch]) -> float:
    """Share of the labelled frames whose operation is right; a frame of which nothing is said is wrong."""
    right = sum(
        overlap((one.start, one.end), (other.start, other.end))
        for one in truth
        for other in said
        if one.operation == other.operation
    )
    return right / sum(one.frames for one in truth)


def edit_score(truth: Sequence[int], said: Sequence[int]) -> float:
    """1 - Levenshtein distance / length of the longer sequence: whether the order is right, whatever the times."""
    longer = max(len(truth), len(said))
    row = list(range(len(said) + 1))
    for i, one in enumerate(truth, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return 1 - row[-1] / longer if longer else 1.0


def segmental_f1(truth: Sequence[Stretch], said: Sequence[Stretch], least: float = LEAST_IOU) -> float:
    """F1 of segments, each right where it has an IoU of at least `least` with a true one of its operation that no
    earlier one was right about."""
    found: set[int] = set()
    for one in said:
        fits = {
            place: iou((one.start, one.end), (other.start, other.end))
            for place, other in enumerate(truth)
            if other.operation == one.operation
        }
        best = max(fits, key=fits.__getitem__, default=None)
        if best is not None and fits[best] >= least:
            found.add(best)
    total = len(truth) + len(said)
    return 2 * len(found) / total if total else 1.0


def _acts(stretches: Sequence[Stretch]) -> list[Stretch]:
    return [one for one in stretches if one.operation != NULL_ID]
