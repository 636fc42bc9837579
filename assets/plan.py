"""What is stale and why: Dagster's own verdict per asset and partition, and two things that it does not look at.

Staleness is Dagster's (`CachingStaleStatusResolver`, also behind the UI's "Unsynced"), so command and UI agree. Beyond
it, a target is stale when files of its last materialisation are gone, and when one of its blocking checks failed or
never ran on that materialisation, since a run of its own would pass such a check by. Only reading belongs here;
running does not, apart from observing sources, without which no change of a source is ever seen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleCause, StaleStatus
from dagster._core.loader import LoadingContext
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from assets.outputs import OUTPUTS, missing

_SHORT = {  # Dagster's reasons in the words of a person who changed something
    "has a new code version": "settings or code changed",
    "has a new dependency data version": "has new content",
}


@dataclass(frozen=True)
class Target:
    """An asset, or one partition of it: the smallest thing that can be stale and run."""

    asset: dg.AssetKey
    partition: str | None = None

    def __str__(self) -> str:
        name = self.asset.to_user_string()
        return f"{name}[{self.partition}]" if self.partition else name


class Plan:
    """The state of the whole graph at one moment; make a new one after every run."""

    def __init__(self, defs: dg.Definitions, instance: dg.DagsterInstance, data_dir: Path) -> None:
        self._instance, self._data_dir = instance, data_dir
        self._graph = defs.resolve_asset_graph()
        self._resolver = _resolver(defs, instance)

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """Everything that can be materialised: assets in topological order, their partitions in order."""
        return tuple(
            Target(key, partition)
            for key in self._graph.toposorted_asset_keys
            if self._graph.get(key).is_materializable
            for partition in self._partitions(key)
        )

    @cached_property
    def stale(self) -> dict[Target, tuple[str, ...]]:
        """The targets that would have to run, in the order of `targets`, each with its causes as sentences."""
        causes = {target: tuple(self._causes(target)) for target in self.targets}
        return {target: because for target, because in causes.items() if because}

    @cached_property
    def downstream(self) -> tuple[Target, ...]:
        """Targets that are not stale and follow on stale ones: they run only if what they read changes."""
        reached = set(self.stale)
        for target in self.targets:
            if any(parent in reached for parent in self.parents(target)):
                reached.add(target)
        return tuple(target for target in self.targets if target in reached and target not in self.stale)

    def parents(self, target: Target) -> list[Target]:
        """Direct upstream targets: the same partition of a partitioned asset, or all of it for one that is not."""
        keys = [key for key in sorted(self._graph.get(target.asset).parent_keys) if self._is_ours(key)]
        return [
            Target(key, partition)
            for key in keys
            for partition in self._partitions(key)
            if target.partition is None or partition in (None, target.partition)
        ]

    def _is_ours(self, key: dg.AssetKey) -> bool:
        return self._graph.get(key).is_materializable

    def _partitions(self, key: dg.AssetKey) -> list[str] | list[None]:
        definition = self._graph.get(key).partitions_def
        return list(definition.get_partition_keys()) if definition else [None]

    def _causes(self, target: Target) -> Iterator[str]:
        if self._resolver.get_status(target.asset, target.partition) == StaleStatus.MISSING:
            yield "never made"
            return
        for cause in self._resolver.get_stale_causes(target.asset, target.partition):
            yield _sentence(cause)
        partitions = [target.partition] if target.partition else None
        wanted = dg.AssetRecordsFilter(asset_key=target.asset, asset_partitions=partitions)
        last = self._instance.fetch_materializations(wanted, limit=1).records[0]
        if lost := missing(self._data_dir, _remembered(last)):
            yield lost
        yield from self._unpassed_checks(target, last.storage_id)

    def _unpassed_checks(self, target: Target, materialization: int) -> Iterator[str]:
        for key in sorted(self._graph.get_check_keys_for_assets({target.asset})):
            if not self._graph.get(key).blocking:
                continue
            info = self._checks.get((key, target.partition))
            if info is None or info.latest_target_materialization_storage_id != materialization:
                yield f"its check {key.name} did not run"
            elif info.latest_execution_status != AssetCheckExecutionRecordStatus.SUCCEEDED:
                yield f"its check {key.name} failed"

    @cached_property
    def _checks(self) -> Mapping:
        """The last result of every check, by check and partition."""
        infos = self._instance.event_log_storage.get_asset_check_partition_info(sorted(self._graph.asset_check_keys))
        return {(info.check_key, info.partition_key): info for info in infos}


def observe(defs: dg.Definitions, instance: dg.DagsterInstance, versions: Mapping[Target, str]) -> None:
    """Has Dagster observe the sources whose data version (`versions`) is not the one that it last saw.

    Only those: observing at every look would fill the event log, which is never pruned.
    """
    resolver = _resolver(defs, instance)
    changed = {
        target.asset
        for target, version in versions.items()
        if resolver.get_current_data_version(target.asset, target.partition).value != version
    }
    if changed:
        job = defs.resolve_implicit_global_asset_job_def()
        job.execute_in_process(instance=instance, asset_selection=sorted(changed), run_config=LINES)


LINES = {"loggers": {"lines": {}}}  # the run config that shows a person's lines and none of Dagster's events


def _resolver(defs: dg.Definitions, instance: dg.DagsterInstance) -> CachingStaleStatusResolver:
    return CachingStaleStatusResolver(instance, defs.resolve_asset_graph(), _Loading(instance))


def _sentence(cause: StaleCause) -> str:
    reason = _SHORT.get(cause.reason, cause.reason)
    if cause.category.value == "DATA" and cause.dependency:
        return f"{Target(cause.dependency.asset_key, cause.dependency.partition_key)} {reason}"
    return reason


def _remembered(record: dg.EventLogRecord) -> dict[str, str]:
    """The files that a materialisation said it left."""
    materialization = record.asset_materialization
    value = materialization.metadata.get(OUTPUTS) if materialization else None
    return value.value if isinstance(value, dg.JsonMetadataValue) and isinstance(value.value, dict) else {}


class _Loading(LoadingContext):
    """What Dagster's web server hands to the resolver, without a server."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance, self._loaders = instance, {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self) -> dict:
        return self._loaders
