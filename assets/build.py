"""Puts the one graph together: settings and resources in, Dagster definitions out. `definitions.py` only calls it.

Stage settings are bound when the definitions load and not run by run, because code versions must say with which
settings an asset would be made; a change of `settings.toml` counts once Dagster's definitions are loaded again.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dagster as dg

from assets.openpack.checks import all_checks
from assets.openpack.costs import expected_seconds, require_room
from assets.openpack.model import model_assets
from assets.openpack.ray_job import ray_jobs
from assets.openpack.results import result_assets
from assets.openpack.sessions import session_assets
from assets.plan import Target
from assets.progress import Expected, suffix
from pipelines.common.errors import SetupError
from pipelines.common.machine import Machine
from pipelines.openpack.effective import Model, effective
from pipelines.openpack.settings import AllSettings
from resources.paths import Paths
from resources.source import SourceResource
from resources.trainer import Trainer
from resources.vlm import VlmResource

MOST_USERS = 99  # Dagster silently stops looking for changes in assets with 100 upstream partitions


@dataclass(frozen=True)
class Project:
    """The definitions, and what the commands beside Dagster need to know of them."""

    defs: dg.Definitions
    data_dir: Path
    source_versions: Callable[[], Mapping[Target, str]]
    told: tuple[str, ...]  # which settings are in effect and where they came from, for a person
    expected: Expected  # how long stages take
    require_room: Callable[[Machine, Path, Collection[str]], None]  # SetupError where stages by name would not fit


def build(
    settings: AllSettings | None = None, resource_overrides: Mapping[str, dg.ConfigurableResource] | None = None
) -> Project:
    """The project as the environment and `settings.toml` say, or as the arguments do.

    Resources are `paths`, `source`, `vlm`, `trainer`. SetupError where variables or settings cannot be used.
    """
    for unfinished in (
        dg.PreviewWarning,
        dg.BetaWarning,
    ):  # partitioned checks, observed partitions: hence dagster<1.14
        warnings.filterwarnings("ignore", category=unfinished)
    resources = {
        "paths": Paths.from_env(),
        "source": SourceResource.from_env(),
        "vlm": VlmResource.from_env(),
        "trainer": Trainer(),
        **(resource_overrides or {}),
    }
    vlm = resources["vlm"].name
    lines = _untold
    if settings is None:
        made = effective(model=Model(vlm, Model.from_env().said_by))
        settings, lines = made.settings, made.lines
    source = resources["source"].open(settings)
    names = source.users()
    if len(names) > MOST_USERS:
        cure = f"Take at most {MOST_USERS} at a time."
        raise SetupError(f"{len(names)} users are more than Dagster keeps track of", cure=cure)
    users = dg.StaticPartitionsDefinition(names)
    defs = dg.Definitions(
        assets=[
            *session_assets(settings, users),
            *model_assets(settings, names, vlm, lines),
            *result_assets(settings),
        ],
        asset_checks=all_checks(settings.clip_format.video, users),
        jobs=ray_jobs(names, resources["paths"], lambda: project),
        resources=resources,
        executor=dg.in_process_executor,  # a process a step would cost seconds for steps that follow one another anyway
        loggers={"console": dg.colored_console_logger, "lines": dg.LoggerDefinition(_lines)},
    )
    release = dg.AssetKey("release")
    project = Project(
        defs,
        resources["paths"].root,
        lambda: {Target(release, user): source.fingerprint(user) for user in names},
        tuple(lines()),
        expected_seconds(settings, resources["source"].kind, vlm),
        partial(require_room, resources["source"].kind, vlm),
    )
    return project


def _untold(*sections: str) -> list[str]:
    """Of settings that a caller gave: it knows them."""
    return []


def _lines(context: dg.InitLoggerContext) -> logging.Logger:
    """A logger of the lines that assets write for a person, and of nothing that Dagster says."""
    logger = logging.Logger("lines", logging.INFO)
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(_is_a_persons)
    handler.setFormatter(_Line("    {dagster_meta[orig_message]}", style="{"))
    logger.addHandler(handler)
    return logger


class _Line(logging.Formatter):
    """A stage's line, and behind it what is left of the run that the stage is a part of."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line if "\n" in line else line + suffix(line)  # several lines say nothing of how far it is


def _is_a_persons(record: logging.LogRecord) -> bool:
    """Dagster's own are events, and the few messages that begin in one of two ways."""
    meta = record.__dict__["dagster_meta"]
    return meta["dagster_event"] is None and not meta["orig_message"].startswith(("[pipes]", "Dependencies for step"))
