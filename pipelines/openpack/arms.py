"""Who answers the test clips: both models, the tuned one in other circumstances, the baselines; and their records.

Belongs here: what each arm is shown, and its answer as a record. How a model answers (`predict`), what a baseline says
(`baselines`) and what is counted (`metrics`) do not. Besides base and tuned model there are

    finetuned_uncalibrated   what the tuned model said before its calibration (where there was one)
    finetuned_generated      what it writes freely (where the settings ask for it)
    blind                    the tuned model, every picture an even grey: what question and frame numbers give away
    shuffled_frames          its pictures in a wrong order under the right numbers: whether order counts
    uniform_frames           evenly spaced frames and bounds: what the choice of keyframes is worth
    whole_clip, majority_class, transition_table, transition_table_true   `baselines`

The bounds of segments, which come from the picture, are part of the question. So a blind or shuffled arm still knows
where the picture changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipelines.common.errors import DataError
from pipelines.common.files import digest
from pipelines.openpack.baselines import Baselines
from pipelines.openpack.loader import Sample
from pipelines.openpack.metrics import BASE, TUNED
from pipelines.openpack.prediction import Generated, Prediction
from pipelines.openpack.prompt import prompt_text
from pipelines.openpack.records import ClipRecord, Confidence, Posterior, Reading, reading
from pipelines.openpack.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipelines.common.vlm.dialogue import Question
    from pipelines.openpack.calibrate import Calibration

UNCALIBRATED, GENERATED = "finetuned_uncalibrated", "finetuned_generated"
BLIND, SHUFFLED, UNIFORM = "blind", "shuffled_frames", "uniform_frames"
GREY = 128  # of 255, what all pictures together are about as bright as
DIGITS = 6  # of a share in the records


class Answerer(Protocol):
    """What is evaluated: a `Predictor`, or anything that answers questions as one."""

    size: int | None

    def answer(self, clip_ids: Sequence[str], questions: Sequence[Question]) -> list[Prediction]: ...

    def generate(self, clip_ids: Sequence[str], questions: Sequence[Question]) -> list[Generated]: ...


def arm_questions(batch: Sequence[Sample], size: int | None, taxonomy: Taxonomy) -> dict[str, list[Question]]:
    """What is asked about samples in every arm, as `shown_frames` says. Each clip is decoded once for all arms."""
    shown = [shown_frames(sample, size, taxonomy) for sample in batch]
    return {arm: [one[arm] for one in shown] for arm in shown[0]}


def arm_answers(
    base: Answerer, tuned: Answerer, keys: Sequence[str], questions: Mapping[str, Sequence[Question]], *, generate: bool
) -> dict[str, Sequence[Prediction | Generated]]:
    """What the models say to `arm_questions` about the clips `keys`, one answer each in every arm."""
    said: dict[str, Sequence[Prediction | Generated]] = {BASE: base.answer(keys, questions[TUNED])}
    said |= {arm: tuned.answer(keys, asked) for arm, asked in questions.items()}
    if generate:
        said[GENERATED] = tuned.generate(keys, questions[TUNED])
    return said


def calibrated(
    said: Mapping[str, Sequence[Prediction | Generated]], calibration: Calibration
) -> dict[str, list[Prediction | Generated]]:
    """The tuned model's answers after its calibration; the base answers uncalibrated, as it is without this project."""

    def one(arm: str, answer: Prediction | Generated) -> Prediction | Generated:
        return answer.calibrated(calibration) if isinstance(answer, Prediction) and arm != BASE else answer

    return {arm: [one(arm, answer) for answer in answers] for arm, answers in said.items()}


def clip_records(
    sample: Sample,
    said: Mapping[str, Prediction | Generated],
    baselines: Baselines,
    models: Mapping[str, str],
    *,
    first: bool,
) -> Iterator[ClipRecord]:
    """Records of a test clip, arm by arm. The transition table is given the operation of the tuned model. `models` says
    for BASE and TUNED which weights answered."""
    tuned = said[TUNED]
    assert isinstance(tuned, Prediction)
    yield from _records(
        sample, said, baselines.answers(sample.clip, tuned.operation), models, baselines.taxonomy, first=first
    )


def shown_frames(sample: Sample, size: int | None, taxonomy: Taxonomy) -> dict[str, Question]:
    """What the tuned model is asked about a test clip: by TUNED the question itself, by arm those of the controls.

    Pictures are reduced to `size` × `size` pixels while they are decoded. DataError for a clip without evenly spaced
    frames, as shards of an earlier version have them.
    """
    from pipelines.openpack.predict import clip_question, sample_frames

    uniform = sample.clip.uniform
    if uniform is None:
        raise DataError(f"{sample.key} has no evenly spaced frames", cure="Run the stages clips and shards again.")
    frames, keyframes = sample_frames(sample, size), sample.clip.keyframes
    asked = taxonomy, sample.fps
    evenly = sample_frames(replace(sample, jpegs=sample.uniform), size)
    return {
        TUNED: clip_question(frames, keyframes, *asked),
        BLIND: clip_question(np.full_like(frames, GREY), keyframes, *asked),
        SHUFFLED: clip_question(frames[_wrong_order(len(keyframes.pairs), sample.key)], keyframes, *asked),
        UNIFORM: clip_question(evenly, uniform, *asked),
    }


def _wrong_order(pairs: int, seed: str) -> list[int]:
    """Frame numbers 0 … 2·pairs-1 with no pair at its own place. Pairs stay whole: the model reads frames in twos, and
    a pair of strangers would be something that it never saw, beside being in the wrong order."""
    order, rng = list(range(pairs)), Random(seed)
    while any(place == pair for place, pair in enumerate(order)):
        rng.shuffle(order)
    return [2 * pair + frame for pair in order for frame in (0, 1)]


def _records(
    sample: Sample,
    said: Mapping[str, Prediction | Generated],
    guesses: Mapping[str, Reading],
    models: Mapping[str, str],
    taxonomy: Taxonomy,
    *,
    first: bool,
) -> Iterator[ClipRecord]:
    clip, target = sample.clip, sample.clip.target
    fixed = clip.model_dump(include={"clip_id", "start_frame", "n_frames", "kind", "boundaries", "bounds", "pairs"})
    fixed |= {"session": f"{clip.user}/{clip.session}", "first": first}
    fixed["truth"] = reading(taxonomy, target.operation, (target.start, target.end), target.next)

    def record(arm: str, answer: Reading, **of_model: Any) -> ClipRecord:
        return ClipRecord(**{**fixed, **of_model}, arm=arm, prediction=answer)

    for arm, one in said.items():
        keyframes = clip.uniform if arm == UNIFORM and clip.uniform else clip.keyframes
        asked = {
            "bounds": keyframes.bounds,
            "pairs": keyframes.pairs,
            "prompt": digest(prompt_text(keyframes, taxonomy).encode()),
            "model": models[BASE if arm == BASE else TUNED],
        }
        yield record(arm, **_answer(one, taxonomy), **asked)
        if arm == TUNED and isinstance(one, Prediction) and one.raw:
            yield record(UNCALIBRATED, **_answer(one.raw, taxonomy), **asked)
    for arm, guess in guesses.items():
        yield record(arm, guess)


def _answer(said: Prediction | Generated, taxonomy: Taxonomy) -> dict[str, Any]:
    """An answer as the fields of a record."""
    if isinstance(said, Generated):
        target = said.target
        shown = target and reading(taxonomy, target.operation, (target.start, target.end), target.next)
        return {"answer": shown or reading(taxonomy), "text": said.text}
    native, brief = (round(min(1.0, share), DIGITS) for share in (said.what[said.operation], said.confidence))
    return {
        "answer": reading(taxonomy, said.operation, (said.start, said.end), said.next),
        "posterior": _posterior(said),
        "confidence": Confidence(native=native, brief=brief),
    }


def _posterior(prediction: Prediction) -> Posterior:
    def rounded(shares: Mapping[int, float]) -> dict[int, float]:
        return {op_id: round(share, DIGITS) for op_id, share in shares.items()}

    span = tuple((start, end, round(share, DIGITS)) for (start, end), share in prediction.span.items())
    seen = tuple(rounded(shares) for shares in prediction.seen.values())
    return Posterior(seen=seen, what=rounded(prediction.what), next=rounded(prediction.next_share), span=span)
