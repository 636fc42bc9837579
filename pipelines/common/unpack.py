"""Zip archives from elsewhere, unpacked so that they can write nothing but what belongs into one folder.

Belongs here: what a zip may hold and how much. Where archives come from does not.
"""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from pipelines.common.disk import check_room, writing
from pipelines.common.errors import DataError
from pipelines.common.files import atomic_folder

_CHUNK = 2**20
_AGAIN = "Delete it and fetch it again."
_DISTRUST = "Do not unpack it, or unpack by hand what can be trusted."
# of a damaged or unknown compression; OSError is what bz2 and a failing disk say
_UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, ValueError)


def unpack(archive: Path, target: Path, *, limit_bytes: int, limit_ratio: float, top: str | None = None) -> None:
    """Writes the files of a zip below `target`, which appears whole and in place of what was there.

    At most `limit_bytes` come out, and `limit_ratio` times the archive's own size. Where everything lies in one folder
    called `top`, that folder is left out. What macOS adds is skipped; empty folders are not made. One process a target
    at a time. DataError, with archive and member, for a damaged archive, for a name that is absolute, leads out or
    comes twice, for links, devices and encrypted members, and for too many bytes; SetupError where the disk is too
    full or cannot be written.
    """
    try:
        opened = zipfile.ZipFile(archive)
    except _UNREADABLE as error:
        raise DataError(f"not a readable zip archive ({error})", file=archive, cure=_AGAIN) from None
    with opened:
        members = _without(top, _members(archive, opened.infolist()))
        limit = int(min(limit_bytes, limit_ratio * archive.stat().st_size))
        with writing(target), atomic_folder(target) as folder:
            check_room(folder, min(limit, sum(info.file_size for info in members.values())))
            _extract(opened, members, folder, limit)


def _members(archive: Path, infos: list[zipfile.ZipInfo]) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files of an archive by path; DataError for any that must not be written."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in infos:
        path = PurePosixPath(info.filename)
        if "__MACOSX" in path.parts or path.name == ".DS_Store":
            continue
        if why := _refusal(info):
            raise DataError(why, file=archive, where=info.filename, cure=_DISTRUST)
        if info.is_dir():
            continue
        if path in members:
            raise DataError("the name comes twice", file=archive, where=info.filename, cure=_DISTRUST)
        members[path] = info
    for path in members:
        for parent in path.parents:
            if parent in members:
                raise DataError(
                    "the name is a file and a folder at once", file=archive, where=str(parent), cure=_DISTRUST
                )
    return members


def _refusal(info: zipfile.ZipInfo) -> str | None:
    name = PureWindowsPath(info.filename)  # knows both kinds of slashes, and drives
    if name.drive or name.root:
        return "the path is absolute"
    if ".." in name.parts:
        return "the path leads out of the folder"
    if not name.parts and not info.is_dir():
        return "the path names no file"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):  # 0: made where there are no modes
        return "it is a link or a device, not a file"
    if info.flag_bits & 1:
        return "it is encrypted"
    return None


def _without(top: str | None, members: dict[PurePosixPath, zipfile.ZipInfo]) -> dict[PurePosixPath, zipfile.ZipInfo]:
    if top is None or not all(len(path.parts) > 1 and path.parts[0] == top for path in members):
        return members
    return {path.relative_to(top): info for path, info in members.items()}


def _extract(opened: zipfile.ZipFile, members: dict[PurePosixPath, zipfile.ZipInfo], folder: Path, limit: int) -> None:
    total = 0
    for path, info in members.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as out:
            for chunk in _content(opened, info):
                total += len(chunk)
                if total > limit:
                    what = f"more than {limit} bytes come out"
                    cure = "Where it can be trusted, raise the limits in the settings."
                    raise DataError(what, file=str(opened.filename), where=info.filename, cure=cure)
                out.write(chunk)


def _content(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """A member's bytes; zipfile compares their CRC at the end."""
    try:
        with opened.open(info) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except _UNREADABLE as error:
        what = f"the member is damaged ({error})"
        raise DataError(what, file=str(opened.filename), where=info.filename, cure=_AGAIN) from None
