"""The Ray cluster of the optional job: where it is, what a step reserves there, which variables a step takes along.

How a step gets there and comes back is the business of dagster-ray, which is loaded only where a cluster is named.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from pipelines.common.errors import SetupError
from resources.paths import Paths

ADDRESS, CORES = "RAY_API_SERVER_ADDRESS", "RAY_CORES"  # the first is Ray's own
_NAMES = ("PRESET", "VLM")  # beside all that begin with OPENPACK_
_PLACES = {"OPENPACK_ROOT": "", "SETTINGS_FILE": "settings.toml"}  # with defaults; a step starts in another folder


@dataclass(frozen=True)
class RayCluster:
    """A running cluster. Its machines find this project, `.venv`, DATA_DIR and Dagster's storage where this one does.

    `address` is that of its job server, for example http://127.0.0.1:8265; `cores` are those that a step reserves.
    """

    address: str
    cores: int

    @classmethod
    def from_env(cls) -> "RayCluster | None":
        """RAY_API_SERVER_ADDRESS and RAY_CORES; None without an address. SetupError where RAY_CORES is no number."""
        address, cores = os.environ.get(ADDRESS), os.environ.get(CORES) or "1"
        if not address:
            return None
        if not cores.isdecimal() or not int(cores):
            raise SetupError(f"{CORES}={cores} is no number of cores", cure="Set it to the cores of one machine.")
        return cls(address, int(cores))

    def executor(self, paths: Paths) -> dg.ExecutorDefinition:
        """Runs every step of a job as a Ray job. SetupError where dagster-ray is not installed."""
        try:
            from dagster_ray import ray_executor
        except ImportError:
            cure = f"Install it with the versions of requirements.lock, or unset {ADDRESS}."
            raise SetupError(f"{ADDRESS} is set and dagster-ray is not installed", cure=cure) from None
        config = {
            "address": self.address,
            "num_cpus": self.cores,  # without any, Ray starts all steps on the head
            "env_vars": [f"{name}={value}" for name, value in self.variables(paths).items()],
        }
        return ray_executor.configured({"ray": config}, name="ray")

    def variables(self, paths: Paths) -> dict[str, str]:
        """Those with which a step loads the same definitions as this process."""
        named = {name: value for name, value in os.environ.items() if name in _NAMES or name.startswith("OPENPACK_")}
        files = {name: Path(os.environ.get(name) or default) for name, default in _PLACES.items()}
        places = {name: str(path.absolute()) for name, path in files.items() if path.name and path.exists()}
        path = f"{Path(sys.executable).parent}:${{PATH}}"  # Ray puts that machine's own in
        return {**named, **places, "DATA_DIR": paths.data_dir, ADDRESS: self.address, "PATH": path}
