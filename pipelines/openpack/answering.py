"""The answers of an evaluation: work in parts that one or several processes do, each kept as soon as it is done.

Belongs here: which process does a part, and where its answers are kept until the evaluation is whole. What parts are
(`answer_work`) and what is made of the answers (`evaluate`) do not.

Format of `<out>.answers/<key>/`, `key` a digest of all that answers depend on:

    <part>.json             calibration-00000: a list of `Prediction.as_json`; clips-00000: {arm: list}; of
                            sessions {name: {"frames", "truth": [[id, start, end]], "deviations",
                            "windows": [[start, answer]]}}
    <part>.<session>/       answers to the batches of its windows, while the part is not done
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipelines.common.errors import SetupError
from pipelines.common.files import read_json, remove_folder
from pipelines.common.orphans import bind_group, end_group, end_with_parent
from pipelines.openpack.answer_work import Asked, Part, Worker, parts
from pipelines.openpack.arms import GENERATED
from pipelines.openpack.prediction import Generated, Prediction
from pipelines.openpack.taxonomy import LABELS, Taxonomy

Say = Callable[[str], None]


@contextmanager
def answers(asked: Asked, out: Path, say: Say) -> Iterator[Answers]:
    """The answers to all parts, for the block; what was kept of them goes after it, unless it raised an error.

    What an evaluation with the same key had answered before it ended is not answered again; answers of any other key
    are deleted. SetupError where a process died.
    """
    root = out.with_name(f"{out.name}.answers")
    kept = root / asked.key()
    if root.is_dir():
        for other in root.iterdir():
            if other != kept:
                remove_folder(other)
    kept.mkdir(parents=True, exist_ok=True)
    wanted = parts(asked)
    todo = [part for part in wanted if not (kept / f"{part.name}.json").is_file()]
    if len(todo) < len(wanted):
        say(f"{len(wanted) - len(todo)} of {len(wanted)} parts were answered before")
    for number, part in enumerate(_do(asked, kept, todo), len(wanted) - len(todo) + 1):
        say(f"{part.name} answered, {number} of {len(wanted)}")
    yield Answers(kept, wanted, Taxonomy.read(asked.shards / LABELS))
    remove_folder(root)


@dataclass(frozen=True)
class Answers:
    """What was answered, in the order of the parts."""

    folder: Path
    parts: list[Part]
    taxonomy: Taxonomy

    def calibration(self) -> list[Prediction]:
        return [Prediction.of_json(row, self.taxonomy) for _, rows in self._of("calibration") for row in rows]

    def clips(self) -> Iterator[tuple[Part, dict[str, list[Prediction | Generated]]]]:
        """For each batch of test clips its answers by arm, as `arms.arm_answers` gives them."""
        for part, arms in self._of("clips"):
            yield part, {arm: [self._answer(arm, row) for row in rows] for arm, rows in arms.items()}

    def sessions(self) -> Iterator[tuple[str, bool, dict[str, Any]]]:
        """(user/session, whether it was drawn with deviations, its answers), the recorded ones first."""
        for kind in ("session", "drawn"):
            for part, rows in self._of(kind):
                for session, row in rows.items():
                    yield f"{part.user}/{session}", kind == "drawn", row

    def _answer(self, arm: str, row: dict[str, Any]) -> Prediction | Generated:
        return Generated.of_json(row) if arm == GENERATED else Prediction.of_json(row, self.taxonomy)

    def _of(self, kind: str) -> Iterator[tuple[Part, Any]]:
        for part in self.parts:
            if part.kind == kind:
                yield part, read_json(self.folder / f"{part.name}.json")


# --- who does it ---


def _do(asked: Asked, kept: Path, todo: Sequence[Part]) -> Iterator[Part]:
    """Does the parts, in as many processes as the settings ask for; each as soon as it is kept."""
    from pipelines.common.vlm.load import pick_device

    count = min(asked.settings.processes, len(todo)) if pick_device(asked.settings.device).type == "cpu" else 1
    if count <= 1:
        worker = Worker(asked, kept)
        for part, ready in worker.prepared(todo):
            worker.do(part, ready)
            yield part
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"), _start, (asked, kept))
    futures = {pool.submit(_one, part): part for part in todo}
    try:
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenExecutor:
        cure = "Look for a killed or starved process (memory?), then run again: what is answered stays answered."
        raise SetupError("a process that answered died", file=kept, cure=cure) from None
    finally:
        # what is not done is not wanted any more: its processes end at once, whatever they are at
        pids = list(pool._processes or {})  # pyright: ignore[reportPrivateUsage]
        unfinished = not all(future.done() for future in futures)
        pool.shutdown(wait=not unfinished, cancel_futures=True)
        if unfinished:
            for pid in pids:
                end_group(pid)


_worker: Worker | None = None


def _start(asked: Asked, kept: Path) -> None:
    global _worker
    bind_group()
    end_with_parent()
    import torch

    torch.set_num_threads(1)
    _worker = Worker(asked, kept)


def _one(part: Part) -> None:
    assert _worker is not None
    for ready in _worker.prepared([part]):
        _worker.do(*ready)
