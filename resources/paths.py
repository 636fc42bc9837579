"""Where the stages keep their files. The layout of `DATA_DIR` belongs here; what lies inside a folder does not."""

import os
from pathlib import Path

import dagster as dg


class Paths(dg.ConfigurableResource):
    """Folders below `DATA_DIR`: `<stage>/` for a whole stage, `<stage>/<user>/` for a user's part of one.

    `results_file` is where the figures of the last evaluation are published, beside the code.
    """

    data_dir: str
    results_file: str

    @classmethod
    def from_env(cls) -> "Paths":
        """`DATA_DIR`, by default `data` in the working directory; made absolute, since it also goes to processes."""
        data = Path(os.environ.get("DATA_DIR") or "data").absolute()
        return cls(data_dir=str(data), results_file=str(Path("results.json").absolute()))

    @property
    def root(self) -> Path:
        return Path(self.data_dir)

    @property
    def results(self) -> Path:
        return Path(self.results_file)

    def stage(self, stage: str) -> Path:
        return self.root / stage

    def user(self, stage: str, user: str) -> Path:
        return self.root / stage / user
