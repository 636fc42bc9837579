"""The assets that say and ship what came of it: evaluation, bento."""

import shutil

import dagster as dg

from assets.openpack import pages, views
from assets.openpack.model import GPU_POOL
from assets.openpack.versions import GROUP, code_version, service_code
from assets.outputs import OUTPUTS, outputs
from pipelines.common.files import atomic_file, digest
from pipelines.openpack.settings import AllSettings
from resources.paths import Paths


def result_assets(settings: AllSettings) -> list[dg.AssetsDefinition]:
    return [_evaluation(settings), _bento(settings)]


def _evaluation(settings: AllSettings) -> dg.AssetsDefinition:
    version = code_version("evaluation", settings.evaluation)

    # the shards are cut from the normalised videos and change with them, so these need no edge of their own
    @dg.asset(deps=["base_model", "adapter", "shards"], group_name=GROUP, pool=GPU_POOL, code_version=version)
    def evaluation(context: dg.AssetExecutionContext, paths: Paths) -> dg.MaterializeResult:
        """Base, tuned model, controls and trivial baselines on the same test clips, answered by the service's code."""
        from pipelines.openpack.evaluate import Videos, evaluate

        videos = Videos.of(paths.stage("normalized_video"), settings)
        base, adapter, shards, out = (paths.stage(name) for name in ("base_model", "adapter", "shards", "evaluation"))
        report = evaluate(base, adapter, shards, out, settings.evaluation, context.log.info, videos)
        with atomic_file(paths.results) as part:
            shutil.copyfile(out / "results.json", part)
        return pages.result(
            paths,
            out,
            digest(report),
            figures=pages.figures(report["all_clips"]),
            native=pages.figures(report["all_clips_native"]),
            report=dg.MetadataValue.path(out / "report.html"),
            picture=views.confusion(report["confusion"]["names"], report["confusion"]["counts"]),
        )

    return evaluation


def _bento(settings: AllSettings) -> dg.AssetsDefinition:
    version = code_version("bento", settings.evaluation, service_code())

    @dg.asset(deps=["base_model", "adapter", "evaluation"], group_name=GROUP, code_version=version)
    def bento(paths: Paths) -> dg.MaterializeResult:
        """The adapter in BentoML's model store, and the service that answers with it, built from bentofile.yaml."""
        from resources.bento import build

        built = build(paths.stage("base_model"), paths.stage("adapter"))
        return dg.MaterializeResult(
            data_version=dg.DataVersion(built.digest),
            metadata={
                "tag": built.tag,
                "model": built.model_tag,
                "folder": dg.MetadataValue.path(built.folder),
                "megabytes": round(built.bytes / 1e6, 3),
                OUTPUTS: dg.MetadataValue.json(outputs(paths.root, built.files)),
            },
        )

    return bento
