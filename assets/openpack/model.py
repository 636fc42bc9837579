"""The assets that make the model: shards, base_model, adapter. Training is a process of its own in the pool `gpu`."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from assets.openpack import pages, views
from assets.openpack.versions import GROUP, code_version
from pipelines.common.errors import DataError
from pipelines.common.files import digest
from pipelines.openpack.pretrain import TINY
from pipelines.openpack.settings import AllSettings
from resources.paths import Paths
from resources.trainer import Trainer

GPU_POOL = "gpu"

Lines = Callable[..., list[str]]  # of names of sections: what is in effect there and where it came from


def model_assets(settings: AllSettings, users: list[str], vlm: str, lines: Lines) -> list[dg.AssetsDefinition]:
    return [_shards(settings, users), _base_model(settings, vlm, lines), _adapter(settings, lines)]


def _shards(settings: AllSettings, users: list[str]) -> dg.AssetsDefinition:
    # The users belong to the version, because Dagster notices a new upstream partition and never one that is gone.
    @dg.asset(deps=["clips"], group_name=GROUP, code_version=code_version("shards", settings.shards, users))
    def shards(paths: Paths) -> dg.MaterializeResult:
        """WebDataset tars of all clips by split, with a manifest of their digests."""
        from pipelines.openpack.shards import write_shards

        _refuse_other_users(paths, users)
        manifest = write_shards(paths.stage("clips"), paths.stage("shards"), settings.shards)
        files = [shard for split in manifest["splits"].values() for shard in split["shards"]]
        version = digest([manifest["preparation"], [[shard["file"], shard["digest"]] for shard in files]])
        shown = {"splits": pages.splits(manifest["splits"]), **pages.set_aside(manifest["set_aside"])}
        return pages.result(paths, paths.stage("shards"), version, **shown)

    return shards


def _refuse_other_users(paths: Paths, users: list[str]) -> None:
    """Clips that another source left in the same DATA_DIR must not slip into this one's shards."""
    others = sorted({path.name for path in paths.stage("clips").glob("[!.]*") if path.is_dir()} - set(users))
    if others:
        cure = "Set DATA_DIR to a folder of this source's own, or delete theirs."
        raise DataError(f"{', '.join(others)} are no users of this source", file=paths.stage("clips"), cure=cure)


def _base_model(settings: AllSettings, vlm: str, lines: Lines) -> dg.AssetsDefinition:
    clip_format = settings.clip_format
    # only the embedded model depends on the clips: the numbers that it counts to are theirs
    version = code_version("base_model", settings.pretrain, vlm, *([str(clip_format.frames)] if vlm == TINY else []))

    @dg.asset(group_name=GROUP, pool=GPU_POOL, code_version=version)
    def base_model(context: dg.AssetExecutionContext, paths: Paths, trainer: Trainer) -> dg.MaterializeResult:
        """The model that is tuned: the embedded one, pre-trained here without any packaging label, or that of VLM."""
        _tell(context, lines("pretrain"))
        out = paths.stage("base_model")
        given = {"vlm": vlm, "out": str(out), "clip_format": clip_format.model_dump_json()}
        report = trainer.run(context, "base_model", settings.pretrain, **given)
        return pages.result(paths, out, report["digest"], **_training(report))

    return base_model


def _adapter(settings: AllSettings, lines: Lines) -> dg.AssetsDefinition:
    version = code_version("adapter", settings.finetune)

    @dg.asset(deps=["base_model", "shards"], group_name=GROUP, pool=GPU_POOL, code_version=version)
    def adapter(context: dg.AssetExecutionContext, paths: Paths, trainer: Trainer) -> dg.MaterializeResult:
        """QLoRA adapter on the base model, trained on the train split; checkpoints on the way, resumed when stopped."""
        _tell(context, lines("finetune"))
        base, shards, out = (paths.stage(name) for name in ("base_model", "shards", "adapter"))
        places = {"base": str(base), "shards": str(shards), "out": str(out)}
        evaluation = settings.evaluation.model_dump_json()  # what it comes to is asked before hours of training
        report = trainer.run(context, "adapter", settings.finetune, **places, evaluation=evaluation)
        return pages.result(paths, out, report["digest"], **_training(report))

    return adapter


def _tell(context: dg.AssetExecutionContext, lines: list[str]) -> None:
    if lines:
        context.log.info("\n    ".join(lines))


def _training(report: dict[str, Any]) -> dict[str, Any]:
    """What a training reports: its loss curve, and a table of whatever single figures it gives."""
    figures = [[name, value] for name, value in report.items() if isinstance(value, int | float | str | None)]
    shown = {"figures": views.table(["figure", "value"], figures)}
    if losses := report["losses"]:  # [[step, loss], …]; empty where nothing was trained
        shown["picture"] = views.curve(*zip(*losses, strict=True), x="step", y="loss")
    return shown
