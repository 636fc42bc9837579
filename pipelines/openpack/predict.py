"""Answers: from shown frames to operation, segment, next operation and confidence. Evaluation and service both call it.

Here a clip, from a shard or from any video, becomes a question, and scored codes become native classes and the brief's
names. How a model is scored (`common.vlm.score`) and how well it did (`evaluate`) do not belong here.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.common.console import run
from pipelines.common.keyframes import Keyframes, KeyframeSettings, choose, measure
from pipelines.common.media import VideoReader
from pipelines.common.vlm.dialogue import Answer, Question
from pipelines.common.vlm.load import Vlm, cpu_threads, load
from pipelines.common.vlm.score import Scored, score
from pipelines.openpack.loader import Sample
from pipelines.openpack.normalise import normalise_upload
from pipelines.openpack.pretrain import read_base
from pipelines.openpack.prompt import brief_answer, instruction, target_answer
from pipelines.openpack.settings import CLIP_FRAMES, EvaluationSettings, NormaliseSettings, load_settings
from pipelines.openpack.taxonomy import LABELS, Taxonomy


@dataclass(frozen=True)
class Prediction:
    """One clip's answer in the ids of `taxonomy`; `start`, `end` half-open frames at 25 fps.

    `what` and `next` are posteriors over native ids, `span` over the segments that were possible.
    """

    clip_id: str
    operation: int
    start: int
    end: int
    next: int
    what: dict[int, float]
    span: dict[tuple[int, int], float]
    next_share: dict[int, float]
    taxonomy: Taxonomy

    @property
    def confidence(self) -> float:
        """Posterior of the answered operation, by its name in the answer: classes that share the name count with it."""
        name = self.taxonomy.brief_name(self.operation)
        return sum(share for op_id, share in self.what.items() if self.taxonomy.brief_name(op_id) == name)

    def brief(self) -> dict[str, Any]:
        """The brief's JSON, exactly its five keys."""
        answer = brief_answer(self.taxonomy, self.clip_id, self.operation, self.start, self.end, self.next)
        return {**answer, "confidence": round(min(1.0, self.confidence), 4)}


class Predictor:
    """A loaded model that answers questions about packing clips."""

    def __init__(self, vlm: Vlm, taxonomy: Taxonomy, settings: EvaluationSettings) -> None:
        self.vlm, self.taxonomy, self.settings = vlm, taxonomy, settings
        self.size = model_size(vlm.encoder.processor)

    @classmethod
    def load(cls, base: Path, adapter: Path | None, taxonomy: Taxonomy, settings: EvaluationSettings) -> Predictor:
        """`base` is the folder of the stage base_model, `adapter` of the stage adapter; None answers with the base."""
        cpu_threads()
        place = read_base(base).place(base)
        vlm = load(place, adapter=adapter, quantization=settings.quantization, device=settings.device)
        return cls(vlm, taxonomy, settings)

    def answer(self, clip_ids: Sequence[str], questions: Sequence[Question]) -> list[Prediction]:
        """One prediction a question, in order, in batches of the settings' size."""
        size, made = self.settings.batch_size, []
        for start in range(0, len(questions), size):
            batch, codes = questions[start : start + size], self.taxonomy.codes
            scored = score(self.vlm, batch, codes, operations=self.settings.operations)
            made += [_prediction(clip_ids[start + i], one, self.taxonomy) for i, one in enumerate(scored)]
        return made

    def answer_video(self, path: Path, clip_id: str, keyframes: KeyframeSettings) -> Prediction:
        """The answer for the first five seconds of any video that ffmpeg reads; DataError for anything else."""
        return self.answer([clip_id], [video_question(path, keyframes, self.taxonomy, self.size)])[0]


def model_size(processor: Any) -> int | None:
    """Pixels a side to which the model's processor reduces every frame, or None where frames keep their size."""
    size = dict(processor.video_processor.size)
    same = size.get("shortest_edge") == size.get("longest_edge")
    return round(size["longest_edge"] ** 0.5) if same and size.get("longest_edge") else None


def sample_frames(sample: Sample, size: int | None = None) -> np.ndarray:
    """The shown frames of a shard's sample, uint8 (8, h, w, 3); `size` reduces them while they are decoded."""
    return np.stack([_decode(jpeg, size) for jpeg in sample.jpegs])


def clip_question(frames: np.ndarray, keyframes: Keyframes, taxonomy: Taxonomy) -> Question:
    """The question about shown `frames` (8, h, w, 3) that stand for the segments of `keyframes`."""
    videos = tuple(frames[2 * i : 2 * i + 2] for i in range(len(keyframes.pairs)))
    return Question(videos, keyframes.bounds, keyframes.pairs, instruction(taxonomy))


def sample_question(sample: Sample, taxonomy: Taxonomy, size: int | None = None) -> Question:
    """The question of a shard's sample, as it is asked in evaluation."""
    return clip_question(sample_frames(sample, size), sample.clip.keyframes, taxonomy)


def sample_answer(sample: Sample, taxonomy: Taxonomy) -> Answer:
    target = sample.clip.target
    return target_answer(taxonomy, target.operation, target.start, target.end, target.next, sample.clip.bounds)


def video_question(
    path: Path,
    keyframes: KeyframeSettings,
    taxonomy: Taxonomy,
    size: int | None = None,
    normalise: NormaliseSettings | None = None,
) -> Question:
    """The question about the first 125 frames at 25 fps of a video file.

    The file goes through the same normalisation and the same choice of keyframes as a session. DataError for a file
    that is no whole video or is too short for its segments.
    """
    normalise = normalise or NormaliseSettings()
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        table = normalise_upload(path, video, normalise, max_frames=60 * normalise.fps)
        count = min(len(table), CLIP_FRAMES)
        with VideoReader(video) as reader:
            repeated = table["repeated"].to_numpy(bool)[:count]
            batches = reader.batches(32, np.flatnonzero(~repeated))
            signal = measure((frame for batch in batches for frame in batch), repeated)
            chosen = choose(signal, keyframes)
            frames = reader.frames(chosen.frames)
    return clip_question(np.stack([_reduce(Image.fromarray(frame), size) for frame in frames]), chosen, taxonomy)


def _decode(jpeg: bytes, size: int | None) -> np.ndarray:
    picture = Image.open(io.BytesIO(jpeg))
    if size:
        picture.draft("RGB", (size, size))  # the decoder skips what the reduction would throw away
    return _reduce(picture, size)


def _reduce(picture: Image.Image, size: int | None) -> np.ndarray:
    if size and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _prediction(clip_id: str, scored: Scored, taxonomy: Taxonomy) -> Prediction:
    def native(shares: dict[str, float]) -> dict[int, float]:
        return {taxonomy.by_code(code).id: share for code, share in shares.items()}

    answer = scored.answer
    return Prediction(
        clip_id,
        taxonomy.by_code(answer.what).id,
        answer.start,
        answer.end,
        taxonomy.by_code(answer.next).id,
        native(scored.what),
        scored.span,
        native(scored.next),
        taxonomy,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer for the first five seconds of a video.")
    parser.add_argument("video", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="folder of the stage base_model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the stage adapter")
    parser.add_argument("--settings", type=Path, help="a settings.toml")
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings)
    taxonomy = Taxonomy.read(arguments.adapter / LABELS)
    predictor = Predictor.load(arguments.base, arguments.adapter, taxonomy, settings.evaluation)
    answer = predictor.answer_video(arguments.video, arguments.video.stem, settings.keyframes)
    print(json.dumps(answer.brief(), indent=1))


if __name__ == "__main__":
    run(main)
