"""The values file for Kubernetes: what can be said of it without a cluster."""

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
VALUES = ROOT / "deploy/kubernetes/values.yaml"
KEYS = {  # of the chart's schema, as far as they are used
    "dagster-user-deployments",
    "runLauncher",
    "concurrency",
    "dagsterDaemon",
    "postgresql",
    "computeLogManager",
    "dagsterWebserver",
    "telemetry",
    "extraManifests",
}


def test_runs_keep_everything_in_the_volume_that_is_claimed() -> None:
    values = yaml.safe_load(VALUES.read_text())
    assert values.keys() == KEYS
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    (claim,) = values["extraManifests"]
    assert claim["metadata"]["name"] == deployment["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert {volume["name"] for volume in deployment["volumes"]} == {
        mount["name"] for mount in deployment["volumeMounts"]
    }
    volume = deployment["volumeMounts"][0]["mountPath"]
    places = [deployment["env"][name] for name in ("OPENPACK_ROOT", "DATA_DIR", "BENTOML_HOME", "HF_HOME")]
    logs = values["computeLogManager"]["config"]["localComputeLogManager"]["baseDir"]
    assert all(place.startswith(f"{volume}/") for place in [*places, logs])
    assert deployment["includeConfigInLaunchedRuns"] == {"enabled": True}


def test_pools_are_those_of_the_instance_here() -> None:
    ours = yaml.safe_load((ROOT / "dagster.yaml").read_text())["concurrency"]["pools"]
    theirs = yaml.safe_load(VALUES.read_text())["concurrency"]["pools"]
    assert theirs == {"defaultLimit": ours["default_limit"], "granularity": ours["granularity"]}


def test_the_tag_of_a_training_asks_for_one_gpu() -> None:
    comment = "".join(line.lstrip("# ") for line in VALUES.read_text().splitlines() if line.startswith("#"))
    tag = json.loads(re.search(r"dagster-k8s/config:(\{.*?\}\]\}\})", comment)[1])
    assert tag["container_config"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert tag.keys() == {"container_config", "pod_spec_config"}


def test_chart_and_packages_are_those_of_the_release_that_is_locked() -> None:
    major, minor, patch = re.search(
        r"^dagster==(\d+)\.(\d+)\.(\d+)$", (ROOT / "requirements.lock").read_text(), re.M
    ).groups()
    assert f"--version {major}.{minor}.{patch} " in VALUES.read_text()
    image = (VALUES.with_name("Dockerfile")).read_text()
    lock = (ROOT / "requirements.lock").read_text()
    packages = re.findall(r"dagster-(?:k8s|postgres)==([\d.]+)", image + lock)
    assert packages == [f"0.{int(minor) + 16}.{patch}"] * 2
