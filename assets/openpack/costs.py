"""How long each stage of the demo takes: measured once, scaled by this machine's reference work and by the settings.

Belongs here: `stage_costs.json` and how it is used. It has the seconds of a target of each stage in one whole demo (for
stages of sessions: of a user's part) and how much work that was, beside the seconds of the reference work there;
`memory_gb` is the most that the run's processes held together, `disk_gb` what it left. Costs are known for simulated
sessions and the embedded model only. `python -m assets.openpack.costs "<which run>"` takes the seconds over from the
last whole run in DATA_DIR.
"""

import argparse
from collections.abc import Collection
from pathlib import Path

from assets.progress import TIMES, Expected
from pipelines.common import console
from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import read_json, write_json
from pipelines.common.machine import GB, Machine
from pipelines.common.reference_work import Kind, Reference
from pipelines.openpack.effective import TINY, effective
from pipelines.openpack.settings import AllSettings
from resources.paths import Paths

FILE = Path(__file__).with_name("stage_costs.json")
KINDS: dict[str, Kind] = {  # of reference work: what a stage does most of
    "raw_session": "video",
    "normalized_video": "video",
    "clips": "video",
    "shards": "video",
    "base_model": "products",
    "adapter": "products",
    "evaluation": "products",
    "bento": "video",
}
LARGE = {"base_model", "adapter", "evaluation"}  # stages that take the memory


def expected_seconds(settings: AllSettings, source: str, vlm: str) -> Expected:
    """What a target of each stage costs with these settings, where that is known of this kind of source and model."""
    costs = read_json(FILE)
    there = Reference(**costs["reference"])

    def seconds(stage: str, here: Reference) -> float | None:
        if stage not in KINDS or not _known(source, vlm):
            return None
        cost, kind = costs["stages"][stage], KINDS[stage]
        return cost["seconds"] * here.seconds(kind) / there.seconds(kind) * _work(stage, settings) / cost["work"]

    return seconds


def require_room(source: str, vlm: str, machine: Machine, folder: Path, stages: Collection[str]) -> None:
    """SetupError where a demo that has these stages to run would run out of memory or disk on its way."""
    if not _known(source, vlm) or not LARGE & set(stages):
        return
    costs = read_json(FILE)
    for what, free, needed, cure in (
        ("memory", machine.memory, costs["memory_gb"], "End other programs, or take a larger machine or container."),
        ("disk", machine.disk, costs["disk_gb"], "Free disk space, or set DATA_DIR to a folder on another disk."),
    ):
        if free < needed * GB:
            sentence = f"{needed:g} GB of {what} are needed and {free / GB:.1f} GB are free"
            raise SetupError(sentence, file=folder, cure=cure)


def _known(source: str, vlm: str) -> bool:
    return (source, vlm) == ("simulated", TINY)


def _work(stage: str, settings: AllSettings) -> float:
    """How much a target of a stage has to do, in any unit that is the same for all settings."""
    if stage == "base_model":
        return settings.pretrain.loop.steps * settings.pretrain.loop.batch_size * settings.pretrain.processes
    if stage == "adapter":
        loop = settings.finetune.loop
        return loop.steps * loop.batch_size * loop.gradient_accumulation_steps * settings.finetune.processes
    simulation = settings.simulation
    recorded = simulation.sessions * simulation.boxes * simulation.duration_scale
    if stage == "evaluation":
        return recorded * settings.evaluation.views
    return 1.0 if stage == "bento" else recorded


def take_over(times: Path, settings: AllSettings, run: str) -> None:
    """Writes `stage_costs.json` anew from the times of a whole run; DataError where they are not of one."""
    said, costs = read_json(times), read_json(FILE)
    if not said["whole"] or said["stages"].keys() != KINDS.keys():
        raise DataError("not every stage ran from the beginning", file=times, cure="Run the demo in an empty DATA_DIR.")
    stages = {
        stage: {
            "seconds": round(said["stages"][stage]["seconds"] / said["stages"][stage]["targets"], 1),
            "work": _work(stage, settings),
        }
        for stage in KINDS
    }
    write_json(FILE, {**costs, "run": run, "reference": said["reference"], "stages": stages})


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the stages' costs over from the last whole run in DATA_DIR.")
    parser.add_argument("run", help="what run that was, for people: commit, machine, date")
    take_over(Paths.from_env().root / TIMES, effective().settings, parser.parse_args().run)


if __name__ == "__main__":
    console.run(main)
