"""The process that trains, as Dagster starts it: `python -m resources.train_process adapter` under Dagster Pipes.

Only the wrapping belongs here: arguments in, log lines and one report out, the guards. By hand, on a machine without
Dagster, call the stage itself: `python -m pipelines.openpack.finetune --help`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dagster_pipes import PipesContext, open_dagster_pipes

from pipelines.common.errors import DataError
from pipelines.common.locks import only_one
from resources.guards import stop_with_parent

Say = Callable[[str], None]


def make_base(settings: dict[str, Any], arguments: dict[str, str], say: Say) -> dict[str, Any]:
    from pipelines.common.clip_format import ClipFormat
    from pipelines.openpack.pretrain import make_base
    from pipelines.openpack.settings import PretrainSettings

    recipe = PretrainSettings.model_validate(settings)
    clips = ClipFormat.model_validate_json(arguments["clip_format"])
    return asdict(make_base(arguments["vlm"], Path(arguments["out"]), recipe, progress=say, clip_format=clips))


def finetune(settings: dict[str, Any], arguments: dict[str, str], say: Say) -> dict[str, Any]:
    from pipelines.openpack.finetune import finetune
    from pipelines.openpack.settings import EvaluationSettings, FinetuneSettings

    base, shards, out = (Path(arguments[name]) for name in ("base", "shards", "out"))
    evaluation = EvaluationSettings.model_validate_json(arguments["evaluation"])
    recipe = FinetuneSettings.model_validate(settings)
    return asdict(finetune(base, shards, out, recipe, progress=say, evaluation=evaluation))


TASKS = {"base_model": make_base, "adapter": finetune}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    task = parser.parse_args().task
    if "DAGSTER_PIPES_CONTEXT" not in os.environ:
        parser.error("this is the end that Dagster starts; by hand: python -m pipelines.openpack.finetune --help")
    with open_dagster_pipes() as pipes:
        stop_with_parent(pipes.get_extra("parent"))
        try:
            with _gpu(pipes.log.info):
                pipes.report_custom_message(_run(task, pipes))
        except DataError as error:
            pipes.log.error(str(error))
            sys.exit(1)


def _run(task: str, pipes: PipesContext) -> dict[str, Any]:
    return TASKS[task](pipes.get_extra("settings"), pipes.get_extra("arguments"), pipes.log.info)


def _gpu(waiting: Say):
    """The lock of this machine's GPU, which a killed run's slot in the pool does not stand for; none without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return nullcontext()
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "all").replace(",", "-")
    return only_one(Path(tempfile.gettempdir()) / f"packaging-video-vlm-gpu-{devices}.lock", waiting=waiting)


if __name__ == "__main__":
    main()
