"""The training pairs in the repository are what the pipeline writes."""

import json
from pathlib import Path

from pipelines.common.files import folder_digests
from pipelines.common.keyframes import KeyframeSettings
from pipelines.openpack import clips, normalise
from pipelines.openpack.loader import ShardReader
from pipelines.openpack.samples import COUNT, pick, write_samples
from pipelines.openpack.settings import ClipSettings, NormaliseSettings, ShardSettings, SimulationSettings
from pipelines.openpack.shards import write_shards
from pipelines.openpack.sources import SimulatedSource

KEPT = Path(__file__).parents[1] / "training_data_samples"


def test_there_are_twenty_pairs_of_training_users_and_many_operations():
    targets = [json.loads(path.read_text()) for path in sorted(KEPT.glob("*/target.json"))]
    assert len(targets) == COUNT
    assert all(target["clip_id"][:5] in {f"U010{i}" for i in range(1, 7)} for target in targets)
    assert len({target["dominant_operation"] for target in targets}) >= 7


def test_the_kept_pairs_of_one_user_are_what_the_defaults_write_today(tmp_path: Path):
    user = min(path.name for path in KEPT.iterdir() if path.is_dir())[:5]
    raw, normalised, cut = (tmp_path / stage / user for stage in ("raw_session", "normalized_video", "clips"))
    SimulatedSource(SimulationSettings()).fetch(user, raw, workers=2)
    normalise.run_user(user, raw, normalised, NormaliseSettings(), workers=2)
    clips.run_user(user, normalised, raw, cut, ClipSettings(), KeyframeSettings(), workers=2)
    write_shards(tmp_path / "clips", tmp_path / "shards", ShardSettings())
    kept = sorted(path.name for path in KEPT.iterdir() if path.name.startswith(user))
    write_samples(tmp_path / "shards", tmp_path / "all", count=10_000)
    for name in kept:
        assert folder_digests(tmp_path / "all" / name) == folder_digests(KEPT / name), name


def test_picking_takes_turns_through_the_operations(toy_shards: Path):
    reader = ShardReader(toy_shards, "train")
    operations = {reader.sample(index).clip.target.operation for index in range(len(reader))}
    picked = pick(reader, len(operations))
    assert {sample.clip.target.operation for sample in picked} == operations
