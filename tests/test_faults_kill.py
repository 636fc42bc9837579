"""Stages that are killed: nothing half-written is taken for whole, and the next run ends as an undisturbed one."""

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from fault_stages import SESSION_STAGES, USER, normalized_video, pack, raw_session
from kills import alive, content, hidden, run, run_and_kill, start, wait_until

from pipelines.common.errors import SetupError
from pipelines.common.files import file_digest
from pipelines.common.incremental import RECORD, read_records
from pipelines.openpack.loader import verify
from pipelines.openpack.settings import ShardSettings

STAGES = list(SESSION_STAGES)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The folders of all stages, each run once to its end, and how many events that took."""
    root = tmp_path_factory.mktemp("undisturbed")
    events = {name: run(stage, root, root=root) for name, stage in SESSION_STAGES.items()}
    return root, events | {"shards": run(pack, root, root=root)}


@pytest.fixture
def copied(undisturbed: tuple[Path, dict[str, int]], tmp_path: Path):
    """Copies finished stages into an own folder."""

    def copy(*stages: str) -> Path:
        for stage in stages:
            shutil.copytree(undisturbed[0] / stage, tmp_path / stage)
        return tmp_path

    return copy


def assert_whole(stage: Path) -> None:
    """Each session that is there has a record, and is what its record says."""
    for folder in stage.iterdir() if stage.is_dir() else ():
        if not folder.name.startswith("."):
            assert (folder / RECORD).is_file()
    for record in read_records(stage):
        assert record.outputs == {name: file_digest(stage / record.name / name) for name in record.outputs}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_over_sessions_goes_on_after_each_kill(name: str, undisturbed: tuple[Path, dict[str, int]], copied):
    reference, events = undisturbed
    root, rng = copied(*STAGES[: STAGES.index(name)]), random.Random(f"kills of {name}")
    stage, out = SESSION_STAGES[name], root / name / USER
    half = events[name] // 2 - 4  # so many there are of each of the two sessions
    run_and_kill(rng.randrange(half), stage, root, root=root, after=".S0100.part-")
    assert_whole(out)
    process = start(stage, root)
    wait_until(lambda: hidden(out))
    time.sleep(rng.uniform(0, 0.2))  # now between two events, while it draws, decodes or codes
    process.kill()
    process.join()
    assert_whole(out)
    run_and_kill(rng.randrange(half), stage, root, root=root, after=".S0200.part-")
    assert_whole(out)
    assert [record.name for record in read_records(out)] == ["S0100"]
    finished = (out / "S0100" / RECORD).stat()
    run(stage, root, root=root)
    assert content(root / name) == content(reference / name)
    assert not hidden(root)
    again = (out / "S0100" / RECORD).stat()
    assert (again.st_ino, again.st_mtime_ns) == (finished.st_ino, finished.st_mtime_ns)  # not computed again


def test_shards_are_whole_or_absent_after_each_kill(undisturbed: tuple[Path, dict[str, int]], copied):
    reference, events = undisturbed
    root, rng = copied("clips"), random.Random("kills of shards")
    for event in sorted(rng.sample(range(events["shards"]), 4)):
        run_and_kill(event, pack, root, root=root)
        assert not (root / "shards").exists()
    run(pack, root, root=root)
    assert content(root / "shards") == content(reference / "shards")
    assert not hidden(root)


def test_new_shards_replace_the_old_ones_in_one_step_whenever_killed(
    undisturbed: tuple[Path, dict[str, int]], tmp_path: Path
):
    def with_old_shards(name: str) -> Path:
        root = tmp_path / name
        shutil.copytree(undisturbed[0] / "shards", root / "shards")
        (root / "clips").symlink_to(undisturbed[0] / "clips")
        return root

    more, whole = ShardSettings(least_shards=3), with_old_shards("whole")
    events, found = run(pack, whole, more, root=whole), Counter[int | None]()
    for event in range(events - 14, events):  # the last steps, in which the old ones go
        root = with_old_shards(str(event))
        run_and_kill(event, pack, root, more, root=root)
        there = (root / "shards").exists()
        found[len(verify(root / "shards")["splits"]["train"]["shards"]) if there else None] += 1
        run(pack, root, more, root=root)
        assert content(root / "shards") == content(whole / "shards")
        assert not hidden(root)
    assert found.keys() == {2, 3, None}  # before, after, and the moment between two renames
    assert found[None] == 1


@pytest.fixture
def orphans() -> Iterator[list[psutil.Process]]:
    """Processes to be ended, should a test leave any."""
    found: list[psutil.Process] = []
    yield found
    for process in alive(found):
        process.kill()


def test_workers_that_wait_end_with_the_process_that_was_killed(tmp_path: Path, orphans: list[psutil.Process]):
    process = start(raw_session_and_wait, tmp_path)
    wait_until((tmp_path / "done").exists)
    orphans += psutil.Process(process.pid).children(recursive=True)
    assert len(orphans) >= 2
    process.kill()
    process.join()
    wait_until(lambda: not alive(orphans), seconds=5)


def raw_session_and_wait(root: Path) -> None:
    """Leaves the workers of a pool without work."""
    raw_session(root, workers=2)
    (root / "done").touch()
    time.sleep(600)


@pytest.mark.parametrize("workers", [1, 2])
def test_ffmpeg_ends_with_the_stage_that_was_killed(workers: int, copied, orphans: list[psutil.Process]):
    root = copied("raw_session")
    process = start(normalized_video, root, workers)

    def suspended_ffmpeg() -> bool:
        with suppress(psutil.NoSuchProcess):  # ended while it was looked at
            for child in psutil.Process(process.pid).children(recursive=True):
                if child.name().startswith("ffmpeg") and "-vcodec" in child.cmdline():
                    child.suspend()  # so that it cannot be done before its parent is killed
                    return True
        return False

    wait_until(suspended_ffmpeg)
    orphans += psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    wait_until(lambda: not alive(orphans), seconds=5)
    run(normalized_video, root, root=root)
    assert not hidden(root)


def normalise_and_tell(root: Path) -> None:
    try:
        normalized_video(root, workers=2)
    except SetupError as error:
        (root / "said").write_text(str(error))


def test_a_worker_that_is_killed_ends_the_run_with_a_sentence(
    undisturbed: tuple[Path, dict[str, int]], copied, orphans: list[psutil.Process]
):
    root = copied("raw_session")
    process = start(normalise_and_tell, root)
    wait_until(lambda: hidden(root))
    children = psutil.Process(process.pid).children()
    orphans += psutil.Process(process.pid).children(recursive=True)
    next(child for child in children if "spawn_main" in " ".join(child.cmdline())).kill()
    process.join()
    assert "a worker process died. Look for a killed or starved process" in (root / "said").read_text()
    wait_until(lambda: not alive(orphans), seconds=5)
    run(normalized_video, root, root=root)
    assert content(root / "normalized_video") == content(undisturbed[0] / "normalized_video")
    assert not hidden(root)
