"""How long, how fast and how large clips are: the one place that knows it.

Belongs here: the numbers, and what follows from them alone. They travel with the data: a folder that holds frame
numbers or pictures says in which format they are, and whoever reads it takes the format from there. What else was done
to a video on its way to clips does not belong here, nor any operation.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pipelines.common.settings import Settings


class VideoFormat(Settings):
    """A video after normalisation: square pictures, evenly spaced in time."""

    fps: int = Field(default=25, ge=1, le=240)  # frames a second; the brief's clock
    # pixels a side: 12×12 patch pairs of Qwen2-VL = 72 tokens a frame; square, stretched: no token shows a border;
    # even, as 4:2:0 asks; at least one merged patch of the largest kind
    size: int = Field(default=336, multiple_of=2, ge=32)

    def to_seconds(self, frames: float) -> float:
        return frames / self.fps

    def told(self) -> str:
        return f"{self.fps} frames a second, {self.size}×{self.size} pixels"


class ClipFormat(VideoFormat):
    """A clip of such a video: `frames` of it, numbered from 0."""

    seconds: float = Field(default=5.0, gt=0)  # the brief's

    @model_validator(mode="after")
    def _whole_frames(self) -> Self:
        if abs(self.seconds * self.fps - self.frames) > 1e-6 or not self.frames:
            raise ValueError(f"{self.seconds:g} s at {self.fps} frames a second are no whole number of frames")
        return self

    @property
    def frames(self) -> int:
        return round(self.seconds * self.fps)

    @property
    def video(self) -> VideoFormat:
        """What of it a normalised video has; the length is a matter of its clips."""
        return VideoFormat(fps=self.fps, size=self.size)

    def told(self) -> str:
        return f"{self.seconds:g} s, {super().told()}"


DEFAULT_FORMAT = ClipFormat()
