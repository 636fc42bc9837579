"""Clips of 8 s at 15 frames a second and 448 pixels, from a drawn session to a served answer; and what is refused.

Nothing here says which format it is a second time: each stage after `clips` must have it from the data.
"""

import ast
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import toy_bento
from media_samples import make_source
from test_clips import annotate

from pipelines.common.clip_format import DEFAULT_FORMAT, ClipFormat
from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import read_json, write_json
from pipelines.common.keyframes import KeyframeSettings
from pipelines.common.media import VideoReader, VideoWriter, packet_times
from pipelines.common.vlm import tiny
from pipelines.common.vlm.activations import vision_tokens
from pipelines.common.vlm.load import frame_side
from pipelines.common.vlm.published import qwen2_vl_2b
from pipelines.common.vlm.settings import LoopSettings, LoraSettings, TinySettings
from pipelines.openpack import clips, normalise
from pipelines.openpack.bundle import NAME, bundle_digest, read_bundle
from pipelines.openpack.clip_plan import clip_id
from pipelines.openpack.evaluate import evaluate
from pipelines.openpack.finetune import finetune
from pipelines.openpack.loader import ShardReader
from pipelines.openpack.normalise import VIDEO
from pipelines.openpack.preparation import PREPARATION, Preparation, read_preparation
from pipelines.openpack.pretrain import make_base
from pipelines.openpack.sequences import read_sequence
from pipelines.openpack.settings import (
    AllSettings,
    ClipSettings,
    EvaluationSettings,
    FinetuneSettings,
    NormaliseSettings,
    PretrainSettings,
    ShardSettings,
    SimulationSettings,
    TimelineSettings,
)
from pipelines.openpack.shards import write_shards
from pipelines.openpack.sources import LocalSource, SimulatedSource
from pipelines.openpack.vram import plan_of
from pipelines.openpack.whole_sessions import Videos
from resources.bento import build

ODD = ClipFormat(fps=15, seconds=8, size=448)
KEYFRAMES = KeyframeSettings(anchors=5)
SIMULATION = SimulationSettings(sessions=1, boxes=1, duration_scale=0.3, width=160, height=120)
SETTINGS = AllSettings(simulation=SIMULATION, clip_format=ODD, keyframes=KEYFRAMES)
TINY = TinySettings(image=28, patch=14, hidden=64, layers=1, heads=2, vision_hidden=32, vision_layers=1)
STEP = LoopSettings(steps=1, batch_size=1, gradient_accumulation_steps=1, threads=1)
TUNING = FinetuneSettings(
    lora=LoraSettings(rank=2), quantization="none", device="cpu", gradient_checkpointing=False, loop=STEP
)


def ignore(line: str) -> None:
    """What the stages tell."""


@dataclass(frozen=True)
class World:
    """The folders of all stages, below `root`."""

    root: Path

    def stage(self, name: str) -> Path:
        return self.root / name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("odd"))
    for user in ("U0101", "U0108"):
        raw, video, cut = (made.stage(name) / user for name in ("raw_session", "normalized_video", "clips"))
        SimulatedSource(SIMULATION).fetch(user, raw, workers=1)
        normalise.run_user(user, raw, video, NormaliseSettings(), workers=1, clip_format=ODD)
        clips.run_user(user, video, raw, cut, ClipSettings(), KEYFRAMES, workers=1, clip_format=ODD)
    write_shards(made.stage("clips"), made.stage("shards"), ShardSettings())
    pretrain = PretrainSettings(model=TINY, asked=1, processes=1, loop=STEP)
    make_base("tiny", made.stage("base_model"), pretrain, progress=ignore, clip_format=ODD)
    base, shards, adapter, out = (made.stage(name) for name in ("base_model", "shards", "adapter", "evaluation"))
    finetune(base, shards, adapter, TUNING, ignore)
    timeline = TimelineSettings(sessions=1, planted_sessions=0)
    settings = EvaluationSettings(clips=2, device="cpu", calibration_clips=0, hypotheses=1, timeline=timeline)
    videos = Videos.of(made.stage("normalized_video"), SETTINGS)
    evaluate(base, adapter, shards, out, settings, ignore, videos)
    return made


# --- the data ---


def test_a_boundary_at_ten_seconds_is_frame_150_at_15_a_second(tmp_path: Path):
    release, stages = tmp_path / "release", [tmp_path / name for name in ("raw", "video", "clips")]
    (release / "U0101/video").mkdir(parents=True)
    make_source(release / "U0101/video/S0100.mp4", 600, "30", "-c:v", "libx264")
    (release / "U0101/video/S0100.json").write_text('{"start": "2022-03-29 14:25:11.030+09:00"}')
    annotate(release, "S0100", [(100, 10), (200, 6), (300, 6)])
    LocalSource(release, "video").fetch("U0101", stages[0], workers=1)
    normalise.run_user("U0101", *stages[:2], NormaliseSettings(), workers=1, clip_format=ODD)
    every = ClipSettings(boundary_clips=9)
    clips.run_user("U0101", stages[1], stages[0], stages[2], every, KEYFRAMES, workers=1, clip_format=ODD)
    assert [one.start for one in read_sequence(stages[2] / "S0100" / clips.OPERATIONS)] == [0, 150, 240]
    made = clips.read_clips(stages[2] / "S0100")
    assert made
    for clip in made:
        assert clip.n_frames == 120
        assert clip.start_frame % 15 == 0
        assert clip.clip_id == clip_id("U0101", "S0100", clip.start_frame, 15)
        inside = {150, 240} & set(range(clip.start_frame + 1, clip.start_frame + 120))
        assert clip.boundaries == tuple(sorted(frame - clip.start_frame for frame in inside))
        assert clip.bounds[-1] == 120
    assert next(clip.clip_id for clip in made if clip.start_frame == 150 - 45) == "U0101_S0100_t0007"


def test_every_folder_says_how_its_clips_came_to_be(world: World):
    (session,) = world.stage("clips").glob("U0108/*/")
    expected = Preparation.of(SETTINGS)
    assert (expected.clip_format.frames, expected.clip_format) == (120, ODD)
    for folder in (session, *(world.stage(name) for name in ("shards", "adapter", "evaluation"))):
        assert read_preparation(folder, "clips") == expected
    sample = ShardReader(world.stage("shards"), "test").sample(0)
    assert (sample.clip.n_frames, sample.fps, len(sample.jpegs), sample.clip.bounds[-1]) == (120, 15, 10, 120)
    video = world.stage("normalized_video") / "U0108" / session.name / VIDEO
    assert np.allclose(np.diff(packet_times(video)), 1 / 15, atol=1e-3)
    with VideoReader(video) as reader:
        assert reader.frames([0]).shape == (1, 448, 448, 3)


def test_the_embedded_model_counts_as_far_as_its_clips_are_long(world: World):
    words = tiny.tokenizer((), 200)
    assert len(words(" ".join(map(str, (125, 126, 200))))["input_ids"]) == 5  # three numbers, two spaces
    assert len(words("201")["input_ids"]) > 1
    assert read_json(world.stage("base_model") / "base.json")["frames"] == 120
    assert len(tiny.tokenizer(())) == len(tiny.tokenizer((), 125))  # the default is what it was


def test_figures_speak_of_the_rate_of_the_data(world: World):
    report = read_json(world.stage("evaluation") / "report.json")
    assert report["run"]["clip_format"] == {"fps": 15, "size": 448, "seconds": 8.0}
    assert read_json(world.stage("evaluation") / "grammar.json")["fps"] == 15
    assert report["whole_sessions"]["timelines"]
    assert "in frames of 67 ms" in (world.stage("evaluation") / "report.html").read_text()
    card = (world.stage("adapter") / "README.md").read_text()
    assert "10 frames of 8 seconds of video in 5 pairs" in " ".join(card.split())
    assert "448×448 pixels count at 15 a second" in " ".join(card.split())


# --- the service ---


@pytest.fixture(scope="module")
def served(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[toy_bento.Served]:
    """The sources' service with the model as it was stored, while settings.toml says something else."""
    home = toy_bento.store(tmp_path_factory.getbasetemp() / "bentoml")
    built = build(world.stage("base_model"), world.stage("adapter"))
    name, version = built.model_tag.split(":")
    stored = home / "models" / name / version
    assert (name, version) == (NAME, bundle_digest(stored))
    assert read_bundle(stored).preparation == Preparation.of(SETTINGS)
    folder = tmp_path_factory.mktemp("served")
    toy_bento.put_model(folder / "home", stored)
    other = folder / "settings.toml"
    other.write_text('[clip_format]\nfps = 30\nseconds = 4\n[keyframes]\nanchors = 2\nmethod = "uniform"\n')
    with toy_bento.serve("service:PackagingService", folder, SETTINGS_FILE=str(other)) as one:
        yield one


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds at 25 frames a second; the picture changes for good after 5 s."""
    path = tmp_path_factory.mktemp("upload") / "clip.mp4"
    with VideoWriter(path, 25, (160, 120)) as writer:
        for number in range(300):
            frame = np.full((120, 160, 3), 60, np.uint8)
            frame[30:90, 40 + number % 7 : 120] = (200, 40, 30) if number < 125 else (30, 40, 200)
            frame[: 60 if number < 125 else 0] //= 2
            writer.write(frame)
    return path


def _post(served: toy_bento.Served, route: str, video: Path) -> httpx.Response:
    response = httpx.post(f"{served.url}{route}", files={"video": (video.name, video.read_bytes())}, timeout=60)
    assert response.status_code == 200, response.text
    return response


def test_an_upload_is_prepared_as_the_data_was_and_told_in_its_frames(served: toy_bento.Served, video: Path):
    assert httpx.get(f"{served.url}/clip-format").json() == {"fps": 15, "size": 448, "seconds": 8.0, "frames": 120}
    answer = _post(served, "/predict", video)
    assert answer.headers["X-Frames-Per-Second"] == "15"
    assert 0 <= answer.json()["temporal_segment"]["start_frame"] < answer.json()["temporal_segment"]["end_frame"] <= 120
    shown = _post(served, "/keyframes", video).json()
    assert (shown["fps"], shown["bounds"][-1], len(shown["pairs"]), len(shown["pictures"])) == (15, 120, 5, 10)
    assert min(abs(bound - 75) for bound in shown["bounds"]) <= 2  # 5 s, at 15 a second


def test_a_timeline_counts_at_the_rate_of_the_data(served: toy_bento.Served, video: Path):
    told = httpx.Response(200, text=_post(served, "/timeline", video).text.splitlines()[-1]).json()
    assert (told["fps"], told["frames"], told["seconds"]) == (15, 180, 12.0)
    last = told["segments"][-1]
    assert (last["end_frame"], last["end_s"]) == (180, 12.0)


# --- what is refused ---


def test_labels_are_not_cut_by_another_clock_than_the_videos(world: World, tmp_path: Path):
    raw, video = (world.stage(name) / "U0101" for name in ("raw_session", "normalized_video"))
    recipe = ClipSettings(), KEYFRAMES, 1
    with pytest.raises(DataError, match=r"video\.mp4: the video has 15 frames a second, 448×448 pixels, and clips are"):
        clips.run_user("U0101", video, raw, tmp_path / "clips", *recipe, clip_format=DEFAULT_FORMAT)
    longer = ODD.model_copy(update={"seconds": 4.0})  # another length of the same videos is fine
    assert clips.run_user("U0101", video, raw, tmp_path / "clips", *recipe, clip_format=longer)[0].ok


def test_clips_of_two_formats_are_not_packed_together(world: World, tmp_path: Path):
    shutil.copytree(world.stage("clips"), tmp_path / "clips")
    raw, video = (world.stage(name) / "U0101" for name in ("raw_session", "normalized_video"))
    other = ODD.model_copy(update={"seconds": 4.0})
    clips.run_user("U0101", video, raw, tmp_path / "clips/U0101", ClipSettings(), KEYFRAMES, 1, clip_format=other)
    with pytest.raises(DataError, match=r"preparation\.json: .*clip_format\.seconds is 8\.0, and 4\.0 here"):
        write_shards(tmp_path / "clips", tmp_path / "shards", ShardSettings())


def test_an_adapter_is_not_scored_on_clips_of_another_format(world: World, tmp_path: Path):
    shutil.copytree(world.stage("adapter"), tmp_path / "adapter")
    Preparation.of(AllSettings()).save(tmp_path / "adapter" / PREPARATION)
    with pytest.raises(DataError, match=r"prepared in another way: clip_format\.fps is 25, and 15 here"):
        evaluate(
            world.stage("base_model"), tmp_path / "adapter", world.stage("shards"), tmp_path / "o", EvaluationSettings()
        )


def test_the_embedded_model_is_not_asked_about_more_frames_than_it_can_count(world: World, tmp_path: Path):
    shutil.copytree(world.stage("base_model"), tmp_path / "base")
    write_json(tmp_path / "base/base.json", {**read_json(tmp_path / "base/base.json"), "frames": 100})
    with pytest.raises(DataError, match="clips have 120 frames, and the embedded base model counts to 100"):
        finetune(tmp_path / "base", world.stage("shards"), tmp_path / "adapter", TUNING, ignore)


def test_the_embedded_model_needs_clips_for_four_stretches(tmp_path: Path):
    short = ClipFormat(fps=5, seconds=3)
    with pytest.raises(SetupError, match="learns on clips of 20 frames and more, these have 15"):
        make_base("tiny", tmp_path / "base", PretrainSettings(), clip_format=short)


# --- pictures of the model ---


def test_what_the_model_sees_of_a_size_is_what_memory_is_counted_for(tmp_path: Path):
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor, Qwen2VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    whole = Qwen2VLProcessor(
        Qwen2VLImageProcessor(), tiny.tokenizer(()), Qwen2VLVideoProcessor(), chat_template=tiny.CHAT_TEMPLATE
    )
    whole.save_pretrained(tmp_path)  # the published size and limits
    sides = {size: frame_side(tmp_path, size) for size in (224, 336, 448, 450)}
    assert sides == {224: 224, 336: 336, 448: 448, 450: 448}  # whole merged patches of 28 pixels
    tokens = {side: vision_tokens(qwen2_vl_2b(), plan_of(FinetuneSettings(), side).step) for side in (336, 448)}
    assert tokens == {336: 576, 448: 1024}
    assert plan_of(FinetuneSettings()).step.image == DEFAULT_FORMAT.size


# --- the one source ---

# what these numbers are where they are no clip format's
ELSEWHERE = {
    "pipelines/common/clip_format.py",  # the default itself
    "pipelines/common/media.py",  # frames between key frames of films that are drawn
    "pipelines/common/posteriors.py",  # steps of a temperature
    "pipelines/common/vlm/published.py",  # the picture size of a published model
    "pipelines/openpack/choreography.py",  # pixels of a drawing
    "pipelines/openpack/draw.py",
}


def test_nothing_else_in_the_product_knows_rate_length_or_size():
    root = Path(__file__).parents[1]
    sources = [
        root / "service.py",
        *(path for part in ("pipelines", "assets", "resources") for path in (root / part).rglob("*.py")),
    ]
    found = set()
    for path in sources:
        numbers = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        if numbers & {25, 125, 336}:
            found.add(str(path.relative_to(root)))
    assert found == ELSEWHERE
    for script in (root / "pipelines/openpack/page").glob("*.js"):
        assert not re.search(r"\b(25|125|336)\b", script.read_text()), script
