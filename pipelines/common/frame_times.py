"""The arithmetic of frame times: which frame is shown when, and what is unusual about the times of a stream.

Belongs here: whatever follows from times alone. Where they come from (`media`, a file's name, an entry) does not.

The rule of the frame rate, everywhere: output frame n shows the last source frame whose time is at most n / fps, and
time zero is the first source frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.common.errors import DataError

GAP = 1.5  # usual steps: a frame that is only late stays below, one that is missing makes it 2
_SAME = 1e-6  # of an output frame: float seconds this close after its time still count as its time


@dataclass(frozen=True)
class Timing:
    """What is unusual about a stream's frames, by their times.

    `usual_ms` is the median step, None for a single frame. A gap is a step longer than `GAP` of these;
    `missing_frames` would have filled all gaps, and `longest_gap_s` is 0 without any. `repeated` entries have a time
    that was there before, `out_of_order` ones an earlier time than the entry before them.
    """

    usual_ms: float | None
    gaps: int
    missing_frames: int
    longest_gap_s: float
    repeated: int
    out_of_order: int


def timing(recorded_ms: np.ndarray) -> Timing:
    """Of times in milliseconds (n,), at least one, in the order in which the source keeps them."""
    times = np.unique(recorded_ms)
    steps = np.diff(times)
    usual = float(np.median(steps)) if len(steps) else None
    gaps = steps[steps > GAP * usual] if usual else steps
    return Timing(
        usual_ms=None if usual is None else round(usual, 3),
        gaps=len(gaps),
        missing_frames=int((np.rint(gaps / usual) - 1).sum()) if usual else 0,
        longest_gap_s=round(float(gaps.max(initial=0)) / 1000, 3),
        repeated=len(recorded_ms) - len(times),
        out_of_order=int((np.diff(recorded_ms) < 0).sum()),
    )


def hold_mapping(times_s: np.ndarray, fps: float) -> np.ndarray:
    """Which source frame each output frame shows: int64 (m,), never falling, values 0 to n - 1.

    `times_s` (n,) are the source frames' times in seconds, strictly increasing (ValueError); the first is time zero.
    The last frame is held for as long as frames of this source usually are (the median), so 75 frames at 15 a second
    are 5 s and give 125 at 25. A source faster than `fps` loses the frames between (and perhaps its last one); a
    slower one repeats frames.
    """
    times = np.asarray(times_s, dtype=np.float64)
    steps = np.diff(times)
    if not len(times) or (steps <= 0).any():
        raise ValueError("times must increase strictly, and one at least is needed")
    usual = float(np.median(steps)) if len(steps) else 1 / fps
    first_shown = np.ceil((times - times[0]) * fps - _SAME).astype(np.int64)
    end = int(np.ceil((times[-1] - times[0] + usual) * fps - _SAME))
    return np.searchsorted(first_shown, np.arange(end), side="right") - 1


def check_gaps(times_s: np.ndarray, source: Path, longest_s: float) -> None:
    """DataError where `times_s`, float64 seconds (n,), leave a longer time without a frame, with the one after it."""
    steps = np.diff(times_s)
    if len(steps) and steps.max() > longest_s:
        frame = int(steps.argmax()) + 1
        what = f"no frame for {steps.max():.0f} s before this one, more than {longest_s:.0f} s"
        raise DataError(what, file=source, where=f"frame {frame}", cure="Mend its time; longest_gap_s is a setting.")


def check_shown(shown: np.ndarray, times_s: np.ndarray, fps: float, tolerance_s: float, source: Path) -> None:
    """Holds what was shown, int64 (m,) source frames, against the rule and the source's times, float64 seconds (n,).

    DataError, with the first such frame and its time, where a source frame is shown more than `tolerance_s` before its
    time, or that long after the time of the next one.
    """
    at = np.arange(len(shown)) / fps
    begins = times_s - times_s[0]
    early = begins[shown] - at
    late = at - np.append(begins[1:], np.inf)[shown]
    wrong = np.flatnonzero(np.maximum(early, late) > tolerance_s + _SAME / fps)
    if len(wrong):
        n = int(wrong[0])
        frame = int(shown[n])
        off = f"{early[n] * 1000:.1f} ms too early" if early[n] > 0 else f"{late[n] * 1000:.1f} ms too late"
        cure = "Its times contradict the order of its pictures; write it anew: ffmpeg -i <this file> new.mp4"
        where = f"source frame {frame} of {begins[frame]:.3f} s"
        raise DataError(f"it is shown at {at[n]:.3f} s, {off}", file=source, where=where, cure=cure)
