"""Shared storage: what is published arrives whole, only what differs travels, and failures are sentences."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import uuid4

import fsspec
import pytest

from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import folder_digests, read_json
from pipelines.common.storage import PUBLISHED, fetch_folder, local_folder, publish_folder
from pipelines.openpack.loader import ShardReader

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    (folder / "train").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    for number in range(3):
        (folder / f"train/shard-{number}.tar").write_bytes(bytes([number]) * 1000)
    return folder


@pytest.fixture
def url() -> str:
    """An address of its own in fsspec's storage in memory, which lives as long as the process."""
    return f"memory://{uuid4().hex}/shards"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves `tmp_path` over HTTP, for reading only."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(tmp_path))) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def content(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in folder_digests(folder).items() if name != PUBLISHED}


def test_what_is_published_arrives_and_only_what_differs_travels(folder: Path, url: str, tmp_path: Path):
    copy = tmp_path / "copy"
    assert (publish_folder(folder, url), fetch_folder(url, copy)) == (4, 4)
    assert content(copy) == content(folder)
    assert (publish_folder(folder, url), fetch_folder(url, copy)) == (0, 0)
    (folder / "train/shard-1.tar").write_bytes(b"another")
    (folder / "train/shard-2.tar").unlink()
    (copy / "a note of mine").write_text("stays")
    assert (publish_folder(folder, url), fetch_folder(url, copy)) == (1, 1)
    assert content(copy) == content(folder) | {"a note of mine": content(copy)["a note of mine"]}
    (copy / "train/shard-0.tar").write_bytes(b"\x00" * 999 + b"\x01")
    assert fetch_folder(url, copy) == 1
    assert publish_folder(copy, f"{url}-again") == 4  # with what was laid beside, and without the index itself


def test_nothing_is_fetched_before_all_is_there_and_a_stopped_publishing_goes_on(
    folder: Path, url: str, tmp_path: Path
):
    with pytest.raises(DataError, match=r"nothing is published there.*python -m pipelines.common.storage"):
        fetch_folder(url, tmp_path / "copy")

    def stop(said: str) -> None:
        if said.startswith("2 of 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_folder(folder, url, stop)
    with pytest.raises(DataError, match="it is not published completely"):
        fetch_folder(url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert publish_folder(folder, url) == 2
    with pytest.raises(KeyboardInterrupt):
        fetch_folder(url, tmp_path / "copy", stop)
    assert fetch_folder(url, tmp_path / "copy") == 2
    assert content(tmp_path / "copy") == content(folder)


def test_other_bytes_than_those_published_are_refused(folder: Path, url: str, tmp_path: Path):
    publish_folder(folder, url)
    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/train/shard-1.tar", b"x" * 1000)
    with pytest.raises(DataError, match=r"train/shard-1\.tar: these are not the bytes that were published"):
        fetch_folder(url, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*.tar")) == ["shard-0.tar"]


@pytest.mark.parametrize("name", ["../outside", "/outside", "train/../../outside", ""])
def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path, url: str, tmp_path: Path, name: str):
    publish_folder(folder, url)
    fs, root = fsspec.url_to_fs(url)
    index = fs.cat_file(f"{root}/{PUBLISHED}").decode().replace("manifest.json", name)
    fs.pipe_file(f"{root}/{PUBLISHED}", index.encode())
    with pytest.raises(DataError, match="is no path inside the folder"):
        fetch_folder(url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_shards_are_read_from_an_address(toy_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    publish_folder(toy_shards, url)
    here = local_folder(url)
    assert here.parent == tmp_path / "fetched"
    assert here.name.startswith("shards-")
    ours, theirs = ShardReader(here, "train"), ShardReader(toy_shards, "train")
    assert [ours.sample(number) for number in range(len(ours))] == [theirs.sample(i) for i in range(len(theirs))]
    assert local_folder(url) == here
    assert local_folder(str(toy_shards)) == toy_shards
    assert local_folder(f"file://{toy_shards}") == toy_shards


def test_the_command_publishes_and_fetches_also_over_http(folder: Path, tmp_path: Path, server: str):
    def copy(source: str, target: str) -> str:
        command = [sys.executable, "-m", "pipelines.common.storage", source, target]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return (done.stdout + done.stderr).splitlines()[-1]

    assert copy(str(folder), f"file://{tmp_path}/published/shards") == "4 files published"
    assert read_json(tmp_path / "published/shards" / PUBLISHED)["complete"]
    assert copy(f"{server}/published/shards", str(tmp_path / "copy")) == "4 files fetched"
    assert content(tmp_path / "copy") == content(folder)
    assert "nothing is published there" in copy(f"{server}/elsewhere", str(tmp_path / "other"))
    assert "one of the two must be a URL" in copy(str(folder), str(tmp_path / "copy"))


def test_storage_that_fails_says_so(folder: Path, server: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"the storage does not do as it is asked \(ClientResponseError: 501"):
        publish_folder(folder, f"{server}/shards")  # this server can only be read
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/shards: the storage does not do as it is asked"):
        fetch_folder("http://127.0.0.1:9/shards", tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: there is no file in it"):
        publish_folder(tmp_path / "empty", "memory://empty")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/shards", r"s3:// needs the package s3fs\. Install it"),
        ("gs://bucket/shards", r"gs:// needs the package gcsfs"),
        ("cloud://bucket/shards", r"cloud:// is no storage \(Protocol not known: cloud\)"),
    ],
)
def test_an_address_that_nothing_here_can_read_names_what_is_missing(url: str, message: str, tmp_path: Path):
    with pytest.raises(SetupError, match=message):
        fetch_folder(url, tmp_path / "copy")


@pytest.mark.parametrize("stage", ["finetune", "evaluate"])
def test_stages_take_addresses(stage: str, tmp_path: Path):
    folders = ["--base", str(tmp_path), "--adapter", str(tmp_path)][: 2 if stage == "finetune" else 4]
    command = [sys.executable, "-m", f"pipelines.openpack.{stage}", *folders, "--shards", "s3://bucket/shards"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "s3://bucket/shards: s3:// needs the package s3fs. Install it.\n"
    assert done.returncode == 1
