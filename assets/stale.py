"""`python -m assets.stale`: prints what is stale and why, in topological order, and runs nothing."""

from collections.abc import Iterable
from itertools import groupby

from dagster import DagsterInstance

from assets.build import Project, build
from assets.plan import Plan, Target, observe
from pipelines.common import console
from resources.home import open_instance


def current_plan(project: Project, instance: DagsterInstance) -> Plan:
    """The state of the graph now, with the sources observed."""
    observe(project.defs, instance, project.source_versions())
    return Plan(project.defs, instance, project.data_dir)


def describe(plan: Plan) -> list[str]:
    """Lines for a person: an asset with its stale partitions and their causes; what may follow; the count last."""
    lines = []
    for asset, stale in groupby(plan.stale.items(), key=lambda item: item[0].asset):
        for causes, targets in _together(stale):
            lines += [f"{asset.to_user_string()}{_partitions(targets)}", *(f"    {cause}" for cause in causes)]
    if plan.downstream:
        names = dict.fromkeys(target.asset.to_user_string() for target in plan.downstream)
        lines.append(f"after these, only if their content changes: {', '.join(names)}")
    return [*lines, f"stale: {len(plan.stale)} of {len(plan.targets)}"]


def _together(stale: Iterable[tuple[Target, tuple[str, ...]]]) -> Iterable[tuple[tuple[str, ...], list[Target]]]:
    """Partitions of an asset by their causes, so that eight users with one new setting are one entry."""
    groups: dict[tuple[str, ...], list[Target]] = {}
    for target, causes in stale:
        neutral = tuple(cause.replace(f"[{target.partition}]", "") for cause in causes)
        groups.setdefault(neutral, []).append(target)
    return groups.items()


def _partitions(targets: list[Target]) -> str:
    names = [target.partition for target in targets if target.partition]
    return f" {' '.join(names)}" if names else ""


def main() -> int:
    with open_instance() as instance:
        project = build()
        print(*project.told, *describe(current_plan(project, instance)), sep="\n")
    return 0


if __name__ == "__main__":
    console.run(main)
