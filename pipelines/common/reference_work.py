"""Fixed work by which this machine's speed is told: matrix products as trainings take, and video as sessions take.

Belongs here: the work and its seconds. What else takes how often as long is known to whoever asks. About a second in
all; in as many threads at once as the stages keep cores busy, since two cores may share what one has alone.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from pipelines.common.ffmpeg_process import ffmpeg_exe

Kind = Literal["products", "video"]
WORKERS = 2  # as the demo's stages have processes
ROUNDS = 2
ROWS, HIDDEN, INNER = 1536, 128, 512  # a step's tokens, and the embedded model's widths
PRODUCTS = 50  # pairs of products, 20 GFLOP in all
FRAMES = 75  # of 640×480, as sessions are drawn


@dataclass(frozen=True)
class Reference:
    """Seconds that each kind of reference work took here, in the best of a few rounds."""

    products: float
    video: float

    def seconds(self, kind: Kind) -> float:
        return self.products if kind == "products" else self.video


def measure(workers: int = WORKERS) -> Reference:
    """The reference work, done by `workers` at once."""
    from threadpoolctl import threadpool_limits

    import_module("numpy")  # only what is loaded can be limited
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool, threadpool_limits(1):
        videos = [Path(folder) / f"{number}.mp4" for number in range(workers)]
        products = [_products for _ in range(workers)]
        return Reference(_best(pool, products), _best(pool, [lambda video=video: _video(video) for video in videos]))


def _best(pool: ThreadPoolExecutor, works: list[Callable[[], None]]) -> float:
    return min(_together(pool, works) for _ in range(ROUNDS))


def _together(pool: ThreadPoolExecutor, works: list[Callable[[], None]]) -> float:
    started = time.perf_counter()
    for done in [pool.submit(work) for work in works]:
        done.result()
    return time.perf_counter() - started


def _products() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    wide, back = (rng.standard_normal(shape, np.float32) for shape in ((HIDDEN, INNER), (INNER, HIDDEN)))
    rows = rng.standard_normal((ROWS, HIDDEN), np.float32)
    for _ in range(PRODUCTS):  # numpy lets other threads go on meanwhile
        rows = np.tanh(rows @ wide @ back)


def _video(path: Path) -> None:
    """A drawn video is written as the stages write theirs, and read again."""
    source = ["-f", "lavfi", "-i", "testsrc2=size=640x480:rate=25", "-frames:v", str(FRAMES)]
    encoding = ["-c:v", "libx264", "-preset", "ultrafast", "-threads", "1", "-y", str(path)]
    run = [ffmpeg_exe(), "-v", "error"]
    subprocess.run([*run, *source, *encoding], check=True, stdin=subprocess.DEVNULL)
    reading = ["-threads", "1", "-i", str(path), "-vf", "scale=336:336", "-f", "null", "-"]
    subprocess.run([*run, *reading], check=True, stdin=subprocess.DEVNULL)
