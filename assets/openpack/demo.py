"""`python -m assets.openpack.demo`: brings the whole graph up to date and prints the figures that came of it."""

import time

from assets.build import build
from assets.openpack.pages import figures
from assets.refresh import explain, refresh
from pipelines.common import console
from pipelines.common.files import read_json
from pipelines.common.reference_work import measure
from resources.home import open_instance


def main() -> int:
    started = time.monotonic()
    project = build()
    print(*project.told, sep="\n")
    with open_instance() as instance:
        plan = refresh(project, instance, reference=measure)
    for line in explain(plan):
        print(line)
    report = project.data_dir / "evaluation" / "report.json"
    if report.is_file():
        print(f"\nAll test clips, in the brief's ten names ({report}):\n{figures(read_json(report)['all_clips'])}")
    print(f"\nstale: {len(plan.stale)} of {len(plan.targets)}, after {time.monotonic() - started:.0f} s")
    return 1 if plan.stale else 0


if __name__ == "__main__":
    console.run(main)
