"""Where sessions come from: the simulation, a release folder, Zenodo, or a folder of someone's own recordings."""

import os
from pathlib import Path
from typing import cast, get_args

import dagster as dg

from pipelines.common.errors import SetupError
from pipelines.openpack.recordings import RecordingsSource
from pipelines.openpack.settings import AllSettings, View
from pipelines.openpack.sources import LocalSource, SimulatedSource, Source
from pipelines.openpack.zenodo import ZenodoSource
from resources.paths import Paths

VIEWS: dict[str, tuple[View, ...]] = {  # of each kind of source, the default first
    "simulated": ("video",),
    "local": ("rgb", "depth", "keypoints", "video"),
    "zenodo": ("keypoints",),  # the one visual stream that the record holds
    "recordings": ("video",),
}


class SourceResource(dg.ConfigurableResource):
    """`kind` is one of `VIEWS`. `root` is the folder that `local` and `recordings` read; `downloads` is Zenodo's.

    `view` is the stream that is taken of each session; empty for the kind's default.
    """

    kind: str = "simulated"
    root: str = ""
    view: str = ""
    downloads: str = ""

    @classmethod
    def from_env(cls) -> "SourceResource":
        """OPENPACK_SOURCE, OPENPACK_ROOT and OPENPACK_VIEW, by default the simulation."""
        return cls(
            kind=os.environ.get("OPENPACK_SOURCE") or "simulated",
            root=os.environ.get("OPENPACK_ROOT") or "",
            view=os.environ.get("OPENPACK_VIEW") or "",
            downloads=str(Paths.from_env().root / "downloads"),
        )

    def open(self, settings: AllSettings) -> Source:
        """The source itself. SetupError where the variables do not go together."""
        view = self._view()
        if self.kind == "simulated":
            return SimulatedSource(settings.simulation)
        if self.kind == "zenodo":
            return ZenodoSource(settings.zenodo, Path(self.downloads), view)
        if not self.root:
            folder = "holds U0101, U0102, …" if self.kind == "local" else "holds your videos and their segments.csv"
            cure = f"Set it to the folder that {folder}, or set OPENPACK_SOURCE=simulated."
            raise SetupError(f"OPENPACK_SOURCE={self.kind} needs OPENPACK_ROOT", cure=cure)
        if self.kind == "local":
            return LocalSource(Path(self.root), view)
        return RecordingsSource(Path(self.root), settings.recordings)

    def _view(self) -> View:
        if self.kind not in VIEWS:
            raise SetupError(f"OPENPACK_SOURCE={self.kind} is unknown", cure=f"Set it to {', '.join(VIEWS)}.")
        view, views = self.view or VIEWS[self.kind][0], VIEWS[self.kind]
        if view not in get_args(View):
            raise SetupError(f"OPENPACK_VIEW={view} is unknown", cure=f"Set it to {', '.join(get_args(View))}.")
        if view not in views:
            what = f"OPENPACK_SOURCE={self.kind} has no view {view}"
            raise SetupError(what, cure=f"Unset OPENPACK_VIEW, or set it to {', '.join(views)}.")
        return cast(View, view)
