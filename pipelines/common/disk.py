"""What a disk can take: said before much is written, and in a sentence where writing fails.

Belongs here: room and failed writes. That files appear whole (`files`) does not.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.common.errors import SetupError


def check_room(folder: Path, needed: int) -> None:
    """SetupError where fewer than `needed` bytes are free on the disk of `folder`, which must exist."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"{needed} bytes are needed on this disk and {free} are free"
        raise SetupError(what, file=folder, cure="Free disk space, or choose another folder.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """For a block that writes `path` and meets no other operating system errors: they become a SetupError."""
    try:
        yield
    except OSError as error:
        cure = "Free disk space, or mend its permissions; then run again."
        raise SetupError(f"it cannot be written ({error.strerror or error})", file=path, cure=cure) from error


@contextmanager
def told_when_full(path: Path) -> Iterator[None]:
    """For a block that writes `path`: an error of it that tells of a full disk becomes a SetupError.

    Told by the text, since libraries have errors of their own for it. Of blocks inside each other the outermost speaks:
    its path is the one that a user knows.
    """
    try:
        yield
    except Exception as error:
        if not any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            raise
        free = shutil.disk_usage(next(folder for folder in path.parents if folder.exists())).free
        what = f"{os.strerror(errno.ENOSPC)}: it needs more than the {free} bytes that are free"
        cure = "Free disk space, then run again: what is done stays done."
        raise SetupError(what, file=path, cure=cure) from error
