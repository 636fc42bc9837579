"""`python -m assets.refresh`: materialises what is stale and nothing else.

Level by level: after every run the plan is made anew, so that a stage whose content came out as before stops the wave.
Every line tells what is left of the whole.
Everything runs in this process, a run a user for the partitioned stages and one for each asset after them. A user who
fails holds up neither the other users nor anything that does not need them.
"""

import time
from collections.abc import Callable, Collection

import dagster as dg

from assets.build import Project, build
from assets.plan import LINES, Plan, Target
from assets.progress import WholeRun, show
from assets.stale import current_plan
from pipelines.common import console
from pipelines.common.errors import DataError, SetupError
from pipelines.common.locks import only_one
from pipelines.common.machine import look
from pipelines.common.reference_work import Reference, measure
from resources.home import open_instance

Say = Callable[[str], None]


def refresh(
    project: Project,
    instance: dg.DagsterInstance,
    say: Say = print,
    only: Collection[str] | None = None,
    reference: Callable[[], Reference] | None = None,
) -> Plan:
    """Runs what is stale, once each, until nothing more can run; returns the plan that is left.

    `only` are names of assets that may run; without it all may. The plan that is left is empty unless something failed
    or was not to run; `explain` says what. A failure is printed and raises nothing. `reference` measures this machine
    before the first stage, so that what is left can be told from the beginning. SetupError while another refresh works
    in the same DATA_DIR.
    """
    with only_one(project.data_dir / ".refresh.lock", waiting=None):
        tried: set[Target] = set()
        plan = current_plan(project, instance)
        todo = _may_come(plan, tried, only)
        speed = _begin(project, todo, say, reference) if reference and todo else None
        left = WholeRun(_expected(project, plan, speed))
        left.wait_for(todo)
        if todo:
            more = f", {len(plan.downstream)} more if content changes" if plan.downstream else ""
            say(f"to do: {len(todo)} of {len(plan.targets)}{more}; {left.told()}")
        show(left)
        try:
            while targets := _next_run(plan, tried, only):
                _run(project, instance, targets, say, left)
                tried |= set(targets)
                plan = Plan(project.defs, instance, project.data_dir)
                left.wait_for(_may_come(plan, tried, only))
        finally:
            show(None)
        if speed and tried:
            left.save(project.data_dir, speed, whole=set(plan.targets) == tried)
    return plan


def _may_come(plan: Plan, tried: set[Target], only: Collection[str] | None) -> list[Target]:
    return [target for target in plan.stale if _may_run(target, tried, only)]


def _begin(project: Project, todo: list[Target], say: Say, reference: Callable[[], Reference]) -> Reference:
    """Says what this machine has, refuses what does not fit it, and measures it."""
    machine = look(project.data_dir)
    say(str(machine))
    project.require_room(machine, project.data_dir, {target.asset.to_user_string() for target in todo})
    return reference()


def _expected(project: Project, plan: Plan, speed: Reference | None) -> dict[str, float]:
    """Seconds of a target of each stage, where they are known."""
    stages = {target.asset.to_user_string() for target in plan.targets}
    known = {stage: project.expected(stage, speed) for stage in stages} if speed else {}
    return {stage: seconds for stage, seconds in known.items() if seconds is not None}


def explain(plan: Plan) -> list[str]:
    """A line for every target that is still stale: failed, or waiting for one that did."""
    lines = []
    for target, causes in plan.stale.items():
        waits_for = next((parent for parent in plan.parents(target) if parent in plan.stale), None)
        lines.append(f"{target}: {f'waits for {waits_for}' if waits_for else '; '.join(causes)}")
    return lines


def _next_run(plan: Plan, tried: set[Target], only: Collection[str] | None) -> list[Target]:
    """The next targets to run together: all of one partition that are sure to run now. Empty at the end.

    A target that follows on one of the run joins it if it is stale itself. One that is fresh may well stay so, and what
    comes after that waits for the next plan. So does all that follows on a target which was tried and is still stale.
    """
    unsettled: set[Target] = set()
    chosen: list[Target] = []
    for target in plan.targets:
        upstream = set(plan.parents(target))
        if target not in plan.stale:
            if not upstream.isdisjoint(unsettled | set(chosen)):
                unsettled.add(target)
        elif _may_run(target, tried, only) and upstream.isdisjoint(unsettled) and _joins(target, chosen):
            chosen.append(target)
        else:
            unsettled.add(target)
    return chosen


def _may_run(target: Target, tried: set[Target], only: Collection[str] | None) -> bool:
    return target not in tried and (only is None or target.asset.to_user_string() in only)


def _joins(target: Target, chosen: list[Target]) -> bool:
    return not chosen or (target.partition is not None and target.partition == chosen[0].partition)


def _run(project: Project, instance: dg.DagsterInstance, targets: list[Target], say: Say, left: WholeRun) -> None:
    names = ", ".join(target.asset.to_user_string() for target in targets)
    place = left.start(targets)
    say(f"{place} {f'{targets[0].partition} ' if targets[0].partition else ''}{names} …; {left.told()}")
    started = time.monotonic()
    job = project.defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance,
        asset_selection=[target.asset for target in targets],
        partition_key=targets[0].partition,
        run_config=LINES,
        raise_on_error=False,
    )
    for line in _failures(result):
        say(f"    {line}")
    left.finish(_seconds(result))
    say(f"    {'done' if result.success else 'FAILED'} in {time.monotonic() - started:.1f} s; {left.told()}")


def _seconds(result: dg.ExecuteInProcessResult) -> dict[str, float]:
    """Of each stage that succeeded in a run."""
    ended = [event for event in result.all_events if event.is_step_success and event.step_key]
    return {str(event.step_key): event.step_success_data.duration_ms / 1000 for event in ended}


def _failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """What went wrong, without the traceback, which stands in the run's log in Dagster's UI. Warnings are told by the
    stages' own lines."""
    errors = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    causes = [(error.cause or error).message.strip() for error in errors if error]
    if any("DagsterExecutionInterruptedError" in cause for cause in causes):
        raise KeyboardInterrupt  # Dagster has ended the run and what it started; nothing else is to begin
    checks = [
        check
        for check in result.get_asset_check_evaluations()
        if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR
    ]
    return [
        *(_sentence(cause) for cause in causes if "DagsterAssetCheckFailedError" not in cause),
        *(f"{check.asset_key.to_user_string()}, check {check.check_name}: {check.description}" for check in checks),
    ]


def _sentence(message: str) -> str:
    """A user's error is a sentence of its own; any other needs its kind to be understood."""
    kind, _, text = message.partition(": ")
    name = kind.rpartition(".")[2]
    return text if name in {DataError.__name__, SetupError.__name__} else f"{name}: {text}"


def main() -> int:
    started = time.monotonic()
    project = build()
    print(*project.told, sep="\n")
    with open_instance() as instance:
        plan = refresh(project, instance, reference=measure)
    for line in explain(plan):
        print(line)
    print(f"stale: {len(plan.stale)} of {len(plan.targets)}, after {time.monotonic() - started:.0f} s")
    return 1 if plan.stale else 0


if __name__ == "__main__":
    console.run(main)
