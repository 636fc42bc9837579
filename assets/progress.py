"""What is left of a whole run: expected seconds of each target, corrected by what was measured in this run.

Belongs here: the arithmetic and the lines of `refresh`. What a stage is expected to take (`openpack.costs`) and how
fast the machine is (`common.reference_work`) do not.

Format of `<DATA_DIR>/run_times.json`, written where a run ends: {"reference": {"products", "video"}: seconds of the
reference work, "stages": {stage: {"seconds": of all its targets together, "targets": how many}}, "whole": whether every
target ran}.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from assets.plan import Target
from pipelines.common.files import write_json
from pipelines.common.reference_work import Reference
from pipelines.common.time_left import about, read_left

TIMES = "run_times.json"
TRUST_S = 30.0  # of measured work from which what was measured counts more than what was expected

Clock = Callable[[], float]
Expected = Callable[[str, Reference], float | None]  # seconds of one target of a stage; None: not known


class WholeRun:
    """Which targets are to run, run and have run. `expected` are seconds by stage; a stage that is not in it is learned
    from its first target."""

    def __init__(self, expected: Mapping[str, float], clock: Clock = time.monotonic) -> None:
        self._expected, self._clock = expected, clock
        self._measured: dict[str, list[float]] = defaultdict(list)
        self._waiting: list[Target] = []
        self._running: list[Target] = []
        self._started = clock()
        self._told: tuple[float, float] | None = None  # when the running stage last said how long it takes, and that
        self.done = 0

    def wait_for(self, targets: Iterable[Target]) -> None:
        """What is to run from now on; a plan that was made anew may name more or fewer."""
        self._waiting = list(targets)

    def start(self, targets: Sequence[Target]) -> str:
        """Where these stand in the whole: `[4-6/29]`."""
        self._waiting = [one for one in self._waiting if one not in targets]
        self._running, self._started, self._told = list(targets), self._clock(), None
        first, last = self.done + 1, self.done + len(targets)
        return f"[{first if first == last else f'{first}-{last}'}/{last + len(self._waiting)}]"

    def finish(self, seconds: Mapping[str, float]) -> None:
        """The running targets ended; `seconds` by stage of those that succeeded."""
        for stage, taken in seconds.items():
            self._measured[stage].append(taken)
        self.done += len(self._running)
        self._running, self._told = [], None

    def heard(self, line: str) -> None:
        """A line of the stage that is running."""
        if (left := read_left(line)) is not None:
            self._told = self._clock(), left

    def left(self) -> float | None:
        """Seconds until all is done; None where some stage's time is not known yet."""
        waiting = [self._of(target.asset.to_user_string()) for target in self._waiting]
        running = self._left_of_running()
        if running is None or None in waiting:
            return None
        return running + sum(one for one in waiting if one is not None)

    def told(self) -> str:
        """The same for a person."""
        left = self.left()
        return "how much is left is known after the first of each stage" if left is None else f"{about(left)} left"

    def save(self, folder: Path, reference: Reference, whole: bool) -> None:
        stages = {name: {"seconds": round(sum(row), 2), "targets": len(row)} for name, row in self._measured.items()}
        write_json(folder / TIMES, {"reference": asdict(reference), "stages": stages, "whole": whole})

    def _left_of_running(self) -> float | None:
        if self._told:
            at, left = self._told
            return max(0.0, left - (self._clock() - at))
        parts = [self._of(target.asset.to_user_string()) for target in self._running]
        if None in parts:
            return None
        return max(0.0, sum(one for one in parts if one is not None) - (self._clock() - self._started))

    def _of(self, stage: str) -> float | None:
        """Seconds of a target of a stage: as measured in this run, else as expected, corrected by other stages."""
        if row := self._measured.get(stage):
            return sum(row) / len(row)
        return self._expected[stage] * self._correction() if stage in self._expected else None

    def _correction(self) -> float:
        known = {stage: row for stage, row in self._measured.items() if stage in self._expected}
        measured = sum(sum(row) for row in known.values())
        expected = sum(self._expected[stage] * len(row) for stage, row in known.items())
        return (measured + TRUST_S) / (expected + TRUST_S)


_shown: WholeRun | None = None


def show(run: WholeRun | None) -> None:
    """From now on `suffix` tells of this run, for the lines that stages write; one run at a time in a process."""
    global _shown
    _shown = run


def suffix(line: str) -> str:
    """What is left of the whole run, to be put behind a line of one of its stages; empty outside of such a run."""
    if _shown is None:
        return ""
    _shown.heard(line)
    return f"; of the whole run {_shown.told()}"
