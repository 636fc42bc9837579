"""Whether the files that a materialisation left are still there. Dagster itself never notices a deletion.

An asset puts `outputs(...)` into its metadata under `OUTPUTS`; `missing(...)` compares that with the disk. Which files
an asset names is its own business, comparing versions is `plan`'s.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pipelines.common.files import file_digest, read_json
from pipelines.common.incremental import RECORD

OUTPUTS = "outputs"
_BY_CONTENT = 2**20  # bytes; a larger file is told by its size: hashing gigabytes would make `stale` slow


def outputs(root: Path, files: Iterable[Path]) -> dict[str, str]:
    """What to remember of `files`: path (relative to `root` where inside it) → digest or size, sorted."""
    return {_name(root, path): _state(path) for path in sorted(files)}


def folder_outputs(root: Path, folder: Path) -> dict[str, str]:
    """`outputs` of a stage's folder: its sessions' records where it has such, which list the rest, else every file."""
    records = list(folder.glob(f"*/{RECORD}"))
    files = records or [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return outputs(root, files)


def missing(root: Path, remembered: Mapping[str, str]) -> str | None:
    """A sentence on the first file that is gone or no longer the same; None when all are as they were left."""
    for name, state in remembered.items():
        path = root / name
        if not path.is_file():
            return f"{name} is gone"
        if _state(path) != state:
            return f"{name} is no longer the file that was written"
        if path.name == RECORD and (lost := _lost(path)):
            return f"{_name(root, lost)} is gone"
    return None


def _lost(record: Path) -> Path | None:
    """The first output of a session that its record names and its folder lacks."""
    paths = (record.parent / name for name in read_json(record)["outputs"])
    return next((path for path in paths if not path.is_file()), None)


def _name(root: Path, path: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _state(path: Path) -> str:
    size = path.stat().st_size
    return file_digest(path) if size <= _BY_CONTENT else f"{size} bytes"
