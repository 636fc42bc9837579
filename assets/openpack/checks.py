"""What must hold of an asset before anything is built on it. Each check reads the files anew and trusts no summary.

Blocking checks stop what follows, in the run of the asset and in later ones (`assets.plan`). Their description is the
sentence that a person reads when they fail.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import dagster as dg

from assets.openpack.faults import label_faults, video_faults
from pipelines.common.clip_format import VideoFormat
from pipelines.common.errors import DataError
from pipelines.common.files import read_json
from pipelines.common.incremental import read_records
from resources.paths import Paths

_SHOWN = 5  # faults in a sentence; a check that fails on every frame says so with the first few


def all_checks(video: VideoFormat, users: dg.StaticPartitionsDefinition) -> list[dg.AssetChecksDefinition]:
    return [
        _video_complete(video, users),
        _labels_known(users),
        *(_sessions_set_aside(stage, users) for stage in ("raw_session", "normalized_video", "clips")),
        _persons_apart(),
        _digests_match(),
        _tuned_beats_base(),
    ]


def _sessions_set_aside(stage: str, users: dg.StaticPartitionsDefinition) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=stage, partitions_def=users)
    def sessions_set_aside(context: dg.AssetCheckExecutionContext, paths: Paths) -> dg.AssetCheckResult:
        """No session was set aside; a warning, since the others went on."""
        records = read_records(paths.user(stage, context.partition_key))
        reasons = [f"{record.name}: {record.reason}" for record in records if not record.ok]
        return _result(reasons, severity=dg.AssetCheckSeverity.WARN)

    return sessions_set_aside


def _video_complete(video: VideoFormat, users: dg.StaticPartitionsDefinition) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset="normalized_video", blocking=True, partitions_def=users)
    def video_complete(context: dg.AssetCheckExecutionContext, paths: Paths) -> dg.AssetCheckResult:
        """Every video has the rate and size that labels are cut by ([clip_format]), and no frame was lost."""
        user = context.partition_key
        raw, out = paths.user("raw_session", user), paths.user("normalized_video", user)
        return _result(_each_session(out, lambda folder: video_faults(raw / folder.name, folder, video)))

    return video_complete


def _labels_known(users: dg.StaticPartitionsDefinition) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset="clips", blocking=True, partitions_def=users)
    def labels_known(context: dg.AssetCheckExecutionContext, paths: Paths) -> dg.AssetCheckResult:
        """Every clip's operation and next operation is one that the session's labels name."""
        return _result(_each_session(paths.user("clips", context.partition_key), label_faults))

    return labels_known


def _persons_apart() -> dg.AssetChecksDefinition:
    @dg.asset_check(asset="shards", blocking=True)
    def persons_apart(paths: Paths) -> dg.AssetCheckResult:
        """No person, under whichever of their ids, is in two splits."""
        from pipelines.openpack.loader import read_manifest
        from pipelines.openpack.splits import check_disjoint

        splits = read_manifest(paths.stage("shards"))["splits"]
        return _result(_faults(lambda: check_disjoint({name: split["persons"] for name, split in splits.items()})))

    return persons_apart


def _digests_match() -> dg.AssetChecksDefinition:
    @dg.asset_check(asset="shards", blocking=True)
    def digests_match(paths: Paths) -> dg.AssetCheckResult:
        """Every shard has the digest that the manifest says."""
        from pipelines.openpack.loader import verify

        return _result(_faults(lambda: verify(paths.stage("shards"))))

    return digests_match


def _tuned_beats_base() -> dg.AssetChecksDefinition:
    @dg.asset_check(asset="evaluation", blocking=True)
    def tuned_beats_base(paths: Paths) -> dg.AssetCheckResult:
        """The tuned model knows the next operation (AA@1) more often than the base, over all test clips."""
        scores = read_json(paths.stage("evaluation") / "report.json")["all_clips"]
        base, tuned = (scores[who]["AA@1"] for who in ("base_model", "finetuned_model"))
        worse = not tuned > base or math.isnan(tuned)
        return _result([f"AA@1 is {tuned:.3f} tuned and {base:.3f} base"] if worse else [])

    return tuned_beats_base


def _each_session(folder: Path, faults: Callable[[Path], Iterable[str]]) -> list[str]:
    """list[str] of every session of a user that was not set aside, each behind the session's name."""
    records = [record for record in read_records(folder) if record.ok]
    return [f"{record.name}: {fault}" for record in records for fault in faults(folder / record.name)]


def _faults(check: Callable[[], object]) -> list[str]:
    """A check of the pipelines that raises, as faults."""
    try:
        check()
    except DataError as error:
        return [str(error)]
    return []


def _result(faults: list[str], severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR) -> dg.AssetCheckResult:
    more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    return dg.AssetCheckResult(
        passed=not faults,
        severity=severity,
        description="; ".join([*faults[:_SHOWN], *more]) or None,
        metadata={"faults": len(faults)},
    )
