"""Folders that travel between machines: published at and fetched from any address that fsspec knows.

Belongs here: how shards come to the machines that train, and adapters back. Reading them does not: stages read and
write local files. Knows no stage.

Format at an address: the folder's files under their own names and, beside them, `published.json`:

    files       {path: {digest, bytes}} of every file that is whole there
    complete    whether these are all; before that nothing is fetched

A folder that was fetched looks the same. Only files that differ are moved, a stopped run goes on where it was, and
files that neither side brought are left alone. Accounts and endpoints are the variables of the storage's own package;
fsspec itself reads FSSPEC_S3_ENDPOINT_URL and the like.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from pipelines.common.console import run
from pipelines.common.disk import check_room
from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import atomic_file, digest, file_digest, folder_digests, write_json
from pipelines.common.locks import output_lock

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PUBLISHED = "published.json"

Say = Callable[[str], None]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    bytes: int


class _Index(BaseModel):
    """What `published.json` holds. A path in it that leads out of the folder is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, _File] = {}
    complete: bool = False

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, _File]) -> dict[str, _File]:
        for path in map(PurePosixPath, files):
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ValueError(f"{str(path)!r} is no path inside the folder")
        return files

    @classmethod
    def read(cls, text: str | bytes, file: Path | str) -> _Index:
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            cure = "Delete it, and publish or fetch again."
            raise DataError(f"not an index of files ({error.errors()[0]['msg']})", file=file, cure=cure) from None


def is_url(place: str) -> bool:
    return "://" in place


def publish_folder(folder: Path, url: str, progress: Say = print) -> int:
    """Makes `url` hold the files of `folder`; returns how many were sent. One process a URL at a time.

    DataError where the folder holds no file, and where the storage refuses or fails; SetupError for an address of a
    kind that is unknown, or whose package is missing.
    """
    files = {
        name: _File(digest=content, bytes=(folder / name).stat().st_size)
        for name, content in folder_digests(folder).items()
        if name != PUBLISHED
    }
    if not files:
        raise DataError("there is no file in it", file=folder, cure="Name the folder that a stage wrote.")
    place, wanted = _Place.open(url), _Index(files=files, complete=True)
    before = place.index() or _Index()
    if before == wanted:
        return 0
    whole = {name: file for name, file in files.items() if before.files.get(name) == file}
    missing = sorted(files.keys() - whole.keys())
    place.write_index(_Index(files=whole))
    for number, name in enumerate(missing, 1):
        place.put(folder / name, name)
        whole[name] = files[name]
        place.write_index(_Index(files=whole))
        progress(f"{number} of {len(missing)}: {name}, {files[name].bytes} bytes")
    for name in before.files.keys() - files.keys():
        place.remove(name)
    place.write_index(wanted)
    return len(missing)


def fetch_folder(url: str, folder: Path, progress: Say = print) -> int:
    """Makes `folder` hold what is published at `url`; returns how many files came.

    Files appear whole and verified, one by one; on return all are there. Another process with the same folder waits.
    DataError where nothing or not all of it is published, where a file is not what was published, and where the storage
    fails; SetupError as of `publish_folder`, and where the disk is too small.
    """
    place = _Place.open(url)
    index = place.index()
    if index is None or not index.complete:
        what = "nothing is published there" if index is None else "it is not published completely"
        raise DataError(what, file=url, cure="Publish it: python -m pipelines.common.storage FOLDER URL")
    folder.mkdir(parents=True, exist_ok=True)
    with output_lock(folder):
        return _mirror(place, index, folder, progress)


def _mirror(place: _Place, index: _Index, folder: Path, progress: Say) -> int:
    own = folder / PUBLISHED
    before = _Index.read(own.read_text(), own) if own.is_file() else _Index()
    missing = [name for name, file in sorted(index.files.items()) if not _is(folder / name, file)]
    check_room(folder, sum(index.files[name].bytes for name in missing))
    write_json(own, _Index(files={**before.files, **index.files}).model_dump())  # a stopped run leaves nothing unknown
    for number, name in enumerate(missing, 1):
        place.get(name, index.files[name], folder / name)
        progress(f"{number} of {len(missing)}: {name}, {index.files[name].bytes} bytes")
    for name in before.files.keys() - index.files.keys():
        (folder / name).unlink(missing_ok=True)
    write_json(own, index.model_dump())
    return len(missing)


def local_folder(place: str, progress: Say = print) -> Path:
    """The folder `place`; of a URL the folder below DATA_DIR into which it is fetched, of `file://` the one it names.

    Errors as of `fetch_folder`.
    """
    if not is_url(place):
        return Path(place)
    from fsspec.implementations.local import LocalFileSystem

    opened = _Place.open(place)
    if isinstance(opened.fs, LocalFileSystem):
        return Path(opened.root)
    name = f"{PurePosixPath(opened.root).name}-{digest(place)}"
    folder = Path(os.environ.get("DATA_DIR") or "data") / "fetched" / name
    fetch_folder(place, folder, progress)
    return folder


@dataclass(frozen=True)
class _Place:
    """A folder on shared storage. DataError where the storage does not do as it is asked."""

    url: str
    fs: AbstractFileSystem
    root: str

    @classmethod
    def open(cls, url: str) -> _Place:
        from fsspec.core import url_to_fs

        kind = f"{url.partition('://')[0]}://"
        with _asking(url):
            try:
                fs, root = url_to_fs(url)
            except ImportError as error:
                package = getattr(error.__cause__, "name", None) or str(error)
                raise SetupError(f"{kind} needs the package {package}", file=url, cure="Install it.") from None
            except ValueError as error:
                raise SetupError(f"{kind} is no storage ({error})", file=url, cure="Mend the address.") from None
        return cls(url, fs, root.rstrip("/"))

    def index(self) -> _Index | None:
        """None where nothing is published."""
        with _asking(self.url):
            try:
                text = self.fs.cat_file(f"{self.root}/{PUBLISHED}")
            except FileNotFoundError:
                return None
        return _Index.read(text, f"{self.url.rstrip('/')}/{PUBLISHED}")

    def write_index(self, index: _Index) -> None:
        with _asking(self.url):
            self.fs.makedirs(self.root, exist_ok=True)
            self.fs.pipe_file(f"{self.root}/{PUBLISHED}", index.model_dump_json(indent=1).encode())

    def put(self, path: Path, name: str) -> None:
        with _asking(self.url):
            self.fs.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(path), f"{self.root}/{name}")

    def get(self, name: str, file: _File, path: Path) -> None:
        with atomic_file(path) as part:
            with _asking(self.url):
                self.fs.get_file(f"{self.root}/{name}", str(part))
            if not _is(part, file):
                cure = "Run again; if it stays so, publish the folder again."
                raise DataError("these are not the bytes that were published", file=self.url, where=name, cure=cure)

    def remove(self, name: str) -> None:
        with _asking(self.url):
            self.fs.rm_file(f"{self.root}/{name}")


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Each kind of storage has errors of its own; whatever they are, they become a sentence."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        cure = "Check address, account and connection, then run again: what is whole stays."
        what = f"the storage does not do as it is asked ({type(error).__name__}: {error})"
        raise DataError(what, file=url, cure=cure) from error


def _is(path: Path, file: _File) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and file_digest(path) == file.digest


def main() -> None:
    parser = argparse.ArgumentParser(description="Copies a folder to shared storage, or back from it.")
    parser.add_argument("source", help="a folder, or the URL of a published one, for example s3://bucket/shards")
    parser.add_argument("target", help="the URL, or the folder; what is there already and right is not copied again")
    options = parser.parse_args()
    if is_url(options.source) == is_url(options.target):
        parser.error("one of the two must be a URL, and the other one a folder")
    if is_url(options.target):
        print(f"{publish_folder(Path(options.source), options.target)} files published")
    else:
        print(f"{fetch_folder(options.source, Path(options.target))} files fetched")


if __name__ == "__main__":
    run(main)
