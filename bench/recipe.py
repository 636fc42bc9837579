"""`shards_vs_brief_recipe`: raw sessions to shards by the stages, against the brief's recipe taken word for word.

The recipe: ffmpeg brings each session to 25 fps with x264's defaults, ffmpeg writes every frame as a JPEG, then the
keyframes of the same clips are picked from these files and packed. Both sides work on two sessions at a time, and
the recipe is given our choice of clips, our measure of pictures and our choice of keyframes. Word for word a clip's 125
pictures are read for that clip; `shards_vs_shared_recipe` spares the recipe what overlapping clips have in common.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np
from PIL import Image

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.ffmpeg_process import ffmpeg_exe
from pipelines.common.keyframes import KeyframeSettings, Meter, choose
from pipelines.openpack import clip_plan, clips, normalise, release
from pipelines.openpack.annotations import read_operations
from pipelines.openpack.settings import ClipSettings, NormaliseSettings, ShardSettings, SimulationSettings
from pipelines.openpack.shards import write_shards
from pipelines.openpack.simulate import write_session
from pipelines.openpack.sources import LocalSource

USER, SESSIONS, WORKERS = "U0101", ("S0100", "S0200"), 2
SIZE, FPS, CLIP_FRAMES = DEFAULT_FORMAT.size, DEFAULT_FORMAT.fps, DEFAULT_FORMAT.frames


def word_for_word() -> dict[str, Any]:
    return _run(shared=False)


def shared() -> dict[str, Any]:
    return _run(shared=True)


def _run(shared: bool) -> dict[str, Any]:
    """Seconds of both sides, their processes started; ValueError unless both make the same clips."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        simulation = SimulationSettings(sessions=len(SESSIONS), boxes=2)
        for session in SESSIONS:
            write_session(root / "release", USER, session, simulation)
        _ours(root, "first")  # starts the processes that work on sessions; in a day's work that is nothing
        ours, our_clips = _ours(root, "again")
        other, their_clips = _recipe(root, shared)
    if our_clips != their_clips:
        raise ValueError(f"{len(our_clips)} clips against {len(their_clips)}: the two sides did not do the same")
    return {"ours": round(ours, 2), "other": round(other, 2), "unit": "s", "ratio": round(other / ours, 2)}


def _ours(release_root: Path, out: str) -> tuple[float, set[str]]:
    root, started = release_root / out, time.perf_counter()
    raw, video, cut = (root / stage / USER for stage in ("raw_session", "normalized_video", "clips"))
    LocalSource(release_root / "release", "video").fetch(USER, raw, workers=WORKERS)
    normalise.run_user(USER, raw, video, NormaliseSettings(), workers=WORKERS)
    clips.run_user(USER, video, raw, cut, ClipSettings(), KeyframeSettings(), workers=WORKERS)
    manifest = write_shards(root / "clips", root / "shards", ShardSettings())
    return time.perf_counter() - started, {sample["key"] for sample in manifest["splits"]["train"]["samples"]}


def _recipe(root: Path, shared: bool) -> tuple[float, set[str]]:
    from webdataset.writer import TarWriter

    started = time.perf_counter()
    with ProcessPoolExecutor(WORKERS) as pool:
        work = pool.map(partial(_recipe_session, root, shared), SESSIONS)
        picked = [row for rows in work for row in rows]
    with (root / "recipe.tar").open("wb") as stream, TarWriter(stream, encoder=False) as writer:
        for key, target, files in picked:
            frames = {f"{shown}.jpg": file.read_bytes() for shown, file in enumerate(files)}
            writer.write({"__key__": key, **frames, "target.json": target})
    return time.perf_counter() - started, {key for key, *_ in picked}


def _recipe_session(root: Path, shared: bool, session: str) -> list[tuple[str, bytes, list[Path]]]:
    """Key, target and frame files of a session's clips."""
    folder = root / "recipe" / session
    folder.mkdir(parents=True)
    source = ffmpeg.input(str(release.stream_place(root / "release", USER, session, "video")))
    video = source.filter("fps", FPS).filter("scale", SIZE, SIZE).output(str(folder / "video.mp4"), loglevel="error")
    video.run(cmd=ffmpeg_exe())
    frames = ffmpeg.input(str(folder / "video.mp4")).output(str(folder / "%06d.jpg"), loglevel="error", **{"q:v": 2})
    frames.run(cmd=ffmpeg_exe())
    files = sorted(folder.glob("*.jpg"))
    whole = _measure(files) if shared else None
    timeline = read_operations(release.annotation_file(root / "release", USER, session))
    start = release.read_video_start(release.stream_place(root / "release", USER, session, "video"))
    made = []
    for clip in clip_plan.plan(timeline, start, len(files), ClipSettings(), DEFAULT_FORMAT, training=True):
        start_frame, end = clip.start_frame, clip.start_frame + CLIP_FRAMES
        signal = whole.signal(start_frame, end) if whole else _measure(files[start_frame:end]).signal(0, CLIP_FRAMES)
        shown = choose(signal, KeyframeSettings()).frames
        key = clip_plan.clip_id(USER, session, clip.start_frame, FPS)
        target = clip.target.model_dump_json().encode()
        made.append((key, target, [files[clip.start_frame + frame] for frame in shown]))
    return made


def _measure(files: list[Path]) -> Meter:
    meter = Meter()
    for file in files:
        meter.add(np.asarray(Image.open(file)))
    return meter
