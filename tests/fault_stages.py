"""The stages at toy size as functions of one folder, so that other processes can be told to run them."""

from pathlib import Path

from pipelines.common.keyframes import KeyframeSettings
from pipelines.openpack import clips, normalise
from pipelines.openpack.settings import ClipSettings, NormaliseSettings, ShardSettings, SimulationSettings
from pipelines.openpack.shards import write_shards
from pipelines.openpack.sources import SimulatedSource

USER = "U0101"
SIMULATION = SimulationSettings(sessions=2, boxes=1, duration_scale=0.2, width=160, height=120)
NORMALISE = NormaliseSettings(size=112)


def raw_session(root: Path, workers: int = 1) -> None:
    SimulatedSource(SIMULATION).fetch(USER, root / "raw_session" / USER, workers=workers)


def normalized_video(root: Path, workers: int = 1) -> None:
    raw, out = root / "raw_session" / USER, root / "normalized_video" / USER
    normalise.run_user(USER, raw, out, NORMALISE, workers=workers)


def cut_clips(root: Path, workers: int = 1) -> None:
    before = root / "normalized_video" / USER, root / "raw_session" / USER
    clips.run_user(USER, *before, root / "clips" / USER, ClipSettings(), KeyframeSettings(), workers=workers)


def pack(root: Path, settings: ShardSettings | None = None) -> None:
    write_shards(root / "clips", root / "shards", settings or ShardSettings())


SESSION_STAGES = {"raw_session": raw_session, "normalized_video": normalized_video, "clips": cut_clips}
