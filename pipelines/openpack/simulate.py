"""Writes drawn sessions in the release's own layout: who packs, in which order, how long, and the video of it.

Layout: `<root>/<user>/annotation/openpack-operations/<session>.csv`, the same at 1 Hz, `<root>/<user>/video/
<session>.mp4` and `<session>.json` with the video's start; where deviations are planted, `<root>/<user>/deviations/
<session>.json` (see `deviations`). The order of operations with its two dialects, and the
medians and means of their durations, are those measured over all 104 sessions of OpenPack; durations are scaled by a
setting. Which worker stands for a training, validation or test person shows in ranges that do not meet: no training
worker has the clothes, bench, pace or reach of U0107 and U0108.
"""

from __future__ import annotations

import argparse
import colorsys
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from pipelines.common.console import run
from pipelines.common.files import atomic_file, digest, write_json
from pipelines.common.media import VideoWriter
from pipelines.openpack.annotations import Segment, read_operations, write_operations, write_operations_1hz
from pipelines.openpack.choreography import Act, Choreography
from pipelines.openpack.deviations import Deviation, planted, possible, write_deviations
from pipelines.openpack.draw import BACK_TABLE_HOLDS, Colour, Look, Painter
from pipelines.openpack.effective import in_effect
from pipelines.openpack.grammar import Kind
from pipelines.openpack.settings import SimulationSettings
from pipelines.openpack.taxonomy import NULL_ID

USERS = tuple(f"U010{i}" for i in range(1, 9))
HELD_OUT = ("U0107", "U0108")
JAPAN = timezone(timedelta(hours=9))
DEVIATIONS = "deviations"  # folder beside annotation and video
LEAD_S = 1.0  # of video before the first and after the last operation

DURATIONS = {  # seconds: median and mean over the 104 sessions of OpenPack
    100: (9.6, 10.3), 200: (10.2, 13.7), 300: (14.7, 15.3), 400: (8.2, 9.5), 500: (9.8, 10.1), 600: (3.7, 4.0),
    700: (11.0, 11.7), 800: (6.9, 7.0), 900: (5.5, 5.5), 1000: (6.7, 7.4), 8100: (3.7, 4.4),
}  # fmt: skip
FIRST_DIALECT = (700, 800, 900, 1000)
SECOND_DIALECT = (700, 1000, 800, 900)
FIRST_DIALECT_SHARE = {  # of a worker's boxes; most keep mostly to one, one changes within the day
    "U0101": 0.8, "U0102": 0.9, "U0103": 0.15, "U0104": 0.85, "U0105": 0.2, "U0106": 0.35, "U0107": 0.4, "U0108": 0.65,
}  # fmt: skip
NULL_SHARE = 0.01  # of operations that are followed by a pause, as in the annotations


@dataclass(frozen=True)
class Worker:
    """What stays the same of one user over all sessions. `speed` divides durations, `pace` is gestures a second."""

    look: Look
    speed: float
    pace: float


def sessions(settings: SimulationSettings) -> list[str]:
    return [f"S0{i}00" for i in range(1, settings.sessions + 1)]


def write_session(root: Path, user: str, session: str, settings: SimulationSettings) -> None:
    """Writes one session's annotation files and video; each appears whole or not at all."""
    rng = _rng(settings, user, session)
    worker = make_worker(user, settings)
    acts, deviations = plan(user, settings, rng, worker.speed, _rng(settings, user, session, "deviations"))
    start_ms = int(_start(user, session).timestamp() * 1000) + rng.randrange(1000)
    segments = [Segment(a.op_id, _ms(start_ms, a.start), _ms(start_ms, a.end), a.box) for a in acts]
    base = root / user / "annotation"
    write_operations(base / "openpack-operations" / f"{session}.csv", user, session, segments)
    write_operations_1hz(base / "openpack-operations-1hz" / f"{session}.csv", user, session, segments)
    if settings.deviations:
        write_deviations(root / user / DEVIATIONS / f"{session}.json", deviations)
    look = replace(worker.look, clutter=_clutter(rng), shift=(rng.uniform(-14, 14), rng.uniform(-8, 8)))
    play = Choreography(acts, pace=worker.pace, reach=look.reach, seed=rng.randrange(2**31))
    video = root / user / "video" / f"{session}.mp4"
    write_video(video, play, look, acts[-1].end + LEAD_S, settings, rng)
    write_json(video.with_suffix(".json"), {"start": _iso(start_ms)})


def write_video(
    path: Path, play: Choreography, look: Look, seconds: float, settings: SimulationSettings, rng: random.Random
) -> None:
    """Draws `seconds` of a session at `settings.fps`, with a little sensor noise."""
    painter = Painter(look, settings.width, settings.height)
    noise = _noise(settings, rng.randrange(2**31))
    with (
        atomic_file(path) as part,
        VideoWriter(part, settings.fps, (settings.width, settings.height), crf=24, preset="ultrafast") as writer,
    ):
        for i in range(math.ceil(seconds * settings.fps)):
            frame = painter.frame(*play.at(i / settings.fps))
            writer.write(np.asarray(ImageChops.add_modulo(frame, noise[i % len(noise)])))


def plan(
    user: str, settings: SimulationSettings, rng: random.Random, speed: float, deviating: random.Random
) -> tuple[list[Act], list[Deviation]]:
    """Operations of one session, in seconds from the start of the video, boxes numbered from 1; and what was planted.

    `deviating` decides on deviations alone, so that without any the session is drawn as if there were none.
    """
    acts: list[Act] = []
    deviations: list[Deviation] = []
    time, stack = LEAD_S, rng.randrange(BACK_TABLE_HOLDS)
    for box in range(1, settings.boxes + 1):
        first = rng.random() < FIRST_DIALECT_SHARE[user]
        end = list(FIRST_DIALECT if first else SECOND_DIALECT)
        if not first and stack >= BACK_TABLE_HOLDS:
            end.remove(900)  # no room: the box stays, and the full table is cleared with it
        stack = 1 if first and stack >= BACK_TABLE_HOLDS else stack + 1 if 900 in end else 0
        order, change = [100, 200, 300, 400, 500, 600, *end], None
        if deviating.random() < settings.deviations:
            change = deviating.choice(possible(len(order)))
        done, shown = planted(order, *change) if change else (order, slice(0))
        first = len(acts)
        for op_id in _with_pauses(done, rng):
            seconds = _duration(op_id, rng) * settings.duration_scale / speed
            acts.append(Act(op_id, time, time + seconds, box))
            time += seconds
        if change:
            deviations.append(_told(*change, order, [act for act in acts[first:] if act.op_id != NULL_ID], shown))
    return acts, deviations


def _told(kind: Kind, place: int, order: list[int], done: list[Act], shown: slice) -> Deviation:
    """What was planted at a `place` of the usual `order`, with the times at which it shows."""
    visible = done[shown]
    start, end = (visible[0].start, visible[-1].end) if visible else (done[place - 1].end,) * 2
    operations = tuple(order[place : place + 2 if kind == "out_of_order" else place + 1])
    return Deviation(kind, done[0].box, operations, round(start, 3), round(end, 3))


def make_worker(user: str, settings: SimulationSettings) -> Worker:
    rng = _rng(settings, user)
    held_out = user in HELD_OUT
    hue = rng.uniform(0.70, 0.92) if held_out else rng.uniform(0.0, 0.62)
    bench = _colour(rng.uniform(0.50, 0.60) if held_out else rng.uniform(0.05, 0.45), 0.25, rng.uniform(0.55, 0.7))
    look = Look(
        wall=_colour(rng.random(), 0.08, rng.uniform(0.7, 0.8) if held_out else rng.uniform(0.82, 0.95)),
        floor=_colour(rng.random(), 0.1, rng.uniform(0.4, 0.6)),
        bench=bench,
        shirt=_colour(hue, 0.65, rng.uniform(0.5, 0.75)),
        skin=_colour(0.07, rng.uniform(0.3, 0.55), rng.uniform(0.55, 0.95)),
        hair=_colour(0.08, 0.5, rng.uniform(0.05, 0.4)),
        cardboard=_colour(rng.uniform(0.07, 0.1), rng.uniform(0.4, 0.55), rng.uniform(0.62, 0.8)),
        shelf=_colour(rng.random(), 0.15, rng.uniform(0.3, 0.5)),
        height=rng.uniform(1.06, 1.10) if held_out else rng.uniform(0.92, 1.04),
        reach=rng.uniform(1.12, 1.2) if held_out else rng.uniform(0.8, 1.1),
        zoom=rng.uniform(0.97, 1.03),
    )
    pace = rng.uniform(1.22, 1.3) if held_out else rng.uniform(0.8, 1.2)
    return Worker(look, rng.uniform(0.85, 1.2), pace)


def draw_along(annotation: Path, out: Path, settings: SimulationSettings) -> None:
    """Draws a video that follows a real annotation file, and `<out>.json` with its start beside it."""
    timeline = read_operations(annotation)
    start_ms = timeline.segments[0].start_ms - int(LEAD_S * 1000)
    box, acts = 1, []
    for segment in timeline.segments:
        box = segment.box or box  # a gap has no box of its own; it belongs to the box before
        acts.append(Act(segment.op_id, (segment.start_ms - start_ms) / 1000, (segment.end_ms - start_ms) / 1000, box))
    worker, rng = make_worker(USERS[0], settings), _rng(settings, timeline.user, timeline.session)
    play = Choreography(acts, pace=worker.pace, reach=worker.look.reach, seed=settings.seed)
    write_video(out, play, worker.look, acts[-1].end + LEAD_S, settings, rng)
    write_json(out.with_suffix(".json"), {"start": _iso(start_ms)})


def _with_pauses(operations: list[int], rng: random.Random) -> Iterator[int]:
    for op_id in operations:
        yield op_id
        if rng.random() < NULL_SHARE:
            yield 8100


def _duration(op_id: int, rng: random.Random) -> float:
    """Log-normal with the published median and mean, cut at 0.4 and 4 medians."""
    median, mean = DURATIONS[op_id]
    sigma = math.sqrt(2 * math.log(mean / median)) if mean > median else 0.2
    return median * min(4.0, max(0.4, math.exp(rng.gauss(0, max(sigma, 0.2)))))


def _clutter(rng: random.Random) -> tuple[tuple[float, float, float, Colour], ...]:
    return tuple(
        (rng.uniform(180, 460), rng.uniform(40, 120), rng.uniform(14, 46), _colour(rng.random(), 0.5, 0.6))
        for _ in range(rng.randint(1, 4))
    )


def _noise(settings: SimulationSettings, seed: int) -> list[Image.Image]:
    """Up to two grey levels; nothing is drawn brighter than 252, so that adding them never wraps around."""
    rng = np.random.default_rng(seed)
    shape = (settings.height, settings.width, 3)
    return [Image.fromarray(rng.integers(0, 3, shape, dtype=np.uint8)) for _ in range(4)]


def _rng(settings: SimulationSettings, *names: str) -> random.Random:
    return random.Random(digest([settings.seed, *names]))


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def _start(user: str, session: str) -> datetime:
    return datetime(2021, 10, 1, 9, tzinfo=JAPAN) + timedelta(days=int(user[3:]), hours=int(session[1:]) / 100)


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, JAPAN).isoformat(timespec="milliseconds")


def _ms(start_ms: int, seconds: float) -> int:
    return start_ms + round(seconds * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw sessions in the layout of an OpenPack release.")
    parser.add_argument("--out", type=Path, required=True, help="release folder, or an .mp4 with --along")
    parser.add_argument("--along", type=Path, help="a real openpack-operations CSV that the drawing follows")
    parser.add_argument("--users", nargs="*", default=USERS)
    parser.add_argument("--settings", type=Path, help="a TOML file, section [simulation]; by default settings.toml")
    parser.add_argument("--sessions", type=int, help="else as the settings say; so are the next two")
    parser.add_argument("--duration-scale", type=float)
    parser.add_argument("--deviations", type=float, help="share of boxes with a planted deviation")
    arguments = parser.parse_args()
    flags = {name: getattr(arguments, name) for name in ("sessions", "duration_scale", "deviations")}
    given = {name: value for name, value in flags.items() if value is not None}
    settings = in_effect("simulation", path=arguments.settings).simulation
    settings = SimulationSettings(**{**settings.model_dump(), **given})
    if arguments.along:
        draw_along(arguments.along, arguments.out, settings)
        return
    for user in arguments.users:
        for session in sessions(settings):
            write_session(arguments.out, user, session, settings)
            print(f"{user} {session} written")


if __name__ == "__main__":
    run(main)
