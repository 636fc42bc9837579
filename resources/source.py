"""Where sessions come from: the simulation, or a release folder seen through one of its streams."""

import os
from pathlib import Path
from typing import cast, get_args

import dagster as dg

from pipelines.common.errors import SetupError
from pipelines.openpack.settings import SimulationSettings, View
from pipelines.openpack.sources import LocalSource, SimulatedSource, Source

KINDS = ("simulated", "local")


class SourceResource(dg.ConfigurableResource):
    """`kind` is `simulated` or `local`; `local` needs `root`, a release folder, and `view`, one of its streams."""

    kind: str = "simulated"
    root: str = ""
    view: str = "rgb"

    @classmethod
    def from_env(cls) -> "SourceResource":
        """OPENPACK_SOURCE, OPENPACK_ROOT and OPENPACK_VIEW, by default the simulation."""
        return cls(
            kind=os.environ.get("OPENPACK_SOURCE") or "simulated",
            root=os.environ.get("OPENPACK_ROOT") or "",
            view=os.environ.get("OPENPACK_VIEW") or "rgb",
        )

    def open(self, simulation: SimulationSettings) -> Source:
        """The source itself; `simulation` says what is drawn. SetupError where the variables do not go together."""
        if self.kind not in KINDS:
            raise SetupError(f"OPENPACK_SOURCE={self.kind} is unknown", cure=f"Set it to {' or '.join(KINDS)}.")
        if self.view not in get_args(View):
            raise SetupError(f"OPENPACK_VIEW={self.view} is unknown", cure=f"Set it to {', '.join(get_args(View))}.")
        if self.kind == "simulated":
            return SimulatedSource(simulation)
        if not self.root:
            cure = "Set it to the folder that holds U0101, U0102, …, or set OPENPACK_SOURCE=simulated."
            raise SetupError("OPENPACK_SOURCE=local needs OPENPACK_ROOT", cure=cure)
        return LocalSource(Path(self.root), cast(View, self.view))
