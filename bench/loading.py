"""`loader_vs_jpegs` and `loader_vs_raw_video`: samples a second of the loader over shards, against two plainer ways."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.media import VideoReader
from pipelines.openpack import clips, normalise
from pipelines.openpack.clips import frame_file
from pipelines.openpack.loader import Sample, ShardReader, order
from pipelines.openpack.predict import sample_frames
from pipelines.openpack.settings import AllSettings, SimulationSettings
from pipelines.openpack.shards import write_shards
from pipelines.openpack.sources import SimulatedSource

USER, SESSION = "U0101", "S0100"
EPOCHS, ROUNDS = 3, 3


def vs_jpegs() -> dict[str, Any]:
    """Against reading the same eight frames as single files, in the same random order; no side decodes them.

    Best of three, one thread, from the page cache: what a sample costs beside the disk. Ours also checks and parses
    the clip and its answer.
    """
    with _session(SimulationSettings(sessions=1, boxes=2)) as (root, reader):
        places = [_files(root / "clips", sample) for sample in map(reader.sample, range(len(reader)))]
        numbers = [int(number) for epoch in range(EPOCHS) for number in order(len(reader), 7, epoch)]
        ours = _rate(reader.sample, numbers)
        other = _rate(lambda index: [path.read_bytes() for path in places[index]], numbers)
    return {"ours": ours, "other": other, "unit": "samples/s", "ratio": round(ours / other, 2)}


def vs_raw_video() -> dict[str, Any]:
    """Against decoding the same eight frames from the raw video of 1280×720 at 15 fps; both end with 336×336 pixels."""
    with _session(SimulationSettings(sessions=1, boxes=1, duration_scale=0.25, width=1280, height=720)) as (
        root,
        reader,
    ):
        video = root / "raw_session" / USER / SESSION / USER / "video" / f"{SESSION}.mp4"
        source = normalise.read_frames(root / "normalized_video" / USER / SESSION)["source_frame"].to_numpy()
        samples = [reader.sample(index) for index in range(len(reader))]
        wanted = [source[[one.clip.start_frame + frame for frame in one.clip.keyframes.frames]] for one in samples]
        numbers = [int(number) for number in order(len(reader), 7, 0)]
        ours = _rate(lambda index: sample_frames(reader.sample(index)), numbers)
        other = _rate(lambda index: _decode(video, wanted[index]), numbers[:20])
    return {"ours": ours, "other": other, "unit": "samples/s", "ratio": round(ours / other, 2)}


@contextmanager
def _session(simulation: SimulationSettings) -> Iterator[tuple[Path, ShardReader]]:
    """The stages' folders of one drawn session, and a reader of its shards."""
    settings = AllSettings()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        raw, video, cut = (root / stage / USER for stage in ("raw_session", "normalized_video", "clips"))
        SimulatedSource(simulation).fetch(USER, raw)
        normalise.run_user(USER, raw, video, settings.normalise)
        clips.run_user(USER, video, raw, cut, settings.clips, settings.keyframes)
        write_shards(root / "clips", root / "shards", settings.shards)
        yield root, ShardReader(root / "shards", "train")


def _files(root: Path, sample: Sample) -> list[Path]:
    clip = sample.clip
    folder = root / clip.user / clip.session
    return [frame_file(folder, clip.start_frame + frame) for frame in clip.keyframes.frames]


def _decode(video: Path, numbers: np.ndarray) -> np.ndarray:
    with VideoReader(video) as reader:
        frames = reader.frames(numbers)
    size = DEFAULT_FORMAT.size
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BOX)) for one in frames])


def _rate(read: Callable[[int], object], numbers: list[int]) -> float:
    best = min(_seconds(read, numbers) for _ in range(ROUNDS))
    return round(len(numbers) / best, 1)


def _seconds(read: Callable[[int], object], numbers: list[int]) -> float:
    started = time.perf_counter()
    for number in numbers:
        read(number)
    return time.perf_counter() - started
