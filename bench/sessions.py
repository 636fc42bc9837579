"""`added_session`: one session added to many, against what each of the many cost; 1 when only its own work is done."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from pipelines.openpack import clips, normalise, release
from pipelines.openpack.annotations import read_operations, write_operations
from pipelines.openpack.settings import AllSettings, SimulationSettings
from pipelines.openpack.simulate import write_session
from pipelines.openpack.sources import LocalSource

USER, FIRST = "U0101", "S0100"
MANY = 32


def run() -> dict[str, Any]:
    """Seconds a session, raw_session to clips, in one process; every session is the same short one."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_session(root / "release", USER, FIRST, SimulationSettings(boxes=1, duration_scale=0.25))
        for number in range(2, MANY + 1):
            _copy(root / "release", f"S{number:02d}00")
        other = _bring_up_to_date(root) / MANY
        _copy(root / "release", f"S{MANY + 1:02d}00")
        ours = _bring_up_to_date(root)
    return {"ours": round(ours, 3), "other": round(other, 3), "unit": "s", "ratio": round(other / ours, 2)}


def _copy(root: Path, session: str) -> None:
    """The first session under another name."""
    first = read_operations(release.annotation_file(root, USER, FIRST))
    write_operations(release.annotation_file(root, USER, session), USER, session, first.operations)
    for suffix in (".mp4", ".json"):
        video = root / USER / "video" / f"{FIRST}{suffix}"
        shutil.copy(video, video.with_name(f"{session}{suffix}"))


def _bring_up_to_date(root: Path) -> float:
    started = time.perf_counter()
    settings = AllSettings()
    raw, video, cut = (root / stage for stage in ("raw_session", "normalized_video", "clips"))
    LocalSource(root / "release", "video").fetch(USER, raw, workers=1)
    normalise.run_user(USER, raw, video, settings.normalise, workers=1)
    clips.run_user(USER, video, raw, cut, settings.clips, settings.keyframes, workers=1)
    return time.perf_counter() - started
