"""The parts of an evaluation's answers, and how each is done.

Belongs here: which parts there are, and what a process does for one of them. Which process that is and where answers
are kept (`answering`), what arms are shown (`arms`) and how a model answers (`predict`) do not.

A part is a batch of validation clips, a batch of test clips in all arms, or a session with all its windows. Answers are
those of the model itself: calibration comes after, so no part waits for another one. What a part holds does not depend
on who does it, so equal inputs give equal answers in any number of processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.errors import DataError
from pipelines.common.files import digest, file_digest, read_json, remove_folder, write_json
from pipelines.common.prefetch import prefetched
from pipelines.openpack.annotations import read_operations
from pipelines.openpack.arms import arm_answers, arm_questions
from pipelines.openpack.boxes import Stretch
from pipelines.openpack.calibrate import calibration_batches
from pipelines.openpack.deviations import read_deviations
from pipelines.openpack.finetune import read_adapter
from pipelines.openpack.loader import ShardReader, read_manifest
from pipelines.openpack.metrics import TUNED
from pipelines.openpack.normalise import VIDEO, read_frames, run_user
from pipelines.openpack.prediction import Prediction
from pipelines.openpack.preparation import Preparation, read_normalised, read_preparation
from pipelines.openpack.pretrain import read_base
from pipelines.openpack.sequences import read_sessions, sequence
from pipelines.openpack.settings import STAGE_VERSIONS, EvaluationSettings
from pipelines.openpack.sources import SimulatedSource, read_session
from pipelines.openpack.splits import Split
from pipelines.openpack.taxonomy import LABELS, Taxonomy
from pipelines.openpack.timeline import answer_windows
from pipelines.openpack.whole_sessions import Videos
from pipelines.openpack.windows import stored

if TYPE_CHECKING:
    from pipelines.common.vlm.dialogue import Question
    from pipelines.openpack.predict import Predictor

Ready = tuple[Sequence[str], dict[str, list["Question"]]]  # keys of clips, and by arm what is asked about them


@dataclass(frozen=True)
class Asked:
    """All that the answers of an evaluation depend on; folders as `evaluate` takes them."""

    base: Path
    adapter: Path
    shards: Path
    settings: EvaluationSettings
    split: Split
    videos: Videos | None

    def key(self) -> str:
        """Digest of the content. How many processes answer is no part of it."""
        settings = self.settings.model_copy(update={"processes": 1}).digest()
        shards = [one["digest"] for split in read_manifest(self.shards)["splits"].values() for one in split["shards"]]
        models = read_base(self.base).digest, read_adapter(self.adapter).digest
        return digest([STAGE_VERSIONS["evaluation"], settings, *models, self.split, shards, self._videos()])

    @property
    def preparation(self) -> Preparation:
        """How videos become what is shown: as those of the clips did."""
        return read_preparation(self.shards, "shards")

    def sessions(self) -> list[tuple[str, str]]:
        """(user, session) of the first test sessions, as many as the settings ask for."""
        named = [(one.user, one.session) for one in read_sessions(self.shards, "test")]
        return named[: self.settings.timeline.sessions] if self.videos else []

    def drawn(self) -> list[str]:
        """Test persons whose sessions are drawn once more with deviations: of simulated data alone."""
        simulated = {data["source"] for data in read_manifest(self.shards)["data"]} == {"simulated"}
        wanted = self.videos and simulated and self.settings.timeline.planted_sessions
        return sorted({one.user for one in read_sessions(self.shards, "test")}) if wanted else []

    def _videos(self) -> Any:
        if self.videos is None:
            return None
        files = [self.videos.folder / user / session / VIDEO for user, session in self.sessions()]
        recipes = [self.preparation.digest(), self.videos.simulation.digest()]
        return [*recipes, *(file_digest(file) if file.is_file() else None for file in files)]


@dataclass(frozen=True)
class Part:
    """A piece of work. `numbers` are those of clips in their split; others have a user, and perhaps a session."""

    kind: str  # drawn, session, calibration or clips
    name: str
    numbers: tuple[int, ...] = ()
    user: str = ""
    session: str = ""


def parts(asked: Asked) -> list[Part]:
    """All parts, those first that take longest."""
    size = asked.settings.batch_size
    drawn = [Part("drawn", f"drawn-{user}", user=user) for user in asked.drawn()]
    whole = [Part("session", f"session-{user}-{one}", user=user, session=one) for user, one in asked.sessions()]
    taxonomy, count = Taxonomy.read(asked.shards / LABELS), len(ShardReader(asked.shards, asked.split))
    batches = {
        "calibration": calibration_batches(asked.settings, asked.shards, taxonomy),
        "clips": [range(start, min(start + size, count)) for start in range(0, count, size)],
    }
    named = [
        Part(kind, f"{kind}-{place:05d}", tuple(numbers))
        for kind, all_numbers in batches.items()
        for place, numbers in enumerate(all_numbers)
    ]
    return [*drawn, *whole, *named]


class Worker:
    """Does parts, and keeps their answers in `kept`. The model is loaded with the first of them."""

    def __init__(self, asked: Asked, kept: Path) -> None:
        self._asked, self._kept = asked, kept

    @cached_property
    def _predictor(self) -> Predictor:
        from pipelines.openpack.predict import Predictor

        return Predictor.load(self._asked.base, self._asked.adapter, self._taxonomy, self._asked.settings)

    @cached_property
    def _taxonomy(self) -> Taxonomy:
        return Taxonomy.read(self._asked.shards / LABELS)

    def do(self, part: Part, ready: Ready) -> None:
        """Answers a part that was `prepared`."""
        write_json(self._kept / f"{part.name}.json", getattr(self, f"_{part.kind}")(part, ready))
        for batches in self._kept.glob(f"{part.name}.*/"):
            remove_folder(batches)

    def prepared(self, todo: Sequence[Part]) -> Iterator[tuple[Part, Ready]]:
        """Parts with what is asked in them, made one ahead of the part that is answered."""
        _ = self._predictor  # here: its loading is not the thread's
        with closing(prefetched(((part, self._prepare(part)) for part in todo), depth=1)) as made:
            yield from made

    def _prepare(self, part: Part) -> Ready:
        """Keys and questions of a batch of clips, decoded; none of a session, which is read while it is answered."""
        splits: dict[str, Split] = {"calibration": "val", "clips": self._asked.split}
        if part.kind not in splits:
            return [], {}
        reader, size, taxonomy = (
            ShardReader(self._asked.shards, splits[part.kind]),
            self._predictor.size,
            self._taxonomy,
        )
        batch = [reader.sample(number) for number in part.numbers]
        keys = [sample.key for sample in batch]
        if part.kind == "clips":
            return keys, arm_questions(batch, size, taxonomy)
        from pipelines.openpack.predict import sample_question

        return keys, {TUNED: [sample_question(sample, taxonomy, size) for sample in batch]}

    def _calibration(self, part: Part, ready: Ready) -> list[dict[str, Any]]:
        keys, questions = ready
        return [one.as_json() for one in self._predictor.answer(keys, questions[TUNED])]

    def _clips(self, part: Part, ready: Ready) -> dict[str, list[dict[str, Any]]]:
        tuned, generate = self._predictor, self._asked.settings.generate
        with tuned.pictures_kept():
            said = arm_answers(tuned.without_adapter(), tuned, *ready, generate=generate)
        return {arm: [one.as_json() for one in rows] for arm, rows in said.items()}

    def _session(self, part: Part, ready: Ready) -> dict[str, Any]:
        assert self._asked.videos
        (truth,) = (
            one.stretches
            for one in read_sessions(self._asked.shards, "test")
            if (one.user, one.session) == (part.user, part.session)
        )
        folder = self._asked.videos.folder / part.user / part.session
        return {part.session: self._answered(part, part.session, folder, truth)}

    def _drawn(self, part: Part, ready: Ready) -> dict[str, Any]:
        from pipelines.openpack.simulate import DEVIATIONS, sessions

        videos = self._asked.videos
        assert videos
        with tempfile.TemporaryDirectory() as temporary:
            raw_out, out = Path(temporary) / "raw_session", Path(temporary) / "normalized_video"
            simulation = videos.drawn_with(self._asked.settings.timeline.planted_sessions)
            SimulatedSource(simulation).fetch(part.user, raw_out, workers=1)
            prepared = self._asked.preparation
            run_user(part.user, raw_out, out, prepared.normalise, workers=1, clip_format=prepared.clip_format)
            rows = {}
            for session in sessions(simulation):
                raw, folder = read_session(raw_out / session), out / session
                annotation = read_operations(raw_out / session / str(raw.annotation), self._taxonomy)
                truth = sequence(annotation, raw.first_ms, len(read_frames(folder)), prepared.clip_format.fps)
                told = read_deviations(raw_out / session / part.user / DEVIATIONS / f"{session}.json")
                rows[session] = self._answered(part, session, folder, truth)
                rows[session]["deviations"] = [one.as_json() for one in told]
            return rows

    def _answered(self, part: Part, session: str, folder: Path, truth: Sequence[Stretch]) -> dict[str, Any]:
        assert self._asked.videos
        batches = self._kept / f"{part.name}.{session}"
        batches.mkdir(exist_ok=True)
        preparation, settings = self._asked.preparation, self._asked.settings.timeline
        video = stored(folder / VIDEO, _repeated(folder, preparation))
        answer = partial(_once, self._predictor, batches)
        windows = []
        for _, said in answer_windows(self._predictor, video, preparation, settings, answer):
            windows += [[start, one.as_json()] for start, one in said]
        stretches = [astuple(one) for one in truth]
        return {"frames": len(video.repeated), "truth": stretches, "deviations": [], "windows": windows}


def _repeated(folder: Path, preparation: Preparation) -> np.ndarray:
    """Of a session's normalised video, which must be in the format of the clips."""
    found, wanted = read_normalised(folder).video_format, preparation.clip_format.video
    if found != wanted:
        what = f"the video has {found.told()}, the clips {wanted.told()}"
        cure = "Run the stages normalized_video, clips and shards again, with the same settings."
        raise DataError(what, file=folder / VIDEO, cure=cure)
    return read_frames(folder)["repeated"].to_numpy(bool)


def _once(predictor: Predictor, folder: Path, names: Sequence[str], questions: Sequence[Question]) -> list[Prediction]:
    """The answers to a batch, kept in `folder` under its first name."""
    file = folder / f"{names[0]}.json"
    if not file.is_file():
        write_json(file, [one.as_json() for one in predictor.answer(names, questions)])
    return [Prediction.of_json(row, predictor.taxonomy) for row in read_json(file)]
