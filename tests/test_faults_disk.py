"""A disk that is full: a sentence that says where, nothing half-written, no session blamed; the next run goes on."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_stages import CLIPS, SESSION_STAGES, USER, pack
from kills import content, hidden

from pipelines.common.console import run
from pipelines.common.errors import SetupError
from pipelines.common.incremental import Item, read_records, run_items
from pipelines.openpack import clips

FULL = r"No space left on device: it needs more than the \d+ bytes that are free. Free disk space, then run again"
STAGES = list(SESSION_STAGES)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reference")
    for stage in (*SESSION_STAGES.values(), pack):
        stage(root)
    return root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Gives a folder on a disk of so many bytes of its own, and resizes it when called again."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(n_bytes: int) -> Path:
        again = "remount," if folder.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}size={n_bytes}", "none", str(folder)]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no disk of its own can be mounted ({made.stderr.strip()}); `unshare -rm make test` may do it")
        return folder

    yield size
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def link(reference: Path, root: Path, *stages: str) -> Path:
    for stage in stages:
        (root / stage).symlink_to(reference / stage)
    return root


def taken(folder: Path) -> int:
    """Bytes of a folder's files on a disk that gives them away in pages; some more for the folders themselves."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file()) + 2**14


def status(out: Path) -> dict[str, str]:
    return {record.name: record.status for record in read_records(out)}


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_stops_a_stage_and_blames_no_session(name: str, reference: Path, disk: Callable[[int], Path]):
    stage, done = SESSION_STAGES[name], reference / name / USER
    room = taken(done / "S0100") + taken(done / "S0200") // 2
    root = link(reference, disk(room), *STAGES[: STAGES.index(name)])
    out = root / name / USER
    with pytest.raises(SetupError, match=f"{name}/{USER}/S0200: {FULL}"):
        stage(root)
    assert status(out) == {"S0100": "ok"}
    assert not hidden(root)
    finished = (out / "S0100/record.json").stat().st_mtime_ns
    disk(4 * room)
    stage(root)
    assert content(out) == content(done)
    assert (out / "S0100/record.json").stat().st_mtime_ns == finished


def slow_or_full(payload: str, folder: Path) -> dict[str, str]:
    (folder / "begun").touch()
    if payload == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    time.sleep(1)
    return {}


def test_when_the_error_comes_no_session_is_still_written(tmp_path: Path):
    items = [Item(name, {}, name) for name in ("full", "slow")]
    with pytest.raises(SetupError, match=f"{tmp_path / 'full'}: {FULL}"):
        run_items(items, slow_or_full, tmp_path, "recipe", workers=2)
    assert status(tmp_path) == {"slow": "ok"}  # kept, since it was done
    assert not hidden(tmp_path)


def test_a_full_disk_leaves_the_old_shards(reference: Path, disk: Callable[[int], Path]):
    room = taken(reference / "shards")
    root = link(reference, disk(room // 2), "clips")
    with pytest.raises(SetupError, match=f"/shards: {FULL}"):
        pack(root)
    assert [path.name for path in root.iterdir()] == ["clips"]
    disk(room + room // 2)
    pack(root)
    with pytest.raises(SetupError, match=f"/shards: {FULL}"):
        pack(root)  # the new ones have no room beside the old ones
    assert content(root / "shards") == content(reference / "shards")
    assert not hidden(root)


def test_a_command_ends_with_the_sentence(reference: Path, disk: Callable[[int], Path], monkeypatch):
    root = disk(2**16)
    folders = [reference / "normalized_video" / USER, reference / "raw_session" / USER, root / USER]
    (root / "settings.toml").write_text(f"[clip_format]\nsize = {CLIPS.size}\n")
    settings = ["--settings", str(root / "settings.toml")]
    monkeypatch.setattr(sys, "argv", ["clips", USER, *map(str, folders), "--workers", "1", *settings])
    with pytest.raises(SystemExit, match=f"{root / USER / 'S0100'}: {FULL}"):
        run(clips.main)
