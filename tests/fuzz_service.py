"""Broken media and odd requests for the service: `python -m tests.fuzz_service --inputs 10000`.

Every input must get an answer or a refusal with a sentence, never a 5xx, and leave neither files nor processes. The
same inputs come from the same seed. `tests/test_service_fuzz.py` runs a few hundred of them.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import httpx
import psutil

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from kills import wait_until
from media_samples import gif_bomb, make_source, run_ffmpeg
from PIL import Image
from toy_bento import Served

ROUTES = ("/predict", "/predict", "/predict", "/keyframes", "/timeline")  # by how often
FINE = {200, 400}
CLIENTS = 3


def seeds(folder: Path) -> dict[str, bytes]:
    """Files to begin with: good videos of many forms, and what is no video at all."""
    clip = make_source(folder / "clip.mp4", 60, "25")
    made = {
        "mkv": ("clip.mkv", "-c:v", "libx264"),
        "avi": ("clip.avi", "-c:v", "mpeg4"),
        "webm": ("clip.webm", "-c:v", "libvpx", "-deadline", "realtime"),
        "ts": ("clip.ts", "-c:v", "mpeg2video"),
        "gif": ("clip.gif",),
        "rgb": ("rgb.mkv", "-c:v", "ffv1", "-pix_fmt", "bgr0"),
        "yuv444": ("444.mp4", "-c:v", "libx264", "-pix_fmt", "yuv444p"),
        "ten bits": ("ten.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p10le"),
        "grey": ("grey.avi", "-c:v", "ffv1", "-pix_fmt", "gray"),
        "odd size": ("odd.avi", "-c:v", "mjpeg", "-vf", "scale=111:57"),
        "fragments": ("fragments.mp4", "-c:v", "libx264", "-movflags", "frag_keyframe+empty_moov"),
        "variable rate": ("vfr.mkv", "-c:v", "libx264", "-vf", "select='mod(n,3)'", "-fps_mode", "vfr"),
    }
    for name, *options in made.values():
        run_ffmpeg("-i", clip, *options, folder / name)
    run_ffmpeg("-display_rotation", "90", "-i", clip, "-c", "copy", folder / "rotated.mp4")
    tone = ("-f", "lavfi", "-i", "sine=duration=3")
    run_ffmpeg(*tone, folder / "sound.wav")
    run_ffmpeg(*tone, "-c:a", "aac", folder / "sound.m4a")
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 90)).save(picture, "JPEG")
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    huge = b"\xff\xff\xff\xf0moov" + bytes(2000)  # a box that says it has four gigabytes
    header = clip.read_bytes()[:32]
    others = {"empty.mp4": b"", "notes.txt": b"Put the box on the bench.", "picture.jpg": picture.getvalue()}
    others |= {"bomb.gif": gif_bomb(12_000), "huge.mp4": header + huge, "only-header.mp4": header}
    wrong = {"really.avi": files["clip.mp4"], "really.mp4": files["clip.mkv"], "playlist.m3u8": _PLAYLIST}
    return {**files, **others, **wrong}


_PLAYLIST = b"#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


def inputs(begin: dict[str, bytes], seed: int = 0) -> Iterator[tuple[str, str, bytes]]:
    """Route, name and content without end: the seeds as they are on each route, then what becomes of them."""
    for route in dict.fromkeys(ROUTES):
        for name, data in begin.items():
            yield route, name, data
    rng = random.Random(seed)
    names = sorted(begin)
    while True:
        name = rng.choice(names)
        data = begin[name]
        for _ in range(rng.randint(1, 3)):
            data = rng.choice(_CHANGES)(bytearray(data), rng)
        yield rng.choice(ROUTES), name, bytes(data)


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randint(0, len(data))]


def _behead(data: bytearray, rng: random.Random) -> bytearray:
    return data[rng.randint(0, min(len(data), 64)) :]


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    """A few bytes, mostly where headers are."""
    for _ in range(rng.randint(1, 20) if data else 0):
        end = len(data) if rng.random() < 0.5 else min(len(data), 600)
        data[rng.randrange(end)] = rng.randrange(256)
    return data


def _blank(data: bytearray, rng: random.Random) -> bytearray:
    if data:
        start = rng.randrange(len(data))
        stretch = min(rng.randint(1, 4000), len(data) - start)
        data[start : start + stretch] = bytes([rng.choice((0, 255))]) * stretch
    return data


def _insert(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randint(0, len(data))
    return data[:start] + rng.randbytes(rng.randint(1, 500)) + data[start:]


def _twice(data: bytearray, rng: random.Random) -> bytearray:
    return data + data[rng.randint(0, len(data)) :]


_CHANGES: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (_cut, _behead, _flip, _blank, _insert, _twice)


@dataclass
class Report:
    """What came of the inputs: how many of each route and status, and those that should not be."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")  # seconds, which input


def fuzz(served: Served, made: Iterator[tuple[str, str, bytes]], report: Report) -> None:
    """Sends all of `made`, a few at a time."""
    with httpx.Client(base_url=served.url, timeout=120) as client, ThreadPoolExecutor(CLIENTS) as pool:
        while batch := list(islice(made, 10 * CLIENTS)):
            for _ in pool.map(lambda one: _send(client, served, report, *one), batch):
                pass


def _send(client: httpx.Client, served: Served, report: Report, route: str, name: str, data: bytes) -> None:
    began = time.monotonic()
    while (response := client.post(route, files={"video": (name, data)})).status_code == 429:
        time.sleep(0.05)
    report.answers[route, response.status_code] += 1
    report.slowest = max(report.slowest, (time.monotonic() - began, f"{route} {name}, {len(data)} bytes"))
    said = response.text
    if response.status_code not in FINE or str(served.temporary) in said or "/proc/" in said:
        report.broken.append(f"{route} {name} ({len(data)} bytes): {response.status_code} {said[:300]}")
    elif response.status_code == 400 and list(response.json()) != ["error"]:
        report.broken.append(f"{route} {name}: {said[:300]}")


def left(served: Served) -> list[str]:
    """Files of uploads that stayed, and programs that a decoder started and that still run."""
    files = [str(path) for path in served.temporary.glob("packaging-*/*")]
    programs = [one for one in served.process.children(recursive=True) if "ffmpeg" in one.name()]
    return files + [str(one) for one in programs if one.status() != psutil.STATUS_ZOMBIE]


def memory_mb(served: Served) -> dict[str, int]:
    """MB of resident memory: of the process that answers, and of all below it together (shared pages count again)."""
    worker = next(one for one in served.process.children() if "_bentoml_impl.worker.service" in one.cmdline())
    below = sum(one.memory_info().rss for one in worker.children(recursive=True))
    return {"service": worker.memory_info().rss // 2**20, "its processes": below // 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description="Broken media for a served toy model; ends with 1 if any came through")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import served_toy

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "media").mkdir()
        begin = seeds(folder / "media")
        with served_toy.serving(folder) as served:
            ok = _soak(served, islice(inputs(begin, arguments.seed), arguments.inputs), arguments.seconds)
    sys.exit(not ok)


def _soak(served: Served, made: Iterator[tuple[str, str, bytes]], seconds: float) -> bool:
    report, began = Report(), time.monotonic()
    fuzz(served, islice(made, 100), report)  # what is made once is made
    start = memory_mb(served)
    while time.monotonic() - began < seconds and (batch := list(islice(made, 100))):
        fuzz(served, iter(batch), report)
        print(sum(report.answers.values()), "inputs", memory_mb(served), flush=True)
    wait_until(lambda: not left(served))
    rows = [f"{route} {status}: {count}" for (route, status), count in sorted(report.answers.items())]
    print(f"{sum(report.answers.values())} inputs in {time.monotonic() - began:.0f} s", *rows, sep="\n  ")
    print(
        f"slowest {report.slowest[0]:.1f} s: {report.slowest[1]}\nMB after the first 100",
        start,
        "and at the end",
        memory_mb(served),
    )
    print(len(report.broken), "that should not be", *report.broken, sep="\n  ")
    return not report.broken


if __name__ == "__main__":
    main()
