"""Arms: what each is shown, what of its answer is kept, and that the controls really see something else."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.common.errors import DataError
from pipelines.common.vlm.dialogue import Question
from pipelines.openpack.arms import arm_answers, arm_questions, clip_records, shown_frames
from pipelines.openpack.baselines import Baselines, fit
from pipelines.openpack.loader import Sample, ShardReader
from pipelines.openpack.metrics import BASE, TUNED
from pipelines.openpack.prediction import Generated, Prediction
from pipelines.openpack.records import ClipRecord
from pipelines.openpack.settings import EvaluationSettings
from pipelines.openpack.summary import report_figures
from pipelines.openpack.taxonomy import OPENPACK

SETTINGS = EvaluationSettings(clips=5, batch_size=4, device="cpu")
METRICS = ["OCA", "tIoU@0.5", "AA@1"]
CONTROLS = ["blind", "shuffled_frames", "uniform_frames"]


@pytest.fixture(scope="module")
def test_split(toy_shards: Path) -> ShardReader:
    return ShardReader(toy_shards, "test")


@pytest.fixture(scope="module")
def sample(test_split: ShardReader) -> Sample:
    return test_split.sample(3)


@pytest.fixture(scope="module")
def baselines(toy_shards: Path) -> Baselines:
    train = ShardReader(toy_shards, "train")
    return fit((train.sample(index).clip.target for index in range(len(train))), OPENPACK)


class Oracle:
    """Answers with the truth, or with what `spoil` makes of it; writes it freely, or no answer at all."""

    size = 28

    def __init__(self, reader: ShardReader, spoil=lambda prediction: prediction) -> None:
        self.targets = {sample.key: sample.clip.target for sample in map(reader.sample, range(len(reader)))}
        self.spoil = spoil
        self.asked: list[tuple[str, Question]] = []

    def answer(self, clip_ids: Sequence[str], questions: Sequence[Question]) -> list[Prediction]:
        assert [question.videos[0].shape for question in questions] == [(2, 28, 28, 3)] * len(clip_ids)
        self.asked += zip(clip_ids, questions, strict=True)
        return [self.spoil(self._truth(clip_id)) for clip_id in clip_ids]

    def generate(self, clip_ids: Sequence[str], questions: Sequence[Question]) -> list[Generated]:
        return [Generated(key, f"text {key}", self.targets[key] if int(key[-1]) % 2 else None) for key in clip_ids]

    def _truth(self, clip_id: str) -> Prediction:
        target = self.targets[clip_id]
        span = (target.start, target.end)
        what, following = {target.operation: 1.0}, {target.next: 1.0}
        return Prediction(
            clip_id, target.operation, *span, target.next, {span: what}, what, {span: 1.0}, following, OPENPACK
        )


def wrong(one: Prediction) -> Prediction:
    return replace(one, operation=8100, start=0, end=0, next=8100, what={8100: 1.0})


def answered(
    base: Oracle, tuned: Oracle, baselines: Baselines, reader: ShardReader, settings: EvaluationSettings = SETTINGS
) -> dict[str, list[ClipRecord]]:
    arms: dict[str, list[ClipRecord]] = {}
    samples = [reader.sample(index) for index in range(len(reader))]
    questions = arm_questions(samples, tuned.size, OPENPACK)
    said = arm_answers(base, tuned, reader.keys, questions, generate=settings.generate)
    for place, sample in enumerate(samples):
        one, first = {arm: rows[place] for arm, rows in said.items()}, place < settings.clips
        for record in clip_records(sample, one, baselines, {BASE: "a", TUNED: "b"}, first=first):
            arms.setdefault(record.arm, []).append(record)
    return arms


def test_a_perfect_and_a_wrong_model(test_split: ShardReader, baselines: Baselines):
    base, tuned = Oracle(test_split, wrong), Oracle(test_split)
    arms = answered(base, tuned, baselines, test_split)
    assert [key for key, _ in base.asked] == test_split.keys == sorted(test_split.keys)
    assert sorted(key for key, _ in tuned.asked) == sorted(test_split.keys * 4)  # itself and three controls
    report = report_figures([record for rows in arms.values() for record in rows], OPENPACK)
    for scope in ("all_clips", "all_clips_native"):
        figures = report[scope]
        assert [figures[TUNED][name] for name in METRICS] == [1, 1, 1]
        assert [figures[BASE][name] for name in METRICS] == [0, 0, 0]
        assert (figures[BASE]["no_segment"], figures[TUNED]["no_segment"]) == (1, 0)
        # a right model gives the table the right operation
        assert figures["transition_table"] == figures["transition_table_true"]
        gained = {"gains": len(test_split), "losses": 0, "p": pytest.approx(2 * 0.5 ** len(test_split))}
        assert report["mcnemar"][scope] == dict.fromkeys(METRICS, gained)
    counts = report["confusion"]["counts"]
    assert [row[place] for place, row in enumerate(counts)] == [sum(row) for row in counts]


def test_one_table_is_given_the_tuned_operation_and_one_the_true_one(toy_shards: Path, test_split: ShardReader):
    train = ShardReader(toy_shards, "train")
    targets = [train.sample(index).clip.target for index in range(len(train))]
    order = {target.operation: target.next for target in targets}  # one box, so each operation has one next
    fixed = Oracle(test_split, lambda one: replace(one, operation=500, what={500: 1.0}))
    arms = answered(Oracle(test_split), fixed, fit(targets, OPENPACK), test_split)
    true = [one for one in arms["transition_table_true"] if one.truth.native.operation in order]
    assert {one.prediction.native.next for one in arms["transition_table"]} == {order[500]}
    assert [one.prediction.native.next for one in true] == [order[one.truth.native.operation] for one in true]
    assert len({one.prediction.native.next for one in true}) >= 4


def test_a_record_says_where_its_clip_lies_and_what_was_shown(test_split: ShardReader, baselines: Baselines):
    arms = answered(Oracle(test_split), Oracle(test_split), baselines, test_split)
    clips = [test_split.sample(index).clip for index in range(len(test_split))]
    for arm in (BASE, TUNED, *CONTROLS):
        for record, clip in zip(arms[arm], clips, strict=True):
            assert (record.session, record.start_frame) == (f"{clip.user}/{clip.session}", clip.start_frame)
            assert (record.confidence.native, record.confidence.brief) == (1, 1)
            keyframes = clip.uniform if arm == "uniform_frames" else clip.keyframes
            assert (record.bounds, record.pairs) == (keyframes.bounds, keyframes.pairs)
            assert (record.prompt == arms[TUNED][clips.index(clip)].prompt) == (arm != "uniform_frames")
    assert arms["whole_clip"][0].confidence is None


def test_what_the_model_said_before_its_calibration_is_an_arm_of_its_own(test_split: ShardReader, baselines: Baselines):
    calibrated = Oracle(test_split, lambda one: replace(one, next=8100, raw=one))
    arms = answered(Oracle(test_split), calibrated, baselines, test_split)
    assert list(arms)[1:3] == [TUNED, "finetuned_uncalibrated"]
    assert {one.prediction.native.next for one in arms[TUNED]} == {8100}
    assert all(one.prediction.native.next == one.truth.native.next for one in arms["finetuned_uncalibrated"])
    assert "finetuned_uncalibrated" not in answered(Oracle(test_split), Oracle(test_split), baselines, test_split)


def test_free_answers_are_kept_as_text_and_what_cannot_be_read_is_a_miss(test_split: ShardReader, baselines: Baselines):
    settings = SETTINGS.model_copy(update={"generate": True})
    arms = answered(Oracle(test_split), Oracle(test_split), baselines, test_split, settings)
    rows = arms["finetuned_generated"]
    assert [one.text for one in rows] == [f"text {key}" for key in test_split.keys]
    readable = [int(key[-1]) % 2 for key in test_split.keys]
    assert 0 < sum(readable) < len(readable)
    figures = report_figures(rows, OPENPACK)["all_clips"]["finetuned_generated"]
    share = sum(readable) / len(readable)
    assert [figures[name] for name in METRICS] == pytest.approx([share] * 3)
    assert figures["no_segment"] == pytest.approx(1 - share)
    assert (figures["ECE"], figures["Brier"]) == (None, None)


def test_blind_sees_an_even_grey_under_the_same_question(sample: Sample):
    shown = shown_frames(sample, 28, OPENPACK)
    assert {int(value) for video in shown["blind"].videos for value in np.unique(video)} == {128}
    assert replace(shown["blind"], videos=()) == replace(shown[TUNED], videos=())


def test_shuffled_pairs_are_whole_and_none_at_its_place(test_split: ShardReader):
    orders = set()
    for index in range(len(test_split)):
        shown = shown_frames(test_split.sample(index), 28, OPENPACK)
        true, shuffled = shown[TUNED], shown["shuffled_frames"]
        assert replace(shuffled, videos=()) == replace(true, videos=())
        same = [[np.array_equal(a, b) for b in true.videos] for a in shuffled.videos]
        if np.sum(same) == 4:  # clips in which no two pairs are alike
            order = [row.index(True) for row in same]
            assert sorted(order) == [0, 1, 2, 3]
            assert all(place != pair for place, pair in enumerate(order))
            orders.add(tuple(order))
        again = shown_frames(test_split.sample(index), 28, OPENPACK)["shuffled_frames"]
        assert all(map(np.array_equal, again.videos, shuffled.videos))
    assert len(orders) > 2


def test_uniform_frames_are_those_of_the_video_at_even_distances(sample: Sample, toy_shards: Path):
    from pipelines.common.media import VideoReader
    from pipelines.openpack.normalise import VIDEO

    question = shown_frames(sample, None, OPENPACK)["uniform_frames"]
    assert question.bounds == (0, 31, 62, 94, 125)
    assert question.pairs != sample.clip.pairs
    clip, folder = sample.clip, toy_shards.parent / "normalized_video"
    with VideoReader(folder / clip.user / clip.session / VIDEO) as reader:
        pictures = reader.frames([clip.start_frame + frame for pair in question.pairs for frame in pair])
    assert np.abs(np.concatenate(question.videos).astype(int) - pictures).mean() < 3  # but for the JPEG


def test_training_clips_have_no_evenly_spaced_frames_and_are_refused(toy_shards: Path):
    training = ShardReader(toy_shards, "train").sample(0)
    assert (training.clip.uniform, training.uniform) == (None, ())
    with pytest.raises(DataError, match=f"{training.key} has no evenly spaced frames. Run the stages clips and shards"):
        shown_frames(training, 28, OPENPACK)


def test_the_real_model_is_told_apart_from_a_blind_and_a_shuffled_one(toy_base: Path, test_split: ShardReader):
    from pipelines.openpack.predict import Predictor, clip_question, sample_frames

    predictor = Predictor.load(toy_base, None, OPENPACK, SETTINGS)
    first, other = (test_split.sample(index) for index in (0, len(test_split) - 1))
    shown = shown_frames(first, predictor.size, OPENPACK)
    # the other clip's pictures under the first one's question: a blind model cannot tell
    swapped = replace(
        other, clip=other.clip.model_copy(update={"bounds": first.clip.bounds, "pairs": first.clip.pairs})
    )
    elsewhere = shown_frames(swapped, predictor.size, OPENPACK)
    grey = np.full_like(sample_frames(first, predictor.size), 128)
    questions = [shown[TUNED], shown["blind"], shown["shuffled_frames"], shown["uniform_frames"]]
    questions += [elsewhere[TUNED], elsewhere["blind"], clip_question(grey, first.clip.keyframes, OPENPACK, 25)]
    saw, blind, shuffled, uniform, saw_other, blind_other, by_hand = (
        list(one.what.values()) for one in predictor.answer([""] * len(questions), questions)
    )
    assert blind == pytest.approx(blind_other, abs=1e-6)
    assert blind == pytest.approx(by_hand, abs=1e-6)
    for one in (blind, shuffled, uniform, saw_other):
        assert np.abs(np.subtract(saw, one)).max() > 1e-6
