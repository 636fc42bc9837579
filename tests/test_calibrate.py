"""Calibration: transitions of operations and not of clips, what validation chooses, and when it chooses nothing."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.common.errors import DataError
from pipelines.common.files import read_json, write_json
from pipelines.openpack.calibrate import (
    LEAST_CLIPS,
    Calibration,
    calibrate,
    calibration_batches,
    count_transitions,
    fit_calibration,
)
from pipelines.openpack.clip_plan import Clip, Target
from pipelines.openpack.loader import Sample, ShardReader
from pipelines.openpack.predict import Predictor
from pipelines.openpack.prediction import Prediction
from pipelines.openpack.settings import EvaluationSettings
from pipelines.openpack.taxonomy import OPENPACK, Taxonomy

OWN = Taxonomy.own(["a", "b"])  # ids 1, 2 and Null's
A, B, NULL = (operation.id for operation in OWN.operations)
IDS = tuple(operation.id for operation in OPENPACK.operations)


def clip(start: int, target: tuple[int, int, int, int], boundaries: tuple[int, ...], user: str = "U1") -> Clip:
    named = dict(zip(("operation", "start", "end", "next"), target, strict=True))
    return Clip(
        clip_id=f"{user}_S1_t{start // 25:04d}",
        user=user,
        session="S1",
        start_frame=start,
        n_frames=125,
        kind="boundary",
        target=Target(**named),
        boundaries=boundaries,
        operations=(target[0],) * (len(boundaries) + 1),
        following=target[3],
        bounds=(0, 125),
        pairs=((1, 2),),
    )


def session(user: str = "U1") -> list[Clip]:
    """a until 100, b until 180, a until 300, then b; five clips of the first three operations."""
    return [
        clip(25, (A, 0, 75, B), (75,), user),
        clip(50, (B, 50, 125, A), (50,), user),
        clip(75, (B, 25, 105, A), (25, 105), user),
        clip(175, (A, 5, 125, B), (5,), user),
        clip(200, (A, 0, 100, B), (100,), user),
    ]


def overconfident(seed: int, n: int = 3000) -> tuple[list[Prediction], list[Target]]:
    """Predictions that are too sure by a temperature of two, of clips whose next operation is the one in order."""
    rng = np.random.default_rng(seed)
    honest = rng.dirichlet(np.full(len(IDS), 0.3), n)
    truth = (honest.cumsum(1) < rng.random((n, 1))).sum(1)
    said = honest**2 / (honest**2).sum(1, keepdims=True)
    made, targets = [], []
    for row, place in zip(said, truth, strict=True):
        what = dict(zip(IDS, row.tolist(), strict=True))
        following = dict.fromkeys(IDS, 1 / len(IDS))  # knows nothing of what comes next
        top = max(what, key=lambda op_id: what[op_id])
        made.append(Prediction("c", top, 0, 125, IDS[0], {(0, 125): what}, what, {(0, 125): 1.0}, following, OPENPACK))
        targets.append(Target(operation=IDS[place], start=0, end=125, next=IDS[(place + 1) % len(IDS)]))
    return made, targets


def in_order(n: int = 50) -> list[Clip]:
    """Training clips of `n` sessions in which every operation is followed by the one after it."""
    pairs = [(one, IDS[(i + 1) % len(IDS)]) for i, one in enumerate(IDS)]
    return [
        clip(125 * i, (operation, 0, 125, following), (), f"U{number}")
        for number in range(n)
        for i, (operation, following) in enumerate(pairs)
    ]


def test_an_operation_in_several_clips_is_counted_once():
    table = count_transitions(session(), OWN)
    # a→b twice, b→a once; what follows overall, one added to each: a 2, b 3, Null 1, of 6
    assert table[A] == pytest.approx({A: (0 + 2 / 6) / 3, B: (2 + 3 / 6) / 3, NULL: (0 + 1 / 6) / 3})
    assert table[B] == pytest.approx({A: (1 + 2 / 6) / 2, B: (0 + 3 / 6) / 2, NULL: (0 + 1 / 6) / 2})
    assert table[NULL] == pytest.approx({A: 2 / 6, B: 3 / 6, NULL: 1 / 6})
    assert count_transitions(session()[::-1], OWN) == table
    assert count_transitions(session() + session(), OWN) == table


def test_sessions_are_counted_apart():
    table = count_transitions(session("U1") + session("U2"), OWN)
    assert table[A][B] == pytest.approx((4 + 5 / 9) / 5)


def test_without_clips_everything_is_as_likely():
    assert count_transitions([], OWN)[A] == pytest.approx(dict.fromkeys((A, B, NULL), 1 / 3))


def test_it_is_applied_as_it_is_written_down():
    table = {A: {A: 0.1, B: 0.9}, B: {A: 0.8, B: 0.2}}
    calibration = Calibration(
        transitions=table, operation_temperature=2, next_temperature=0.5, prior_weight=0.5, clips=30
    )
    what, following = calibration.apply({A: 0.9, B: 0.1}, {A: 0.5, B: 0.5})
    assert what == pytest.approx({A: 0.75, B: 0.25})
    prior = {A: 0.75 * 0.1 + 0.25 * 0.8, B: 0.75 * 0.9 + 0.25 * 0.2}
    assert following == pytest.approx(prior)  # both halved in weight and squared again


def test_the_defaults_change_nothing():
    what, following = {A: 0.7, B: 0.3, NULL: 0.0}, {A: 0.2, B: 0.5, NULL: 0.3}
    same = Calibration(transitions=count_transitions([], OWN)).apply(what, following)
    assert same == (pytest.approx(what, abs=1e-9), pytest.approx(following, abs=1e-9))


def test_validation_finds_temperature_and_prior():
    predictions, targets = overconfident(1)
    made = fit_calibration(predictions, targets, count_transitions(in_order(), OPENPACK), OPENPACK)
    assert made.operation_temperature == pytest.approx(2, rel=0.2)
    assert made.prior_weight > 0.5  # the model itself knows nothing
    assert made.why is None
    for before, after in made.log_loss.values():
        assert after < before
    fresh, truth = overconfident(2)
    answered = [one.calibrated(made) for one in fresh]
    right = [
        one.taxonomy.brief_name(t.operation) == one.brief()["dominant_operation"]
        for one, t in zip(answered, truth, strict=True)
    ]
    raw = np.mean([one.raw.confidence for one in answered if one.raw])
    assert np.mean([one.confidence for one in answered]) == pytest.approx(np.mean(right), abs=0.03)
    assert raw > np.mean(right) + 0.08
    hits = np.mean([one.next == target.next for one, target in zip(answered, truth, strict=True)])
    assert hits > 3 * np.mean([one.next == target.next for one, target in zip(fresh, truth, strict=True)])


def test_a_calibrated_answer_keeps_the_raw_one_and_its_segment():
    what = {op_id: 0.9 if op_id == 300 else 0.01 for op_id in IDS}
    following = {op_id: 0.9 if op_id == 100 else 0.01 for op_id in IDS}
    one = Prediction("c", 300, 30, 90, 100, {}, what, {(30, 90): 0.8, (0, 125): 0.2}, following, OPENPACK)
    made = one.calibrated(Calibration(transitions=count_transitions(in_order(), OPENPACK), prior_weight=1))
    assert made.raw == one
    assert (made.start, made.end, made.span) == (one.start, one.end, one.span)
    assert (made.operation, made.next) == (300, 400)  # the prior alone
    assert made.next_share[400] == max(made.next_share.values())


def test_it_is_fitted_to_raw_posteriors():
    predictions, targets = overconfident(4, n=200)
    table = count_transitions(in_order(), OPENPACK)
    made = fit_calibration(predictions, targets, table, OPENPACK)
    assert fit_calibration([one.calibrated(made) for one in predictions], targets, table, OPENPACK) == made


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        ([], "0 validation clips"),
        ([(100, 200), (200, 300)] * (LEAST_CLIPS // 2 - 1), "fewer than"),
        ([(600, 700), (800, 900)] * LEAST_CLIPS, "the same operation: Label"),
        ([(100, 700), (200, 1000)] * LEAST_CLIPS, "the same next operation: Final Check"),
    ],
)
def test_where_validation_says_too_little_nothing_changes_and_it_says_why(targets: list[tuple[int, int]], why: str):
    labels = [Target(operation=one, start=0, end=125, next=following) for one, following in targets]
    table = count_transitions(in_order(), OPENPACK)
    made = fit_calibration([], labels, table, OPENPACK)
    assert made.why
    assert why in made.why
    assert made == Calibration(transitions=table, clips=len(targets), why=made.why)


def test_it_is_read_as_it_was_written(tmp_path: Path):
    made = fit_calibration(*overconfident(1, n=100), count_transitions(in_order(), OPENPACK), OPENPACK)
    made.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == made


# --- on shards ---


class Knowing:
    """Answers a sample with the truth, not quite sure; remembers what it was asked."""

    taxonomy = OPENPACK

    def __init__(self, **settings) -> None:
        self.settings = EvaluationSettings(**settings)
        self.asked: list[list[str]] = []

    def answer_samples(self, samples: Sequence[Sample]) -> list[Prediction]:
        self.asked.append([sample.key for sample in samples])
        return [self._answer(sample.key, sample.clip.target) for sample in samples]

    def _answer(self, key: str, target: Target) -> Prediction:
        rest = 0.4 / (len(IDS) - 1)
        what, following = (
            {one: 0.6 if one == true else rest for one in IDS} for true in (target.operation, target.next)
        )
        return Prediction(key, target.operation, 0, 125, target.next, {}, what, {(0, 125): 1.0}, following, OPENPACK)


@pytest.fixture
def shards(toy_shards: Path, tmp_path: Path) -> Path:
    """All toy clips as validation; there are no other splits to look at."""
    folder = tmp_path / "shards"
    shutil.copytree(toy_shards, folder)
    manifest = read_json(folder / "manifest.json")
    train, test = (manifest["splits"][split] for split in ("train", "test"))
    moved = [{**sample, "shard": sample["shard"] + len(train["shards"])} for sample in test["samples"]]
    val = {**train, "shards": train["shards"] + test["shards"], "samples": train["samples"] + moved}
    write_json(folder / "manifest.json", {**manifest, "splits": {"val": val}})
    return folder


def said(predictor, shards: Path) -> tuple[Calibration, list[str]]:
    lines: list[str] = []
    answers = []
    for numbers in calibration_batches(predictor.settings, shards, OPENPACK):
        reader = ShardReader(shards, "val")
        answers += predictor.answer_samples([reader.sample(number) for number in numbers])
    transitions = count_transitions(in_order(), OPENPACK)
    return calibrate(answers, predictor.settings, shards, transitions, OPENPACK, lines.append), lines


def test_validation_clips_are_spread_over_the_split_and_answered_in_batches(shards: Path):
    predictor = Knowing(calibration_clips=25, batch_size=10)
    made, (line,) = said(predictor, shards)
    keys = [sample["key"] for sample in read_json(shards / "manifest.json")["splits"]["val"]["samples"]]
    asked = [key for batch in predictor.asked for key in batch]
    assert [len(batch) for batch in predictor.asked] == [10, 10, 5]
    assert asked == sorted(set(asked))
    assert (asked[0], asked[-1]) == (keys[0], keys[-1])
    assert made.clips == 25
    assert made.operation_temperature < 1  # always right and never sure
    assert "calibrated on 25 validation clips" in line


@pytest.mark.parametrize("settings", [{"calibration_clips": 0}, {"calibration_clips": LEAST_CLIPS - 1}])
def test_too_few_clips_are_not_even_answered(shards: Path, settings: dict):
    predictor = Knowing(**settings)
    made, (line,) = said(predictor, shards)
    assert made.why
    assert line == f"not calibrated: {made.why}"
    assert not predictor.asked


def test_a_data_set_without_validation_is_not_calibrated(toy_shards: Path):
    made, _ = said(Knowing(), toy_shards)
    assert "0 validation clips" in (made.why or "")


def test_a_damaged_validation_shard_is_told(shards: Path):
    (shards / "train" / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"shard-000000\.tar"):
        said(Knowing(), shards)


def test_a_real_model_is_calibrated_twice_alike(shards: Path, toy_base: Path):
    settings = EvaluationSettings(device="cpu", calibration_clips=LEAST_CLIPS)
    predictor = Predictor.load(toy_base, None, OPENPACK, settings)
    made, _ = said(predictor, shards)
    assert made.why is None
    assert said(predictor.calibrated(made), shards)[0] == made
