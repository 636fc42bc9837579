"""The instance file of docker-compose.yml on a real Postgres: opened, written by two processes at once, read back."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
import real_postgres
from docker_stages import ROOT

from resources.home import open_instance

RUNS = """
import sys
import dagster as dg
from resources.home import open_instance

@dg.op
def one(context):
    context.log.info(sys.argv[1])

@dg.job
def some():
    one()

with open_instance() as instance:
    for _ in range(3):
        assert some.execute_in_process(instance=instance, tags={"by": sys.argv[1]}).success
"""


@pytest.fixture(scope="module")
def variables() -> Iterator[dict[str, str]]:
    with real_postgres.serve("with /@:% in it") as given:
        yield given


@pytest.fixture
def home(variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copyfile(ROOT / "deploy/compose/dagster.yaml", tmp_path / "dagster.yaml")
    for name, value in {**variables, "DAGSTER_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_runs_of_two_processes_at_once_are_all_there_and_in_postgres(home: Path) -> None:
    command = [sys.executable, "-c", RUNS]
    both = [subprocess.Popen([*command, by], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) for by in "ab"]
    assert [one.wait(180) for one in both] == [0, 0]
    with open_instance() as instance:
        stores = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
        assert {type(store).__module__.partition(".")[0] for store in stores} == {"dagster_postgres"}
        runs = instance.get_runs()
        assert sorted(run.tags["by"] for run in runs) == [*"aaabbb"]
        assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
        for run in runs:
            assert [log.user_message for log in instance.all_logs(run.run_id) if not log.dagster_event] == [
                run.tags["by"]
            ]
    assert not list(home.rglob("*.db"))  # nothing of the history in files


def test_pools_have_their_places_in_it(home: Path) -> None:
    with open_instance() as instance:
        assert instance.event_log_storage.supports_global_concurrency_limits
        assert instance.global_op_concurrency_default_limit == 1


def test_nobody_gets_in_without_the_password(variables: dict[str, str]) -> None:
    place = {"host": variables["POSTGRES_HOST"], "port": variables["POSTGRES_PORT"], "user": "dagster"}
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(**place, dbname="dagster", password="another")
