"""All figures of an evaluation together, each with what says how far it can be trusted.

Belongs here: intervals over clips and over sessions, the paired test of base and tuned model, and the content of
`report.json` that follows from records. What a figure is (`metrics`) and how it is shown (`report`) do not.

Clips of one session show one worker at one time of one day, and neighbours share frames: they are not independent.
Intervals over resampled sessions respect that, Wilson's and McNemar's do not. But a handful of sessions cannot tell how
sessions differ, and an interval over two that came out alike is nearly a point. So below FEW_SESSIONS an interval is
never narrower than if clips were independent, which is still too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.common.stats import mcnemar, percentiles, resample, wilson
from pipelines.openpack.metrics import (
    BASE,
    BRIEF_METRICS,
    TUNED,
    ceiling,
    confusion,
    figures,
    hits,
    measures,
    reliability,
)
from pipelines.openpack.records import ClipRecord, LabelSet
from pipelines.openpack.taxonomy import Taxonomy

FEW_SESSIONS = 10
RESAMPLES, SEED = 2000, 7  # enough that another seed moves an end by little beside the width

Arms = Mapping[str, Sequence[ClipRecord]]


def report_figures(records: Sequence[ClipRecord], taxonomy: Taxonomy) -> dict[str, Any]:
    """Everything in `report.json` that follows from records and taxonomy; arms in the order of their first record.

    `all_clips` and `all_clips_native`: `figures` by arm, in the brief's names and in OpenPack's classes. `first_clips`
    and `first_clips_native`: the same on the clips marked `first`, with Wilson's `intervals`. For each of these four
    scopes `bootstrap` has the `session_intervals` by arm and `mcnemar` what `compare` gives. `reliability` and
    `confusion`: of the tuned model. `ceiling`: of what it was shown. `counts`: of clips and sessions.
    """
    arms: dict[str, list[ClipRecord]] = {}
    for record in records:
        arms.setdefault(record.arm, []).append(record)
    first = {arm: [record for record in rows if record.first] for arm, rows in arms.items()}
    scopes: dict[str, tuple[Arms, LabelSet]] = {
        "all_clips": (arms, "brief"),
        "all_clips_native": (arms, "native"),
        "first_clips": (first, "brief"),
        "first_clips_native": (first, "native"),
    }
    clips, tuned = {record.clip_id: record for record in records}.values(), arms.get(TUNED, [])
    return {
        **{scope: _scores(rows, labels, with_wilson=rows is first) for scope, (rows, labels) in scopes.items()},
        "bootstrap": {scope: _each(session_intervals, rows, labels) for scope, (rows, labels) in scopes.items()},
        "mcnemar": {scope: compare(rows, labels) for scope, (rows, labels) in scopes.items()},
        "reliability": {"brief": reliability(tuned, "brief"), "native": reliability(tuned, "native")},
        "confusion": confusion(tuned, taxonomy),
        "ceiling": ceiling(tuned),
        "counts": {
            "clips": len(clips),
            "boundary_clips": sum(bool(clip.boundaries) for clip in clips),
            "first_clips": sum(clip.first for clip in clips),
            "sessions": len({clip.session for clip in clips}),
            "first_sessions": len({clip.session for clip in clips if clip.first}),
        },
    }


def intervals(records: Sequence[ClipRecord], labels: LabelSet) -> dict[str, list[float] | None]:
    """Wilson's 95 % interval [low, high] of each of the brief's three metrics, which takes clips as independent."""
    right = hits(records, labels)
    counted = {name: [bool(flag) for flag in right[name] if flag is not None] for name in BRIEF_METRICS}
    return {name: list(wilson(sum(flags), len(flags))) if flags else None for name, flags in counted.items()}


def session_intervals(records: Sequence[ClipRecord], labels: LabelSet) -> dict[str, list[float] | None]:
    """95 % interval [low, high] of every figure: percentiles over resampled sessions. None with a single session.

    Percentiles, since BCa would estimate its two corrections from the same few sessions. Below FEW_SESSIONS it reaches
    at least as far as percentiles over resampled clips and, where it has one, Wilson's interval.
    """
    found = measures(records, labels)
    sessions = [record.session for record in records]
    if len(set(sessions)) < 2:
        return dict.fromkeys(found)
    weights = resample(sessions, RESAMPLES, SEED)
    over_sessions = {name: figure and _interval(figure(weights)) for name, figure in found.items()}
    if len(set(sessions)) >= FEW_SESSIONS:
        return over_sessions
    single = resample(range(len(records)), RESAMPLES, SEED)
    over_clips = {name: figure and _interval(figure(single)) for name, figure in found.items()}
    wilsons = intervals(records, labels)
    return {name: _reach([over_sessions[name], over_clips[name], wilsons.get(name)]) for name in found}


def compare(arms: Arms, labels: LabelSet) -> dict[str, dict[str, float]]:
    """Exact McNemar test between base and tuned model for each of the brief's three metrics: {gains, losses, p}.

    Gains are clips that only the tuned model has right. It takes clips as independent. Empty unless both answered.
    """
    base, tuned = (sorted(arms.get(arm, []), key=lambda record: record.clip_id) for arm in (BASE, TUNED))
    if not base or not tuned:
        return {}
    before, after = hits(base, labels), hits(tuned, labels)
    tests = {}
    for name in BRIEF_METRICS:
        pairs = list(zip(before[name], after[name], strict=True))
        gains, losses = pairs.count((False, True)), pairs.count((True, False))
        tests[name] = {"gains": gains, "losses": losses, "p": mcnemar(gains, losses)}
    return tests


def _scores(arms: Arms, labels: LabelSet, *, with_wilson: bool) -> dict[str, dict[str, Any]]:
    scores = _each(figures, arms, labels)
    if not with_wilson:
        return scores
    return {arm: {**scores[arm], "intervals": intervals(rows, labels)} for arm, rows in arms.items()}


def _each(of_arm: Callable[[Sequence[ClipRecord], LabelSet], Any], arms: Arms, labels: LabelSet) -> dict[str, Any]:
    return {arm: of_arm(rows, labels) for arm, rows in arms.items()}


def _reach(ends: Sequence[list[float] | None]) -> list[float] | None:
    """From the lowest to the highest end of several intervals; None where there is none."""
    known = [one for one in ends if one]
    return [min(low for low, _ in known), max(high for _, high in known)] if known else None


def _interval(values: np.ndarray) -> list[float] | None:
    return None if np.isnan(values).all() else list(percentiles(values))
