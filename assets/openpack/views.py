"""Pictures and tables for asset pages, from plain inputs: no asset, no file, no Dagster.

A picture of `pipelines.common.pictures` becomes Markdown that carries the PNG in a data URI, since Dagster shows no
other. It is stored with every materialisation and never pruned, hence the limit on its bytes there.
"""

import base64
from collections.abc import Sequence

from pipelines.common import pictures
from pipelines.common.pictures import Strip


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, its columns aligned for a terminal. Floats show three digits after the point, None a dash."""
    lines = [[_cell(value) for value in line] for line in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def contact_sheet(strips: Sequence[Strip]) -> str:
    """`pictures.contact_sheet`, or a sentence where there is no strip."""
    return _markdown(pictures.contact_sheet(strips), "contact sheet") if strips else "Nothing to show."


def timelines(rows: Sequence[tuple[str, Sequence[tuple[str, float, float]]]], colours: Sequence[str]) -> str:
    return _markdown(pictures.timelines(rows, colours), "operations")


def curve(steps: Sequence[float], values: Sequence[float], *, x: str, y: str) -> str:
    return _markdown(pictures.curve(steps, values, x=x, y=y), y)


def confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    return _markdown(pictures.confusion(names, counts), "confusion matrix")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "–" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _markdown(png: bytes, title: str) -> str:
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"
