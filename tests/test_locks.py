"""Two runs on one folder: the second waits, says for whom, and then finds everything done."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from kills import wait_until

from pipelines.common.incremental import Item, run_items
from pipelines.common.locks import output_lock

HERE = Path(__file__).parent
HOLDER = """
import sys, time
from pathlib import Path
from pipelines.common.locks import output_lock
with output_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(out: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that holds the lock of `out`."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-c", HOLDER, str(out), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_waits_and_says_for_whom(tmp_path: Path):
    said: list[str] = []
    holder = hold(tmp_path / "out", 1.0)
    with output_lock(tmp_path / "out", said.append):
        assert holder.wait() == 0  # it had ended
    (line,) = said
    assert f"process {holder.pid} on " in line
    assert "waiting for it to end" in line
    assert list(tmp_path.iterdir()) == []  # no lock stays


def test_a_killed_holder_holds_nothing(tmp_path: Path):
    holder = hold(tmp_path / "out", 60)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    with output_lock(tmp_path / "out"):
        assert time.monotonic() - began < 1


def test_many_who_want_one_folder_have_it_one_after_the_other(tmp_path: Path):
    """Also where the holder removes the file that others already wait for."""
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(20):
            with output_lock(tmp_path / "out", lambda line: None):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def slow(payload: Path, folder: Path) -> dict[str, str]:
    (payload / f"began-{os.getpid()}").touch()
    time.sleep(0.5)
    (folder / "made").write_text("made")
    return {}


def test_two_runs_of_the_same_items_do_the_work_once(tmp_path: Path, caplog):
    """As two runs in the UI on one folder of data."""
    (tmp_path / "told").mkdir()
    items = [Item("S0100", {"input": "a"}, tmp_path / "told")]
    first = threading.Thread(target=run_items, args=(items, slow, tmp_path / "out", "1"), kwargs={"workers": 1})
    first.start()
    wait_until(lambda: list((tmp_path / "told").iterdir()))
    computed: list[bool] = []
    run_items(items, slow, tmp_path / "out", "1", workers=1, progress=lambda record, now: computed.append(now))
    first.join()
    assert computed == [False]
    assert (tmp_path / "out" / "S0100" / "made").read_text() == "made"
    assert "is at work since" in caplog.text
