"""Starts training as a process of its own, so that Dagster's process never loads a model and can end it.

Which command, which environment and what comes back belong here; the other end is `train_process`.
"""

import os
import sys
from typing import Any

import dagster as dg

from pipelines.common.settings import Settings


class Trainer(dg.ConfigurableResource):
    """Runs a task of `resources.train_process` through Dagster Pipes, on the machine's GPU where there is one."""

    def run(self, context: dg.AssetExecutionContext, task: str, settings: Settings, **arguments: str) -> dict[str, Any]:
        """Runs `task` to its end and returns what it reports; its lines appear in the run's log as they come.

        A failed task raises dagster's DagsterPipesExecutionError; the reason is the log's last line.
        """
        extras = {
            "arguments": arguments,
            "settings": settings.model_dump(mode="json"),
            "parent": os.getpid(),
        }
        client = dg.PipesSubprocessClient()
        command = [sys.executable, "-m", "resources.train_process", task]
        run = client.run(context=context.op_execution_context, command=command, extras=extras)
        (report,) = run.get_custom_messages()
        return report
