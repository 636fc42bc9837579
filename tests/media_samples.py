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


VARIABLE = "settb=1/1000,setpts='70*N+30*mod(N,3)+400*gte(N,40)'"  # ms: steps of 100, 100, 10, and one gap
TICKS = ["-fps_mode", "passthrough", "-enc_time_base", "1:1000"]
SOURCES = {
    "15 fps mp4 with B frames": ("a.mp4", 75, "15", ["-c:v", "libx264"]),
    "25 fps mkv": ("a.mkv", 100, "25", ["-c:v", "libx264", "-preset", "ultrafast"]),
    "29.97 fps mov": ("a.mov", 120, "30000/1001", ["-c:v", "libx264"]),
    "29.97 fps mkv, times in whole ms": ("a.mkv", 120, "30000/1001", ["-c:v", "libx264"]),
    "30 fps avi, no presentation times": ("a.avi", 120, "30", ["-c:v", "mpeg4", "-bf", "2", "-q:v", "3"]),
    "30 fps bare h264": ("a.h264", 120, "30", ["-c:v", "libx264"]),
    "30 fps ts that starts at 100 s": ("a.ts", 90, "30", ["-c:v", "libx264", "-output_ts_offset", "100"]),
    "60 fps webm": ("a.webm", 180, "60", ["-c:v", "libvpx", "-deadline", "realtime", "-b:v", "4M"]),
    "variable rate mp4": ("a.mp4", 80, "25", ["-vf", VARIABLE, *TICKS, "-c:v", "libx264"]),
    "variable rate mkv": ("a.mkv", 80, "25", ["-vf", VARIABLE, *TICKS, "-c:v", "libx264"]),
}


def damage(whole: Path, kind: str) -> Path:
    """A copy of a file that is `cut`, `overwritten`, `empty` or `text`."""
    data = bytearray(whole.read_bytes())
    bad = whole.with_name(f"{kind.replace(' ', '_')}{whole.suffix}")
    if kind == "cut":
        data = data[: len(data) * 2 // 3]
    elif kind == "overwritten":
        middle = len(data) // 2
        data[middle : middle + 400] = bytes(400)
    elif kind == "empty":
        data = bytearray()
    elif kind == "text":
        data = bytearray(b"this is no video\n" * 50)
    bad.write_bytes(data)
    return bad


FORMATS = ["yuv420p", "yuvj420p", "yuv444p10le", "rgb24", "bgra", "pal8", "gray16be", "yuv410p"]


def halves(path: Path, pixels: str) -> Path:
    """Five pictures of 125×75 pixels in a pixel format, red on the left and blue on the right."""
    drawn = "color=0xc03020:s=63x75:r=25:d=0.2[l];color=0x2040b0:s=62x75:r=25:d=0.2[r];[l][r]hstack"
    codec = "mjpeg" if pixels == "yuvj420p" else "rawvideo"  # raw video forgets that it uses the full range
    run_ffmpeg("-filter_complex", drawn, "-c:v", codec, "-pix_fmt", pixels, path)
    return path


def check_halves(picture: np.ndarray, pixels: str) -> None:
    """Whether a picture of 112×112 pixels has the colours of `halves`."""
    left, right = ((0xC0, 0x30, 0x20), (0x20, 0x40, 0xB0)) if pixels != "gray16be" else ((86,) * 3, (67,) * 3)
    for half, colour in ((picture[:, :45], left), (picture[:, -45:], right)):
        assert np.abs(half.mean((0, 1)) - colour).max() <= 8  # of the mean, as a palette is dithered


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
