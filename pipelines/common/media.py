"""Videos in and out.

Belongs here: reading a video's frame times, bringing it to one rate and size, writing frames as H.264, reading them
back; all that is asked of ffmpeg or of a decoder. How ffmpeg is run (`ffmpeg_process`), which frame is shown when
(`frame_times`), what a frame shows (a camera's picture, a depth map, a skeleton) and what a session is do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import ffmpeg
import numpy as np

from pipelines.common.errors import DataError
from pipelines.common.ffmpeg_process import FfmpegProcess, file_input
from pipelines.common.frame_times import check_shown, hold_mapping

_NO_TIME = -(2**63)  # ffmpeg's mark of a packet without a presentation time
_DISCARD = 4  # flag of a packet that the container itself keeps from view (an edit list cuts it off)
_AHEAD = 256  # frames after which decord's are dropped: 340 kB each at the usual size
MEND = "Check that it plays to its end, or write it anew: ffmpeg -i <this file> new.mp4"


@dataclass(frozen=True)
class Probe:
    """What a container says of its first video stream; `times_s` float64 (n,), from 0 and strictly increasing.

    Width and height are in pixels, before a rotation; (0, 0) where only decoding would tell.
    """

    times_s: np.ndarray
    size: tuple[int, int]


def packet_times(path: Path) -> np.ndarray:
    """Times at which a video's frames are shown, float64 seconds (n,), as `probe` finds them."""
    return probe(path).times_s


def probe(path: Path) -> Probe:
    """Reads the container of the first video stream (covers and audio do not count) and decodes nothing.

    DataError for a file that is missing, empty, no video, without a video stream, or that shows two frames at one time.
    """
    copied = file_input()["V:0"].output("pipe:", format="framecrc", codec="copy", copyinkf=None)
    with FfmpegProcess(copied, path) as process:
        unit, size, packets = _read_framecrc(process.lines())
    if not packets:
        why = process.first_complaint or "it holds no frame"
        what = "no video stream is in it" if "matches no streams" in why else f"not a readable video ({why})"
        raise DataError(what, file=path, cure="Give a video that ffmpeg reads, whole and not empty.")
    pts, dts = np.array(packets, dtype=np.int64).T
    # AVI and bare H.264 keep no presentation times; they have one constant rate, at which decoding times stand too.
    ticks = np.sort(dts if (pts == _NO_TIME).any() else pts)
    twice = np.flatnonzero(np.diff(ticks) <= 0)
    if len(twice):
        raise DataError("two frames have the same time", file=path, where=f"frame {twice[0] + 1}", cure=MEND)
    return Probe((ticks - ticks[0]) * float(unit), size)


def count_video_streams(path: Path) -> int:
    """How many video streams a file holds, covers not counted; the first of them is the one that is read.

    DataError for a file that is missing, empty or no video.
    """
    copied = file_input(t=0)["V"].output("pipe:", format="framecrc", codec="copy")  # one header a stream
    with FfmpegProcess(copied, path) as process:
        count = sum(line.startswith("#media_type") for line in process.lines())
    if not count:
        raise DataError(f"not a readable video ({process.first_complaint})", file=path, cure=MEND)
    return count


def stretching(size: int) -> list[tuple[str, dict[str, Any]]]:
    """Filters that make any picture one of size×size square pixels, in YUV 4:2:0."""
    # zscale takes half the time of ffmpeg's own scaler and, as that one, means over all that a pixel covers: thin lines
    # do not flicker. It takes neither RGB nor an odd size: those are brought to YUV, and lose their last row or column.
    even = ("crop", {"w": "trunc(iw/2)*2", "h": "trunc(ih/2)*2", "x": 0, "y": 0})
    scaled = ("zscale", {"w": size, "h": size, "f": "bilinear"})
    return [("format", {"pix_fmts": "yuv420p"}), even, scaled, ("setsar", {"sar": 1})]


def check_decoded(process: FfmpegProcess, source: Path, n_source: int) -> None:
    """After the end: DataError unless all `n_source` frames were decoded without complaint."""
    if process.first_complaint or process.frames_decoded != n_source:
        what = f"{process.frames_decoded} of {n_source} frames could be decoded"
        if process.first_complaint:
            what += f", and ffmpeg says: {process.first_complaint}"
        raise DataError(what, file=source, cure=MEND)


def transcode(
    source: Path,
    out: Path,
    times_s: np.ndarray,
    *,
    fps: int,
    size: int,
    tolerance_s: float,
    crf: int,
    preset: str,
    gop: int,
    threads: int,
) -> np.ndarray:
    """Writes a video's first stream as H.264 with `fps` frames a second of size×size pixels.

    Returns which source frame each frame shows, int64 (m,), as ffmpeg told it for every frame that it wrote. `times_s`
    are the `packet_times` of `source`. The picture is turned as its rotation flag says, then stretched; audio is left
    out. One ffmpeg decodes, scales and encodes frame by frame, so memory does not grow with length; equal input gives
    equal bytes. DataError, and no `out`, unless every frame was decoded without complaint and each is shown by the rule
    of `frame_times` to `tolerance_s` seconds. SetupError where it cannot write.
    """
    mapping = hold_mapping(times_s, fps)
    timing = ("fps", {"fps": fps, "round": "up", "start_time": 0})
    scaling = stretching(size)
    # scale whichever are fewer: source frames where the rate goes up, output frames where it goes down
    chain = [*scaling, timing] if len(mapping) > len(times_s) else [timing, *scaling]
    # how long ffmpeg holds the last frame depends on the container; the mapping decides instead: hold it long, then cut
    held = int((mapping == mapping[-1]).sum())
    chain += [("tpad", {"stop_mode": "clone", "stop": held}), ("select", {"expr": f"lt(n,{len(mapping)})"})]
    video = file_input(threads=threads)["V:0"].filter("setpts", "PTS-STARTPTS")
    for name, options in chain:
        video = video.filter(name, **options)
    told = {"stats_enc_pre": "pipe:1", "stats_enc_pre_fmt": "{ni}"}  # the source frame's number, a line a frame
    output = video.output(f"file:{out}", **_h264(crf, preset, gop, threads), **told)
    with _whole(out, len(mapping), fps):
        with FfmpegProcess(output, source) as process:
            shown = np.fromiter((int(line) for line in process.lines()), dtype=np.int64)
        process.check_written(out)
        check_decoded(process, source, len(times_s))
        check_shown(shown, times_s, fps, tolerance_s, source)
    return shown


class VideoWriter:
    """Writes RGB frames as H.264 to `path`, `size` = (width, height) in pixels, both even; use it with `with`.

    The file is whole when the block ends, gone when it ends with an error. DataError where no frame was written.
    SetupError where ffmpeg cannot write.
    """

    def __init__(
        self,
        path: Path,
        fps: int,
        size: tuple[int, int],
        *,
        crf: int = 20,  # edges of small things survive
        preset: str = "ultrafast",  # what is written here is read once or twice: time counts more than bytes
        gop: int = 25,  # a seek decodes at most so many frames, whatever the rate
        threads: int = 1,  # another count gives other bytes; sessions run side by side instead
    ) -> None:
        self._path, self._fps, self._shape, self._frames = path, fps, (size[1], size[0], 3), 0
        raw = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{size[0]}x{size[1]}", r=fps)
        self._process = FfmpegProcess(raw.output(f"file:{path}", **_h264(crf, preset, gop, threads)))

    def __enter__(self) -> Self:
        self._process.__enter__()
        return self

    def write(self, frame: np.ndarray, repeat: int = 1) -> None:
        """Appends one frame, uint8 (height, width, 3), `repeat` times. ValueError for another shape or type."""
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"frame is {frame.dtype} {frame.shape}, must be uint8 {self._shape}")
        data = np.ascontiguousarray(frame).data
        try:
            for _ in range(repeat):
                self._process.stdin.write(data)
        except BrokenPipeError:  # ffmpeg gave up; its log says why
            self._process.wait()
            self._process.check_written(self._path)
            raise
        self._frames += repeat

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self._process.__exit__(kind)
            self._path.unlink(missing_ok=True)
            return
        with _whole(self._path, self._frames, self._fps):
            self._process.wait()
            if not self._frames:
                raise DataError("no frame was written", file=self._path, cure="Give at least one.")
            self._process.check_written(self._path)


class VideoReader:
    """Frames of a video by number; use it with `with`. The one place that knows decord: another decoder fits here.

    Meant for what `VideoWriter` and `transcode` wrote: frame n is the n-th shown. DataError for an unreadable file.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        import decord  # loaded only where frames are read, not by all that write videos

        if not path.is_file():
            raise DataError("the video is missing", file=path, cure="Run the stage that writes it.")
        self._path, self._errors = path, (RuntimeError, decord.DECORDError)
        try:
            self._reader: Any = decord.VideoReader(str(path), num_threads=threads)
        except self._errors:
            raise DataError("not a readable video", file=path, cure=MEND) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader = None  # ends decord's thread and frees the frames that it decoded ahead

    def __len__(self) -> int:
        return len(self._reader)

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frames of these numbers in this order, uint8 (n, height, width, 3). IndexError outside the video."""
        numbers = np.asarray(indices, dtype=np.int64)
        if not len(numbers) or numbers.min() < 0 or numbers.max() >= len(self):
            raise IndexError(f"frames {numbers.tolist()} of {self._path}, which has {len(self)}")
        try:
            return self._reader.get_batch(numbers.tolist()).asnumpy()
        except self._errors as error:
            where, what = f"frames {numbers[0]} to {numbers[-1]}", str(error).splitlines()[0]
            raise DataError(f"cannot be decoded ({what})", file=self._path, where=where, cure=MEND) from None

    def batches(self, size: int, numbers: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """All frames in order, `size` at a time (the last batch may be smaller), each as `frames` gives them.

        With `numbers` (n,), increasing, only those: what is passed over is decoded, but not brought to RGB.
        """
        wanted, before = np.arange(len(self)) if numbers is None else numbers, 0
        for part in (wanted[start : start + size] for start in range(0, len(wanted), size)):
            if part[0] // _AHEAD != before // _AHEAD:
                # decord decodes ahead without limit; a seek away and back drops what it has gathered
                self._reader.seek(0)
                self._reader.seek_accurate(int(part[0]))  # plain seek lands on a key frame and counts on from there
            before = part[0]
            yield self.frames(part)


def _h264(crf: int, preset: str, gop: int, threads: int) -> dict[str, Any]:
    """Output options: constant frame groups, no frame out of order, no tool name or time in the file."""
    fixed_groups = {"g": gop, "keyint_min": gop, "sc_threshold": 0, "bf": 0}
    nothing_else = {"an": None, "map_metadata": -1, "map_chapters": -1, "bitexact": None}
    # zerolatency: x264 looks ahead at no frame, which without B frames would only cost time and memory
    coding = {"vcodec": "libx264", "preset": preset, "tune": "zerolatency", "crf": crf, "pix_fmt": "yuv420p"}
    return {"format": "mp4", "fps_mode": "passthrough", "threads": threads, **coding, **fixed_groups, **nothing_else}


def _read_framecrc(lines: Iterable[str]) -> tuple[Fraction, tuple[int, int], list[tuple[int, int]]]:
    """The time unit in seconds, width and height, and (pts, dts) of every packet that is shown."""
    unit, size, packets = Fraction(1), (0, 0), []
    for line in lines:
        if line.startswith("#tb"):
            unit = Fraction(line.split(":")[1].strip())
        elif line.startswith("#dimensions"):
            width, height = line.split(":")[1].split("x")
            size = int(width), int(height)
        elif not line.startswith("#"):
            _, dts, pts, _, _, _, *more = (field.strip() for field in line.split(","))
            flags = int(more[0][2:], 16) if more and more[0].startswith("F=") else 0
            if not flags & _DISCARD:
                packets.append((int(pts), int(dts)))
    return unit, size, packets


@contextmanager
def _whole(path: Path, n_frames: int, fps: int) -> Iterator[None]:
    """The block writes `path`: after it the file holds exactly these frames at their times, or it is gone."""
    try:
        yield
        times = packet_times(path)
        if len(times) != n_frames or np.abs(times * fps - np.arange(n_frames)).max() > 1e-3:
            what = f"{len(times)} frames were written of {n_frames}, or off their times"
            raise DataError(what, file=path, cure="Run it again.")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
