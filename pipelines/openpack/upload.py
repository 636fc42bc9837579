"""An uploaded video on its way to questions, in a process that may not harm the service (`common.serving.sandbox`).

Belongs here: the work of such processes, what is sent to them and what comes back. It imports no torch. What a question
is (`question`) and what answers it (`serve`, `long_videos`) do not belong here.

A task is {"path", "size", "preparation": `Preparation`}. Messages:

    `decode`          one {"bounds", "pairs", "shape"}, with the shown frames as bytes, uint8 of that shape
    `picture`         one {"bounds", "pairs", "sizes"}, with the shown frames as JPEG one after the other
    `decode_windows`  {"frames", "windows"}: how long the video is and how many windows follow; then for each window
                      what `decode` gives, with its "start". Its task has "stride_s" and "longest_s" too
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from pipelines.common.errors import DataError, SetupError
from pipelines.common.keyframes import Keyframes
from pipelines.common.serving import log
from pipelines.common.serving.refusal import RefusalError
from pipelines.common.serving.sandbox import DiedError, Limits, Message
from pipelines.openpack.preparation import Preparation
from pipelines.openpack.question import Shown, normalised, shown_windows, video_frames
from pipelines.openpack.windows import starts

LIMITS = Limits(
    seconds=45,  # less than a request has, so that whoever sent the file hears what was wrong with it
    cpu_seconds=40,  # a minute of full HD takes ten
    memory_bytes=2 * 2**30,  # 4K takes half of it
    file_bytes=512 * 2**20,  # none is written; but what is said may go to the end of a long log
)
# what a process has imported before its work comes
PRELOAD = [__name__, "pipelines.common.frame_stream", "pipelines.openpack.windows"]
WINDOWS_LIMITS = Limits(
    seconds=14 * 60,  # as above: a minute less than the request has
    cpu_seconds=12 * 60,  # half an hour of full HD takes five minutes for all its windows
    memory_bytes=2 * 2**30,
    file_bytes=512 * 2**20,
)
NICE = 10  # of processes that look at long videos: those who wait for one answer come first
JPEG_QUALITY = 85


def decoding(path: Path, preparation: Preparation, size: int | None, **more: Any) -> dict[str, Any]:
    """A task; `size` as in `question.reduced`."""
    return {"path": str(path), "size": size, "preparation": preparation.model_dump(mode="json"), **more}


def work(task: dict[str, Any]) -> Iterator[Message]:
    """`picture` where the task asks for "pictures", else `decode`."""
    return picture(task) if task.get("pictures") else decode(task)


def decode(task: dict[str, Any]) -> Iterator[Message]:
    """One message: what is shown of the first clip. DataError as `video_frames` raises it."""
    frames, chosen = video_frames(Path(task["path"]), _preparation(task), task["size"])
    yield {**_told(chosen), "shape": frames.shape}, frames.tobytes()


def picture(task: dict[str, Any]) -> Iterator[Message]:
    """The same for people to look at: as large as normalised, since what a small model sees tells a person little."""
    frames, chosen = video_frames(Path(task["path"]), _preparation(task))
    jpegs = [_jpeg(frame) for frame in frames]
    yield {**_told(chosen), "sizes": [len(jpeg) for jpeg in jpegs]}, b"".join(jpegs)


def decode_windows(task: dict[str, Any]) -> Iterator[Message]:
    """The windows of a whole video, each as soon as it is decoded. DataError as `question.normalised` raises it."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    preparation = _preparation(task)
    with normalised(Path(task["path"]), task["longest_s"], preparation) as video:
        frames = len(video.repeated)
        begins = starts(frames, task["stride_s"], preparation.clip_format)
        yield {"frames": frames, "windows": len(begins)}, b""
        for one in shown_windows(video, begins, preparation, task["size"]):
            yield {"start": one.start, **_told(one.keyframes), "shape": one.frames.shape}, one.frames.tobytes()


def shown(message: Message) -> Shown:
    """What a message shows. ValueError where its bytes are not what it says."""
    told, blob = message
    frames = np.frombuffer(bytearray(blob), np.uint8).reshape(told["shape"])  # torch wants to own what it reads
    return Shown(told.get("start", 0), frames, _keyframes(told))


def pictures(message: Message) -> tuple[Keyframes, list[bytes]]:
    """The JPEGs of a message and what they stand for."""
    told, blob = message
    return _keyframes(told), [blob[low:high] for low, high in pairwise(accumulate(told["sizes"], initial=0))]


def place(upload: BinaryIO) -> Path:
    """Where another process reads an upload: by its descriptor, so that it has no name that could stay behind."""
    upload.flush()
    return Path(f"/proc/{os.getpid()}/fd/{upload.fileno()}")


@contextmanager
def refused(name: str) -> Iterator[None]:
    """What goes wrong with an upload in the block becomes a RefusalError that says so, with its `name`, no path."""
    try:
        yield
    except SetupError as error:
        log.say("setup_error", request_id=log.current().request_id, error=str(error))
        raise RefusalError(503, "setup", "The service cannot read videos just now. Try again later.") from None
    except DataError as error:
        said = DataError(error.what, file=name, where=error.where, cure=error.cure)
        raise RefusalError(400, "video", str(said)) from None
    except DiedError:
        raise RefusalError(503, "died", "Reading the video was interrupted. Send it again.") from None


def _preparation(task: dict[str, Any]) -> Preparation:
    return Preparation.model_validate(task["preparation"])


def _told(chosen: Keyframes) -> dict[str, Any]:
    return {"bounds": chosen.bounds, "pairs": chosen.pairs}


def _keyframes(told: dict[str, Any]) -> Keyframes:
    return Keyframes(tuple(told["bounds"]), tuple((first, second) for first, second in told["pairs"]))


def _jpeg(frame: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
