"""Settings of the stages, a reason beside each default. Imports no torch and no pandas, since Dagster loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.common.clip_format import DEFAULT_FORMAT, ClipFormat, VideoFormat
from pipelines.common.download import DownloadSettings
from pipelines.common.keyframes import KeyframeSettings
from pipelines.common.settings import Settings
from pipelines.common.vlm.settings import (
    AugmentSettings,
    Device,
    LoopSettings,
    LoraSettings,
    Quantization,
    TinySettings,
)
from pipelines.openpack.splits import SPLITS

# Raise a stage's version when its code gives other results for equal inputs: part of every code version, and read here
# because the stages themselves import what Dagster must not load.
STAGE_VERSIONS: dict[str, str] = {
    "raw_session": "3",
    "normalized_video": "3",
    "clips": "6",
    "shards": "6",
    "base_model": "6",
    "adapter": "7",
    "evaluation": "9",
    "bento": "6",
}

PRESETS = Path(__file__).with_name("presets")

View = Literal["video", "rgb", "depth", "keypoints"]


class NormaliseSettings(Settings):
    """Raw stream → one H.264 video of known rate and size. Pixels of the source are those of its 1280×720 picture.

    Rate and size are the clip format's, since labels are cut by it.
    """

    crf: int = Field(default=20, ge=0, le=51)  # x264 quality at which keyframes keep their edges
    preset: str = "ultrafast"  # decoding is the wall, not disk: measured by `make bench`
    gop_s: float = Field(default=1, gt=0)  # seconds between key frames: a seek decodes at most so much
    # of decoder and x264 each; the two run side by side anyway. With two, the processor time grew by 7–28 % and one
    # session was no sooner done; and x264 gives other bytes for another count, so it must not follow the machine
    threads: int = Field(default=1, ge=1)
    # a longer time without a frame is a wrong time stamp, not a pause of the camera, and would be filled with one
    # picture, frame after frame; wide enough for a camera that was out for minutes
    longest_gap_s: float = Field(default=900, gt=0)
    # by which a frame may be shown before its time or after its successor's: one rounding of times to whole
    # milliseconds, as mkv and the release keep them. More is no rounding; a frame lasts 40
    time_tolerance_ms: float = Field(default=1, ge=0)
    # x0, y0, x1, y1 blacked out in every rgb frame. The burnt-in clock spans 28–765 × 17–50: a model would read the
    # time instead of the work. The clock on the bench is no rectangle here: in a clip its digits cannot be read
    rgb_masks: tuple[tuple[int, int, int, int], ...] = ((0, 0, 800, 64),)
    # mm drawn near (bright) to far (dark), the same in all sessions so that a grey means a distance. Bench and worker
    # are 1.2–2.7 m away, the back table and walls end at 5.5; beyond are 2 % of the pixels, mostly ceiling
    depth_range_mm: tuple[int, int] = (500, 6000)
    # a joint that the estimator trusts less is not drawn: ankles behind the bench are guesses (median 0.19 in the
    # sample), shoulders and arms are seen (0.8 and above)
    joint_confidence: float = Field(default=0.3, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _no_format(cls, given: Any) -> Any:
        if isinstance(given, dict) and (named := sorted({"fps", "size"} & given.keys())):
            raise ValueError(f"{' and '.join(named)} are set in [clip_format], for videos and clips together")
        return given

    def encoding(self, video: VideoFormat) -> dict[str, Any]:
        """How a video of that format is written, in the words of `common.media.transcode`."""
        gop = max(1, round(self.gop_s * video.fps))
        return {**self.model_dump(include={"crf", "preset", "threads"}), "fps": video.fps, "gop": gop}


class ZenodoSettings(Settings):
    """Which published users are fetched, and how."""

    base_url: str = Field(default="https://zenodo.org", pattern=r"^https?://.*[^/]$")  # a mirror has another
    record: int = 8145223  # v1.0.0, the first full release; v1.1.0 is 11059235
    # the brief's eight; the record has more, but users outside of the split enter no shard
    users: tuple[Annotated[str, Field(pattern=r"^U\d{4}$")], ...] = tuple(
        sorted(u for us in SPLITS.values() for u in us)
    )
    keep_archives: bool = False  # unpacked they take their place once more, and the record still has them
    # ten times what the release's own index lists for a user (0.7 GB of U0101, 0.8 of U0102)
    unpacked_limit_bytes: int = Field(default=8 * 2**30, gt=0)
    # of the archive's size: the sample's keypoints shrink to a third, its most regular table to a nineteenth
    unpacked_limit_ratio: float = Field(default=50, gt=0)
    download: DownloadSettings = DownloadSettings()


class RecordingsSettings(Settings):
    """One's own videos: which persons are kept for scoring, and what their annotations leave open."""

    # persons by name; while both are empty they are drawn by a digest of the names, so that neither alphabet nor date
    # of recording decides
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    tier: str | None = None  # of ELAN files; None: the one that has annotations, an error where several have
    # `frameRate` of the labelling project (24 unless it says otherwise), by which Label Studio counts frames and which
    # its exports do not tell; None: the video's own rate, as its documentation asks for
    label_studio_fps: float | None = Field(default=None, gt=0)


class SimulationSettings(Settings):
    """Drawn sessions in the release's layout."""

    seed: int = 7
    sessions: int = Field(default=2, ge=1, le=5)  # a worker, named S0100, S0200, … as in the release
    boxes: int = Field(default=3, ge=1)  # a session: four to five minutes of video
    # of the published medians: with them a clip holds as many boundaries as one of OpenPack does
    duration_scale: float = Field(default=1.0, gt=0)
    # share of boxes in which an operation is skipped, repeated or out of order, with the truth in a file beside them:
    # for measuring the alerts. None by default, since a model is to be trained on usual work
    deviations: float = Field(default=0.0, ge=0, le=1)
    fps: int = 15  # as the Kinect streams of OpenPack
    width: int = 640
    height: int = 480


class ClipSettings(Settings):
    """Which stretches of a session become clips. Clips start on whole seconds, so that an id names one clip."""

    seed: int = 7
    boundary_clips: int = Field(default=3, ge=1)  # of each boundary in training, with the boundary anywhere inside
    transition_clips: int = Field(default=1, ge=0)  # of each boundary, starting in one operation, ending in the next
    inside_clips: int = Field(default=1, ge=0)  # of each operation that holds a whole clip
    # from a clip's middle to its boundary, either way; clips start on whole seconds, so that less would drop boundaries
    evaluation_slack_s: float = Field(default=0.5, ge=0.5)
    jpeg_quality: int = Field(default=90, ge=50, le=100)  # 8 frames ≈ 0.2 MB; artefacts below this touch thin lines


class ShardSettings(Settings):
    """How samples are packed."""

    target_bytes: int = 200 * 2**20  # within the 100–500 MB at which tar reading is sequential and copies stay handy
    least_shards: int = Field(default=2, ge=1)  # never fewer than loader workers, or some would idle


class PretrainSettings(Settings):
    """How the embedded base model is made. Nothing here touches a model that is only named."""

    model: TinySettings = TinySettings()
    asked: int = Field(default=6, ge=0)  # samples of a step that are questions about clips; the others tell of a pair
    # one a core of the smallest machine that the demo is meant for; a step has 12 samples of all of them together.
    # Threads would wait for each other in a busy loop as soon as something else runs beside them
    processes: int = Field(default=2, ge=1)
    loop: LoopSettings = LoopSettings(
        steps=900,
        batch_size=6,  # small batches learn in far fewer samples here; eight times this rate learns nothing
        gradient_accumulation_steps=1,
        learning_rate=1.5e-3,  # of 240 steps the loss was 1.19 with 1e-3, 1.00 with this, 0.92 with 2.2e-3; but after
        # 600 with 2e-3 it had stayed at 0.83, where 900 with this reach 0.67
        save_steps=100,
        threads=1,
        optimiser="muon",  # on the question that was asked before, the loss of AdamW after 1,700 steps in 1,200
    )


class FinetuneSettings(Settings):
    """How the adapter is trained: QLoRA."""

    lora: LoraSettings = LoraSettings()
    augment: AugmentSettings = AugmentSettings()
    quantization: Quantization = "nf4"
    device: Device = "auto"
    processes: int = Field(default=1, ge=1)  # one a GPU; a step has batch_size × accumulation clips of each of them
    # that make each process's samples: sixteen clips take 1.6 to 1.9 s of a core, a large GPU's step half a second.
    # None: one where a CPU trains, which has no core to spare, else as many as there are cores, eight at most
    workers: int | None = Field(default=None, ge=1)
    # the brief's three flags, with `use_cache` of the loop. With use_reentrant=False no input needs a gradient; asking
    # for it costs nothing as long as the frozen tower runs outside of the graph, and re-entrant checkpointing needs it
    gradient_checkpointing: bool = True
    use_reentrant: bool = False
    input_require_grads: bool = True
    # what the tower makes of a clip, kept on disk: 1.8 MB a clip at full size, and half of the work saved. Only for a
    # frozen tower and pictures that are not augmented; off, because few workers need their pictures changed
    cache_vision: bool = False
    loop: LoopSettings = LoopSettings(steps=1000)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.gradient_checkpointing and self.use_reentrant and not self.input_require_grads:
            raise ValueError("use_reentrant gives no gradients without input_require_grads")
        if self.cache_vision and (self.lora.vision or self.augment.changes_pictures):
            raise ValueError("cache_vision needs lora.vision = false and augment.crop, light and colour of 0")
        return self


class TimelineSettings(Settings):
    """How a whole video becomes a sequence of operations, and how many sessions are measured by it."""

    # between the starts of two windows as long as a clip; of five seconds four then see a frame. On the
    # embedded model's two validation sessions (commit 3092720) frame accuracy was 0.94 with 2.5 s and 0.97 with this,
    # for a third more of processor time: measuring each frame is the larger part of it
    stride_s: float = Field(default=1.25, gt=0)  # at most a clip's length
    # of a second of evidence beside one transition; on the same sessions anything from 1 to 6 was about as good
    evidence_weight: float = Field(default=2.0, gt=0)
    longest_s: float = Field(default=4 * 3600, gt=0)  # of a video: half a shift
    # test sessions that are answered as a whole, the first by name, and simulated ones that are drawn once more with
    # planted deviations: a session of four to five minutes takes about 20 s to draw, to measure and to answer
    sessions: int = Field(default=2, ge=0)
    planted_sessions: int = Field(default=1, ge=0, le=5)


class EvaluationSettings(Settings):
    """Which clips are scored for `results.json`, and how."""

    clips: int = 30  # the brief's: the first by clip id
    # sequences of operations that are followed to their end; see `common.vlm.score`
    hypotheses: int = Field(default=8, ge=1)
    # ways in which each clip is looked at, their posteriors averaged: the picture as it is, then with changes. Each
    # takes the time of one; what two are worth to the embedded model stands in its preset
    views: int = Field(default=1, ge=1)
    augment: AugmentSettings = AugmentSettings()  # of these views: as in training, which the model has learned to bear
    # validation clips at most, spread over the split: three numbers are chosen on them; 0 leaves answers uncalibrated
    calibration_clips: int = Field(default=300, ge=0)
    generate: bool = False  # also let the tuned model write its answers: an arm of the report, as long as all others
    batch_size: int = 8
    # that answer side by side on a CPU, each with one thread and a model of its own; a GPU is filled by one
    processes: int = Field(default=1, ge=1)
    quantization: Quantization = "nf4"
    device: Device = "auto"
    timeline: TimelineSettings = TimelineSettings()

    @model_validator(mode="after")
    def _one_process_a_gpu(self) -> Self:
        if self.processes > 1 and self.device != "cpu":
            raise ValueError('processes above 1 needs device = "cpu": a GPU answers one batch at a time')
        return self


class AllSettings(Settings):
    """The settings of every stage, one section a stage."""

    zenodo: ZenodoSettings = ZenodoSettings()
    recordings: RecordingsSettings = RecordingsSettings()
    simulation: SimulationSettings = SimulationSettings()
    clip_format: ClipFormat = DEFAULT_FORMAT
    normalise: NormaliseSettings = NormaliseSettings()
    clips: ClipSettings = ClipSettings()
    keyframes: KeyframeSettings = KeyframeSettings()
    shards: ShardSettings = ShardSettings()
    pretrain: PretrainSettings = PretrainSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _segments_fit_a_clip(self) -> Self:
        frames, length = self.clip_format.frames, self.clip_format.seconds
        if self.keyframes.anchors * self.keyframes.min_segment > frames:
            raise ValueError(f"keyframes.anchors × keyframes.min_segment is more than the {frames} frames of a clip")
        if self.evaluation.timeline.stride_s > length:
            raise ValueError(
                f"evaluation.timeline.stride_s is more than the {length:g} s of a clip: some would be unseen"
            )
        return self


def load_settings(path: Path | None = None, preset: str | None = None) -> AllSettings:
    """The settings in effect, without a word: `effective` has the order, and the errors. For a person: `in_effect`."""
    from pipelines.openpack.effective import effective  # which needs the classes of this module

    return effective(path, preset).settings
