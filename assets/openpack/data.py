"""`python -m assets.openpack.data`: everything up to the shards, and a list of what went through and what did not."""

import time
from collections.abc import Iterator

from assets.build import Project, build
from assets.plan import Plan
from assets.refresh import explain, refresh
from pipelines.common import console
from pipelines.common.incremental import Record, read_records
from pipelines.common.reference_work import measure
from resources.home import open_instance

STAGES = ("raw_session", "normalized_video", "clips")  # of sessions, in order
WANTED = (*STAGES, "shards")


def last_records(project: Project, users: list[str]) -> Iterator[tuple[str, str, Record]]:
    """User, stage and record of every session that is known: the record of the last stage that it came to."""
    for user in users:
        reached = {
            record.name: (user, stage, record)
            for stage in STAGES
            for record in read_records(project.data_dir / stage / user)
        }
        yield from reached.values()


def went_through(stage: str, record: Record) -> bool:
    return record.ok and stage == STAGES[-1]


def sentence(user: str, stage: str, record: Record) -> str:
    """What came of a session, for a person."""
    name = f"{user}/{record.name}"
    if not record.ok:
        return f"{name}: set aside. {record.reason}"
    if not went_through(stage, record):
        return f"{name}: came as far as {stage}"
    summary = record.summary
    place = summary["split"] or "in no split"
    return f"{name}: {summary['clips']} clips, {place}{f' ({why})' if (why := summary.get('why')) else ''}"


def main() -> int:
    started = time.monotonic()
    project = build()
    print(*project.told, sep="\n")
    with open_instance() as instance:
        plan = refresh(project, instance, only=WANTED, reference=measure)
    print()
    sessions = list(last_records(project, _users(plan)))
    for session in sessions:
        print(sentence(*session))
    print(*(line for line in explain(plan) if line.partition(":")[0].partition("[")[0] in WANTED), sep="\n")
    through = sum(went_through(stage, record) for _, stage, record in sessions)
    aside = sum(not record.ok for _, _, record in sessions)
    print(f"went through: {through}, set aside: {aside}, after {time.monotonic() - started:.0f} s")
    return 0 if through else 1


def _users(plan: Plan) -> list[str]:
    return list(dict.fromkeys(target.partition for target in plan.targets if target.partition))


if __name__ == "__main__":
    console.run(main)
