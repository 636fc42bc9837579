"""`make data` as a user runs it: a process of its own, the real graph and stages, on someone's own recordings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from annotation_files import Stretch, write_csv
from media_samples import run_ffmpeg

from pipelines.common.incremental import read_records
from pipelines.openpack.loader import read_manifest

ROOT = Path(__file__).parents[1]
WORK: list[Stretch] = [(0, 6000, "fold"), (6000, 12000, "tape"), (12000, 18000, "fold")]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Three persons' videos, that of the last one cut in the middle."""
    folder = tmp_path / "own"
    folder.mkdir()
    whole = folder / "a.mp4"
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x120:rate=15:duration=20", "-c:v", "libx264", whole)
    shutil.copy(whole, folder / "b.mp4")
    (folder / "c.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    names = ["a.mp4", "b.mp4", "c.mp4"]
    write_csv(folder / "segments.csv", dict.fromkeys(names, WORK), {name: f"worker {name[0]}" for name in names})
    return folder


def make_data(tmp_path: Path, own: Path) -> subprocess.CompletedProcess[str]:
    home = tmp_path / "dagster"
    home.mkdir(exist_ok=True)
    shutil.copy(ROOT / "dagster.yaml", home)
    variables = {"OPENPACK_SOURCE": "recordings", "OPENPACK_ROOT": str(own), "DATA_DIR": str(tmp_path / "data")}
    command = [sys.executable, "-m", "assets.openpack.data"]
    environment = {**os.environ, **variables, "DAGSTER_HOME": str(home)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_it_lists_what_went_through_and_what_did_not_and_repairs_only_that(own: Path, tmp_path: Path):
    first = make_data(tmp_path, own)
    assert first.returncode == 0, first.stderr
    assert "worker-a/a:" in first.stdout
    assert "clips, " in first.stdout
    assert "worker-c/c: set aside." in first.stdout
    assert "cut short" in first.stdout
    assert first.stdout.splitlines()[-1].startswith("went through: 2, set aside: 1, after")
    assert read_manifest(tmp_path / "data/shards")["set_aside"].keys() == {"worker-c/c"}
    shutil.copy(own / "a.mp4", own / "c.mp4")
    second = make_data(tmp_path, own)
    assert "worker-a raw_session" not in second.stdout
    assert second.stdout.splitlines()[-1].startswith("went through: 3, set aside: 0, after")
    assert read_records(tmp_path / "data/clips/worker-c")[0].ok


def test_nothing_through_is_a_failure_that_names_the_reason(own: Path, tmp_path: Path):
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(own / "c.mp4", own / name)
    made = make_data(tmp_path, own)
    assert made.returncode == 1
    assert made.stdout.splitlines()[-1].startswith("went through: 0, set aside: 3, after")
    assert "no session has been cut into clips" in made.stdout
