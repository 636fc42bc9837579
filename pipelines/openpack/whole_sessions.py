"""Whole sessions in an evaluation: how well their timelines agree with the labels, and how well alerts find deviations.

Belongs here: which sessions are answered as a whole, and what the report says of them. A timeline's figures
(`timeline_metrics`), those of alerts (`alert_scores`) and how a video is answered (`timeline`) do not.

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

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.errors import DataError
from pipelines.openpack.alert_scores import Case, alert_scores, choose_thresholds, every_deviation
from pipelines.openpack.annotations import read_operations
from pipelines.openpack.boxes import Box, Stretch, works
from pipelines.openpack.decode import Window, alone, decode, gather
from pipelines.openpack.deviations import Deviation, read_deviations
from pipelines.openpack.grammar import Grammar, learn
from pipelines.openpack.loader import read_manifest
from pipelines.openpack.normalise import VIDEO, read_frames, run_user
from pipelines.openpack.order_alerts import find_alerts
from pipelines.openpack.preparation import Preparation, read_normalised, read_preparation
from pipelines.openpack.sequences import read_sessions, sequence
from pipelines.openpack.settings import AllSettings, SimulationSettings, TimelineSettings
from pipelines.openpack.sources import SimulatedSource, read_session
from pipelines.openpack.splits import Split
from pipelines.openpack.taxonomy import Taxonomy
from pipelines.openpack.timeline import answer_windows
from pipelines.openpack.timeline_metrics import scores
from pipelines.openpack.windows import stored

if TYPE_CHECKING:
    from pipelines.openpack.predict import Predictor


@dataclass(frozen=True)
class Videos:
    """What whole sessions are made of: `folder` is that of the stage normalized_video, the rest how videos were drawn.
    How they are normalised and looked at is the shards' to say."""

    folder: Path
    simulation: SimulationSettings

    @classmethod
    def of(cls, folder: Path, settings: AllSettings) -> Videos:
        return cls(folder, settings.simulation)


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


@dataclass(frozen=True)
class SessionTask:
    """What is answered as a whole: a test session with its labels, or, without any, a user's sessions drawn anew."""

    user: str
    session: str | None = None
    truth: tuple[Stretch, ...] = ()

    def __str__(self) -> str:
        return f"{self.user}/{self.session}" if self.session else f"{self.user} drawn with deviations"


def session_tasks(shards: Path, settings: TimelineSettings) -> list[SessionTask]:
    """The first test sessions, as many as the settings ask for, and of simulated data those drawn with deviations."""
    test = read_sessions(shards, "test")
    tasks = [SessionTask(one.user, one.session, tuple(one.stretches)) for one in test[: settings.sessions]]
    if settings.planted_sessions and {data["source"] for data in read_manifest(shards)["data"]} == {"simulated"}:
        tasks += [SessionTask(user) for user in sorted({one.user for one in test})]
    return tasks


def answer_session(
    predictor: Predictor, task: SessionTask, videos: Videos, preparation: Preparation, grammar: Grammar
) -> list[Answered]:
    """One task, answered. DataError where the video of a session is not in the folder of videos, or in another format
    than that of the clips, which `preparation` says."""
    if task.session is None:
        return list(_answer_drawn(predictor, task.user, videos.simulation, preparation, grammar))
    folder = videos.folder / task.user / task.session
    return [_answer(predictor, str(task), folder, task.truth, preparation, grammar)]


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


def _answer(
    predictor: Predictor, name: str, folder: Path, truth: Sequence[Stretch], preparation: Preparation, grammar: Grammar
) -> Answered:
    """The session whose normalised video lies in `folder`."""
    settings, repeated = predictor.settings.timeline, _repeated(folder, preparation)
    windows: list[Window] = []
    for _, batch in answer_windows(predictor, stored(folder / VIDEO, repeated), preparation, settings):
        windows += batch
    evidence = gather(windows, len(repeated), grammar)
    said = decode(evidence, grammar, settings.evidence_weight)
    return Answered(name, len(repeated), tuple(truth), tuple(said), tuple(alone(evidence)))


def _answer_drawn(
    predictor: Predictor, user: str, simulation: SimulationSettings, preparation: Preparation, grammar: Grammar
) -> Iterator[Answered]:
    """A user's sessions drawn once more, with a deviation in every box."""
    from pipelines.openpack.simulate import DEVIATIONS, sessions

    count = predictor.settings.timeline.planted_sessions
    simulation = simulation.model_copy(update={"deviations": 1.0, "sessions": count})
    with tempfile.TemporaryDirectory() as temporary:
        raw_out, out = Path(temporary) / "raw_session", Path(temporary) / "normalized_video"
        SimulatedSource(simulation).fetch(user, raw_out, workers=1)
        run_user(user, raw_out, out, preparation.normalise, workers=1, clip_format=preparation.clip_format)
        for session in sessions(simulation):
            raw, repeated = read_session(raw_out / session), _repeated(out / session, preparation)
            annotation = read_operations(raw_out / session / str(raw.annotation), predictor.taxonomy)
            truth = sequence(annotation, raw.first_ms, len(repeated), preparation.clip_format.fps)
            one = _answer(predictor, f"{user}/{session}", out / session, truth, preparation, grammar)
            told = read_deviations(raw_out / session / user / DEVIATIONS / f"{session}.json")
            yield replace(one, planted=True, deviations=tuple(told))


def _repeated(folder: Path, preparation: Preparation) -> np.ndarray:
    """Of a session's normalised video, which must be in the format of the clips."""
    found, wanted = read_normalised(folder).video_format, preparation.clip_format.video
    if found != wanted:
        what = f"the video has {found.told()}, the clips {wanted.told()}"
        cure = "Run the stages normalized_video, clips and shards again, with the same settings."
        raise DataError(what, file=folder / VIDEO, cure=cure)
    return read_frames(folder)["repeated"].to_numpy(bool)


def _scores(one: Answered) -> dict[str, dict[str, float]]:
    return {"decoded": scores(one.truth, one.said), "alone": scores(one.truth, one.alone)}


def _mean(rows: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {how: {name: fmean(row[how][name] for row in rows) for name in figures} for how, figures in rows[0].items()}


def _planted_scores(drawn: Sequence[Answered], what: str, grammar: Grammar) -> dict[str, dict[str, Any]]:
    found = [(find_alerts(grammar.boxes_of(getattr(one, what)), grammar), one.deviations) for one in drawn]
    return alert_scores(Case(tuple(alerts), deviations) for alerts, deviations in found)
