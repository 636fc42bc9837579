"""`normalise_vs_decode`: the normalise stage against ffmpeg alone decoding the same file to nothing."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from pipelines.common.ffmpeg_process import ffmpeg_exe
from pipelines.openpack.normalise import normalise_upload
from pipelines.openpack.settings import NormaliseSettings, SimulationSettings
from pipelines.openpack.simulate import write_session

ROUNDS = 3


def run() -> dict[str, Any]:
    """Seconds of both sides, best of three, on one drawn session of 640×480 at 15 fps; ratio other / ours."""
    with tempfile.TemporaryDirectory() as folder:
        write_session(Path(folder), "U0101", "S0100", SimulationSettings(boxes=1))
        video = Path(folder) / "U0101" / "video" / "S0100.mp4"
        ours = min(_normalise(video, Path(folder) / "out.mp4") for _ in range(ROUNDS))
        other = min(_decode(video) for _ in range(ROUNDS))
    return {"ours": round(ours, 3), "other": round(other, 3), "unit": "s", "ratio": round(other / ours, 2)}


def _normalise(video: Path, out: Path) -> float:
    started = time.perf_counter()
    normalise_upload(video, out, NormaliseSettings(), max_frames=10**6)
    return time.perf_counter() - started


def _decode(video: Path) -> float:
    started = time.perf_counter()
    command = [ffmpeg_exe(), "-v", "error", "-i", str(video), "-f", "null", "-"]
    subprocess.run(command, check=True)
    return time.perf_counter() - started
