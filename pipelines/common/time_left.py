"""How the time that is left is told: by one training or one stage, and of whatever it is a part of.

Belongs here: the words, written and read, so that whoever starts a stage learns from its lines. Imports nothing heavy.
"""

from __future__ import annotations

import re

_LEFT = re.compile(r", (\d+) s left$")


def with_left(line: str, seconds: float) -> str:
    """The line of a stage that knows how long it will still take."""
    return f"{line}, {seconds:.0f} s left"


def read_left(line: str) -> float | None:
    """Seconds that a stage says it will still take; None where it says nothing of it."""
    found = _LEFT.search(line)
    return float(found[1]) if found else None


def about(seconds: float) -> str:
    """For a person, as exact as an estimate can be."""
    if seconds < 45:
        return "less than a minute"
    if seconds < 5400:
        return f"about {max(1, round(seconds / 60))} min"
    return f"about {seconds / 3600:.1f} h"
