"""The stages at toy size as functions of one folder, so that other processes can be told to run them."""

from pathlib import Path

from pipelines.common.clip_format import ClipFormat
from pipelines.common.keyframes import KeyframeSettings
from pipelines.openpack import clips, normalise
from pipelines.openpack.settings import ClipSettings, NormaliseSettings, ShardSettings, SimulationSettings
from pipelines.openpack.shards import write_shards
from pipelines.openpack.sources import SimulatedSource

USER = "U0101"
SIMULATION = SimulationSettings(sessions=2, boxes=1, duration_scale=0.2, width=160, height=120)
CLIPS = ClipFormat(size=112)


def raw_session(root: Path, workers: int = 1) -> None:
    SimulatedSource(SIMULATION).fetch(USER, root / "raw_session" / USER, workers=workers)


def normalized_video(root: Path, workers: int = 1) -> None:
    raw, out = root / "raw_session" / USER, root / "normalized_video" / USER
    normalise.run_user(USER, raw, out, NormaliseSettings(), workers=workers, clip_format=CLIPS)


def cut_clips(root: Path, workers: int = 1) -> None:
    before = root / "normalized_video" / USER, root / "raw_session" / USER
    recipe = ClipSettings(), KeyframeSettings()
    clips.run_user(USER, *before, root / "clips" / USER, *recipe, workers=workers, clip_format=CLIPS)


def pack(root: Path, settings: ShardSettings | None = None) -> None:
    write_shards(root / "clips", root / "shards", settings or ShardSettings())


SESSION_STAGES = {"raw_session": raw_session, "normalized_video": normalized_video, "clips": cut_clips}
