"""The timeline of a whole video: windows, evidence, decoding, figures; and a toy model from a file to the result."""

import csv
import io
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import toy_bento
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.errors import DataError
from pipelines.common.files import write_json
from pipelines.common.keyframes import Meter
from pipelines.common.media import VideoWriter
from pipelines.openpack import timeline, windows
from pipelines.openpack.boxes import Stretch
from pipelines.openpack.decode import Window, alone, decode, described, gather
from pipelines.openpack.grammar import learn
from pipelines.openpack.predict import Predictor, video_question
from pipelines.openpack.preparation import Preparation
from pipelines.openpack.settings import AllSettings, EvaluationSettings, TimelineSettings
from pipelines.openpack.taxonomy import OPENPACK, Taxonomy
from pipelines.openpack.timeline import Progress, VideoTimeline, answer_timeline
from pipelines.openpack.timeline_metrics import edit_score, frame_accuracy, scores, segmental_f1

OWN = Taxonomy.own(["a", "b", "c"])
A, B, C, NULL = IDS = tuple(operation.id for operation in OWN.operations)
CLIP, PREPARED = DEFAULT_FORMAT, Preparation.of(AllSettings())
GRAMMAR = learn([[Stretch((A, B, C)[i % 3], 100 * i, 100 * i + 100) for i in range(9)]], OWN)  # none below 100 frames


def shares(op_id: int, sure: float) -> dict[int, float]:
    return {one: sure if one == op_id else (1 - sure) / 3 for one in IDS}


def window(start: int, what: int, span: tuple[int, int], following: int, sure: float = 0.9) -> Window:
    """One that sees `what` in `span`, what usually comes before it before that, and `following` after it."""
    parts = zip([(A, B, C)[(A, B, C).index(what) - 1], what, following], pairwise((0, *span, CLIP.frames)), strict=True)
    seen = {part: shares(op_id, sure) for op_id, part in parts if part[0] < part[1]}
    return Window(start, CLIP.frames, seen, shares(what, sure), {span: 1.0}, shares(following, sure))


def plain(start: int, frames: int, said: dict[int, float]) -> Window:
    """One of a single stretch, which says nothing of what follows."""
    return Window(start, frames, {(0, frames): said}, said, {(0, frames): 1.0}, {})


def covers(stretches: list[Stretch], n_frames: int) -> bool:
    ends = [0, *(one.end for one in stretches)]
    touching = all(one.start == end for one, end in zip(stretches, ends, strict=False))
    return touching and ends[-1] == n_frames and all(one.frames > 0 for one in stretches)


# --- windows ---


@given(st.integers(1, 5000), st.floats(0.1, 5))
def test_windows_hold_every_frame_and_the_last_ends_with_the_video(n_frames: int, stride_s: float):
    begins = windows.starts(n_frames, stride_s, CLIP)
    assert begins == sorted(set(begins))
    assert begins[0] == 0
    assert begins[-1] == max(0, n_frames - CLIP.frames)
    assert all(after - before <= CLIP.frames for before, after in pairwise(begins))


def test_a_meter_forgets_what_nobody_asks_for_again():
    rng, meter, kept = np.random.default_rng(1), Meter(), Meter()
    for number in range(60):
        frame = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        for one in (meter, kept):
            one.again() if number % 3 == 1 else one.add(frame)
        meter.forget(number - 20)
    one, other = meter.signal(45, 60), kept.signal(45, 60)
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("entropy", "motion", "fresh"))
    assert len(meter._fresh) == 21
    with pytest.raises(ValueError, match="frame 30 is forgotten, the first that is known is 39"):
        meter.signal(30, 50)


def test_stretches_are_those_of_the_video_each_as_if_it_came_alone(tmp_path: Path):
    path, rng = tmp_path / "video.mp4", np.random.default_rng(2)
    with VideoWriter(path, 25, (64, 48)) as writer:
        for _ in range(40):
            writer.write(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), repeat=5)
    repeated = np.tile([False, True, True, True, True], 40)
    seen = list(windows.look(windows.stored(path, repeated), [0, 31, 62, 75], 125))
    assert [(one.start, len(one.frames)) for one in seen] == [(0, 125), (31, 125), (62, 125), (75, 125)]
    assert seen[1].frames[0] is seen[1].frames[3]  # 31 to 34 show frame 30
    assert np.array_equal(seen[0].frames[31], seen[1].frames[0])
    assert seen[1].signal.motion[:4].max() == 0 < seen[1].signal.motion[4].max()
    with pytest.raises(DataError, match="the video has 200 frames and its table 199"):
        list(windows.look(windows.stored(path, repeated[:-1]), [0], 125))
    with pytest.raises(ValueError, match="frames 76 to 201 of 200"):
        list(windows.look(windows.stored(path, repeated), [76], 125))


# --- evidence and decoding ---


def test_a_window_says_of_each_stretch_what_is_seen_there():
    evidence = gather([window(0, B, (40, 90), C, sure=1.0)], CLIP.frames, GRAMMAR)
    assert evidence.edges.tolist() == [0, 40, 90, 125]
    assert [evidence.ids[row.argmax()] for row in evidence.shares] == [A, B, C]
    assert evidence.shares.max(1).tolist() == [1, 1, 1]


def test_windows_are_averaged_where_they_overlap_and_none_may_be_missing():
    both = [window(0, A, (0, 125), B, 0.9), window(62, B, (0, 125), C, 0.6)]
    evidence = gather(both, 187, GRAMMAR)
    assert evidence.edges.tolist() == [0, 62, 125, 187]
    assert evidence.shares[:, 0] == pytest.approx([0.9, (0.9 + 0.4 / 3) / 2, 0.4 / 3])
    with pytest.raises(ValueError, match="frame 125 of 300 is in no window"):
        gather([both[0], window(175, B, (0, 125), C)], 300, GRAMMAR)


def test_what_is_too_short_or_never_follows_is_outvoted():
    said = [(A, 100), (B, 110), (A, 10), (C, 90), (A, 110)]  # within B for ten frames A
    made, at = [], 0
    for op_id, frames in said:
        made.append(plain(at, frames, shares(op_id, 0.7)))
        at += frames
    evidence = gather(made, at, GRAMMAR)
    assert [one.operation for one in alone(evidence)] == [A, B, A, C, A]
    sequence = decode(evidence, GRAMMAR, 2.0)
    assert [one.operation for one in sequence] == [A, B, C, A]
    assert sequence[1].end == 210  # ten frames more make C long enough
    told = described(sequence, evidence, made, GRAMMAR)
    assert [one.next for one in told] == [B, C, A, B]  # nobody says what comes next, so training does
    assert told[0].confidence == pytest.approx(0.7)
    assert told[2].confidence == pytest.approx((0.7 * 90 + 0.1 * 10) / 100)


def test_the_next_operation_is_what_the_windows_expect():
    made = [window(0, A, (0, 125), C), window(62, A, (0, 125), C)]
    evidence = gather(made, 187, GRAMMAR)
    (one,) = described(decode(evidence, GRAMMAR, 2.0), evidence, made, GRAMMAR)
    assert (one.stretch, one.next) == (Stretch(A, 0, 187), C)


posteriors = st.lists(st.floats(0.001, 1), min_size=4, max_size=4).map(
    lambda row: dict(zip(IDS, (np.array(row) / sum(row)).tolist(), strict=True))
)


@settings(deadline=None)
@given(st.integers(125, 900), st.floats(0.5, 5), st.floats(0.1, 8), st.data())
def test_any_answers_give_a_sequence_that_covers_the_video(n_frames: int, stride_s: float, weight: float, data):
    answered = []
    for start in windows.starts(n_frames, stride_s, CLIP):
        cuts = sorted(data.draw(st.sets(st.integers(1, CLIP.frames - 1), max_size=3)))
        seen = {stretch: data.draw(posteriors) for stretch in pairwise((0, *cuts, CLIP.frames))}
        weights = data.draw(st.lists(st.floats(0.01, 1), min_size=len(seen), max_size=len(seen)))
        span = {stretch: share / sum(weights) for stretch, share in zip(seen, weights, strict=True)}
        answered.append(Window(start, CLIP.frames, seen, data.draw(posteriors), span, data.draw(posteriors)))
    evidence = gather(answered, n_frames, GRAMMAR)
    for sequence in (decode(evidence, GRAMMAR, weight), alone(evidence)):
        assert covers(sequence, n_frames)
        assert all(one.operation != after.operation for one, after in pairwise(sequence))
    decoded = decode(evidence, GRAMMAR, weight)
    assert all(one.frames >= GRAMMAR.least_frames[one.operation] for one in decoded[1:-1])
    told = described(decoded, evidence, answered, GRAMMAR)
    assert all(0 <= one.confidence <= 1 and one.next != one.stretch.operation for one in told)
    result = VideoTimeline(n_frames, tuple(told), GRAMMAR, OWN).as_json()
    assert result["segments"][-1]["end_frame"] == result["frames"] == n_frames


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.01, 1), min_size=20, max_size=20), st.floats(0.2, 4))
def test_the_sequence_is_the_best_of_all(values: list[float], weight: float):
    """Against every sequence of four cells and every choice of operations."""
    from itertools import product

    rows = np.array(values).reshape(5, 4) / np.array(values).reshape(5, 4).sum(1, keepdims=True)
    made = [plain(60 * i, 60, dict(zip(IDS, row, strict=True))) for i, row in enumerate(rows)]
    evidence = gather(made, 300, GRAMMAR)

    def value(row: tuple[int, ...]) -> float:
        total = sum(
            weight * 60 / 25 * np.log(max(evidence.shares[cell, IDS.index(one)], 1e-3)) for cell, one in enumerate(row)
        )
        return total + sum(np.log(GRAMMAR.transitions[one][after]) for one, after in pairwise(row) if one != after)

    def allowed(row: tuple[int, ...]) -> bool:
        runs = [[row[0], 1]]
        for one in row[1:]:
            if one == runs[-1][0]:
                runs[-1][1] += 1
            else:
                runs.append([one, 1])
        return all(count * 60 >= 100 for _, count in runs[1:-1])

    best = max((row for row in product(IDS, repeat=5) if allowed(row)), key=value)
    sequence = decode(evidence, GRAMMAR, weight)
    said = tuple(one.operation for one in sequence for _ in range(one.frames // 60))
    assert value(said) == pytest.approx(value(best))


# --- figures ---


def test_figures_by_hand():
    truth = [Stretch(A, 10, 60), Stretch(B, 60, 110), Stretch(NULL, 110, 120), Stretch(C, 120, 160)]
    said = [Stretch(C, 0, 20), Stretch(A, 20, 60), Stretch(B, 60, 80), Stretch(C, 80, 200)]
    figures = scores(truth, said)
    assert figures["frame_accuracy"] == pytest.approx((40 + 20 + 40) / 150)
    assert figures["edit"] == pytest.approx(1 - 1 / 4)  # one C too many
    assert figures["F1@50"] == pytest.approx(2 * 2 / (3 + 4))  # A and C (40 of 80) are found, B (20 of 50) is not
    assert scores(truth, truth) == {"frame_accuracy": 1, "edit": 1, "F1@50": 1}
    assert frame_accuracy(truth, []) == 0
    assert (edit_score([], []), edit_score([A, B], []), edit_score([A, B, C], [B, C])) == (1, 0, pytest.approx(2 / 3))
    assert segmental_f1([Stretch(A, 0, 10)], [Stretch(A, 0, 9), Stretch(A, 9, 10)]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no label"):
        scores([], said)


# --- from a file to the result ---


def film(path: Path, seconds: float) -> Path:
    rng = np.random.default_rng(5)
    scenes = rng.integers(0, 255, (8, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    with VideoWriter(path, 25, (64, 48)) as writer:
        for frame in range(round(seconds * 25)):
            writer.write(np.clip(scenes[frame // 40 % 8].astype(int) + frame % 7, 0, 255).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def predictor(toy_base: Path) -> Predictor:
    return Predictor.load(toy_base, None, OPENPACK, EvaluationSettings(device="cpu", batch_size=4))


def test_a_window_is_asked_as_the_same_five_seconds_alone(predictor: Predictor, tmp_path: Path, monkeypatch):
    video, asked = film(tmp_path / "film.mp4", 12), []
    answer = predictor.answer
    monkeypatch.setattr(predictor, "answer", lambda ids, questions: asked.extend(questions) or answer(ids, questions))
    short = TimelineSettings(stride_s=5)
    *told, result = answer_timeline(predictor, video, PREPARED, toy_bento.CYCLE, short)
    assert told == [Progress(3, 3)]
    assert isinstance(result, VideoTimeline)
    assert result.frames == 300
    alone_ = video_question(video, PREPARED, OPENPACK, predictor.size)
    assert (asked[0].bounds, asked[0].pairs) == (alone_.bounds, alone_.pairs)
    assert all(np.array_equal(one, other) for one, other in zip(asked[0].videos, alone_.videos, strict=True))


def test_a_video_that_is_too_long_or_too_short_is_refused(predictor: Predictor, tmp_path: Path):
    video = film(tmp_path / "film.mp4", 6)
    with pytest.raises(DataError, match=r"lasts 6\.0 s, more than 5\.0 s"):
        next(answer_timeline(predictor, video, PREPARED, toy_bento.CYCLE, TimelineSettings(longest_s=5)))
    brief = film(tmp_path / "brief.mp4", 0.6)
    with pytest.raises(DataError, match=r"lasts 0\.60 s, too short.*at least 0\.8 s"):
        next(answer_timeline(predictor, brief, PREPARED, toy_bento.CYCLE, TimelineSettings()))


def test_by_hand_it_prints_the_result_or_its_time_study(toy_base: Path, tmp_path: Path, monkeypatch, capsys):
    stages, video = toy_bento.write_toy(tmp_path / "stages", toy_base), film(tmp_path / "film.mp4", 8)
    command = ["timeline", str(video), "--base", str(stages / "base_model"), "--adapter", str(stages / "adapter")]
    command += ["--calibration", str(stages / "evaluation" / "calibration.json")]

    def printed(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", [*command, *options])
        timeline.main()
        out, told = capsys.readouterr()
        assert told.splitlines()[-1] == "4 of 4 windows"  # at 0, 1.25, 2.5 and 3 s
        return out

    result = json.loads(printed())
    assert list(result) == ["fps", "frames", "seconds", "segments", "time_study", "alerts"]
    assert (result["fps"], result["frames"], result["seconds"]) == (25, 200, 8.0)
    keys = ["operation", "start_frame", "end_frame", "start_s", "end_s", "anticipated_next_operation", "confidence"]
    assert all(list(one) == keys for one in result["segments"])
    assert covers([Stretch(0, one["start_frame"], one["end_frame"]) for one in result["segments"]], 200)
    assert {one["operation"] for one in result["segments"]} <= {*OPENPACK.names}
    assert list(result["time_study"]) == ["operations", "boxes", "box_median_s", "box_iqr_s"]
    brief = json.loads(printed("--brief"))
    named = [
        (one["operation"], OPENPACK.by_name(other["operation"]).brief)
        for one, other in zip(brief["segments"], result["segments"], strict=True)
    ]
    assert all(one == other for one, other in named)
    rows = list(csv.DictReader(io.StringIO(printed("--csv"))))
    assert {row["name"] for row in rows if row["of"] == "operation"} == {
        one["operation"] for one in result["time_study"]["operations"]
    }
    (stages / "evaluation" / "grammar.json").unlink()
    write_json(stages / "evaluation" / "other.json", {})
    with pytest.raises(DataError, match=r"grammar\.json: the file is missing"):
        printed()
