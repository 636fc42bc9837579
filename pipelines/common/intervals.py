"""Half-open frame intervals and how well two of them agree.

Belongs here: arithmetic on `[start, end)` in whole frames. What an interval means (an operation, a clip) does not.
"""

from __future__ import annotations

Interval = tuple[int, int]


def length(interval: Interval) -> int:
    """Frames in `[start, end)`; 0 for an empty or inverted one."""
    start, end = interval
    return max(0, end - start)


def overlap(a: Interval, b: Interval) -> int:
    """Frames that both intervals hold; 0 where one is empty or inverted."""
    return length((max(a[0], b[0]), min(a[1], b[1])))


def iou(a: Interval, b: Interval) -> float:
    """Intersection over union in 0..1 (the tIoU of temporal localisation).

    An empty or inverted interval agrees with nothing, not even with itself: 0.0, so that an invalid prediction
    counts as a miss and never as a division by zero.
    """
    shared = overlap(a, b)
    return shared / (length(a) + length(b) - shared) if shared else 0.0
