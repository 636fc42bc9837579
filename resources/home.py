"""Dagster's own memory: runs, materialisations and versions, in the folder that DAGSTER_HOME names."""

import os
from pathlib import Path

import dagster as dg

from pipelines.common.errors import SetupError


def open_instance() -> dg.DagsterInstance:
    """The instance that `dagster dev` uses too. SetupError without DAGSTER_HOME: history kept nowhere is no history."""
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        cure = "Use `make stale` or `make refresh`, or set it to the absolute path of a folder with dagster.yaml in it."
        raise SetupError("DAGSTER_HOME is not set", cure=cure)
    if not (Path(home) / "dagster.yaml").is_file():
        cure = f"Copy the project's dagster.yaml there, as `make {home}/dagster.yaml` does."
        raise SetupError("DAGSTER_HOME has no dagster.yaml", file=home, cure=cure)
    return dg.DagsterInstance.get()
