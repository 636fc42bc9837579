"""A general task on drawn clips, on which the embedded model learns to look before it is tuned to anything.

A figure stands in a room among things of twelve kinds and handles one after the other; what it handles changes: it
opens, fills up, gets a mark. Asked is which kind, where in the room, or how many parts, of the thing handled in each
stretch and of the one that a flag marks. Answers are single letters and numbers, so that a later task finds every word
of its answers already learned. There is no operation and no label of any later task.
"""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.vlm.dialogue import Answer, Question

CODES = "ABCDEFGHIJKL"
QUESTIONS = {
    "what": "Which kind of thing is handled in each stretch, and which kind is flagged?",
    "where": "Where is the thing that is handled in each stretch, and where the flagged one?",
    "many": "How many parts has the thing that is handled in each stretch, and how many the flagged one?",
}
TELL = "Which kind of thing is handled here, where, is it open, is it marked, and how many parts has it?"
SIZE = 168  # pixels a side of the drawing; the model's processor reduces it
SEGMENTS = 4
SHORTEST = 5  # frames of a segment
ROWS, COLUMNS = 3, 4  # of the places that the question "where" asks for

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Sample:
    """A drawn clip: `frames` uint8 (8, 168, 168, 3) in pairs, one pair a segment between `bounds`; and its answer."""

    frames: np.ndarray
    bounds: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    question: str
    answer: Answer
    stories: tuple[str, ...]


@dataclass
class _Thing:
    kind: int
    spot: int
    x: float
    y: float
    size: float
    colour: Colour
    parts: int
    opened: bool = False
    marked: bool = False
    flag: bool = False


def make_sample(seed: int, length: int = DEFAULT_FORMAT.frames) -> Sample:
    """One random clip of `length` frames with question and answer, the same for the same seed.

    ValueError where it is too short for its segments.
    """
    rng = random.Random(seed)
    bounds = _bounds(rng, length)
    episodes = _episodes(rng)  # index of the handled thing for each segment
    things = _things(rng, max(episodes) + 1)
    room, look = _room(rng), _look(rng)
    frames, pairs, stories = [], [], []
    for i, handled in enumerate(episodes):
        low, high = bounds[i], bounds[i + 1]
        first = rng.randrange(low, max(low + 1, high - 2))
        pairs.append((first, first + rng.choice((1, 2))))
        if i and episodes[i - 1] != handled:
            _leave(things[episodes[i - 1]], rng)
        stories.append(_tell(things[handled]))
        for angle in (phase := rng.uniform(0, 6.28), phase + rng.uniform(0.2, 0.8)):
            frames.append(_draw(room, things, things[handled], look, angle))
    question = rng.choice(("where", "where", "where", "what", "what", "many"))
    codes = tuple(_code(question, things[handled]) for handled in episodes)
    answer = Answer(codes, _code(question, _flagged(things)))
    return Sample(np.stack(frames), tuple(bounds), tuple(pairs), QUESTIONS[question], answer, tuple(stories))


def ask(seed: int, length: int = DEFAULT_FORMAT.frames) -> tuple[Question, str]:
    """A whole clip with its question and the answer's text."""
    sample = make_sample(seed, length)
    videos = tuple(sample.frames[2 * i : 2 * i + 2] for i in range(SEGMENTS))
    return Question(videos, sample.bounds, sample.pairs, sample.question), sample.answer.text()


def tell(seed: int, length: int = DEFAULT_FORMAT.frames) -> tuple[Question, str]:
    """One pair of a clip, to be told about: five letters and digits, so that each picture teaches much."""
    sample, i = make_sample(seed, length), seed % SEGMENTS
    videos = (sample.frames[2 * i : 2 * i + 2],)
    return Question(videos, sample.bounds[i : i + 2], sample.pairs[i : i + 1], TELL), sample.stories[i]


def _bounds(rng: random.Random, length: int) -> list[int]:
    if length < SEGMENTS * SHORTEST:
        raise ValueError(f"{length} frames are too few for {SEGMENTS} segments of {SHORTEST}")
    while True:
        bounds = [0, *sorted(rng.sample(range(SHORTEST, length - SHORTEST + 1), SEGMENTS - 1)), length]
        if all(b - a >= SHORTEST for a, b in pairwise(bounds)):
            return bounds


def _episodes(rng: random.Random) -> list[int]:
    """Thing by segment, things numbered in order of use: one to three of them, changing at some of the cuts."""
    changes = set(rng.sample(range(1, SEGMENTS), rng.choice((0, 1, 1, 1, 2))))
    episodes, thing = [], 0
    for segment in range(SEGMENTS):
        thing += segment in changes
        episodes.append(thing)
    return episodes


def _flagged(things: list[_Thing]) -> _Thing:
    return next(thing for thing in things if thing.flag)


def _code(question: str, thing: _Thing) -> str:
    if question == "what":
        return CODES[thing.kind]
    if question == "where":
        return CODES[thing.spot]
    return CODES[thing.parts]


def _tell(thing: _Thing) -> str:
    """Kind, place, state, mark and parts of a thing, one letter or digit each."""
    state, mark = "o" if thing.opened else "c", "m" if thing.marked else "n"
    return f"{_code('what', thing)}{_code('where', thing)}{state}{mark}{thing.parts}"


def _things(rng: random.Random, used: int) -> list[_Thing]:
    count = rng.randint(used, used + 1)
    spots = rng.sample(range(ROWS * COLUMNS), count)
    things = []
    for kind, spot in zip(rng.sample(range(len(CODES)), count), spots, strict=True):
        x = (spot % COLUMNS + rng.uniform(0.35, 0.65)) / COLUMNS
        y = 0.22 + (spot // COLUMNS + rng.uniform(0.35, 0.65)) / ROWS * 0.76  # room above for the figure
        parts, opened = rng.randrange(4), rng.random() < 0.5
        colour, size, mark = _colour(rng, kind / 12, rng.uniform(0.6, 0.9)), rng.uniform(30, 40), rng.random() < 0.3
        things.append(_Thing(kind, spot, x, y, size, colour, parts, opened, mark))
    things[rng.randrange(count)].flag = True
    return things


def _leave(thing: _Thing, rng: random.Random) -> None:
    """Handling leaves a trace that stays: the thing is open or closed now, or has its mark."""
    if rng.random() < 0.5:
        thing.opened = not thing.opened
    else:
        thing.marked = True


# --- drawing ---


@dataclass(frozen=True)
class _Look:
    shirt: Colour
    skin: Colour
    hair: Colour
    tall: float
    reach: float
    side: int
    tool: Colour | None


def _look(rng: random.Random) -> _Look:
    skin = _colour(rng, 0.07, rng.uniform(0.3, 0.6))
    tool = _colour(rng) if rng.random() < 0.5 else None
    return _Look(
        _colour(rng), skin, _colour(rng), rng.uniform(0.85, 1.15), rng.uniform(2, 8), rng.choice((-1, 1)), tool
    )


def _colour(
    rng: random.Random, hue: float | None = None, saturation: float | None = None, light: float | None = None
) -> Colour:
    hue = rng.random() if hue is None else hue
    saturation = rng.uniform(0.1, 0.9) if saturation is None else saturation
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, rng.uniform(0.35, 0.85) if light is None else light)
    return int(red * 255), int(green * 255), int(blue * 255)


def _room(rng: random.Random) -> Image.Image:
    room = Image.new("RGB", (SIZE, SIZE), _colour(rng, saturation=rng.uniform(0.0, 0.15), light=rng.uniform(0.7, 0.95)))
    draw = ImageDraw.Draw(room)
    floor = rng.uniform(0.55, 0.9) * SIZE
    draw.rectangle([0, floor, SIZE, SIZE], _colour(rng, saturation=0.15, light=rng.uniform(0.4, 0.7)))
    return room


def _draw(room: Image.Image, things: list[_Thing], handled: _Thing, look: _Look, angle: float) -> np.ndarray:
    picture = room.copy()
    draw = ImageDraw.Draw(picture)
    x, y = handled.x * SIZE, handled.y * SIZE
    body = (x + 10 * look.side, y - 46 * look.tall)
    draw.polygon(
        [(body[0] - 9, body[1]), (body[0] + 9, body[1]), (body[0] + 8, y + 2), (body[0] - 8, y + 2)], look.shirt
    )
    draw.ellipse(_around(body[0], body[1] - 8, 7), look.skin)
    draw.rectangle([body[0] - 6, body[1] - 16, body[0] + 6, body[1] - 10], look.hair)
    for thing in things:
        _draw_thing(draw, thing)
    for turn, side in ((0.0, -1), (1.7, 1)):
        hand = (x + side * 9 + look.reach * math.sin(angle + turn), y - 4 + look.reach * math.cos(angle * 1.3 + turn))
        shade = tuple(int(c * 0.7) for c in look.shirt)
        elbow = ((body[0] + hand[0]) / 2 + 5 * side, (body[1] + hand[1]) / 2 + 4)
        draw.line([(body[0] + 8 * side, body[1] + 4), elbow, hand], shade, 5)
        draw.ellipse(_around(*hand, 3.5), look.skin)
        if look.tool and side == look.side:
            draw.rectangle([hand[0] - 4, hand[1], hand[0] + 4, hand[1] + 8], look.tool)
    return np.asarray(picture)


def _around(x: float, y: float, radius: float) -> list[float]:
    return [x - radius, y - radius, x + radius, y + radius]


def _draw_thing(draw: ImageDraw.ImageDraw, thing: _Thing) -> None:
    x, y, r = thing.x * SIZE, thing.y * SIZE, thing.size / 2
    colour, dark = thing.colour, tuple(int(c * 0.6) for c in thing.colour)
    square = [x - r, y - r, x + r, y + r]
    kind = thing.kind
    if kind == 0:  # a box, with its lid up when open
        draw.rectangle(square, colour, dark)
        top = [(x - r, y - r), (x + r, y - r), (x + r * 0.7, y - r * 1.5), (x - r * 0.7, y - r * 1.5)]
        draw.polygon(top, dark if thing.opened else colour, dark)
    elif kind == 1:  # a sheet, written on when open
        draw.rectangle([x - r, y - r * 0.7, x + r, y + r * 0.7], (250, 250, 245), dark)
        if thing.opened:
            draw.line([x - r * 0.7, y, x + r * 0.5, y], colour, 3)
    elif kind == 2:
        draw.ellipse(square, colour, dark)
    elif kind == 3:
        draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], colour, dark)
    elif kind == 4:
        draw.ellipse(square, None, colour, 4)
    elif kind == 5:
        draw.line([x - r, y, x + r, y], colour, 5)
        draw.line([x, y - r, x, y + r], colour, 5)
    elif kind == 6:  # a board
        draw.polygon([(x - r, y + r * 0.5), (x + r, y + r * 0.5), (x + r * 0.7, y), (x - r * 0.7, y)], colour, dark)
    elif kind == 7:  # a machine with a slip of paper when open
        draw.rectangle(square, (50, 50, 56), colour)
        if thing.opened:
            draw.rectangle([x - r * 0.6, y - r * 1.5, x + r * 0.6, y - r * 0.8], (250, 250, 250))
    elif kind == 8:  # a shelf
        for row in (-1, 0, 1):
            draw.rectangle([x - r, y + row * r * 0.7 - 2, x + r, y + row * r * 0.7 + 2], colour)
    elif kind == 9:
        draw.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], colour, dark)
    elif kind == 10:  # two boxes side by side
        draw.rectangle([x - r, y - r * 0.6, x - 1, y + r * 0.6], colour, dark)
        draw.rectangle([x + 1, y - r * 0.6, x + r, y + r * 0.6], colour, dark)
    else:  # striped
        for i in range(3):
            left = x - r + 2 * r * i / 3
            draw.rectangle([left, y - r, left + r / 3, y + r], colour)
    for i in range(thing.parts):
        draw.rectangle([x - 18 + 11 * i, y + r - 3, x - 10 + 11 * i, y + r + 6], (240, 160, 40), (0, 0, 0))
    if thing.opened:
        draw.polygon(
            [(x - r, y - r), (x + r, y - r), (x + r * 0.6, y - r * 1.4), (x - r * 0.6, y - r * 1.4)], (20, 20, 20)
        )
    if thing.marked:
        draw.rectangle([x + r * 0.1, y, x + r * 0.8, y + r * 0.6], (250, 235, 60))
    if thing.flag:
        draw.polygon([(x, y - r - 2), (x + 10, y - r - 7), (x, y - r - 12)], (220, 20, 30))
