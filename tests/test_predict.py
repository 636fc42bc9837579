"""Answers: views of a clip, calibrated posteriors, and what a model writes by itself beside them."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_bento
import toy_vlm

from pipelines.common.media import VideoWriter
from pipelines.common.vlm.augment import augment
from pipelines.common.vlm.dialogue import Answer, Question
from pipelines.common.vlm.generate import generate
from pipelines.common.vlm.load import Vlm
from pipelines.common.vlm.score import average, score
from pipelines.openpack import predict
from pipelines.openpack.clip_plan import Target
from pipelines.openpack.predict import Predictor
from pipelines.openpack.prediction import Prediction
from pipelines.openpack.prompt import instruction
from pipelines.openpack.settings import EvaluationSettings
from pipelines.openpack.taxonomy import OPENPACK

IDS = ["a", "b", "c"]


def question(seed: int) -> Question:
    rng = np.random.default_rng(seed)
    bounds, pairs = (0, 30, 60, 90, 125), ((1, 2), (31, 32), (61, 63), (91, 92))
    videos = tuple(rng.integers(0, 255, (2, 28, 28, 3), dtype=np.uint8) for _ in pairs)
    return Question(videos, bounds, pairs, instruction(OPENPACK))


QUESTIONS = [question(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def predictor(toy_base: Path) -> Predictor:
    return Predictor.load(toy_base, None, OPENPACK, EvaluationSettings(device="cpu", batch_size=2))


def views(predictor: Predictor, n: int) -> Predictor:
    return Predictor(predictor.vlm, OPENPACK, predictor.settings.model_copy(update={"views": n}))


def seen(asked: Question, view: int, predictor: Predictor) -> Question:
    """A view made by hand: the eight frames changed together."""
    frames = np.concatenate(asked.videos)
    changed = augment(frames, predictor.settings.augment, np.random.default_rng(view))
    return replace(asked, videos=tuple(np.split(changed, len(asked.videos))))


def same(one: Prediction, other: Prediction) -> bool:
    pairs = [(one.what, other.what), (one.next_share, other.next_share), (one.span, other.span)]
    return all(a == pytest.approx(b, abs=1e-5) for a, b in pairs)


def test_one_view_is_the_picture_as_it_is(predictor: Predictor):
    made = predictor.answer(IDS, QUESTIONS)
    scored = score(predictor.vlm, QUESTIONS, OPENPACK.codes, hypotheses=predictor.settings.hypotheses)
    assert [one.clip_id for one in made] == IDS
    assert all(same(*both) for both in zip(made, (Prediction.of("", one, OPENPACK) for one in scored), strict=True))
    assert [one.raw for one in made] == [None] * 3


def test_views_are_averaged(predictor: Predictor):
    made = views(predictor, 3).answer(IDS, QUESTIONS)
    for answered, asked in zip(made, QUESTIONS, strict=True):
        shown = [asked, seen(asked, 1, predictor), seen(asked, 2, predictor)]
        scored = [score(predictor.vlm, [one], OPENPACK.codes)[0] for one in shown]
        assert same(answered, Prediction.of("", average(scored), OPENPACK))
        assert not same(answered, Prediction.of("", scored[0], OPENPACK))


def test_an_answer_from_views_depends_on_no_other_clip(predictor: Predictor):
    looked = views(predictor, 2)
    forwards, backwards = looked.answer(IDS, QUESTIONS), looked.answer(IDS[::-1], QUESTIONS[::-1])
    assert all(same(*both) for both in zip(forwards, backwards[::-1], strict=True))


def test_the_calibration_is_put_on_the_average(predictor: Predictor):
    looked = views(predictor, 2)
    raw = looked.answer(IDS, QUESTIONS)
    made = looked.calibrated(toy_bento.CALIBRATED).answer(IDS, QUESTIONS)
    for one, other in zip(made, raw, strict=True):
        assert one.raw is not None
        assert same(one.raw, other)
        what, following = toy_bento.CALIBRATED.apply(other.what, other.next_share)
        assert (one.what, one.next_share) == (pytest.approx(what, abs=1e-5), pytest.approx(following, abs=1e-5))
        assert one.brief()["confidence"] != other.brief()["confidence"]


# --- free generation ---


def talkative() -> Vlm:
    """A toy model with weights so large that it does not say one token over and over."""
    vlm = toy_vlm.make()
    for name, weight in vlm.model.named_parameters():
        if "layers" in name and weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return vlm


def greedy(vlm: Vlm, asked: Question, steps: int) -> list[int]:
    """The most probable token after the prompt and all that was written, run as one sequence each time."""
    (row,) = vlm.encoder.encode([asked])
    written: list[int] = []
    for _ in range(steps):
        with torch.inference_mode():
            logits = vlm.model(**vlm.encoder.collate([row], opening=written)).logits
        written.append(int(logits[0, -1].argmax()))
    return written


def test_what_is_generated_is_the_most_probable_token_each_time():
    vlm = talkative()
    asked = [toy_vlm.question(1), toy_vlm.question(2, text="What is done? And a longer text that pads the other one.")]
    tokens = [greedy(vlm, one, 8) for one in asked]
    assert len(set(tokens[0])) > 3
    assert vlm.encoder.end not in tokens[0] + tokens[1]
    expected = [vlm.encoder.tokenizer.decode(row) for row in tokens]
    assert generate(vlm, asked, 8) == expected  # one batch: the shorter prompt is padded on the left
    assert [generate(vlm, [one], 8)[0] for one in asked] == expected


def test_generation_stops_at_the_end_token(monkeypatch: pytest.MonkeyPatch):
    vlm, asked = talkative(), toy_vlm.question(4)
    *before, third = greedy(vlm, asked, 3)
    assert third not in before
    monkeypatch.setattr(vlm.encoder, "end", third)
    assert generate(vlm, [asked], 8) == [vlm.encoder.tokenizer.decode(before)]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        (Answer(("C", "C", "C", "D"), "E").text(), Target(operation=300, start=0, end=90, next=400)),
        (Answer(("B", "C", "C", "C"), "D").text() + "\n", Target(operation=300, start=30, end=125, next=400)),
        (Answer(("Z", "C", "C", "C"), "D").text(), None),
        (Answer(("B", "C", "C", "C"), "Z").text(), None),
        (Answer(("C", "C", "C"), "D").text(), None),
        (Answer(("C",) * 5, "D").text(), None),
        ('{"seen": ["C", "C", "C"]}', None),
        ("The worker assembles a box.", None),
    ],
)
def test_what_was_written_is_read_strictly(predictor: Predictor, monkeypatch, text: str, target: Target | None):
    monkeypatch.setattr(predict, "generate", lambda vlm, questions, most_tokens: [text] * len(questions))
    made = predictor.generate(IDS, QUESTIONS)
    assert [(one.clip_id, one.text, one.target) for one in made] == [(clip_id, text, target) for clip_id in IDS]


def test_there_is_room_for_every_answer(predictor: Predictor, monkeypatch):
    limits = []
    monkeypatch.setattr(predict, "generate", lambda vlm, asked, most: limits.append(most) or [""] * len(asked))
    predictor.generate(IDS, QUESTIONS)
    longest = predictor.vlm.encoder.ids(Answer(("K",) * 4, "K").text())
    assert limits == [len(longest) + 1] * 2  # and the end token; two batches


# --- by hand ---


def test_by_hand_it_answers_as_the_service_and_writes_if_asked(
    toy_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    stages, video = toy_bento.write_toy(tmp_path / "stages", toy_base), tmp_path / "clip.mp4"
    with VideoWriter(video, 25, (64, 48)) as writer:
        for i in range(130):
            writer.write(np.full((48, 64, 3), i, np.uint8))
    base, adapter, evaluation = (stages / name for name in ("base_model", "adapter", "evaluation"))

    def printed(*options: str) -> dict:
        command = ["predict", str(video), "--base", str(base), "--adapter", str(adapter), *options]
        monkeypatch.setattr(sys, "argv", command)
        predict.main()
        return json.loads(capsys.readouterr().out)

    calibrated = printed("--calibration", str(evaluation / "calibration.json"))
    assert list(calibrated)[-1] == "confidence"
    assert calibrated["confidence"] != printed()["confidence"]
    written = printed("--generate")
    assert list(written) == ["text", "answer"]
    assert written["answer"] is None  # two steps of training teach no JSON
