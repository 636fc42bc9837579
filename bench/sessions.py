"""`cost_of_32_sessions` and `added_session`: what one session costs among few and many, and one that comes later."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.openpack import clips, normalise, release
from pipelines.openpack.annotations import read_operations, write_operations
from pipelines.openpack.settings import AllSettings, SimulationSettings
from pipelines.openpack.simulate import write_session
from pipelines.openpack.sources import LocalSource

USER, FIRST = "U0101", "S0100"
FEW, MANY = 4, 32


def flat() -> dict[str, Any]:
    """Seconds a session, raw_session to clips, in one process: with 32 sessions (ours) and with 4 (other)."""
    with _release() as root:
        _grow(root, 1, FEW)
        other = _bring_up_to_date(root, "few") / FEW
        _grow(root, FEW, MANY)
        ours = _bring_up_to_date(root, "many") / MANY
    return {"ours": round(ours, 3), "other": round(other, 3), "unit": "s", "ratio": round(other / ours, 2)}


def added() -> dict[str, Any]:
    """Seconds for one session added to 32 that are done (ours), and what each of those cost (other); every session is
    the same short one. The ratio is 1 when only the new one's work is done."""
    with _release() as root:
        _grow(root, 1, MANY)
        other = _bring_up_to_date(root, "out") / MANY
        _grow(root, MANY, MANY + 1)
        ours = _bring_up_to_date(root, "out")
    return {"ours": round(ours, 3), "other": round(other, 3), "unit": "s", "ratio": round(other / ours, 2)}


@contextmanager
def _release() -> Iterator[Path]:
    """A folder whose `release` holds one short session."""
    with tempfile.TemporaryDirectory() as folder:
        settings = SimulationSettings(boxes=1, duration_scale=0.25)
        write_session(Path(folder) / "release", USER, FIRST, settings)
        yield Path(folder)


def _grow(root: Path, have: int, want: int) -> None:
    """The first session under other names, until there are `want`."""
    first = read_operations(release.annotation_file(root / "release", USER, FIRST))
    for number in range(have + 1, want + 1):
        session = f"S{number:02d}00"
        write_operations(release.annotation_file(root / "release", USER, session), USER, session, first.operations)
        for suffix in (".mp4", ".json"):
            video = root / "release" / USER / "video" / f"{FIRST}{suffix}"
            shutil.copy(video, video.with_name(f"{session}{suffix}"))


def _bring_up_to_date(root: Path, out: str) -> float:
    started = time.perf_counter()
    settings = AllSettings()
    raw, video, cut = (root / out / stage for stage in ("raw_session", "normalized_video", "clips"))
    LocalSource(root / "release", "video").fetch(USER, raw, workers=1)
    normalise.run_user(USER, raw, video, settings.normalise, workers=1)
    clips.run_user(USER, video, raw, cut, settings.clips, settings.keyframes, workers=1)
    return time.perf_counter() - started
