"""An adapter on persons that nothing was fitted to: the validation worker drawn anew, another look with each seed.

For choosing settings: the clips of one validation person leave ±0.04 of doubt, and the test person is not to be looked
at. `python -m bench.new_persons --base data/base_model --adapter data/adapter` prints OCA, AA@1 and the mean IoU on
clips with a boundary over all seeds, for each number of views. Apart from `python -m bench`, as it compares no sides.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean

from pipelines.common.intervals import iou
from pipelines.common.keyframes import KeyframeSettings
from pipelines.openpack import clips, normalise
from pipelines.openpack.loader import Sample, ShardReader
from pipelines.openpack.predict import Predictor
from pipelines.openpack.prediction import Prediction
from pipelines.openpack.settings import (
    ClipSettings,
    NormaliseSettings,
    ShardSettings,
    SimulationSettings,
    load_settings,
)
from pipelines.openpack.shards import write_shards
from pipelines.openpack.sources import SimulatedSource
from pipelines.openpack.taxonomy import LABELS, Taxonomy

USER = "U0107"
SEEDS = tuple(range(201, 209))


def drawn(seed: int, root: Path, scale: float) -> list[Sample]:
    """The clips of one session of the validation worker as another seed draws them, durations as `scale` asks."""
    raw, video, cut = (root / stage / USER for stage in ("raw_session", "normalized_video", "clips"))
    SimulatedSource(SimulationSettings(seed=seed, sessions=1, duration_scale=scale)).fetch(USER, raw, workers=1)
    normalise.run_user(USER, raw, video, NormaliseSettings(), workers=1)
    clips.run_user(USER, video, raw, cut, ClipSettings(), KeyframeSettings(), workers=1)
    write_shards(root / "clips", root / "shards", ShardSettings())
    reader = ShardReader(root / "shards", "val")
    return [reader.sample(index) for index in range(len(reader))]


def figures(said: list[Prediction], samples: list[Sample], taxonomy: Taxonomy) -> dict[str, float]:
    name = taxonomy.brief_name
    pairs = [(one, sample.clip.target, bool(sample.clip.boundaries)) for one, sample in zip(said, samples, strict=True)]
    overlaps = [iou((one.start, one.end), (true.start, true.end)) for one, true, boundary in pairs if boundary]
    return {
        "OCA": fmean(name(one.operation) == name(true.operation) for one, true, _ in pairs),
        "AA@1": fmean(name(one.next) == name(true.next) for one, true, _ in pairs),
        "mean_tIoU_boundary": fmean(overlaps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Score an adapter on the validation worker drawn anew.")
    parser.add_argument("--base", type=Path, required=True, help="folder of the stage base_model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the stage adapter")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--views", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--duration-scale", type=float, default=1.0, help="of the published medians")
    arguments = parser.parse_args()
    taxonomy, samples = Taxonomy.read(arguments.adapter / LABELS), []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            samples += drawn(seed, Path(folder), arguments.duration_scale)
    for views in arguments.views:
        settings = load_settings().evaluation.model_copy(update={"views": views})
        predictor = Predictor.load(arguments.base, arguments.adapter, taxonomy, settings)
        told = figures(predictor.answer_samples(samples), samples, taxonomy)
        rounded = {name: round(value, 3) for name, value in told.items()}
        print(f"{views} views, {len(samples)} clips, seeds {arguments.seeds}: {rounded}")


if __name__ == "__main__":
    main()
