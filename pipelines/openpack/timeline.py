"""The timeline of a whole video: its operations from the first frame to the last, its time study and its alerts.

Belongs here: from a video through windows as long as clips to the result, and the result as JSON. What the windows say
together (`decode`), how long things take (`time_study`), what is unusual (`order_alerts`) and how well all this is done
(`whole_sessions`) do not.

A window is looked at and answered just as a clip that is sent alone. The video is decoded once, and only the pictures
of one window and the shown frames of one batch are held, so memory does not grow with its length; what remains of a
window are a few dozen numbers.

Format of the result, all names native (or, if asked, those of the second label set), frames half-open:

    {"fps", "frames", "seconds",
     "segments": [{"operation", "start_frame", "end_frame", "start_s", "end_s", "anticipated_next_operation",
                   "confidence"}],           from frame 0 to the last, in order, no gap and no overlap
     "time_study": see `time_study`, "alerts": [see `order_alerts.Alert.as_json`]}
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.clip_format import ClipFormat
from pipelines.common.console import run
from pipelines.common.prefetch import prefetched
from pipelines.openpack.calibrate import Calibration
from pipelines.openpack.decode import Decoded, Window, decode, described, gather
from pipelines.openpack.grammar import GRAMMAR, Grammar
from pipelines.openpack.order_alerts import find_alerts
from pipelines.openpack.prediction import Prediction
from pipelines.openpack.preparation import Preparation, read_preparation
from pipelines.openpack.question import Shown, normalised, shown_windows
from pipelines.openpack.settings import TimelineSettings
from pipelines.openpack.taxonomy import LABELS, Taxonomy
from pipelines.openpack.time_study import as_csv, time_study
from pipelines.openpack.windows import Video, starts

if TYPE_CHECKING:
    from pipelines.common.vlm.dialogue import Question
    from pipelines.openpack.predict import Predictor

Answer = Callable[[Sequence[str], "Sequence[Question]"], list[Prediction]]


@dataclass(frozen=True)
class Progress:
    """How many windows of a video are answered."""

    done: int
    of: int

    def as_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class VideoTimeline:
    """What was found in a video of `frames` frames: segments that cover it, in order."""

    frames: int
    segments: tuple[Decoded, ...]
    grammar: Grammar
    taxonomy: Taxonomy

    def as_json(self, *, brief: bool = False) -> dict[str, Any]:
        """The result as the module describes it; `brief` asks for the names of the second label set."""

        def name(op_id: int) -> str:
            return self.taxonomy.brief_name(op_id) if brief else self.taxonomy.by_id(op_id).name

        stretches = [one.stretch for one in self.segments]
        boxes, fps = self.grammar.boxes_of(stretches), self.grammar.fps
        return {
            "fps": fps,
            "frames": self.frames,
            "seconds": round(self.frames / fps, 3),
            "segments": [
                {
                    "operation": name(one.stretch.operation),
                    "start_frame": one.stretch.start,
                    "end_frame": one.stretch.end,
                    "start_s": round(one.stretch.start / fps, 3),
                    "end_s": round(one.stretch.end / fps, 3),
                    "anticipated_next_operation": name(one.next),
                    "confidence": round(min(1.0, one.confidence), 4),
                }
                for one in self.segments
            ],
            "time_study": time_study(stretches, boxes, name, fps),
            "alerts": [one.as_json(self.taxonomy, brief=brief) for one in find_alerts(boxes, self.grammar)],
        }


def answer_timeline(
    predictor: Predictor,
    path: Path,
    preparation: Preparation,
    grammar: Grammar,
    settings: TimelineSettings,
) -> Iterator[Progress | VideoTimeline]:
    """The timeline of any video that ffmpeg reads: `Progress` after every batch of windows, and last the result.

    DataError for a file that is no whole video, is longer than the settings allow, or too short for one window.
    """
    with normalised(path, settings.longest_s, preparation) as video:
        windows: list[Window] = []
        clip_format = preparation.clip_format
        for progress, answered in answer_windows(predictor, video, preparation, settings):
            windows += [window_of(start, len(video.repeated), answer, clip_format) for start, answer in answered]
            yield progress
    yield merge(windows, len(video.repeated), grammar, settings, predictor.taxonomy)


def answer_windows(
    predictor: Predictor,
    video: Video,
    preparation: Preparation,
    settings: TimelineSettings,
    answer: Answer | None = None,
) -> Iterator[tuple[Progress, list[tuple[int, Prediction]]]]:
    """Where each window of a video begins, and its answer, a batch at a time.

    `answer`, in place of the predictor's own, gets the names of a batch of windows and its questions.
    """
    answer, clip_format = answer or predictor.answer, preparation.clip_format
    begins = starts(len(video.repeated), settings.stride_s, clip_format)
    size, done = predictor.settings.batch_size, 0
    # the video is decoded and measured while a batch is answered, one batch ahead
    windows = _to_the_end(video, shown_windows(video, begins, preparation, predictor.size))
    with closing(prefetched(windows, depth=size)) as shown:
        while batch := list(islice(shown, size)):
            names = [window_name(video.name, one.start) for one in batch]
            said = answer(names, [one.question(predictor.taxonomy, clip_format.fps) for one in batch])
            done += len(batch)
            yield Progress(done, len(begins)), list(zip((one.start for one in batch), said, strict=True))


def _to_the_end(video: Video, windows: Iterator[Shown]) -> Iterator[Shown]:
    """The windows, and then what is left of the video: its ffmpeg ends with the thread that started it, which is the
    one that reads ahead."""
    yield from windows
    for _ in video.pictures:
        pass


def window_name(video: str, start: int) -> str:
    """What a window's question is called."""
    return f"{video}_f{start:06d}"


def window_of(start: int, n_frames: int, answer: Prediction, clip_format: ClipFormat) -> Window:
    """The answer to the window that begins at `start` in a video of `n_frames` frames, for `merge`."""
    return Window(start, min(n_frames, clip_format.frames), answer.seen, answer.what, answer.span, answer.next_share)


def merge(
    windows: list[Window], n_frames: int, grammar: Grammar, settings: TimelineSettings, taxonomy: Taxonomy
) -> VideoTimeline:
    """The timeline that follows from the answers to windows, which hold every one of `n_frames` frames."""
    evidence = gather(windows, n_frames, grammar)
    sequence = decode(evidence, grammar, settings.evidence_weight)
    return VideoTimeline(n_frames, tuple(described(sequence, evidence, windows, grammar)), grammar, taxonomy)


def main() -> None:
    parser = argparse.ArgumentParser(description="The operations of a whole video, with time study and alerts.")
    parser.add_argument("video", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="folder of the stage base_model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the stage adapter")
    parser.add_argument(
        "--calibration", type=Path, required=True, help=f"of the stage evaluation; {GRAMMAR} and settings.json too"
    )
    parser.add_argument("--csv", action="store_true", help="the time study as CSV instead of everything as JSON")
    parser.add_argument("--brief", action="store_true", help="names of the second label set")
    parser.add_argument("--settings", type=Path, help="a TOML file that changes those of the evaluation")
    arguments = parser.parse_args()
    from pipelines.openpack.as_evaluated import answer_settings
    from pipelines.openpack.predict import Predictor

    places = arguments.base, arguments.adapter, arguments.calibration
    settings, taxonomy = answer_settings(*places, arguments.settings), Taxonomy.read(arguments.adapter / LABELS)
    calibration = Calibration.load(arguments.calibration)
    grammar = Grammar.load(arguments.calibration.with_name(GRAMMAR))
    predictor = Predictor.load(arguments.base, arguments.adapter, taxonomy, settings.evaluation, calibration)
    preparation = read_preparation(arguments.adapter, "adapter")
    events = answer_timeline(predictor, arguments.video, preparation, grammar, settings.evaluation.timeline)
    for event in events:
        if isinstance(event, Progress):
            print(f"{event.done} of {event.of} windows", file=sys.stderr)
            continue
        result = event.as_json(brief=arguments.brief)
        print(as_csv(result["time_study"]) if arguments.csv else json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    run(main)
