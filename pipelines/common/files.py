"""Files that are whole or absent: write beside, then rename. And the digests that say whether content changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from pipelines.common.disk import told_when_full
from pipelines.common.errors import DataError

DIGEST_LENGTH = 16  # hexadecimal digits kept of a SHA-256: 64 bits, ample for thousands of files
_RANDOM = "?" * 8  # what tempfile puts into a name


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path`; on success it replaces `path` in one step, on an error nothing stays.

    What a killed process left of `path` goes first, so only one process at a time may write a path. SetupError where
    the disk is full.
    """
    with told_when_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(path.parent.glob(f".{escape(path.stem)}.{_RANDOM}.part{escape(path.suffix)}"))
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".part{path.suffix}")
        os.close(handle)
        part = Path(name)
        try:
            yield part
            part.chmod(0o644)  # mkstemp makes it private; what a stage wrote is for others to read
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`; on success it takes the place of `path`, on an error it goes.

    What a killed process left of `path` goes first, so only one process at a time may write a path. SetupError where
    the disk is full.
    """
    with told_when_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(path.parent.glob(f".{escape(path.name)}.part-{_RANDOM}"))
        part = _beside(path)
        try:
            yield part
            part.chmod(0o755)
            old = _moved_aside(path) if path.exists() else None
            part.replace(path)
            if old:
                shutil.rmtree(old)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def checkpoint_folder(out: Path, key: str, *, keeps: bool = True) -> Iterator[Path]:
    """The folder for what a run that makes `out` goes on from; gone once that succeeded, kept when it did not.

    `key` says what it belongs to (digest of settings and data): that of any other key is deleted, because a run must
    never go on from it. Of several processes of one run one `keeps` the folder, the others use it.
    """
    folder = out.with_name(f"{out.name}.checkpoints")
    if folder.is_dir() and keeps:
        for other in folder.iterdir():
            if other.name != key:
                shutil.rmtree(other)
    yield folder / key
    if keeps:
        remove_folder(folder)  # in one step: a killed run must leave no half of a checkpoint to go on from


def remove_folder(path: Path) -> None:
    """Deletes the folder `path`, if there is one, so that half of it is never found there, not even after a kill."""
    _remove(path.parent.glob(f".{escape(path.name)}.part-{_RANDOM}"))
    if path.exists():
        shutil.rmtree(_moved_aside(path))


def remove_leftovers(folder: Path) -> None:
    """Deletes what a killed process left beside its goal. Call it only where no other process is writing."""
    _remove(folder.glob(".*.part*"))


def _remove(leftovers: Iterable[Path]) -> None:
    for part in leftovers:
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def _beside(path: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.part-"))


def _moved_aside(path: Path) -> Path:
    """The folder beside `path` into which it went, to be deleted."""
    old = _beside(path)
    path.replace(old / path.name)
    return old


def digest(data: Any) -> str:
    """Digest of bytes, or of anything that JSON can say (keys sorted, so that order does not matter)."""
    if not isinstance(data, bytes):
        data = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return hashlib.sha256(data).hexdigest()[:DIGEST_LENGTH]


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:DIGEST_LENGTH]


def folder_digests(folder: Path) -> dict[str, str]:
    """Digest of every file below `folder`, by relative path in sorted order."""
    return {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def write_json(path: Path, data: Any) -> None:
    with atomic_file(path) as part:
        part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError("the file is missing", file=path, cure="Run the stage that writes it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not valid JSON ({error})", file=path, cure="Delete it and run its stage again.") from None


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_file(path) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        raise DataError("the file is missing", file=path, cure="Run the stage that writes it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not valid JSON lines ({error})", file=path, cure="Delete it and run its stage.") from None
