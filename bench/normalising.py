"""`normalise_vs_decode`: the normalise stage against ffmpeg alone decoding the same file to nothing."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.ffmpeg_process import ffmpeg_exe
from pipelines.common.media import packet_times, transcode
from pipelines.openpack.settings import NormaliseSettings, SimulationSettings
from pipelines.openpack.simulate import write_session

ROUNDS = 3
TIMES = 8  # the drawn video one after the other: minutes, beside which starting ffmpeg is nothing


def run() -> dict[str, Any]:
    """Seconds of both sides, best of three, on drawn video of 1280×720 at 15 fps, as OpenPack's camera gives."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = SimulationSettings(boxes=1, duration_scale=0.25, width=1280, height=720)
        write_session(Path(folder), "U0101", "S0100", drawn)
        short, video = Path(folder) / "U0101" / "video" / "S0100.mp4", Path(folder) / "long.mp4"
        looped = ["-stream_loop", str(TIMES - 1), "-i", str(short), "-c", "copy", str(video)]
        subprocess.run([ffmpeg_exe(), "-v", "error", *looped], check=True)
        ours = min(_normalise(video, Path(folder) / "out.mp4") for _ in range(ROUNDS))
        other = min(_decode(video) for _ in range(ROUNDS))
    return {"ours": round(ours, 3), "other": round(other, 3), "unit": "s", "ratio": round(other / ours, 2)}


def _normalise(video: Path, out: Path) -> float:
    """With the stage's settings, and its look at the times before and after."""
    out.unlink(missing_ok=True)
    started = time.perf_counter()
    encoding = {**NormaliseSettings().encoding(DEFAULT_FORMAT), "size": DEFAULT_FORMAT.size}
    transcode(video, out, packet_times(video), tolerance_s=0.001, **encoding)
    return time.perf_counter() - started


def _decode(video: Path) -> float:
    started = time.perf_counter()
    command = [ffmpeg_exe(), "-v", "error", "-i", str(video), "-f", "null", "-"]
    subprocess.run(command, check=True)
    return time.perf_counter() - started
