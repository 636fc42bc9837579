"""Small pictures for pages and reports, drawn from plain inputs: no label set, no file, no page.

Every function returns a PNG of less than `LARGEST` bytes; equal inputs give equal bytes with the same libraries.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

LARGEST = 60_000  # bytes of one PNG
_THUMB = 84  # pixels a side: eight of them fill the width of Dagster's metadata column
_MARK, _SPAN, _ANSWER, _INK, _GREY = "#d62728", "#1f77b4", "#ff7f0e", "#333333", "#bbbbbb"
_COLOURS = 64  # in a palette: a quarter of the bytes of 256, and no worse to look at at this size


@dataclass(frozen=True)
class Strip:
    """One row of a contact sheet: RGB pictures (uint8, height × width × 3), each with its frame number of `length`.

    `marks` are frame numbers at which something changes; `span` is the half-open interval [start, end) to underline,
    `answered` another one, drawn below it.
    """

    title: str
    pictures: Sequence[np.ndarray]
    numbers: Sequence[int]
    length: int
    marks: Sequence[int] = field(default=())
    span: tuple[int, int] | None = None
    answered: tuple[int, int] | None = None


def contact_sheet(strips: Sequence[Strip]) -> bytes:
    """One strip (at least) below the other: title, pictures with frame numbers, and a bar of all frames with the marks
    in red."""
    from PIL import Image

    rows = [_strip(strip) for strip in strips]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return _smallest(sheet)


def timelines(rows: Sequence[tuple[str, Sequence[tuple[str, float, float]]]], colours: Sequence[str]) -> bytes:
    """A bar a row (title, parts of name, start and end in seconds); `colours` are the names in the legend's order."""
    from matplotlib import colormaps

    figure = _figure(7.2, 0.9 + 0.4 * len(rows))
    axes = figure.add_subplot()
    palette = {name: colormaps["tab20"](index / 20) for index, name in enumerate(colours)}
    for index, (_, parts) in enumerate(rows):
        for name in colours:
            bars = [(start, end - start) for part, start, end in parts if part == name]
            axes.broken_barh(bars, (index - 0.4, 0.8), color=palette[name], label=name if index == 0 else None)
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("seconds of video")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / len(rows) - 0.25), ncols=4, fontsize=7, frameon=False)
    return _plot(figure)


def curve(steps: Sequence[float], values: Sequence[float], *, x: str, y: str) -> bytes:
    """`values` over `steps`: each as it is in grey, and the mean of a fiftieth of them around it as a line."""
    figure = _figure(5.2, 2.6)
    axes = figure.add_subplot()
    around = len(values) // 100
    means = [fmean(values[max(0, at - around) : at + around + 1]) for at in range(len(values))]
    axes.plot(steps, values, color=_GREY, linewidth=0.6)
    axes.plot(steps, means, color=_SPAN, linewidth=1.4)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return _plot(figure)


def confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> bytes:
    """Counts by true name (rows) and answered name (columns), shaded by the share of its row."""
    figure = _figure(5.6, 5.0)
    axes = figure.add_subplot()
    axes.imshow([[count / max(1, sum(row)) for count in row] for row in counts], cmap="Blues", vmin=0, vmax=1)
    for true, row in enumerate(counts):
        for answered, count in enumerate(row):
            if count:
                colour = "white" if count > 0.5 * sum(row) else _INK
                axes.text(answered, true, str(count), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("answered")
    axes.set_ylabel("true")
    return _plot(figure)


def reliability(bins: Sequence[tuple[float, float, int]]) -> bytes:
    """A point a bin (mean confidence, share right, samples), as large as it has samples, beside the line of a perfect
    one: points below it are too sure."""
    figure = _figure(3.6, 3.4)
    axes = figure.add_subplot()
    total = sum(samples for *_, samples in bins)
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    for confidence, right, samples in bins:
        axes.plot([confidence, confidence], [confidence, right], color=_MARK, linewidth=1)
        axes.scatter([confidence], [right], s=30 + 400 * samples / total, color=_SPAN, alpha=0.8)
        axes.annotate(str(samples), (confidence, right), textcoords="offset points", xytext=(9, -9), fontsize=7)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel("confidence")
    axes.set_ylabel("share right")
    axes.grid(alpha=0.3)
    return _plot(figure)


def _strip(strip: Strip) -> Image:
    from PIL import Image, ImageDraw

    width = max(1, len(strip.pictures)) * (_THUMB + 2)
    image = Image.new("RGB", (width, _THUMB + 46), "white")
    draw = ImageDraw.Draw(image)
    draw.text((2, 1), strip.title, fill=_INK)
    for index, (picture, number) in enumerate(zip(strip.pictures, strip.numbers, strict=True)):
        left = index * (_THUMB + 2)
        image.paste(Image.fromarray(picture).resize((_THUMB, _THUMB), Image.Resampling.BILINEAR), (left, 14))
        draw.text((left + 2, _THUMB + 15), str(number), fill=_INK)
        if index and any(strip.numbers[index - 1] < mark <= number for mark in strip.marks):
            draw.rectangle((left - 4, 14, left + 1, _THUMB + 14), fill=_MARK)
    _bar(draw, strip, width)
    return image


def _bar(draw: ImageDraw, strip: Strip, width: int) -> None:
    """All frames as a line: the span thick, the answered one below, the shown frames as ticks, the marks in red."""
    top, scale = _THUMB + 34, (width - 4) / strip.length
    draw.line((2, top, width - 2, top), fill=_GREY)
    if strip.span:
        draw.rectangle((2 + strip.span[0] * scale, top - 2, 2 + strip.span[1] * scale, top + 2), fill=_SPAN)
    if strip.answered:
        start, end = (2 + frame * scale for frame in strip.answered)
        draw.rectangle((start, top + 5, end, top + 8), fill=_ANSWER)
    for number in strip.numbers:
        draw.line((2 + number * scale, top - 4, 2 + number * scale, top + 4), fill=_INK)
    for mark in strip.marks:
        draw.rectangle((1 + mark * scale, top - 6, 3 + mark * scale, top + 6), fill=_MARK)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # without pyplot: no display, no state that other threads see

    return Figure(figsize=(width, height), dpi=90)


def _plot(figure: Figure) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    figure.savefig(stream, format="png", bbox_inches="tight")
    return _smallest(Image.open(stream).convert("RGB"))


def _smallest(image: Image) -> bytes:
    """The picture as a PNG of few colours, made smaller until it fits."""
    while True:
        stream = io.BytesIO()
        _few_colours(image).save(stream, "PNG", optimize=True)
        if stream.tell() < LARGEST:
            return stream.getvalue()
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5))


def _few_colours(image: Image) -> Image:
    """The picture in its own best colours and those of the drawing, which a busy picture would otherwise displace."""
    from PIL import Image, ImageColor

    drawn = [ImageColor.getrgb(name) for name in ("white", _MARK, _SPAN, _ANSWER, _INK, _GREY)]
    own = image.quantize(_COLOURS - len(drawn)).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*own, *(value for colour in drawn for value in colour)])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)
