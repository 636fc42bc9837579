"""The errors that a user can cure. Bugs raise ordinary exceptions; these carry what, where and the cure."""

from __future__ import annotations

from pathlib import Path


class DataError(Exception):
    """Input that cannot be used: says what is wrong, where it is, and what to do.

    `where` names the place inside the file (``row 12``, ``frame 340``). A stage that works on sessions sets the
    session aside with this text and goes on with the others.
    """

    def __init__(self, what: str, *, file: Path | str | None = None, where: str | None = None, cure: str) -> None:
        self.what, self.file, self.where, self.cure = what, file, where, cure
        place = ", ".join(str(part) for part in (file, where) if part is not None)
        super().__init__(f"{place + ': ' if place else ''}{what}. {cure}")

    def __reduce__(self):  # keeps the keyword arguments when a worker process sends the error back
        return _rebuild, (type(self), self.what, self.file, self.where, self.cure)


class SetupError(DataError):
    """The machine or the settings lack something (a GPU, a weight, a variable); stops the run at once."""


def _rebuild(kind: type[DataError], what: str, file: Path | str | None, where: str | None, cure: str) -> DataError:
    return kind(what, file=file, where=where, cure=cure)
