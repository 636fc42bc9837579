"""The source zenodo against a record on a server of our own: from the network to sessions that LocalSource accepts."""

import hashlib
import io
import json
import os
import pty
import random
import subprocess
import sys
import termios
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from range_server import RangeServer, serving

from pipelines.common.download import DownloadSettings
from pipelines.common.errors import DataError, SetupError
from pipelines.openpack import release
from pipelines.openpack.annotations import Segment, read_operations, write_operations
from pipelines.openpack.settings import View, ZenodoSettings, load_settings
from pipelines.openpack.sources import read_session
from pipelines.openpack.zenodo import ZenodoSource

START = 1648531511030
RECORD = "/api/records/8145223"
ARCHIVE = f"{RECORD}/files/U0101.zip/content"
FAST = DownloadSettings(attempts=3, first_wait_s=0.01, longest_wait_s=1, connect_timeout_s=2, read_timeout_s=2)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with serving() as running:
        yield running


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What U0101.zip holds: two sessions with operations and keypoints, and a sensor that does not shrink."""
    root = tmp_path_factory.mktemp("release")
    for session in ("S0100", "S0200"):
        segments = [Segment(100, START, START + 400, 1), Segment(200, START + 400, START + 900, 1)]
        write_operations(release.annotation_file(root, "U0101", session), "U0101", session, segments)
        place = release.stream_place(root, "U0101", session, "keypoints")
        place.parent.mkdir(parents=True, exist_ok=True)
        joints = [[10.0 * i, 20.0 * i, 0.9] for i in range(release.JOINTS)]
        entries = [{"image_id": START + 67 * i, "keypoints": joints} for i in range(10)]
        place.write_text(json.dumps({"info": {}, "annotations": entries}))
    folder = root / "U0101"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {**found, "atr/atr01/S0100.csv": random.Random(7).randbytes(400_000)}


def zipped(files: dict[str, bytes], top: str = "") -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return data.getvalue()


def publish(server: RangeServer, archive: bytes, **faults: Any) -> None:
    """Puts a record with U0101.zip and a second file there, in the form in which Zenodo answers."""
    address = server.add(ARCHIVE, archive, **faults)
    file = {"key": "U0101.zip", "size": len(archive), "checksum": f"md5:{hashlib.md5(archive).hexdigest()}"}
    other = {"key": "U0102.zip", "size": 1, "checksum": "md5:0", "links": {"self": server.base_url}}
    listing = {"id": 8145223, "files": [{**file, "id": "x", "links": {"self": address}}, other]}
    server.add(RECORD, json.dumps(listing).encode())


def settings(server: RangeServer, **changed: Any) -> ZenodoSettings:
    return ZenodoSettings(base_url=server.base_url, download=FAST, **changed)


def source(server: RangeServer, downloads: Path, **changed: Any) -> ZenodoSource:
    return ZenodoSource(settings(server, **changed), downloads)


def paths(server: RangeServer) -> list[str]:
    return [request.path for request in server.log]


def test_from_the_network_to_checked_sessions(
    server: RangeServer, files: dict[str, bytes], out: Path, downloads: Path
) -> None:
    publish(server, zipped(files), cuts=[100_000])
    told: list[tuple[int, int]] = []
    zenodo = ZenodoSource(settings(server), downloads, progress=lambda *now: told.append(now))
    records = zenodo.fetch("U0101", out, workers=1)
    assert [(record.name, record.ok, record.reason) for record in records] == [
        ("S0100", True, None),
        ("S0200", True, None),
    ]
    session = read_session(out / "S0200")
    assert (session.source, session.user, session.split, session.n_frames) == ("zenodo", "U0101", "train", 10)
    assert session.stream.kind == "keypoints"
    assert read_operations(out / "S0200" / session.annotation).start_ms == START
    assert paths(server) == [RECORD, ARCHIVE, ARCHIVE]
    assert told[-1] == (len(server.resources[ARCHIVE].body),) * 2
    root = downloads / "8145223"
    assert sorted(path.name for path in root.iterdir()) == ["U0101"]
    assert {name: (root / "U0101" / name).read_bytes() for name in files} == files

    server.log.clear()
    assert zenodo.fetch("U0101", out, workers=1) == records
    assert paths(server) == []


def test_a_folder_in_the_archive_and_the_other_form_of_the_listing(
    server: RangeServer, files: dict[str, bytes], out: Path, downloads: Path
) -> None:
    archive = zipped(files, top="U0101/")
    publish(server, archive)
    file = json.loads(server.resources[RECORD].body)["files"][0]
    file["links"] = {"self": f"{server.base_url}{RECORD}/files/U0101.zip", "content": server.base_url + ARCHIVE}
    server.add(RECORD, json.dumps({"files": {"count": 1, "entries": {"U0101.zip": file}}}).encode())
    records = source(server, downloads, keep_archives=True).fetch("U0101", out, workers=1)
    assert all(record.ok for record in records)
    assert (downloads / "8145223" / "U0101" / "atr").is_dir()
    assert (downloads / "8145223" / "U0101.zip").read_bytes() == archive


def test_another_record_has_folders_of_its_own(
    server: RangeServer, files: dict[str, bytes], out: Path, downloads: Path
) -> None:
    publish(server, zipped(files))
    server.add("/api/records/11059235", server.resources[RECORD].body)
    for record in (8145223, 11059235):
        source(server, downloads, record=record).fetch("U0101", out, workers=1)
        assert f"/{record}/U0101/" in read_session(out / "S0100").stream.path
    assert len(server.asked(ARCHIVE)) == 2


def test_a_run_killed_while_it_downloads_is_gone_on_with(
    server: RangeServer, files: dict[str, bytes], out: Path, downloads: Path, tmp_path: Path
) -> None:
    archive = zipped(files)
    publish(server, archive, pause_s=0.02)
    toml = tmp_path / "settings.toml"
    toml.write_text(f'[zenodo]\nbase_url = "{server.base_url}"\n')
    command = [sys.executable, "-m", "pipelines.openpack.zenodo", "U0101", "--out", out, "--downloads", downloads]
    command += ["--settings", toml, "--workers", "1"]
    part = downloads / "8145223" / "U0101.zip.part"
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not part.exists() or part.stat().st_size < len(archive) / 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    there = part.stat().st_size
    assert len(archive) / 3 <= there < len(archive)
    assert not (downloads / "8145223" / "U0101").exists()

    server.log.clear()
    terminal, shown = pty.openpty()  # a bar is for a terminal; one is needed to see it
    termios.tcsetwinsize(shown, (24, 80))
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=shown, text=True, timeout=60
    )
    told = os.read(terminal, 2**16).decode()
    assert done.returncode == 0, told
    assert [(request.range, request.sent) for request in server.asked(ARCHIVE)] == [
        (f"bytes={there}-", len(archive) - there)
    ]
    assert done.stdout.count(" ok ") == 2
    assert "U0101.zip: 100%" in told
    assert read_session(out / "S0100").source == "zenodo"


def test_a_run_killed_before_it_unpacked_downloads_nothing_again(
    server: RangeServer, files: dict[str, bytes], out: Path, downloads: Path
) -> None:
    archive = zipped(files)
    publish(server, archive)
    left = downloads / "8145223" / ".U0101.part-abcd1234"  # as a killed process leaves it
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    (downloads / "8145223" / "U0101.zip").write_bytes(archive)
    assert len(source(server, downloads).fetch("U0101", out, workers=1)) == 2
    assert paths(server) == [RECORD]
    assert not left.exists()


def test_two_runs_that_want_the_same_user_fetch_one(
    server: RangeServer, files: dict[str, bytes], tmp_path: Path, downloads: Path
) -> None:
    publish(server, zipped(files), pause_s=0.002)
    results: list[int] = []
    runs = [
        threading.Thread(
            target=lambda out: results.append(len(source(server, downloads).fetch("U0101", out, workers=1))),
            args=[tmp_path / name],
        )
        for name in ("one", "two")
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert results == [2, 2]
    assert paths(server) == [RECORD, ARCHIVE]


def test_a_user_whom_the_record_does_not_have(
    server: RangeServer, files: dict[str, bytes], out: Path, downloads: Path
) -> None:
    publish(server, zipped(files))
    with pytest.raises(DataError, match=r"no U0999\.zip; it has U0101\.zip, U0102\.zip") as caught:
        source(server, downloads).fetch("U0999", out)
    assert caught.value.file == server.base_url + RECORD
    assert paths(server) == [RECORD]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"message": "gone"}', "files: not the answer of a record"),
        (b'{"files": [{"key": "U0101.zip", "size": 1, "checksum": "md5:0", "links": {}}]}', r"files\.0\.links"),
        (b"[]", "not the answer of a record"),
        (b"<html>", "no JSON"),
        (None, "the server answers 404"),
    ],
)
def test_an_answer_that_is_no_record(
    server: RangeServer, out: Path, downloads: Path, answer: bytes | None, words: str
) -> None:
    if answer is not None:
        server.add(RECORD, answer)
    with pytest.raises(DataError, match=words) as caught:
        source(server, downloads).fetch("U0101", out)
    assert caught.value.file == server.base_url + RECORD


def test_an_archive_that_is_refused_leaves_no_user(server: RangeServer, out: Path, downloads: Path) -> None:
    publish(server, zipped({"../../evil": b"x", "annotation/x": b"x"}))
    with pytest.raises(DataError, match=r"U0101\.zip.*leads out"):
        source(server, downloads).fetch("U0101", out)
    assert not (downloads / "8145223" / "U0101").exists()
    assert not (downloads.parent / "evil").exists()
    publish(server, zipped({"annotation/x": bytes(5000)}))
    with pytest.raises(DataError, match="more than 4000 bytes"):
        source(server, downloads, unpacked_limit_bytes=4000, unpacked_limit_ratio=1000).fetch("U0101", out)
    assert not out.exists()


@pytest.mark.parametrize("view", ["rgb", "depth", "video"])
def test_a_view_that_zenodo_does_not_have(downloads: Path, view: View) -> None:
    with pytest.raises(SetupError, match=rf"no view {view}: .*Take the view keypoints"):
        ZenodoSource(ZenodoSettings(), downloads, view)


def test_users_and_fingerprints_need_no_network(downloads: Path, tmp_path: Path) -> None:
    nowhere = ZenodoSettings(base_url="http://127.0.0.1:9")
    zenodo = ZenodoSource(nowhere, downloads)
    assert zenodo.users() == [f"U010{i}" for i in range(1, 9)]
    patient = nowhere.model_copy(update={"download": FAST, "keep_archives": True, "users": ("U0101",)})
    same = ZenodoSource(patient, tmp_path / "elsewhere")
    assert same.users() == ["U0101"]
    assert same.fingerprint("U0101") == zenodo.fingerprint("U0101")
    other_record = ZenodoSource(nowhere.model_copy(update={"record": 11059235}), downloads)
    other_base = ZenodoSource(ZenodoSettings(), downloads)
    marks = [zenodo.fingerprint("U0101"), zenodo.fingerprint("U0102")]
    marks += [other_record.fingerprint("U0101"), other_base.fingerprint("U0101")]
    assert len(set(marks)) == 4
    assert not downloads.exists()


@pytest.mark.parametrize("line", ['users = ["../U0101"]', 'base_url = "zenodo.org"', "download.attempts = 0"])
def test_settings_that_cannot_be_right_are_refused(tmp_path: Path, line: str) -> None:
    toml = tmp_path / "settings.toml"
    toml.write_text(f"[zenodo]\n{line}\n")
    with pytest.raises(SetupError, match="zenodo"):
        load_settings(toml)
