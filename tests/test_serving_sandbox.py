"""Processes with limits: what a bad file does to one, and that the next piece of work is done all the same."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import pytest
import sandbox_work
from kills import wait_until

from pipelines.common.errors import DataError, SetupError
from pipelines.common.serving import sandbox as module
from pipelines.common.serving.sandbox import GivenUpError, Limits, Sandbox

LIMITS = Limits(seconds=60, cpu_seconds=1, memory_bytes=600 * 2**20, file_bytes=2**20)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def sandbox(temporary: Path) -> Iterator[Sandbox]:
    forkserver._forkserver._stop()  # another test's, which has imported other things
    one = Sandbox(sandbox_work.work, LIMITS, processes=1, preload=["sandbox_work"], name="test-sandbox")
    one.start()
    yield one
    one.stop()
    assert list(temporary.glob("test-sandbox*")) == []


@pytest.fixture(scope="module")
def hasty(sandbox: Sandbox) -> Iterator[Sandbox]:
    """One in which work may take a second and a half, whatever else the machine does."""
    limits = replace(LIMITS, seconds=1.5, cpu_seconds=60)
    one = Sandbox(sandbox_work.work, limits, processes=1, preload=["sandbox_work"], name="test-hasty")
    one.start()
    yield one
    one.stop()


@pytest.fixture(autouse=True)
def _still_works(sandbox: Sandbox, temporary: Path) -> Iterator[None]:
    """Whatever a test did to the one process: the next piece of work is done, and no file is left."""
    yield
    message, _ = sandbox.only(sandbox.job({"do": "echo", "text": "next"}))
    assert message["text"] == "next"
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


def test_work_goes_in_and_messages_come_out(sandbox: Sandbox, temporary: Path) -> None:
    message, blob = sandbox.only(sandbox.job({"do": "echo", "text": "包装"}))
    assert (message["text"], blob) == ("包装", b"\0\1" * 100_000)
    assert Path(message["temporary"]).is_relative_to(temporary)
    assert not Path(message["temporary"]).exists()


def test_messages_come_as_they_are_made_and_leaving_early_ends_the_work(sandbox: Sandbox) -> None:
    assert [message["number"] for message, _ in sandbox.job({"do": "many", "count": 5}).messages()] == [0, 1, 2, 3, 4]
    for message, _ in sandbox.job({"do": "many", "count": 10**9}).messages():
        if message["number"] == 3:
            break


def test_a_process_that_did_well_works_on(sandbox: Sandbox) -> None:
    first, second = (sandbox.only(sandbox.job({"do": "echo", "text": ""}))[0]["pid"] for _ in range(2))
    assert first == second


def test_what_it_needs_is_imported_before_it_starts(sandbox: Sandbox) -> None:
    message, _ = sandbox.only(sandbox.job({"do": "preloaded"}))
    assert message["imported_by"] != message["pid"]


def test_no_process_works_for_ever(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_PIECES", 1)
    first, second = (sandbox.only(sandbox.job({"do": "echo", "text": ""}))[0]["pid"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("do", "kind", "said"),
    [
        ("bad_file", DataError, r"/secret/place, frame 3: not a video\. Give another"),
        ("bad_machine", SetupError, r"no ffmpeg\. Install it"),
        ("bomb", DataError, "more than the 600 MB of memory that one file may take"),
        ("spin", DataError, "more than the 1 s of processor time"),
        ("big_file", SetupError, "File too large"),
        ("dies", DataError, r"reading it killed two processes \(it ended with -9\)"),
    ],
)
def test_what_goes_wrong_is_told(sandbox: Sandbox, do: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as raised:
        sandbox.only(sandbox.job({"do": do}))
    assert type(raised.value) is kind


@pytest.mark.parametrize("do", ["hang", "program"])
def test_what_hangs_is_ended_with_all_that_it_started(hasty: Sandbox, tmp_path: Path, do: str) -> None:
    with pytest.raises(DataError, match="more than the 2 s that one file may take"):
        hasty.only(hasty.job({"do": do, "began": str(tmp_path / "began")}))
    wait_until(lambda: not psutil.pid_exists(int((tmp_path / "began").read_text())))


def test_a_killed_process_is_tried_again_once(sandbox: Sandbox, tmp_path: Path) -> None:
    message, _ = sandbox.only(sandbox.job({"do": "dies_once", "mark": str(tmp_path / "mark")}))
    assert message["text"] == "second"


def test_it_tells_that_no_process_can_be_started(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = (
        Sandbox(sandbox_work.work, LIMITS, processes=1, preload=["sandbox_work"], name="test-starting"),
        module._Process,
    )
    full = threading.Event()
    full.set()

    def start(*arguments: Any) -> module._Process:
        if full.is_set():
            raise OSError("no more processes")
        return real(*arguments)

    monkeypatch.setattr(module, "_Process", start)
    made.start()
    try:
        wait_until(lambda: not made.works)
        full.clear()
        wait_until(lambda: made.works)
        assert made.only(made.job({"do": "echo", "text": "well"}))[0]["text"] == "well"
    finally:
        made.stop()
    assert not made.works


def test_a_process_killed_while_it_waits_costs_nothing(sandbox: Sandbox) -> None:
    pid = sandbox.only(sandbox.job({"do": "echo", "text": ""}))[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid))
    assert sandbox.only(sandbox.job({"do": "echo", "text": ""}))[0]["pid"] != pid


def test_work_that_nobody_wants_any_more_ends_at_once(sandbox: Sandbox, tmp_path: Path) -> None:
    began = tmp_path / "began"
    job, raised = sandbox.job({"do": "hang", "began": str(began)}), []

    def run() -> None:
        with pytest.raises(GivenUpError):
            sandbox.only(job)
        raised.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    pid = int(wait_until(lambda: began.exists() and began.read_text()))
    job.cancel()
    thread.join(3)
    assert raised
    assert not psutil.pid_exists(pid)


def test_given_up_before_it_begins_it_is_not_done(sandbox: Sandbox, tmp_path: Path) -> None:
    job = sandbox.job({"do": "hang", "began": str(tmp_path / "began")})
    job.cancel()
    with pytest.raises(GivenUpError):
        sandbox.only(job)
    assert not (tmp_path / "began").exists()


def test_a_signal_for_the_service_leaves_work_alone(sandbox: Sandbox) -> None:
    pid = sandbox.only(sandbox.job({"do": "echo", "text": ""}))[0]["pid"]
    server = psutil.Process(pid).parent()
    for process in (psutil.Process(pid), server):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
    assert sandbox.only(sandbox.job({"do": "echo", "text": ""}))[0]["pid"] == pid
    assert server.is_running()


def test_what_a_killed_service_left_is_swept_away(temporary: Path) -> None:
    gone = psutil.Popen(["true"])
    gone.wait()
    left, alive = temporary / f"swept-{gone.pid}-abc", temporary / f"swept-{os.getpid()}-abc"
    for folder in (left, alive):
        (folder / "0").mkdir(parents=True)
    module.sweep("swept")
    assert (left.exists(), alive.exists()) == (False, True)
    (alive / "0").rmdir()
    alive.rmdir()
