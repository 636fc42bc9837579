"""Memory does not grow with the length of a video."""

import subprocess
import sys
from pathlib import Path

import pytest
from media_samples import run_ffmpeg

NORMALISE = """
from pathlib import Path
from pipelines.common.media import packet_times, transcode
from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.openpack.settings import NormaliseSettings
encoding = {{**NormaliseSettings().encoding(DEFAULT_FORMAT), "size": DEFAULT_FORMAT.size}}
transcode(Path({source!r}), Path({out!r}), packet_times(Path({source!r})), tolerance_s=0.001, **encoding)
"""
STREAM = """
from pathlib import Path
from pipelines.openpack.preparation import Preparation
from pipelines.openpack.question import normalised
from pipelines.openpack.settings import AllSettings
with normalised(Path({source!r}), 10**6, Preparation.of(AllSettings())) as video:
    assert sum(1 for _ in video.pictures) == len(video.repeated)
"""
READ = """
from pathlib import Path
from pipelines.common.media import VideoReader
with VideoReader(Path({source!r})) as reader:
    assert sum(len(batch) for batch in reader.batches(64)) == len(reader)
"""
PEAK = """
import resource
print(sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


def peak_mb(code: str, source: Path, tmp_path: Path) -> float:
    """Of a process of its own and its ffmpeg, in MB."""
    text = code.format(source=str(source), out=str(tmp_path / "out.mp4")) + PEAK
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


@pytest.mark.parametrize("code", [NORMALISE, STREAM, READ], ids=["normalised", "streamed", "read"])
def test_ten_times_the_length_needs_no_more_memory(code: str, tmp_path: Path):
    short, long = tmp_path / "short.mp4", tmp_path / "long.mp4"
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=size=336x336:rate=25:duration=24", "-c:v", "libx264", "-g", "25", short)
    run_ffmpeg("-stream_loop", "9", "-i", short, "-c", "copy", long)
    # 24 s are past the point up to which decord's frames gather; ten times as many frames are 2 GB
    assert peak_mb(code, long, tmp_path) < peak_mb(code, short, tmp_path) + 60
