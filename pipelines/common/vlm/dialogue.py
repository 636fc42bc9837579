"""What is said to a model and what it answers, as text. Turning it into tensors is `encode`'s work; no torch here.

A question shows pairs of frames, each after a line that says which stretch of the clip it stands for and which frames
it is: no family of models has a clock that could say so, and text between frames carries time best (TimeLens, UniTime).
The answer is a JSON object of single-letter codes and frame numbers, half-open:
`{"what": "E", "start": 14, "end": 98, "next": "F"}`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FRAME_PHRASES = ("Frames ", " to ", ", seen at ", " and ", ":\n")
ANSWER_PHRASES = ('{"what": "', '", "start": ', ', "end": ', ', "next": "', '"}')


@dataclass(frozen=True)
class Answer:
    """What happens for most of the clip, in frames [start, end), and what comes next; codes are single letters."""

    what: str
    start: int
    end: int
    next: str

    def text(self) -> str:
        """The JSON that the model writes; byte for byte what `json.dumps` gives."""
        head, start, end, following, tail = ANSWER_PHRASES
        return f"{head}{self.what}{start}{self.start}{end}{self.end}{following}{self.next}{tail}"


@dataclass(frozen=True)
class Question:
    """`videos[i]` uint8 (2, h, w, 3) are the frames `pairs[i]`, standing for `[bounds[i], bounds[i + 1])`.

    Frames count from 0 at `fps` a second.
    """

    videos: tuple[np.ndarray, ...]
    bounds: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    text: str
    fps: int = 25


def frame_lines(bounds: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """The line before each shown pair: its segment's half-open bounds, off which the answer's frames are read."""
    first, to, seen, and_, end = FRAME_PHRASES
    spans = zip(bounds[:-1], bounds[1:], pairs, strict=True)
    return [f"{first}{low}{to}{high}{seen}{a}{and_}{b}{end}" for low, high, (a, b) in spans]


def parse_answer(text: str) -> Answer | None:
    """Reads a freely generated answer strictly; None for anything that is not exactly the asked form."""
    try:
        data = json.loads(text.strip())
    except json.JSONDecodeError:
        return None
    if not isinstance(data, dict) or list(data) != ["what", "start", "end", "next"]:
        return None
    whole = type(data["start"]) is int and type(data["end"]) is int  # `true` is an int too
    words = isinstance(data["what"], str) and isinstance(data["next"], str)
    return Answer(**data) if whole and words else None
