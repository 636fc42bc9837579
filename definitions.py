"""The one `Definitions` of the project, for `workspace.yaml` and for `dagster … -m definitions`."""

from assets.build import build

defs = build().defs
