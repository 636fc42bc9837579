"""The assets that are partitioned by user: release (observed), raw_session, normalized_video, clips.

By user and not by session, because Dagster stops looking at 100 upstream partitions and OpenPack has 104 sessions; the
stages keep a record a session, so that one new session still costs one session's work.
"""

import dagster as dg

from assets.openpack import pages
from assets.openpack.versions import GROUP, code_version
from pipelines.common.incremental import Record, Told
from pipelines.openpack.settings import AllSettings
from resources.paths import Paths
from resources.source import SourceResource

Users = dg.StaticPartitionsDefinition


def session_assets(settings: AllSettings, users: Users) -> list[dg.AssetsDefinition | dg.SourceAsset]:
    return [
        _release(settings, users),
        _raw_session(settings, users),
        _normalized_video(settings, users),
        _clips(settings, users),
    ]


def _release(settings: AllSettings, users: Users) -> dg.SourceAsset:
    @dg.observable_source_asset(partitions_def=users, group_name=GROUP)
    def release(source: SourceResource) -> dg.DataVersionsByPartition:
        """What the source holds of each user. Observing it is how a changed file becomes known."""
        opened = source.open(settings)
        return dg.DataVersionsByPartition({user: opened.fingerprint(user) for user in users.get_partition_keys()})

    return release


def _raw_session(settings: AllSettings, users: Users) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=users, deps=["release"], group_name=GROUP, code_version=code_version("raw_session"))
    def raw_session(context: dg.AssetExecutionContext, paths: Paths, source: SourceResource) -> dg.MaterializeResult:
        """Annotations and one visual stream of every session of a user, found and checked."""
        user = context.partition_key
        out = paths.user("raw_session", user)
        records = source.open(settings).fetch(user, out, progress=teller(context))
        return pages.sessions("raw_session", paths, user, records, pages.timeline(records, out))

    return raw_session


def _normalized_video(settings: AllSettings, users: Users) -> dg.AssetsDefinition:
    version = code_version("normalized_video", settings.normalise, settings.clip_format.video)

    @dg.asset(partitions_def=users, deps=["raw_session"], group_name=GROUP, code_version=version)
    def normalized_video(context: dg.AssetExecutionContext, paths: Paths) -> dg.MaterializeResult:
        """One H.264 video a session in rate and size of the clip format, with the source time of every frame."""
        from pipelines.openpack import normalise

        user = context.partition_key
        raw, out = paths.user("raw_session", user), paths.user("normalized_video", user)
        made, tell = settings.clip_format, teller(context)
        records = normalise.run_user(user, raw, out, settings.normalise, progress=tell, clip_format=made)
        return pages.sessions("normalized_video", paths, user, records, pages.video_frames(records, out))

    return normalized_video


def _clips(settings: AllSettings, users: Users) -> dg.AssetsDefinition:
    version = code_version("clips", settings.clips, settings.keyframes, settings.clip_format)

    @dg.asset(partitions_def=users, deps=["normalized_video", "raw_session"], group_name=GROUP, code_version=version)
    def clips(context: dg.AssetExecutionContext, paths: Paths) -> dg.MaterializeResult:
        """Clips around boundaries and inside operations: keyframes with true frame numbers, and a label."""
        from pipelines.openpack import clips as stage

        user = context.partition_key
        normalized, raw, out = (paths.user(name, user) for name in ("normalized_video", "raw_session", "clips"))
        recipe = settings.clips, settings.keyframes
        made, tell = settings.clip_format, teller(context)
        records = stage.run_user(user, normalized, raw, out, *recipe, progress=tell, clip_format=made)
        return pages.sessions("clips", paths, user, records, pages.keyframes(records, out))

    return clips


def teller(context: dg.AssetExecutionContext) -> Told:
    """A line a computed session; one that was up to date, or set aside by a stage before, is passed over in silence."""
    stage, user = context.asset_key.to_user_string(), context.partition_key

    def tell(record: Record, computed: bool) -> None:
        if computed and "set_aside" not in record.inputs:
            context.log.info(f"{stage} {user} {record.name}: {record.reason or f'{record.seconds:.1f} s'}")

    return tell
