"""The container files, as far as they can be held without an engine: schema, linter, what each container may and has.

What a container does once it runs is tested in test_container_steps.py and test_compose_postgres.py.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from docker_stages import ROOT, reaches_the_engine, read_stages

COMPOSE, GPU = ROOT / "docker-compose.yml", ROOT / "docker-compose.gpu.yml"
INSTANCE = ROOT / "deploy/compose/dagster.yaml"
BIN = Path(sys.executable).parent
SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]
STAGES = read_stages()
MADE_BY_HAND = {"./.bentoml", "./data"}  # the first lines of docker-compose.yml say how
OURS = ("pipelines", "resources", "assets", "definitions", "service")


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", [COMPOSE, GPU], ids=lambda path: path.name)
def test_it_is_of_the_compose_specifications_schema(path: Path) -> None:
    _run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)


@pytest.mark.parametrize("path", ["Dockerfile", "deploy/kubernetes/Dockerfile"])
def test_hadolint_finds_nothing(path: str) -> None:
    _run(BIN / "hadolint", path)


@pytest.mark.parametrize("path", [COMPOSE, GPU], ids=lambda path: path.name)
def test_every_variable_has_a_default(path: Path) -> None:
    """Compose fills in all services, also those of a profile that is not asked for: one without would stop them all."""
    used = re.findall(r"\$\{(\w+)(:?.?)", re.sub(r"^\s*#.*|\s#.*", "", path.read_text(), flags=re.M))
    assert used
    assert [name for name, then in used if then != ":-"] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_may_do_no_more_than_it_must(name: str) -> None:
    one = SERVICES[name]
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert "cap_add" not in one
    assert "no-new-privileges:true" in one["security_opt"]
    assert one["user"] in ("${APP_UID:-1000}", "postgres")
    places = [volume.partition(":")[2] for volume in one.get("volumes", [])]
    assert "tmpfs" in one or "/tmp" in places
    assert {"mem_limit", "pids_limit", "restart", "stop_grace_period"} <= one.keys()
    assert all(re.match(r"127\.0\.0\.1:", port) for port in one.get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_asked_whether_it_is_well(name: str) -> None:
    one = SERVICES[name]
    built = STAGES[one["build"]["target"]].healthcheck if "build" in one else []
    check = " ".join(one["healthcheck"]["test"] if "healthcheck" in one else built)
    expected = {
        "service": "/readyz",
        "dagster-webserver": "/server_info",
        "dagster-daemon": "liveness-check",
        "dagster-code": "grpc-health-check",
        "postgres": "pg_isready",
    }
    assert expected[name] in check


def test_what_is_mounted_is_there_or_made_as_the_file_says() -> None:
    named = yaml.safe_load(COMPOSE.read_text())["volumes"].keys()
    for one in SERVICES.values():
        for volume in one["volumes"]:
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume).partition(":")[0]
            assert source in named | MADE_BY_HAND or (ROOT / source).is_file(), volume
    made = re.search(r"mkdir -p (.*);", COMPOSE.read_text())
    assert made
    assert {f"./{name}" for name in made[1].split()} == MADE_BY_HAND


def test_the_service_alone_needs_nothing_of_the_profile() -> None:
    assert [name for name, one in SERVICES.items() if "profiles" not in one] == ["service"]
    assert {"depends_on", "env_file"}.isdisjoint(SERVICES["service"])
    assert SERVICES["service"]["environment"]["SERVICE_TOKEN"] == "${SERVICE_TOKEN:-}"


def test_the_database_is_reached_from_containers_only_and_waited_for() -> None:
    database = SERVICES["postgres"]
    assert "ports" not in database
    assert re.fullmatch(r"postgres:\d+-\w+", database["image"])
    for name in ("dagster-code", "dagster-webserver", "dagster-daemon"):
        assert SERVICES[name]["depends_on"]["postgres"] == {"condition": "service_healthy"}
        assert SERVICES[name]["env_file"] == database["env_file"]
    assert database["env_file"] in (ROOT / ".gitignore").read_text().splitlines()  # it never gets into a commit


def test_its_instance_is_the_projects_but_for_the_storage() -> None:
    ours, theirs = (yaml.safe_load(path.read_text()) for path in (ROOT / "dagster.yaml", INSTANCE))
    assert theirs.pop("storage").keys() == {"postgres"}
    assert theirs == ours


def test_the_code_is_served_where_it_is_looked_for() -> None:
    (location,) = yaml.safe_load((INSTANCE.with_name("workspace.yaml")).read_text())["load_from"]
    server, command = location["grpc_server"], SERVICES["dagster-code"]["command"]
    assert server["host"] == "dagster-code"
    assert str(server["port"]) == command[command.index("--port") + 1]
    (project,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert command[command.index("--module-name") + 1] == project["python_module"]["module_name"]


def test_a_gpu_goes_to_the_containers_that_compute() -> None:
    changed = yaml.safe_load(GPU.read_text())["services"]
    assert changed.keys() == {"service", "dagster-code"}
    for one in changed.values():
        (device,) = one["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_stages_and_copied_files_are_there() -> None:
    for name, stage in STAGES.items():
        assert stage.base in STAGES or re.fullmatch(r"python:3\.11-\w+", stage.base), name
        assert all(source in STAGES for source, _, _ in stage.copies if source), name
        for copied in stage.copied:
            assert (ROOT / copied).exists(), copied
            assert reaches_the_engine(copied), copied
    targets = {one["build"]["target"] for one in SERVICES.values() if "build" in one}
    assert all(STAGES[target].user == "$UID" for target in targets)


@pytest.mark.parametrize(("stage", "start"), [("service", "service"), ("dagster", "definitions")])
def test_all_that_is_imported_is_copied(stage: str, start: str) -> None:
    needed = {path.relative_to(ROOT).parts[0] for path in _reached(start)}
    assert needed <= {*STAGES[stage].copied}
    if stage == "dagster":  # which builds bentos
        patterns = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]
        assert {pattern.partition("/")[0] for pattern in patterns} <= {*STAGES[stage].copied}


def _reached(start: str) -> set[Path]:
    """Files of this project that the module `start` imports, anywhere in it, and those that these import."""
    todo, found = [start], set()
    while todo:
        module = ROOT.joinpath(*todo.pop().split("."))
        path = next((one for one in (module.with_suffix(".py"), module / "__init__.py") if one.is_file()), None)
        if path is None or path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            todo += [name for name in names if name.partition(".")[0] in OURS]
    return found
