"""`demo_vs_reference`: seconds of each stage of a small demo over those of fixed reference work on the same machine.

The reference work is that by which a demo tells how long it will take (`common.reference_work`). So a stage that is
slow shows on any processor: where one instruction is missing, the products of matrices do not slow down with it. Each
stage is the product's own, in one process with one thread; of the trainings steps are timed, and not how they start.
`slow` compares with what was recorded before.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.common.reference_work import Kind, Reference, measure
from pipelines.openpack import clips, normalise
from pipelines.openpack.effective import TINY
from pipelines.openpack.evaluate import evaluate
from pipelines.openpack.finetune import finetune
from pipelines.openpack.pretrain import make_base
from pipelines.openpack.settings import AllSettings, load_settings
from pipelines.openpack.shards import write_shards
from pipelines.openpack.sources import SimulatedSource

USERS = ("U0101", "U0108")  # of training, of testing
SETTINGS = {
    "simulation": {"sessions": 1, "boxes": 1, "duration_scale": 0.4},
    "evaluation": {"timeline": {"sessions": 0, "planted_sessions": 0}},
}
STEPS, SAVED = 24, 8  # of both trainings; the first few are not timed
SHARDS = 10  # times that shards are written: once is over too soon to be timed
SLOW = 2.0  # times the recorded ratio: more than a busy machine makes of it

KINDS: dict[str, Kind] = {
    "raw_session": "video",
    "normalized_video": "video",
    "clips": "video",
    "shards": "video",
    "base_model": "products",
    "adapter": "products",
    "evaluation": "products",
}


def run() -> dict[str, Any]:
    """A ratio a stage, seconds to seconds; `ratio` is that of all together. Lower is better here."""
    for module in ("webdataset", "transformers", "peft", "bitsandbytes"):
        import_module(module)  # seconds that belong to no stage
    before = measure(workers=1)
    with tempfile.TemporaryDirectory() as folder:
        seconds = _stages(Path(folder), _settings())
    after = measure(workers=1)
    reference = Reference(min(before.products, after.products), min(before.video, after.video))
    stages = {stage: round(taken / reference.seconds(KINDS[stage]), 2) for stage, taken in seconds.items()}
    ours, other = sum(seconds.values()), reference.products + reference.video
    return {
        "ours": round(ours, 2),
        "other": round(other, 3),
        "unit": "s",
        "ratio": round(ours / other, 1),
        "stages": stages,
    }


def slow(measured: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """A sentence for each stage that takes far more of the reference work than it did."""
    before = recorded.get("stages", {})
    return [
        f"slow: {stage} takes {ratio} times the reference work, {ratio / before[stage]:.1f} times what is recorded"
        for stage, ratio in measured["stages"].items()
        if stage in before and ratio > SLOW * before[stage]
    ]


def _settings() -> AllSettings:
    """Those of the demo, for less work in one process."""
    made = load_settings(preset=TINY)
    given = made.model_dump(mode="json")
    for section, values in SETTINGS.items():
        for name, value in values.items():
            given[section][name] = {**given[section][name], **value} if isinstance(value, dict) else value
    for section in ("pretrain", "finetune"):
        given[section]["processes"] = 1
        given[section]["loop"] |= {"steps": STEPS, "save_steps": SAVED}
    return AllSettings.model_validate(given)


def _stages(root: Path, settings: AllSettings) -> dict[str, float]:
    """Seconds of each stage; of a training those of the steps after the first checkpoint."""
    raw, video, cut = (root / stage for stage in ("raw_session", "normalized_video", "clips"))
    base, shards, adapter = (root / stage for stage in ("base_model", "shards", "adapter"))
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[..., object], *given: Any, **options: Any) -> None:
        started = time.perf_counter()
        work(*given, **options)
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started

    source = SimulatedSource(settings.simulation)
    for user in USERS:
        places = [folder / user for folder in (raw, video, cut)]
        timed("raw_session", source.fetch, user, places[0], workers=1)
        timed("normalized_video", normalise.run_user, user, *places[:2], settings.normalise, workers=1)
        recipe = settings.clips, settings.keyframes
        timed("clips", clips.run_user, user, places[1], places[0], places[2], *recipe, workers=1)
    for _ in range(SHARDS):
        timed("shards", write_shards, cut, shards, settings.shards)
    steps = Steps()
    make_base(TINY, base, settings.pretrain, steps)
    seconds["base_model"] = steps.seconds()
    steps = Steps()
    finetune(base, shards, adapter, settings.finetune, steps)
    seconds["adapter"] = steps.seconds()
    timed("evaluation", evaluate, base, adapter, shards, root / "evaluation", settings.evaluation, str)
    return seconds


class Steps:
    """Hears the lines of a training, one a checkpoint, and knows how long the steps between the first and last took."""

    def __init__(self) -> None:
        self._at: list[float] = []

    def __call__(self, line: str) -> None:
        if line.startswith("step "):
            self._at.append(time.perf_counter())

    def seconds(self) -> float:
        return self._at[-1] - self._at[0]
