"""The optional job `sessions_on_ray`: raw_session, normalized_video and clips of all users, side by side on Ray.

After one that observes the source, a step is a user and a Ray job: it does what `assets.refresh` does for a user, one
run in one process. With each of Dagster's own steps as a Ray job there would be eight a user, assets and checks, each
with a Python to start and a place to wait for, although they follow one another: two users with half a minute of video
each took two minutes on two cores that way, and half a minute this way.
"""

import re
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from assets.plan import observe
from resources.paths import Paths
from resources.ray_cluster import RayCluster

if TYPE_CHECKING:
    from assets.build import Project

_ASSETS = [dg.AssetKey(name) for name in ("raw_session", "normalized_video", "clips")]


def ray_jobs(users: Sequence[str], paths: Paths, project: Callable[[], "Project"]) -> list[dg.JobDefinition]:
    """The job, or none where no variable names a cluster. `project` is asked for in a step, when it is complete.

    SetupError as of `RayCluster`.
    """
    cluster = RayCluster.from_env()
    if cluster is None:
        return []

    @dg.job(executor_def=cluster.executor(paths))
    def sessions_on_ray() -> None:
        """The sessions of all users on a Ray cluster. What follows on them runs as ever, for example by refresh."""
        observed = _observation(project)()
        for number, user in enumerate(users):
            _step(user, number, project)(observed)

    return [sessions_on_ray]


def _observation(project: Callable[[], "Project"]) -> dg.OpDefinition:
    @dg.op(out=dg.Out(dg.Nothing))
    def release(context: dg.OpExecutionContext) -> None:
        observe(project().defs, context.instance, project().source_versions())

    return release


def _step(user: str, number: int, project: Callable[[], "Project"]) -> dg.OpDefinition:
    plain = re.sub(r"\W", "_", user, flags=re.ASCII)  # Dagster takes nothing else in a name
    name = f"user_{user}" if plain == user else f"user_{plain}_{number}"

    @dg.op(name=name, ins={"observed": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing))
    def materialise(context: dg.OpExecutionContext) -> None:
        job = project().defs.resolve_implicit_global_asset_job_def()
        done = job.execute_in_process(
            instance=context.instance, asset_selection=_ASSETS, partition_key=user, raise_on_error=False
        )
        context.log.info(f"{user}: run {done.run_id} on {socket.gethostname()}")
        if not done.success:
            raise dg.Failure(f"{user} did not go through; run {done.run_id} says why")

    return materialise
