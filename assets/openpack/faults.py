"""What can be wrong with a session's files: plain functions from folders to sentences, empty where all is well.

They read the files and what those were made from, and trust neither records nor summaries. `checks` gives them to
Dagster; what a stage refuses by itself while it works is the stage's own business.
"""

from pathlib import Path

from pipelines.common.clip_format import VideoFormat

_ROUNDING_MS = 1  # times of the release are whole milliseconds


def video_faults(raw: Path, folder: Path, video: VideoFormat) -> list[str]:
    """Faults of one session's normalised video in `folder`, made from the raw session in `raw`.

    Rate and size are to be those of `video`, by which labels are cut; no frame is lost if the table has a row for each
    frame of the video and every source frame that lasted at least one frame of it is shown.
    """
    import numpy as np

    from pipelines.common.media import VideoReader, packet_times
    from pipelines.openpack.normalise import VIDEO, read_frames
    from pipelines.openpack.release import frame_times
    from pipelines.openpack.sources import read_session

    faults = []
    times = packet_times(folder / VIDEO)
    late = np.abs(times - np.arange(len(times)) / video.fps) > _ROUNDING_MS / 1000
    if late.any():
        faults.append(f"frame {int(late.argmax())} is not at {video.fps} frames a second")
    with VideoReader(folder / VIDEO) as reader:
        height, width = reader.frames([0]).shape[1:3]
    if (height, width) != (video.size, video.size):
        faults.append(f"the picture is {width}×{height}, not {video.size}×{video.size}")
    shown = read_frames(folder)["source_frame"].to_numpy()
    if len(shown) != len(times):
        faults.append(f"the video has {len(times)} frames and its table {len(shown)}")
    stream = read_session(raw).stream
    place, film = raw / stream.path, stream.kind == "video"
    source_ms = packet_times(place) * 1000 if film else np.asarray(frame_times(place, stream.kind))
    lasting = np.flatnonzero(np.diff(source_ms) >= 1000 / video.fps + _ROUNDING_MS)
    lost = np.setdiff1d(lasting, shown)
    if len(lost):
        faults.append(f"{len(lost)} source frames are lost, the first is {lost[0]}")
    return faults


def label_faults(folder: Path) -> list[str]:
    """Clips of one session whose operation or next operation is none of its taxonomy's."""
    from pipelines.openpack.clips import read_clips
    from pipelines.openpack.sources import read_taxonomy

    known = {operation.id for operation in read_taxonomy(folder).operations}
    return [
        f"{clip.clip_id} has operation {op_id}"
        for clip in read_clips(folder)
        for op_id in (clip.target.operation, clip.target.next)
        if op_id not in known
    ]
