"""Calibration: how far a model's posteriors can be trusted, and how much the order of operations says beside it.

Belongs here: the transition prior, counted on training clips; two temperatures and the prior's weight, chosen on
validation clips; and putting them on a posterior. Test clips are never opened. How probabilities are fused and what is
chosen by log loss (`common.posteriors`) and who answers (`predict`) do not belong here.

A calibration is one model's: it is fitted to the posteriors of that model, asked in one way. Where validation has too
little to say it leaves every posterior as it is, and `why` says so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pipelines.common.posteriors import fit, fuse, temper
from pipelines.common.settings import Settings
from pipelines.openpack.clip_plan import Clip, Target
from pipelines.openpack.loader import ShardReader, read_manifest
from pipelines.openpack.settings import EvaluationSettings
from pipelines.openpack.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipelines.openpack.prediction import Prediction
    from pipelines.openpack.settings import EvaluationSettings

CALIBRATION = "calibration.json"
LEAST_CLIPS = 20  # three numbers are chosen on them, and with fewer one clip decides

Shares = Mapping[int, float]
Transitions = dict[int, dict[int, float]]
Say = Callable[[str], None]


class Calibration(Settings):
    """The content of calibration.json. The defaults change no posterior.

    `transitions` is native id → id → P(next | operation). `log_loss` is the mean over the `clips` validation clips, in
    nats, of the true name [before, after], for `operation` and `next`. `why`: the reason where nothing was fitted.
    """

    transitions: Transitions
    operation_temperature: float = Field(default=1.0, gt=0)
    next_temperature: float = Field(default=1.0, gt=0)
    prior_weight: float = Field(default=0.0, ge=0, le=1)
    clips: int = 0
    log_loss: dict[str, tuple[float, float]] = Field(default_factory=dict)
    why: str | None = None

    def apply(self, what: Shares, following: Shares) -> tuple[dict[int, float], dict[int, float]]:
        """Posteriors of the operation and of the next one, by native id: as the model gave them in, calibrated out.

        p(next) ∝ (model(next)^(1-w) · (Σ p(operation)·P(next | operation))^w)^(1/T), p(operation) calibrated before.
        """
        ids = list(self.transitions)
        shares = temper(_row(what, ids), self.operation_temperature)
        prior = shares @ _matrix(self.transitions, ids)
        after = fuse(_row(following, ids), prior, self.prior_weight, self.next_temperature)
        return dict(zip(ids, shares.tolist(), strict=True)), dict(zip(ids, after.tolist(), strict=True))


def count_transitions(clips: Iterable[Clip], taxonomy: Taxonomy) -> Transitions:
    """P(next | operation) by native ids over all operations of `taxonomy`, from the labels of (training) clips.

    Clips overlap, so what is counted is not clips but instances of operations: targets of a session between the same
    two boundaries are one.
    """
    return smoothed(Counter(_instances(clips)), [operation.id for operation in taxonomy.operations])


def smoothed(counts: Counter[tuple[int, int]], ids: Sequence[int]) -> Transitions:
    """P(next | operation) over `ids` from how often which (operation, next) was seen.

    Each row gets one more transition, spread as operations follow overall, each of them seen once more than it was:
    nothing is impossible, and an operation that was never seen is followed by what follows most.
    """
    overall = Counter(dict.fromkeys(ids, 1))
    for (_, following), count in counts.items():
        overall[following] += count
    total = overall.total()

    def row(operation: int) -> dict[int, float]:
        seen = sum(counts[operation, one] for one in ids)
        return {one: (counts[operation, one] + overall[one] / total) / (seen + 1) for one in ids}

    return {operation: row(operation) for operation in ids}


def calibrate(
    answers: Sequence[Prediction],
    settings: EvaluationSettings,
    shards: Path,
    transitions: Transitions,
    taxonomy: Taxonomy,
    progress: Say = print,
) -> Calibration:
    """Fits a calibration to `answers`, the raw ones to the clips of `calibration_batches`.

    `transitions` are those of the shards' train split. Where validation says too little the calibration changes nothing
    and says why. DataError for a damaged shard of the split.
    """
    targets, _ = _chosen(settings, shards)
    made = fit_calibration(answers, targets, transitions, taxonomy)
    progress(_line(made))
    return made


def calibration_batches(settings: EvaluationSettings, shards: Path, taxonomy: Taxonomy) -> list[list[int]]:
    """Numbers of the validation clips to calibrate on, spread over the split, batch by batch; none where their labels
    say too little. DataError for a damaged shard of the split."""
    targets, chosen = _chosen(settings, shards)
    if _too_little(targets, taxonomy):
        return []
    return [chosen[start : start + settings.batch_size] for start in range(0, len(chosen), settings.batch_size)]


def _chosen(settings: EvaluationSettings, shards: Path) -> tuple[list[Target], list[int]]:
    """Validation clips that the settings ask for: what is true of each, and its number in the split."""
    if not (settings.calibration_clips and read_manifest(shards)["splits"]["val"]["samples"]):
        return [], []
    reader = ShardReader(shards, "val")
    count = min(settings.calibration_clips, len(reader))
    chosen = np.linspace(0, len(reader) - 1, count).round().astype(int).tolist()
    return [reader.sample(index).clip.target for index in chosen], chosen


def fit_calibration(
    predictions: Sequence[Prediction], targets: Sequence[Target], transitions: Transitions, taxonomy: Taxonomy
) -> Calibration:
    """Temperatures and the prior's weight for which the names of `targets`, one a prediction, were most probable.

    By the names of the second label set, in which answers and their confidence are given: classes that share a name
    count together. `predictions` may be empty where `targets` say too little.
    """
    if why := _too_little(targets, taxonomy):
        return Calibration(transitions=transitions, clips=len(targets), why=why)
    ids = list(transitions)
    raw = [one.raw or one for one in predictions]
    what, following = (np.stack([_row(of(one), ids) for one in raw]) for of in (_what, _next))
    groups = np.array([_name(taxonomy, op_id) for op_id in ids])
    true, true_next = (np.array([_name(taxonomy, op_id) for op_id in row]) for row in _labels(targets))
    operation = fit(what, what, true, groups, weights=(0.0,))
    prior = temper(what, operation.temperature) @ _matrix(transitions, ids)
    after = fit(following, prior, true_next, groups)
    return Calibration(
        transitions=transitions,
        operation_temperature=operation.temperature,
        next_temperature=after.temperature,
        prior_weight=after.weight,
        clips=len(targets),
        log_loss={"operation": (operation.before, operation.after), "next": (after.before, after.after)},
    )


def _instances(clips: Iterable[Clip]) -> list[tuple[int, int]]:
    """(operation, next) of every instance that some clip's target is of.

    No two instances have the same known boundaries of their session before them, unless no clip shows the one between.
    """
    sessions: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        sessions[clip.user, clip.session].append(clip)
    found = set()
    for session, members in sessions.items():
        known = sorted({clip.start_frame + boundary for clip in members for boundary in clip.boundaries})
        for clip in members:
            place = bisect_right(known, clip.start_frame + clip.target.start)
            found.add((session, place, clip.target.operation, clip.target.next))
    return [(operation, following) for *_, operation, following in sorted(found)]


def _too_little(targets: Sequence[Target], taxonomy: Taxonomy) -> str | None:
    """Why nothing can be fitted on these clips; None where something can."""
    if len(targets) < LEAST_CLIPS:
        return f"{len(targets)} validation clips were there or asked for; fewer than {LEAST_CLIPS} say too little"
    for kind, row in zip(("operation", "next operation"), _labels(targets), strict=True):
        names = {taxonomy.brief_name(op_id) for op_id in row}
        if len(names) == 1:
            return f"all {len(targets)} validation clips have the same {kind}: {names.pop()}"
    return None


def _labels(targets: Sequence[Target]) -> tuple[list[int], list[int]]:
    return [target.operation for target in targets], [target.next for target in targets]


def _name(taxonomy: Taxonomy, op_id: int) -> int:
    return taxonomy.brief.index(taxonomy.brief_name(op_id))


def _what(prediction: Prediction) -> Shares:
    return prediction.what


def _next(prediction: Prediction) -> Shares:
    return prediction.next_share


def _row(shares: Shares, ids: Sequence[int]) -> np.ndarray:
    return np.array([shares[op_id] for op_id in ids])


def _matrix(transitions: Transitions, ids: Sequence[int]) -> np.ndarray:
    return np.stack([_row(transitions[op_id], ids) for op_id in ids])


def _line(made: Calibration) -> str:
    if made.why:
        return f"not calibrated: {made.why}"
    before, after = (made.log_loss["next"][i] for i in (0, 1))
    return (
        f"calibrated on {made.clips} validation clips: temperatures {made.operation_temperature:.2f} and "
        f"{made.next_temperature:.2f}, weight of the transitions {made.prior_weight:.2f}; log loss of the next "
        f"operation {before:.3f} → {after:.3f}"
    )
