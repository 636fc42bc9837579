"""Whole sessions in an evaluation: how well their timelines agree with the labels, and how well alerts find deviations.

Belongs here: what answers to a session's windows come to, and what the report says of it. Which sessions are answered
(`answering`), a timeline's figures (`timeline_metrics`) and those of alerts (`alert_scores`) do not.

The grammar is learned from training sessions and its thresholds are chosen on labels of validation sessions. On test
sessions nothing is chosen. Alerts are measured three times:

    labels    every deviation that each box of a test session's labels can have, planted one at a time
    drawn     the test persons' sessions, drawn once more with a deviation in every box: alerts of their labels
    answered  the same drawn sessions: alerts of the timelines that the model made of the videos

The last two need the simulation; for recorded sessions nobody has deviations on video, and they are left out.

Format of a line of `timelines.jsonl`: {"session", "frames", "planted": bool, "truth": [[id, start, end]], "said": [the
same], "alone": [the same, without the grammar], "deviations": [as in their file]}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pipelines.common.clip_format import ClipFormat
from pipelines.common.errors import DataError
from pipelines.openpack.alert_scores import Case, alert_scores, choose_thresholds, every_deviation
from pipelines.openpack.boxes import Box, Stretch, works
from pipelines.openpack.calibrate import Calibration
from pipelines.openpack.decode import alone, decode, gather
from pipelines.openpack.deviations import Deviation
from pipelines.openpack.grammar import Grammar, learn
from pipelines.openpack.order_alerts import find_alerts
from pipelines.openpack.prediction import Prediction
from pipelines.openpack.preparation import read_preparation
from pipelines.openpack.sequences import read_sessions
from pipelines.openpack.settings import AllSettings, SimulationSettings, TimelineSettings
from pipelines.openpack.splits import Split
from pipelines.openpack.taxonomy import Taxonomy
from pipelines.openpack.timeline import window_of
from pipelines.openpack.timeline_metrics import scores


@dataclass(frozen=True)
class Videos:
    """What whole sessions are made of: `folder` is that of the stage normalized_video, the rest how videos were drawn.
    How they are normalised and looked at is the shards' to say."""

    folder: Path
    simulation: SimulationSettings

    @classmethod
    def of(cls, folder: Path, settings: AllSettings) -> Videos:
        return cls(folder, settings.simulation)

    def drawn_with(self, sessions: int) -> SimulationSettings:
        """How as many sessions are drawn with a deviation in every box."""
        return self.simulation.model_copy(update={"deviations": 1.0, "sessions": sessions})


@dataclass(frozen=True)
class Answered:
    """A session with its labels, its timeline, and the one that would be without the grammar."""

    session: str
    frames: int
    truth: tuple[Stretch, ...]
    said: tuple[Stretch, ...]
    alone: tuple[Stretch, ...]
    planted: bool = False
    deviations: tuple[Deviation, ...] = ()

    def as_row(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "frames": self.frames,
            "planted": self.planted,
            **{name: [astuple(one) for one in getattr(self, name)] for name in ("truth", "said", "alone")},
            "deviations": [one.as_json() for one in self.deviations],
        }


def learn_grammar(shards: Path, taxonomy: Taxonomy) -> Grammar:
    """The grammar of a folder of shards: counted on the sessions of training, thresholds chosen on validation.

    DataError where no training session has labels.
    """
    sessions = [one.stretches for one in read_sessions(shards, "train") if works(one.stretches)]
    if not sessions:
        cure = "Run the stages clips and shards with sessions of training users that have annotations."
        raise DataError("no training session has labels", file=shards, cure=cure)
    grammar = learn(sessions, taxonomy, read_preparation(shards, "shards").clip_format.fps)
    return choose_thresholds(_labelled_boxes(shards, "val", grammar), grammar)


def as_answered(
    name: str,
    planted: bool,
    row: Mapping[str, Any],
    calibration: Calibration,
    grammar: Grammar,
    taxonomy: Taxonomy,
    settings: TimelineSettings,
    clip_format: ClipFormat,
) -> Answered:
    """The session whose answers are `row`, as `answering` keeps them."""
    frames = row["frames"]
    said = [(start, Prediction.of_json(one, taxonomy).calibrated(calibration)) for start, one in row["windows"]]
    evidence = gather([window_of(start, frames, one, clip_format) for start, one in said], frames, grammar)
    return Answered(
        name,
        frames,
        truth=tuple(Stretch(*one) for one in row["truth"]),
        said=tuple(decode(evidence, grammar, settings.evidence_weight)),
        alone=tuple(alone(evidence)),
        planted=planted,
        deviations=tuple(Deviation(**{**one, "operations": tuple(one["operations"])}) for one in row["deviations"]),
    )


def session_figures(answered: Sequence[Answered], shards: Path, grammar: Grammar) -> dict[str, Any]:
    """What `report.json` has under `whole_sessions`.

    `timelines`: {session: {"decoded", "alone"}}, each of these the `scores` of a test session; `mean`: over sessions,
    None without any. `alerts`: `alert_scores` by what they were found in. `false_alarms`: alerts of the answered test
    sessions, in which nothing was planted, and how many boxes those have. `thresholds` and `why`: of the grammar.
    """
    usual, drawn = ([one for one in answered if one.planted == planted] for planted in (False, True))
    timelines = {one.session: _scores(one) for one in usual}
    labels = [case for one in _labelled_boxes(shards, "test", grammar) for case in every_deviation(one, grammar)]
    boxes = {name: [grammar.boxes_of(getattr(one, name)) for one in usual] for name in ("truth", "said")}
    return {
        "timelines": timelines,
        "mean": _mean(list(timelines.values())) if timelines else None,
        "alerts": {
            "labels": alert_scores(labels),
            **({"drawn": _planted_scores(drawn, "truth", grammar)} if drawn else {}),
            **({"answered": _planted_scores(drawn, "said", grammar)} if drawn else {}),
        },
        "false_alarms": {
            name: {"boxes": sum(map(len, rows)), "alerts": sum(len(find_alerts(row, grammar)) for row in rows)}
            for name, rows in boxes.items()
        },
        "thresholds": dict(grammar.thresholds),
        "why": grammar.why,
    }


def _labelled_boxes(shards: Path, split: Split, grammar: Grammar) -> list[list[Box]]:
    return [grammar.boxes_of(one.stretches) for one in read_sessions(shards, split)]


def _scores(one: Answered) -> dict[str, dict[str, float]]:
    return {"decoded": scores(one.truth, one.said), "alone": scores(one.truth, one.alone)}


def _mean(rows: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {how: {name: fmean(row[how][name] for row in rows) for name in figures} for how, figures in rows[0].items()}


def _planted_scores(drawn: Sequence[Answered], what: str, grammar: Grammar) -> dict[str, dict[str, Any]]:
    found = [(find_alerts(grammar.boxes_of(getattr(one, what)), grammar), one.deviations) for one in drawn]
    return alert_scores(Case(tuple(alerts), deviations) for alerts, deviations in found)
