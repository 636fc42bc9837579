"""What is said to a model and what it answers, as text. Turning it into tensors is `encode`'s work; no torch here.

A question shows pairs of frames, each after a line that says which stretch of the clip it stands for and which frames
it is: no family of models has a clock that could say so, and text between frames carries time best (TimeLens, UniTime).
The answer is a JSON object of single-letter codes, `{"seen": ["D", "E", "E", "F"], "next": "G"}`: what is seen in
each stretch, and what comes after the last. What fills most of a clip, from where to where, and what follows it, is not
asked for. It follows from these and the bounds, and a model that had to compare lengths got that wrong more often than
what it saw.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from pipelines.common.clip_format import DEFAULT_FORMAT

FRAME_PHRASES = ("Frames ", " to ", ", seen at ", " and ", ":\n")
ANSWER_PHRASES = ('{"seen": ["', '", "', '"], "next": "', '"}')

Code = TypeVar("Code")


@dataclass(frozen=True)
class Answer:
    """What is seen in each stretch, and what comes after the last of them; codes are single letters."""

    seen: tuple[str, ...]
    next: str

    def text(self) -> str:
        """The JSON that the model writes; byte for byte what `json.dumps` gives."""
        first, and_, following, tail = ANSWER_PHRASES
        return f"{first}{and_.join(self.seen)}{following}{self.next}{tail}"


@dataclass(frozen=True)
class Conclusion(Generic[Code]):
    """What fills most of a clip, in frames [start, end), and what follows it: None where it is the clip's last."""

    what: Code
    start: int
    end: int
    next: Code | None


def conclude(seen: Sequence[Code], bounds: Sequence[int]) -> Conclusion[Code]:
    """What follows from what is `seen` in the stretches between `bounds`. Of two that last equally long the earlier."""
    runs: list[tuple[Code, int, int]] = []
    for code, low, high in zip(seen, bounds[:-1], bounds[1:], strict=True):
        start = runs.pop()[1] if runs and runs[-1][0] == code else low
        runs.append((code, start, high))
    main = max(range(len(runs)), key=lambda place: runs[place][2] - runs[place][1])
    return Conclusion(*runs[main], runs[main + 1][0] if main + 1 < len(runs) else None)


@dataclass(frozen=True)
class Question:
    """`videos[i]` uint8 (2, h, w, 3) are the frames `pairs[i]`, standing for `[bounds[i], bounds[i + 1])`.

    Frames count from 0 at `fps` a second.
    """

    videos: tuple[np.ndarray, ...]
    bounds: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    text: str
    fps: int = DEFAULT_FORMAT.fps


def frame_lines(bounds: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """The line before each shown pair: its segment's half-open bounds, and which frames are shown of it."""
    first, to, seen, and_, end = FRAME_PHRASES
    spans = zip(bounds[:-1], bounds[1:], pairs, strict=True)
    return [f"{first}{low}{to}{high}{seen}{a}{and_}{b}{end}" for low, high, (a, b) in spans]


def parse_answer(text: str) -> Answer | None:
    """Reads a freely generated answer strictly; None for anything that is not exactly the asked form."""
    try:
        data = json.loads(text.strip())
    except json.JSONDecodeError:
        return None
    if not isinstance(data, dict) or list(data) != ["seen", "next"] or not isinstance(data["seen"], list):
        return None
    words = [*data["seen"], data["next"]]
    return Answer(tuple(data["seen"]), data["next"]) if all(isinstance(word, str) for word in words) else None
