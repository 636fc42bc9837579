"""Unpacking: what archives may hold, and that nothing else ever reaches the disk."""

import random
import shutil
import stat
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import pytest

from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import folder_digests
from pipelines.common.unpack import unpack

NOISE = random.Random(7).randbytes(50_000)  # does not shrink
FILES = {"annotation/a.csv": b"uuid,user\n" * 9, "kinect/2d-kpt/x.json": NOISE, "empty": b""}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "U0101.zip"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "release" / "U0101"


def write(
    archive: Path,
    members: dict[str, bytes] | list[tuple[str, bytes]],
    how: int = zipfile.ZIP_DEFLATED,
    mode: int = 0,
    claimed: int | None = None,
) -> None:
    """A zip of these members; `claimed` is the size that its directory gives for each."""
    with zipfile.ZipFile(archive, "w", how) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that comes twice
        for name, data in dict(members).items() if isinstance(members, dict) else members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode or stat.S_IFREG | 0o644) << 16
            opened.writestr(info, data, how)
            info.file_size = len(data) if claimed is None else claimed


def run(archive: Path, target: Path, **changed) -> None:
    unpack(archive, target, **{"limit_bytes": 10**6, "limit_ratio": 100, **changed})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(archive: Path, target: Path, words: str, member: str | None = None, **changed) -> None:
    before = folder_digests(archive.parent)
    with pytest.raises(DataError, match=words) as caught:
        run(archive, target, **changed)
    assert not isinstance(caught.value, SetupError)
    assert str(caught.value.file) == str(archive)
    assert caught.value.where == member
    assert not target.exists()
    assert folder_digests(archive.parent) == before
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    "how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=str
)
def test_files_come_out_as_they_went_in(archive: Path, target: Path, how: int) -> None:
    write(archive, FILES, how)
    run(archive, target)
    assert content(target) == FILES
    assert [path.name for path in target.parent.iterdir()] == ["U0101"]


def test_it_takes_the_place_of_what_was_there(archive: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "old").write_text("old")
    write(archive, FILES)
    run(archive, target)
    assert content(target) == FILES


def test_what_macos_adds_is_left_out(archive: Path, target: Path) -> None:
    extra = {"__MACOSX/annotation/._a.csv": b"x", ".DS_Store": b"x", "kinect/.DS_Store": b"x", "U0101/": b""}
    write(archive, {**extra, **FILES})
    run(archive, target, top="U0101")
    assert content(target) == FILES


def test_a_folder_around_everything_is_left_out_if_it_has_the_right_name(archive: Path, target: Path) -> None:
    nested = {f"U0101/{name}": data for name, data in FILES.items()}
    write(archive, {"U0101/": b"", "__MACOSX/U0101/._x": b"x", **nested})
    run(archive, target, top="U0101")
    assert content(target) == FILES
    run(archive, target, top="U0102")
    assert content(target) == nested
    write(archive, {**nested, "README": b""})
    run(archive, target, top="U0101")
    assert content(target) == {**nested, "README": b""}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/cron.d/x", "absolute"),
        ("//server/x", "absolute"),
        ("C:/x", "absolute"),
        ("C:\\x", "absolute"),
        ("\\x", "absolute"),
        ("../x", "leads out"),
        ("a/../../x", "leads out"),
        ("a\\..\\..\\x", "leads out"),
        ("../", "leads out"),
        (".", "names no file"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(archive: Path, target: Path, name: str, words: str) -> None:
    write(archive, {"good": b"x", name: b"x"})
    assert_refused(archive, target, words, name)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(archive: Path, target: Path, kind: int) -> None:
    write(archive, {"link": b"/etc/passwd"}, mode=kind | 0o777)
    assert_refused(archive, target, "a link or a device", "link")


def test_an_encrypted_member_is_refused(archive: Path, target: Path) -> None:
    write(archive, {"secret": b"x"})
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # the flags of the member's own header, then those of the central directory
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    assert_refused(archive, target, "encrypted", "secret")


@pytest.mark.parametrize(
    ("names", "words", "member"),
    [
        (["a/x", "a/x"], "comes twice", "a/x"),
        (["a/x", "a//x"], "comes twice", "a//x"),
        (["a/x", "./a/x"], "comes twice", "./a/x"),
        (["a/x", "a"], "a file and a folder at once", "a"),
        (["a", "a/b/x"], "a file and a folder at once", "a"),
    ],
)
def test_a_name_for_two_things_is_refused(
    archive: Path, target: Path, names: list[str], words: str, member: str
) -> None:
    write(archive, [(name, b"x") for name in names])
    assert_refused(archive, target, words, member)


def test_too_many_bytes_are_refused_at_the_first_too_many(archive: Path, target: Path) -> None:
    write(archive, {"a": NOISE, "b": NOISE})
    run(archive, target, limit_bytes=2 * len(NOISE))
    shutil.rmtree(target)
    with pytest.raises(DataError, match="more than 99999 bytes come out") as caught:
        run(archive, target, limit_bytes=2 * len(NOISE) - 1)
    assert caught.value.where == "b"
    assert not target.exists()


def test_an_archive_that_swells_too_much_is_refused(archive: Path, target: Path) -> None:
    write(archive, {"zeros": bytes(900_000)})
    size = archive.stat().st_size
    assert 100 * size < 900_000 < 10**6
    assert_refused(archive, target, f"more than {100 * size} bytes come out", "zeros")
    run(archive, target, limit_ratio=1000)
    assert (target / "zeros").stat().st_size == 900_000


def test_a_header_that_says_fewer_bytes_is_not_believed(archive: Path, target: Path) -> None:
    write(archive, {"zeros": bytes(900_000)}, claimed=10)
    assert_refused(archive, target, "damaged", "zeros", limit_bytes=1000)


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_is_not_what_was_packed_is_named(archive: Path, target: Path, how: int) -> None:
    write(archive, {"good": b"x", "kinect/x.json": NOISE}, how)
    data = bytearray(archive.read_bytes())
    for at in range(30_000, 30_100):
        data[at] ^= 0xFF
    archive.write_bytes(data)
    assert_refused(archive, target, "the member is damaged", "kinect/x.json")


def test_a_compression_that_nothing_here_knows_is_an_error(archive: Path, target: Path) -> None:
    write(archive, {"a": b"x"})
    data = bytearray(archive.read_bytes())
    for at in (8, data.index(b"PK\1\2") + 10):
        struct.pack_into("<H", data, at, 97)
    archive.write_bytes(data)
    assert_refused(archive, target, "damaged", "a")


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", None], ids=["empty", "page", "cut"])
def test_what_is_no_archive_is_an_error(archive: Path, target: Path, data: bytes | None) -> None:
    write(archive, FILES)
    archive.write_bytes(archive.read_bytes()[:-100] if data is None else data)
    assert_refused(archive, target, "not a readable zip")


def test_a_disk_without_room_is_found_before_anything_is_written(archive: Path, target: Path) -> None:
    write(archive, {"a": b"x"}, claimed=2**60)
    with pytest.raises(SetupError, match=f"{2**60} bytes are needed on this disk"):
        run(archive, target, limit_bytes=2**61, limit_ratio=2**61)
    assert list(target.parent.iterdir()) == []


def test_a_killed_run_leaves_nothing_that_the_next_keeps(archive: Path, target: Path) -> None:
    write(archive, {f"{i:05}": b"x" for i in range(20_000)})
    code = "import sys, pathlib; from pipelines.common.unpack import unpack\n"
    code += "unpack(*map(pathlib.Path, sys.argv[1:]), limit_bytes=10**9, limit_ratio=100)"
    process = subprocess.Popen([sys.executable, "-c", code, archive, target], cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 20
    while not any(target.parent.glob(".U0101.part-*/0*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not target.exists()
    write(archive, FILES)
    run(archive, target)
    assert [path.name for path in target.parent.iterdir()] == ["U0101"]
