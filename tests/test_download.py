"""Downloading from a real server that does what servers and lines do."""

import hashlib
import random
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from range_server import RangeServer, serving

from pipelines.common.download import DownloadSettings, download, get_json
from pipelines.common.errors import DataError, SetupError

BODY = random.Random(7).randbytes(200_000)
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
FAST = DownloadSettings(attempts=3, first_wait_s=0.01, longest_wait_s=5, connect_timeout_s=2, read_timeout_s=0.3)


@pytest.fixture(scope="module")
def server() -> Iterator[RangeServer]:
    with serving() as running:
        yield running


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    return f"/{request.node.name}"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "file.zip"


def fetch(url: str, target: Path, **changed) -> None:
    download(url, target, **{"size": len(BODY), "checksum": MD5, "settings": FAST, **changed})


def names(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def assert_whole(target: Path) -> None:
    assert target.read_bytes() == BODY
    assert names(target) == ["file.zip"]


@pytest.mark.parametrize("checksum", [MD5, f"sha256:{hashlib.sha256(BODY).hexdigest().upper()}"])
def test_a_file_comes_whole_and_tells_how_far_it_is(
    server: RangeServer, path: str, target: Path, checksum: str
) -> None:
    told: list[tuple[int, int]] = []
    fetch(server.add(path, BODY), target, checksum=checksum, progress=lambda *now: told.append(now))
    assert_whole(target)
    assert told == sorted(told)
    assert told[-1] == (len(BODY), len(BODY))
    assert [request.range for request in server.asked(path)] == [None]


def test_a_file_that_is_there_already_costs_no_request(server: RangeServer, path: str, target: Path) -> None:
    url = server.add(path, BODY)
    fetch(url, target)
    fetch(url, target)
    assert len(server.asked(path)) == 1
    target.write_bytes(bytes(len(BODY)))  # same size, other bytes
    fetch(url, target)
    assert_whole(target)


def test_it_goes_on_after_every_cut(server: RangeServer, path: str, target: Path) -> None:
    url = server.add(path, BODY, cuts=[30_000, 50_000, 20_000, 1, 60_000])  # more of them than attempts
    fetch(url, target)
    assert_whole(target)
    asked = server.asked(path)
    assert [request.range for request in asked] == [
        None, "bytes=30000-", "bytes=80000-", "bytes=100000-", "bytes=100001-", "bytes=160001-",
    ]  # fmt: skip
    assert sum(request.sent for request in asked) == len(BODY)


def test_a_body_without_a_length_that_ends_early_is_short(server: RangeServer, path: str, target: Path) -> None:
    fetch(server.add(path, BODY, length=False, cuts=[70_000]), target)
    assert_whole(target)
    assert [request.range for request in server.asked(path)] == [None, "bytes=70000-"]


def test_a_server_that_ignores_ranges_starts_again_cleanly(server: RangeServer, path: str, target: Path) -> None:
    told: list[int] = []
    fetch(server.add(path, BODY, ranges=False, cuts=[150_000]), target, progress=lambda done, size: told.append(done))
    assert_whole(target)
    assert [(request.range, request.status) for request in server.asked(path)] == [(None, 200), ("bytes=150000-", 200)]
    assert told != sorted(told)


def test_another_range_than_asked_for_is_not_appended(server: RangeServer, path: str, target: Path) -> None:
    fetch(server.add(path, BODY, range_start=10, cuts=[50_000]), target)
    assert_whole(target)
    assert [request.range for request in server.asked(path)] == [None, "bytes=50000-", None]


def test_a_line_that_gets_no_further_is_given_up(server: RangeServer, path: str, target: Path) -> None:
    url = server.add(path, BODY, ranges=False, cuts=[50_000] * 9)
    with pytest.raises(DataError, match=r"3 attempts in a row failed.*goes on where it stopped"):
        fetch(url, target)
    assert len(server.asked(path)) == 3
    assert target.with_name("file.zip.part").stat().st_size == 50_000
    assert names(target) == ["file.zip.part"]


def test_a_part_of_an_earlier_run_is_gone_on_with(server: RangeServer, path: str, target: Path) -> None:
    url = server.add(path, BODY)
    target.parent.mkdir()
    part = target.with_name("file.zip.part")
    part.write_bytes(BODY[:120_000])
    fetch(url, target)
    assert_whole(target)
    assert [(request.range, request.sent) for request in server.asked(path)] == [("bytes=120000-", 80_000)]
    part.write_bytes(BODY)  # whole, but killed before it was renamed
    target.unlink()
    fetch(url, target)
    assert len(server.asked(path)) == 1


@pytest.mark.parametrize("length", [120_000, len(BODY), len(BODY) + 5])
def test_a_part_of_something_else_is_thrown_away(server: RangeServer, path: str, target: Path, length: int) -> None:
    target.parent.mkdir()
    target.with_name("file.zip.part").write_bytes(bytes(length))
    fetch(server.add(path, BODY), target)
    assert_whole(target)
    assert server.asked(path)[-1].range is None


def test_a_server_with_fewer_bytes_is_asked_from_the_start_and_given_up(
    server: RangeServer, path: str, target: Path
) -> None:
    url = server.add(path, BODY[:-10])
    with pytest.raises(DataError, match="3 attempts in a row failed"):
        fetch(url, target)
    asked = [(request.range, request.status) for request in server.asked(path)]
    assert asked[:3] == [(None, 200), ("bytes=199990-", 416), (None, 200)]


def test_a_server_with_more_bytes_sends_the_wrong_file(server: RangeServer, path: str, target: Path) -> None:
    url = server.add(path, BODY + bytes(3_000_000))
    with pytest.raises(DataError, match="twice the bytes were not those of md5:"):
        fetch(url, target)
    assert names(target) == []


def test_wrong_bytes_are_fetched_once_more_from_the_start(server: RangeServer, path: str, target: Path) -> None:
    fetch(server.add(path, BODY, wrong=1), target)
    assert_whole(target)
    assert [request.range for request in server.asked(path)] == [None, None]


def test_a_part_that_was_wrong_does_not_spoil_the_second_try(server: RangeServer, path: str, target: Path) -> None:
    fetch(server.add(path, BODY, wrong=1, cuts=[90_000]), target)  # the rest is right, the whole is not
    assert_whole(target)
    assert [request.range for request in server.asked(path)] == [None, "bytes=90000-", None]


def test_bytes_that_are_always_wrong_are_an_error_and_do_not_stay(server: RangeServer, path: str, target: Path) -> None:
    url = server.add(path, BODY, wrong=99)
    with pytest.raises(DataError, match="twice the bytes were not those of md5:") as caught:
        fetch(url, target)
    assert caught.value.file == url
    assert len(server.asked(path)) == 2
    assert names(target) == []


def test_it_waits_as_long_as_the_server_asks(server: RangeServer, path: str, target: Path) -> None:
    date = {"Retry-After": formatdate(time.time() + 2, usegmt=True)}  # cut to the second: one to two from now
    url = server.add(path, BODY, refusals=[(503, date), (429, {"Retry-After": "1"})])
    started = time.monotonic()
    fetch(url, target, settings=FAST)
    assert 1.9 < time.monotonic() - started < 4
    assert_whole(target)


def test_a_server_that_asks_for_too_long_a_wait_is_left(server: RangeServer, path: str, target: Path) -> None:
    url = server.add(path, BODY, refusals=[(429, {"Retry-After": "3600"})])
    with pytest.raises(DataError, match=r"429 Too Many Requests, and it asks to wait 3600 s"):
        fetch(url, target)
    assert len(server.asked(path)) == 1


def test_a_server_in_trouble_is_asked_again_and_waits_double(server: RangeServer, path: str, target: Path) -> None:
    settings = FAST.model_copy(update={"first_wait_s": 0.2, "attempts": 4})
    url = server.add(path, BODY, refusals=[(500, {}), (502, {}), (408, {})])
    started = time.monotonic()
    fetch(url, target, settings=settings)
    assert 0.7 < time.monotonic() - started < 3  # of 0.2 + 0.4 + 0.8 s at least half
    assert_whole(target)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_asked_again(server: RangeServer, path: str, target: Path, status: int) -> None:
    url = server.add(path, BODY, refusals=[(status, {})])
    with pytest.raises(DataError, match=f"the server answers {status}"):
        fetch(url, target)
    assert len(server.asked(path)) == 1


def test_a_server_that_says_nothing_is_not_waited_for_without_end(server: RangeServer, path: str, target: Path) -> None:
    fetch(server.add(path, BODY, silent=1), target)
    assert_whole(target)
    url = server.add(f"{path}-always", BODY, silent=99)
    with pytest.raises(DataError, match="ReadTimeout"):
        fetch(url, target.with_name("other.zip"))
    assert len(server.asked(f"{path}-always")) == 3


def test_a_machine_that_is_not_there_is_an_error(target: Path) -> None:
    with serving() as gone:
        url = gone.add("/file", BODY)
    with pytest.raises(DataError, match=r"3 attempts in a row failed, the last one: ConnectError"):
        fetch(url, target)


def test_it_follows_to_where_the_file_is(server: RangeServer, path: str, target: Path) -> None:
    there = server.add(f"{path}-there", BODY, cuts=[10_000])
    fetch(server.add(path, b"", location=there), target)
    assert_whole(target)
    assert [request.range for request in server.asked(f"{path}-there")] == [None, "bytes=10000-"]


def test_a_file_larger_than_the_disk_is_not_begun(server: RangeServer, path: str, target: Path) -> None:
    url = server.add(path, BODY)
    with pytest.raises(SetupError, match=rf"{2**60} bytes are needed on this disk and \d+ are free"):
        fetch(url, target, size=2**60)
    assert server.asked(path) == []


def test_a_place_that_cannot_be_written_is_said(server: RangeServer, path: str, target: Path) -> None:
    url = server.add(path, BODY)
    target.parent.write_text("a file where the folder should be")
    with pytest.raises(SetupError, match="cannot be written"):
        fetch(url, target)


def test_a_disk_that_fills_up_on_the_way_is_said(server: RangeServer, path: str, target: Path) -> None:
    url = server.add(path, BODY)
    target.parent.mkdir()
    target.with_name("file.zip.part").symlink_to("/dev/full")
    with pytest.raises(SetupError, match=r"file\.zip\.part: it cannot be written \(No space left on device\)"):
        fetch(url, target)
    assert not target.exists()


def test_a_checksum_of_an_unknown_kind_is_an_error(server: RangeServer, path: str, target: Path) -> None:
    with pytest.raises(DataError, match=r"'crc32:0' is of an unknown kind"):
        fetch(server.add(path, BODY), target, checksum="crc32:0")
    assert server.asked(path) == []


def test_json_is_asked_for_with_the_same_patience(server: RangeServer, path: str) -> None:
    assert get_json(server.add(path, b'{"a": [1]}', refusals=[(500, {})], cuts=[3]), FAST) == {"a": [1]}
    assert len(server.asked(path)) == 3
    with pytest.raises(DataError, match="the answer is no JSON"):
        get_json(server.add(path, b"<html>"), FAST)
