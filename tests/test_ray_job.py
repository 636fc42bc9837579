"""The optional job on Ray: on a real cluster of two cores, and what it asks for where it cannot run."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import dagster as dg
import pytest
from fake_stages import World, install

from assets.build import build
from assets.openpack.ray_job import ray_jobs
from assets.stale import current_plan
from pipelines.common.errors import SetupError
from pipelines.common.files import folder_digests
from pipelines.common.incremental import RECORD
from pipelines.openpack.settings import AllSettings
from resources.paths import Paths
from resources.ray_cluster import ADDRESS, CORES, RayCluster

ROOT = Path(__file__).parents[1]
CLUSTER = """
import sys, ray
context = ray.init(num_cpus=2, include_dashboard=True, _temp_dir=sys.argv[1], log_to_driver=False)
print(context.dashboard_url, flush=True)
sys.stdin.read()
"""
TINY = "[simulation]\nsessions = 1\nboxes = 1\nduration_scale = 0.3\nwidth = 160\nheight = 120\n"  # as toy_shards


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster of two cores, which ends with the test however that ends."""
    for package in ("ray", "dagster_ray"):
        if not find_spec(package):
            pytest.skip(f"{package} is not installed; it comes with requirements.lock")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # it listens on all of the machine's addresses
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short: a socket's path has 107 characters at most
        command = [sys.executable, "-c", CLUSTER, folder]
        with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            yield f"http://{process.stdout.readline().strip()}"
            process.communicate()


def test_users_go_side_by_side_through_ray_as_they_go_through_one_process(
    cluster: str, toy_shards: Path, tmp_path: Path
):
    data, home = tmp_path / "data", tmp_path / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    (tmp_path / "settings.toml").write_text(TINY)
    given = {"DAGSTER_HOME": str(home), "DATA_DIR": str(data), "SETTINGS_FILE": str(tmp_path / "settings.toml")}
    command = [str(Path(sys.executable).with_name("dagster")), "job", "execute", "-m", "definitions"]
    chosen = ["-j", "sessions_on_ray", "-o", "*user_U0101,*user_U0108"]
    done = subprocess.run(
        [*command, *chosen], cwd=ROOT, env={**os.environ, **given, ADDRESS: cluster}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

    for stage in ("normalized_video", "clips"):
        for user in ("U0101", "U0108"):
            assert _content(data / stage / user) == _content(toy_shards.parent / stage / user)
    jobs = {job.metadata["dagster/op"]: job for job in _ray_jobs(cluster)}
    assert jobs.keys() == {"release", "user_U0101", "user_U0108"}
    assert {job.status.name for job in jobs.values()} == {"SUCCEEDED"}
    first, second = jobs["user_U0101"], jobs["user_U0108"]
    assert max(first.start_time, second.start_time) < min(first.end_time, second.end_time)  # both at work at once
    with dg.DagsterInstance.from_config(str(home)) as instance:
        runs = {run.tags.get("dagster/partition"): run for run in instance.get_runs()}
        assert {run.status for run in runs.values()} == {dg.DagsterRunStatus.SUCCESS}
        for user in ("U0101", "U0108"):
            logs = instance.all_logs(runs[user].run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
            checks = [log.dagster_event.asset_check_evaluation_data for log in logs]
            assert [check.passed for check in checks] == [True] * 5


def test_without_a_variable_there_is_no_such_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    assert not build(AllSettings()).defs.jobs
    code = "import definitions, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"ray", "dagster_ray"}.isdisjoint(done.stdout.split())


def test_a_job_that_is_asked_for_and_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, "http://127.0.0.1:8265")
    for cores in ("many", "0", "-1", "0.5"):
        monkeypatch.setenv(CORES, cores)
        with pytest.raises(SetupError, match=f"RAY_CORES={cores} is no number of cores"):
            build(AllSettings())
    monkeypatch.setenv(CORES, "16")
    monkeypatch.setitem(sys.modules, "dagster_ray", None)
    with pytest.raises(SetupError, match="RAY_API_SERVER_ADDRESS is set and dagster-ray is not installed"):
        build(AllSettings())


def test_a_step_takes_along_what_its_definitions_are_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text("")
    (tmp_path / "release").mkdir()
    for name, value in {ADDRESS: "http://head:8265", "OPENPACK_ROOT": "release", "OPENPACK_VIEW": "depth"}.items():
        monkeypatch.setenv(name, value)
    for name in ("SETTINGS_FILE", "DATA_DIR", "OPENPACK_SOURCE", "VLM", "PRESET"):
        monkeypatch.delenv(name, raising=False)
    cluster = RayCluster.from_env()
    assert cluster
    variables = cluster.variables(Paths.from_env())
    assert variables.pop("PATH").startswith(f"{Path(sys.executable).parent}:")
    assert variables == {
        ADDRESS: "http://head:8265",
        "DATA_DIR": str(tmp_path / "data"),
        "OPENPACK_ROOT": str(tmp_path / "release"),
        "OPENPACK_VIEW": "depth",
        "SETTINGS_FILE": str(tmp_path / "settings.toml"),
    }


def test_a_user_who_fails_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dagster_ray", reason="dagster-ray is not installed; it comes with requirements.lock")
    monkeypatch.setenv(ADDRESS, "http://127.0.0.1:8265")
    world = World({"U0101": {"S0100": "a"}, "U0102": {"S0100": "b"}}, broken={"U0101"})
    paths = Paths(data_dir=str(tmp_path / "data"), results_file=str(tmp_path / "results.json"))
    project = build(AllSettings(), {**install(world, monkeypatch), "paths": paths})
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as instance:
        job = project.defs.resolve_job_def("sessions_on_ray")
        done = job.execute_in_process(instance=instance, raise_on_error=False)  # here, without its executor
        errors = {event.step_key: event.step_failure_data for event in done.all_events if event.is_step_failure}
        stale = {target.partition for target in current_plan(project, instance).stale}
    assert errors.keys() == {"user_U0101"}
    assert "U0101 did not go through; run " in str(errors["user_U0101"].error)
    assert world.computed[-1] == "clips U0102 S0100"
    assert stale == {"U0101", None}  # the others are the assets that follow


def test_any_name_of_a_user_makes_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dagster_ray", reason="dagster-ray is not installed; it comes with requirements.lock")
    monkeypatch.setenv(ADDRESS, "http://127.0.0.1:8265")
    (job,) = ray_jobs(["U0101", "worker-1", "worker 1", "Zoë"], Paths.from_env(), lambda: build(AllSettings()))
    steps = {node.name for node in job.nodes}
    assert steps == {"release", "user_U0101", "user_worker_1_1", "user_worker_1_2", "user_Zo__3"}


def _content(folder: Path) -> dict[str, str]:
    """Without the records, which hold how long it took."""
    return {name: digest for name, digest in folder_digests(folder).items() if Path(name).name != RECORD}


def _ray_jobs(cluster: str) -> list:
    """All jobs, ended: Ray writes that down a moment after Dagster has heard from the step."""
    from ray.job_submission import JobSubmissionClient

    limit = time.monotonic() + 30
    while True:
        jobs = [job for job in JobSubmissionClient(cluster).list_jobs() if job.submission_id]
        if all(job.status.is_terminal() for job in jobs) or time.monotonic() > limit:
            return jobs
        time.sleep(0.2)
