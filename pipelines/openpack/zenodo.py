"""The source `zenodo`: OpenPack's public record, from the network to checked sessions, one user at a time.

Belongs here: what the record's answer looks like and where its archives go. Downloading (`common.download`), unpacking
(`common.unpack`) and the inspection of what came out (`sources`) do not.

Format of `<downloads>/<record>/`: a release folder with `<user>/…`, each whole or absent. Beside it, while they are
needed, `<user>.zip` and `<user>.zip.part`, and `.<user>.lock`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import AliasChoices, BaseModel, Field, ValidationError, field_validator
from tqdm import tqdm

from pipelines.common.console import run
from pipelines.common.disk import writing
from pipelines.common.download import Progress, download, get_json
from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import digest
from pipelines.common.incremental import Record, Told, untold
from pipelines.common.locks import output_lock
from pipelines.common.unpack import unpack
from pipelines.openpack.effective import in_effect
from pipelines.openpack.settings import STAGE_VERSIONS, View, ZenodoSettings
from pipelines.openpack.sources import LocalSource

VIEW: View = "keypoints"  # the one visual stream that the record holds


class _Links(BaseModel):
    address: str = Field(validation_alias=AliasChoices("content", "self"))  # beside `content`, `self` is no file


class _File(BaseModel):
    key: str
    size: int
    checksum: str
    links: _Links


class _Listing(BaseModel):
    files: list[_File]

    @field_validator("files", mode="before")
    @classmethod
    def _entries(cls, files: Any) -> Any:
        """Zenodo's own form is a list; that of the software below it keeps the same entries by name."""
        return list(files["entries"].values()) if isinstance(files, dict) and "entries" in files else files


@dataclass(frozen=True)
class ZenodoSource:
    """Users of a Zenodo record, fetched into `downloads` where they are not there yet. SetupError for another `view`.

    `progress` is told of each download: bytes that are here, bytes in all; without it a terminal shows a bar.
    """

    settings: ZenodoSettings
    downloads: Path
    view: View = VIEW
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.view != VIEW:
            what = f"Zenodo has no view {self.view}: depth frames are on the data set's open drive, RGB only on request"
            cure = f"Take the view {VIEW}, or the source local for a folder that has the frames."
            raise SetupError(what, cure=cure)

    def users(self) -> list[str]:
        return sorted(self.settings.users)

    def fingerprint(self, user: str) -> str:
        """As `Source.fingerprint`, without a look at the network: a Zenodo record never changes."""
        return digest([STAGE_VERSIONS["raw_session"], self.settings.base_url, self.settings.record, user, self.view])

    def fetch(self, user: str, out: Path, workers: int | None = None, progress: Told = untold) -> list[Record]:
        """As `Source.fetch`; a user who is unpacked already costs no request.

        DataError where the record has no such user, or the download or its archive cannot be used; SetupError where
        the disk is too full or cannot be written.
        """
        root = self.downloads / str(self.settings.record)
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
        archive = root / f"{user}.zip"
        with output_lock(root / user):  # another run may want the same user; it waits and finds them there
            if not (root / user).is_dir():
                self._download(archive)
                limits = self.settings.unpacked_limit_bytes, self.settings.unpacked_limit_ratio
                unpack(archive, root / user, limit_bytes=limits[0], limit_ratio=limits[1], top=user)
            if not self.settings.keep_archives:
                archive.unlink(missing_ok=True)
        return LocalSource(root, self.view, "zenodo").fetch(user, out, workers, progress)

    def _download(self, archive: Path) -> None:
        address = f"{self.settings.base_url}/api/records/{self.settings.record}"
        files = _files(address, get_json(address, self.settings.download))
        if archive.name not in files:
            what = f"the record has no {archive.name}; it has {', '.join(sorted(files)) or 'no files'}"
            cure = "Leave the user out of zenodo.users, or set another zenodo.record."
            raise DataError(what, file=address, cure=cure)
        file, how = files[archive.name], self.settings.download
        url = file.links.address
        with nullcontext(self.progress) if self.progress else _bar(archive.name) as progress:
            download(url, archive, size=file.size, checksum=file.checksum, settings=how, progress=progress)


def _files(address: str, answer: Any) -> dict[str, _File]:
    """The files of a record by name. DataError where the answer is not a record's."""
    try:
        return {file.key: file for file in _Listing.model_validate(answer).files}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        cure = "Check zenodo.base_url and zenodo.record."
        raise DataError(f"not the answer of a record ({first['msg']})", file=address, where=where, cure=cure) from None


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """A progress bar, where there is a terminal."""
    with tqdm(desc=name, unit="B", unit_scale=True, disable=None) as bar:

        def show(done: int, size: int) -> None:
            bar.total = size
            bar.update(done - bar.n)  # back where the download starts again

        yield show


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetches a user of OpenPack's public record and checks the sessions.")
    parser.add_argument("user", help="for example U0101")
    parser.add_argument("--out", type=Path, required=True, help="folder of this user's sessions")
    parser.add_argument("--downloads", type=Path, required=True, help="what is fetched is kept here")
    parser.add_argument(
        "--view", choices=get_args(View), default=VIEW, help=f"the stream to take; only {VIEW} is there"
    )
    parser.add_argument(
        "--settings", type=Path, help="a TOML file, section [zenodo]; else settings.toml, if there is one"
    )
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    options = parser.parse_args()
    settings = in_effect("zenodo", path=options.settings).zenodo
    for record in ZenodoSource(settings, options.downloads, options.view).fetch(
        options.user, options.out, options.workers
    ):
        print(record.name, record.status, record.reason or record.summary)


if __name__ == "__main__":
    run(main)
