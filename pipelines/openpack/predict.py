"""Answers: from shown frames to operation, segment, next operation and confidence. Evaluation and service both call it.

Here a clip of a shard becomes a question, and any question an answer. How a video becomes one (`question`), what an
answer is (`prediction`), how a model is scored (`common.vlm.score`), how its posteriors are calibrated (`calibrate`)
and how well it did (`evaluate`) do not belong here.

A segment begins and ends at bounds of the question. There is nothing to refine between the frames that are shown: a
bound is itself the change point of its gap, found from every frame of the clip (`common.keyframes`).
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.common.console import run
from pipelines.common.vlm.augment import augment
from pipelines.common.vlm.dialogue import Answer, Question
from pipelines.common.vlm.features import PairFeatures
from pipelines.common.vlm.generate import generate
from pipelines.common.vlm.halving import Halving
from pipelines.common.vlm.load import Vlm, cpu_threads, load
from pipelines.common.vlm.score import Scored, average, score
from pipelines.common.vlm.settings import AugmentSettings
from pipelines.openpack.as_evaluated import answer_settings
from pipelines.openpack.calibrate import Calibration
from pipelines.openpack.loader import Sample
from pipelines.openpack.prediction import Generated, Prediction
from pipelines.openpack.preparation import Preparation, read_preparation
from pipelines.openpack.pretrain import read_base
from pipelines.openpack.prompt import brief_answer, target_answer
from pipelines.openpack.question import clip_question, reduced, video_question
from pipelines.openpack.settings import EvaluationSettings
from pipelines.openpack.taxonomy import LABELS, Taxonomy


class Predictor:
    """A loaded model that answers questions about packing clips."""

    def __init__(
        self,
        vlm: Vlm,
        taxonomy: Taxonomy,
        settings: EvaluationSettings,
        calibration: Calibration | None = None,
        *,
        adapted: bool = True,
        features: PairFeatures | None = None,
    ) -> None:
        self.vlm, self.taxonomy, self.settings, self.calibration = vlm, taxonomy, settings, calibration
        self._adapted, self._features = adapted, features or PairFeatures(vlm.model, vlm.encoder)
        cure = "Set `[evaluation] hypotheses` or `views` lower, or take a smaller model or a larger GPU."
        self._answered = Halving(self._averaged, settings.batch_size, cure)
        self.size = model_size(vlm.encoder.processor)

    @classmethod
    def load(
        cls,
        base: Path,
        adapter: Path | None,
        taxonomy: Taxonomy,
        settings: EvaluationSettings,
        calibration: Calibration | None = None,
    ) -> Predictor:
        """`base` is the folder of the stage base_model, `adapter` of the stage adapter; None answers with the base.

        Without a `calibration` posteriors are the model's own.
        """
        cpu_threads()
        place = read_base(base).place(base)
        vlm = load(place, adapter=adapter, quantization=settings.quantization, device=settings.device)
        return cls(vlm, taxonomy, settings, calibration)

    def calibrated(self, calibration: Calibration) -> Predictor:
        """The same model with that calibration."""
        return Predictor(
            self.vlm, self.taxonomy, self.settings, calibration, adapted=self._adapted, features=self._features
        )

    def without_adapter(self) -> Predictor:
        """The base of the same loaded model: its weights are in memory once, its adapter is switched off while this one
        answers. No calibration, since that is the tuned model's."""
        return Predictor(self.vlm, self.taxonomy, self.settings, adapted=False, features=self._features)

    def pictures_kept(self) -> AbstractContextManager[None]:
        """Within the block pictures that were looked at, also without the adapter, are not looked at again."""
        return self._features.kept()

    def answer(self, clip_ids: Sequence[str], questions: Sequence[Question]) -> list[Prediction]:
        """One prediction a question, in order, in batches of the settings' size; each from all views of its clip.

        Where memory runs out, in batches of half the size from then on.
        """
        made = self._answered(questions)
        predictions = [Prediction.of(*one, self.taxonomy) for one in zip(clip_ids, made, strict=True)]
        return [one.calibrated(self.calibration) if self.calibration else one for one in predictions]

    def answer_samples(self, samples: Sequence[Sample]) -> list[Prediction]:
        """One prediction a sample of a shard, in order."""
        questions = [sample_question(sample, self.taxonomy, self.size) for sample in samples]
        return self.answer([sample.key for sample in samples], questions)

    def generate(self, clip_ids: Sequence[str], questions: Sequence[Question]) -> list[Generated]:
        """What the model writes for each question by itself, read strictly: the comparison to scoring, and no part of
        it. Of one view, and without calibration, since there is no posterior."""
        encoder, codes, anchors = self.vlm.encoder, self.taxonomy.codes, len(questions[0].pairs)
        longest = max(len(encoder.ids(Answer((code,) * anchors, code).text())) for code in codes)
        with self._weights():
            texts = [text for batch in self._batches(questions) for text in generate(self.vlm, batch, longest + 1)]
        return [Generated.of(*one, self.taxonomy) for one in zip(clip_ids, texts, questions, strict=True)]

    def _batches(self, questions: Sequence[Question]) -> list[Sequence[Question]]:
        size = self.settings.batch_size
        return [questions[start : start + size] for start in range(0, len(questions), size)]

    def _averaged(self, questions: Sequence[Question]) -> list[Scored]:
        views = [self._score(questions, number) for number in range(self.settings.views)]
        return [average(scored) for scored in zip(*views, strict=True)]

    def _score(self, questions: Sequence[Question], view: int) -> list[Scored]:
        seen = [_seen(question, view, self.settings.augment) for question in questions]
        with self._weights():
            return score(
                self.vlm,
                seen,
                self.taxonomy.codes,
                hypotheses=self.settings.hypotheses,
                features=partial(self._features.fill, adapted=self._adapted),
            )

    def _weights(self) -> AbstractContextManager[None]:
        """For the block the model answers with these weights."""
        return nullcontext() if self._adapted else self.vlm.model.disable_adapter()

    def answer_video(self, path: Path, clip_id: str, preparation: Preparation) -> Prediction:
        """The answer for the first clip of any video that ffmpeg reads; DataError for anything else."""
        return self.answer([clip_id], [video_question(path, preparation, self.taxonomy, self.size)])[0]


def model_size(processor: Any) -> int | None:
    """Pixels a side to which the model's processor reduces every frame, or None where frames keep their size."""
    size = dict(processor.video_processor.size)
    same = size.get("shortest_edge") == size.get("longest_edge")
    return round(size["longest_edge"] ** 0.5) if same and size.get("longest_edge") else None


def sample_frames(sample: Sample, size: int | None = None) -> np.ndarray:
    """The shown frames of a shard's sample, uint8 (8, h, w, 3); `size` reduces them while they are decoded."""
    return np.stack([_decode(jpeg, size) for jpeg in sample.jpegs])


def sample_question(sample: Sample, taxonomy: Taxonomy, size: int | None = None) -> Question:
    """The question of a shard's sample, as it is asked in evaluation."""
    return clip_question(sample_frames(sample, size), sample.clip.keyframes, taxonomy, sample.fps)


def sample_answer(sample: Sample, taxonomy: Taxonomy) -> Answer:
    return target_answer(taxonomy, sample.clip)


def _decode(jpeg: bytes, size: int | None) -> np.ndarray:
    picture = Image.open(io.BytesIO(jpeg))
    if size:
        picture.draft("RGB", (size, size))  # the decoder skips what the reduction would throw away
    return reduced(picture, size)


def _seen(question: Question, view: int, settings: AugmentSettings) -> Question:
    """The question as a view shows it: the first as it is, every other with its own changes, the same for all clips,
    so that an answer depends neither on the other clips nor on their order."""
    if view == 0:
        return question
    frames = augment(np.concatenate(question.videos), settings, np.random.default_rng(view))
    return replace(question, videos=tuple(frames[i : i + 2] for i in range(0, len(frames), 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer for the first clip of a video.")
    parser.add_argument("video", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="folder of the stage base_model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the stage adapter")
    parser.add_argument("--calibration", type=Path, help="of the stage evaluation; its settings.json goes with it")
    parser.add_argument("--generate", action="store_true", help="what the model writes by itself, for comparison")
    parser.add_argument("--settings", type=Path, help="a TOML file that changes those of the evaluation")
    arguments = parser.parse_args()
    places = arguments.base, arguments.adapter, arguments.calibration
    settings, taxonomy = answer_settings(*places, arguments.settings), Taxonomy.read(arguments.adapter / LABELS)
    calibration = Calibration.load(arguments.calibration) if arguments.calibration else None
    predictor = Predictor.load(arguments.base, arguments.adapter, taxonomy, settings.evaluation, calibration)
    clip_id, preparation = arguments.video.stem, read_preparation(arguments.adapter, "adapter")
    if not arguments.generate:
        print(json.dumps(predictor.answer_video(arguments.video, clip_id, preparation).brief(), indent=1))
        return
    question = video_question(arguments.video, preparation, taxonomy, predictor.size)
    (written,) = predictor.generate([clip_id], [question])
    said = written.target
    answer = said and brief_answer(taxonomy, clip_id, said.operation, said.start, said.end, said.next)
    print(json.dumps({"text": written.text, "answer": answer}, indent=1))


if __name__ == "__main__":
    run(main)
