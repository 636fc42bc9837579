"""Work on many items (sessions) where only what changed is done again.

Format: `<out>/<item>/record.json` beside the files that the item's work wrote. The folder appears in one rename, so a
record says that its files are whole. A record keeps the digests of inputs, recipe (settings and stage version) and
outputs; an item whose inputs and recipe equal its record is not computed again. An item whose input is bad leaves a
record with status `set_aside`, the reason and no files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import (
    atomic_folder,
    digest,
    folder_digests,
    read_json,
    remove_folder,
    remove_leftovers,
    write_json,
)
from pipelines.common.locks import output_lock
from pipelines.common.machine import usable_cores
from pipelines.common.orphans import end_with_parent
from pipelines.common.threads import one_thread

RECORD = "record.json"


@dataclass(frozen=True)
class Item:
    """One unit of work. `inputs` are the digests that decide whether it must run; `payload` is pickled to a worker."""

    name: str
    inputs: Mapping[str, str]
    payload: Any


@dataclass(frozen=True)
class Record:
    """What is known of one finished item; `summary` is for people and later stages, small and JSON."""

    name: str
    status: str  # "ok" or "set_aside"
    reason: str | None
    inputs: dict[str, str]
    recipe: str
    outputs: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def content(self) -> str:
        """Digest of what the item made, free of times, so that a rerun with the same result looks the same."""
        return digest([self.name, self.status, self.outputs])


Work = Callable[[Any, Path], dict[str, Any]]
Told = Callable[[Record, bool], None]  # called once an item: its record, and whether it was computed now


def untold(record: Record, computed: bool) -> None:
    """The `Told` of those who want to hear nothing."""


def run_items(
    items: Iterable[Item],
    work: Work,
    out: Path,
    recipe: str,
    *,
    workers: int | None = None,
    progress: Told = untold,
) -> list[Record]:
    """Brings `<out>/<item>/` up to date for exactly these items and returns their records in order.

    `work(payload, folder)` writes into an empty `folder` and returns the summary; it must be importable, since it runs
    in a spawned process (decoders are not fork-safe). A `DataError` sets the item aside; any other error, and
    `SetupError` as of a full disk, stops the run, once the items that are being worked on are done. Folders of items
    that are no longer named are removed. `progress(record, computed)` is called once an item. Waits while another
    process works on the same `out`.
    """
    with output_lock(out):
        return _run_items(list(items), work, out, recipe, workers, progress)


def _run_items(
    items: list[Item], work: Work, out: Path, recipe: str, workers: int | None, progress: Told
) -> list[Record]:
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    _remove_others(out, {item.name for item in items})
    records: dict[str, Record] = {}
    todo: list[Item] = []
    for item in items:
        record = _current(out / item.name, item, recipe)
        if record is None:
            todo.append(item)
        else:
            records[item.name] = record
            progress(record, False)
    for record in _compute(todo, work, out, recipe, workers or usable_cores()):
        records[record.name] = record
        progress(record, True)
    return [records[item.name] for item in items]


def read_records(out: Path) -> list[Record]:
    """Records of all items below `out`, sorted by name."""
    return [Record(**read_json(path)) for path in sorted(out.glob(f"*/{RECORD}"))]


def content(records: Iterable[Record]) -> str:
    """Digest of what a group of items holds; a Dagster data version."""
    return digest(sorted(record.content() for record in records))


def _current(folder: Path, item: Item, recipe: str) -> Record | None:
    if not (folder / RECORD).is_file():
        return None
    record = Record(**read_json(folder / RECORD))
    if record.inputs != dict(item.inputs) or record.recipe != recipe:
        return None
    return record if all((folder / name).is_file() for name in record.outputs) else None


def _compute(todo: list[Item], work: Work, out: Path, recipe: str, workers: int) -> Iterable[Record]:
    if len(todo) <= 1 or workers == 1:
        for item in todo:
            yield _one(item, work, out, recipe)
        return
    pool = _pool(workers)
    futures = [pool.submit(_one, item, work, out, recipe) for item in todo]
    try:
        for future in futures:
            yield future.result()
    except BrokenExecutor:
        _pool.cache_clear()
        cure = "Look for a killed or starved process (memory?), then run again: what is done stays done."
        raise SetupError("a worker process died", file=out, cure=cure) from None
    finally:
        wait([future for future in futures if not future.cancel()])  # the next call must meet no one who still writes


@lru_cache(maxsize=1)
def _pool(workers: int) -> ProcessPoolExecutor:
    """Kept from call to call: starting workers and importing in them costs seconds, and stages are many."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    end_with_parent()
    one_thread()


def _one(item: Item, work: Work, out: Path, recipe: str) -> Record:
    started = time.perf_counter()
    common = {"name": item.name, "inputs": dict(item.inputs), "recipe": recipe}
    try:
        with atomic_folder(out / item.name) as folder:
            summary = work(item.payload, folder)
            seconds = round(time.perf_counter() - started, 3)
            outputs = folder_digests(folder)
            record = Record(status="ok", reason=None, outputs=outputs, summary=summary, seconds=seconds, **common)
            write_json(folder / RECORD, asdict(record))
    except SetupError:
        raise
    except DataError as error:
        with atomic_folder(out / item.name) as folder:
            seconds = round(time.perf_counter() - started, 3)
            record = Record(status="set_aside", reason=str(error), seconds=seconds, **common)
            write_json(folder / RECORD, asdict(record))
    return record


def _remove_others(out: Path, names: set[str]) -> None:
    for folder in out.iterdir():
        if folder.is_dir() and folder.name not in names and (folder / RECORD).is_file():
            remove_folder(folder)
