"""`loader_vs_jpegs`: the loader over shards against reading the same frames as single JPEG files, in the same order."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.openpack import clips, normalise
from pipelines.openpack.clips import frame_file
from pipelines.openpack.loader import ShardReader, order
from pipelines.openpack.settings import AllSettings, SimulationSettings
from pipelines.openpack.shards import write_shards
from pipelines.openpack.sources import SimulatedSource

USER = "U0101"
EPOCHS, ROUNDS = 3, 3


def run() -> dict[str, Any]:
    """Samples a second of both sides, best of three, one thread, from the page cache: what a sample costs beside disk.

    Ours also checks and parses the clip and its answer; the other side only reads the bytes of eight frames.
    """
    with tempfile.TemporaryDirectory() as folder:
        reader = _shards(Path(folder))
        places = [_frames(Path(folder) / "clips", reader, index) for index in range(len(reader))]
        ours = _rate(reader.sample, len(reader))
        other = _rate(lambda index: [path.read_bytes() for path in places[index]], len(reader))
    return {"ours": ours, "other": other, "unit": "samples/s", "ratio": round(ours / other, 2)}


def _shards(root: Path) -> ShardReader:
    settings = AllSettings(simulation=SimulationSettings(sessions=1, boxes=2))
    raw, video, cut = (root / stage / USER for stage in ("raw_session", "normalized_video", "clips"))
    SimulatedSource(settings.simulation).fetch(USER, raw)
    normalise.run_user(USER, raw, video, settings.normalise)
    clips.run_user(USER, video, raw, cut, settings.clips, settings.keyframes)
    write_shards(root / "clips", root / "shards", settings.shards)
    return ShardReader(root / "shards", "train")


def _frames(root: Path, reader: ShardReader, index: int) -> list[Path]:
    clip = reader.sample(index).clip
    folder = root / clip.user / clip.session
    return [frame_file(folder, clip.start_frame + frame) for frame in clip.keyframes.frames]


def _rate(read: Callable[[int], object], count: int) -> float:
    numbers = [int(number) for epoch in range(EPOCHS) for number in order(count, 7, epoch)]
    best = min(_seconds(read, numbers) for _ in range(ROUNDS))
    return round(len(numbers) / best, 1)


def _seconds(read: Callable[[int], object], numbers: list[int]) -> float:
    started = time.perf_counter()
    for number in numbers:
        read(number)
    return time.perf_counter() - started
