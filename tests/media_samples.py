"""Videos and frame folders that several test files make: each frame's number can be read from its pixels."""

import struct
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from pipelines.common.ffmpeg_process import ffmpeg_exe

BITS = 8  # a frame's number as black and white columns, wide enough to survive scaling and compression
START = datetime(2022, 3, 29, 14, 25, 11, 30_000)
START_MS = 1_648_531_511_030  # the same in Japan


def numbered(number: int, size: int = 112) -> np.ndarray:
    """A frame whose columns spell its number."""
    bits = [number >> bit & 1 for bit in range(BITS)]
    columns = np.repeat(np.array(bits, dtype=np.uint8) * 255, size // BITS)
    return np.repeat(np.broadcast_to(columns, (size, size))[..., None], 3, axis=2)


def read_numbers(frames: np.ndarray) -> list[int]:
    """What `numbered` drew, read from frames of any size."""
    side = frames.shape[2] // BITS
    middles = frames[:, frames.shape[1] // 2, side // 2 :: side].mean(-1) > 127
    return (middles @ (1 << np.arange(BITS))).tolist()


def run_ffmpeg(*arguments: str | Path, data: bytes = b"") -> None:
    command = [ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, input=data, check=True)


def make_source(path: Path, n: int, rate: str, *options: str) -> Path:
    """A numbered video of n frames at `rate`, coded as `options` say."""
    raw = b"".join(numbered(i).tobytes() for i in range(n))
    pipe = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "112x112", "-r", rate, "-i", "-")
    run_ffmpeg(*pipe, "-pix_fmt", "yuv420p", *options, path, data=raw)
    return path


def frame_path(folder: Path, ms: int, suffix: str) -> Path:
    time = START + timedelta(milliseconds=ms)
    path = folder / time.strftime("%Y/%m/%d/%H/%M") / f"{time:%Y%m%d_%H%M%S}_{time.microsecond // 1000:03d}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def gif_bomb(side: int) -> bytes:
    """A picture of side×side pixels in a few dozen bytes: what it unpacks to is for the decoder to find out."""
    picture = struct.pack("<HHBBB", side, side, 0xF0, 0, 0) + bytes((0, 0, 0, 255, 255, 255))
    block = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + picture + 2 * block + b";"
