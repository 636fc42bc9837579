"""What a folder of one's own recordings holds: videos, whose they are, what is labelled in them, who is scored.

Belongs here: finding the files, bringing videos and labels together, names and splits. Reading an annotation tool's
form (`segments`, `elan`, `label_studio`) and looking into a video (`recordings`) do not; nothing here opens one.

A folder holds videos, in subfolders too, and one kind of annotation: `segments.csv`, or ELAN's `.eaf` files anywhere,
or exports of Label Studio (`.json`) in the folder itself. Hidden files are none of it.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import digest
from pipelines.openpack.elan import read_eaf
from pipelines.openpack.label_studio import read_export
from pipelines.openpack.release import stat_digest
from pipelines.openpack.segments import SEGMENTS, VIDEO_SUFFIXES, Flaw, LabelledSegment, check_together, read_csv
from pipelines.openpack.settings import RecordingsSettings
from pipelines.openpack.splits import Split
from pipelines.openpack.taxonomy import Taxonomy

_EVALUABLE = 3  # persons: one each to train, to validate and to test


@dataclass(frozen=True)
class Recording:
    """One video, there or only named, with its labelled segments by start.

    `session` is the slug of its path. `person` is who is in it, as the annotations write the name, and `user` the slug
    of that; where nobody says, `person` is None and the video is a user of its own. `flaw` is the first thing that
    keeps the video from being used.
    """

    video: Path
    session: str
    user: str
    person: str | None
    segments: tuple[LabelledSegment, ...]
    flaw: DataError | None


@dataclass(frozen=True)
class RecordingsFolder:
    """Recordings by user and session, the labels of all of them, and the split of each user that has any."""

    root: Path
    recordings: tuple[Recording, ...]
    segments: tuple[LabelledSegment, ...]
    splits: dict[str, Split]

    @property
    def users(self) -> list[str]:
        return sorted({recording.user for recording in self.recordings})

    @property
    def labels(self) -> list[str]:
        return sorted({segment.label for segment in self.segments})

    def of(self, user: str) -> list[Recording]:
        return [recording for recording in self.recordings if recording.user == user]

    def taxonomy(self) -> Taxonomy:
        """Of the folder's labels. DataError where two differ only in case, and for too many or none; where a flaw is
        why there is none, that one."""
        seen: dict[str, LabelledSegment] = {}
        for segment in self.segments:
            first = seen.setdefault(segment.label.casefold(), segment)
            if first.label != segment.label:
                what = f"the label {segment.label!r} is {first.label!r} in {first.row} of {first.file.name}"
                raise DataError(what, file=segment.file, where=segment.row, cure="Write both in one way.")
        flaw = next((one.flaw for one in self.recordings if one.flaw), None)
        if flaw and not seen:
            raise flaw
        try:
            return Taxonomy.own(self.labels)
        except DataError as error:
            raise DataError(error.what, file=self.root, cure=error.cure) from None


def read_folder(root: Path, settings: RecordingsSettings) -> RecordingsFolder:
    """The folder at `root`; its annotations are read again only when one of their files has changed.

    SetupError without the folder or without a video in it, and for persons in the settings that are not in it.
    DataError for no annotation or more than one kind, for a file of annotations that cannot be used at all, and for
    names that cannot be told apart once they are slugs. What concerns one video alone is that recording's flaw.
    """
    root = root.resolve()  # sessions are read from other working directories
    if not root.is_dir():
        raise SetupError("the folder is missing", file=root, cure="Set OPENPACK_ROOT to the folder with your videos.")
    files = sorted(path for path in root.rglob("*") if path.is_file() and not _hidden(path, root))
    videos = tuple(path for path in files if path.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise SetupError("no video is here", file=root, cure=f"Put files of {', '.join(VIDEO_SUFFIXES)} into it.")
    annotations = _annotations(root, files)
    stats = stat_digest(root, annotations)
    rows = _rows(root, videos, annotations, settings.tier, settings.label_studio_fps, stats)
    found: dict[Path, list[LabelledSegment | Flaw]] = {video: [] for video in videos}
    index = _Index(root, videos)
    for row in rows:
        video, flaw = index.find(row)
        found.setdefault(video, []).append(flaw or row)
    recordings = sorted((_recording(root, *one) for one in found.items()), key=lambda one: (one.user, one.session))
    _check_slugs(recordings)
    segments = tuple(row for row in rows if isinstance(row, LabelledSegment))
    named = settings.val or settings.test  # only who can be scored is drawn; who is named has that place in any case
    users = {one.user for one in recordings if named or (one.segments and not one.flaw)}
    return RecordingsFolder(root, tuple(recordings), segments, draw_splits(users, settings))


def slug(name: str, file: Path | None = None) -> str:
    """A name as a folder or key can carry it: its letters and digits, with one hyphen for all between.

    DataError where that leaves nothing; `file` is then named.
    """
    text = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", name)).strip("-")
    if not text:
        raise DataError(f"the name {name!r} has no letter or digit", file=file, cure="Give another name.")
    return text


def draw_splits(users: Iterable[str], settings: RecordingsSettings) -> dict[str, Split]:
    """Who is in which split: as the settings name them, else a tenth of the users each to test and to validate.

    Drawn are at least one each, and none of fewer than three. SetupError for a name that is no user's, or in both.
    """
    users = sorted(users, key=lambda user: digest(user))
    named: dict[Split, set[str]] = {"val": {*map(slug, settings.val)}, "test": {*map(slug, settings.test)}}
    if unknown := sorted((named["val"] | named["test"]) - {*users}):
        cure = f"The users are {', '.join(sorted(users))}."
        raise SetupError(f"[recordings] val or test names {', '.join(unknown)}, who is not there", cure=cure)
    if both := sorted(named["val"] & named["test"]):
        raise SetupError(f"[recordings] has {', '.join(both)} in val and in test", cure="Name a person in one.")
    if not (settings.val or settings.test) and len(users) >= _EVALUABLE:
        share = max(1, len(users) // 10)
        named = {"test": {*users[:share]}, "val": {*users[share : 2 * share]}}
    val_or_test: dict[str, Split] = {user: split for split, members in named.items() for user in members}
    return {user: val_or_test.get(user, "train") for user in users}


@lru_cache(maxsize=2)
def _rows(
    root: Path, videos: tuple[Path, ...], files: tuple[Path, ...], tier: str | None, fps: float | None, stats: str
) -> tuple[LabelledSegment | Flaw, ...]:
    """All that the annotations say. `stats` tells in which state they are, and is there only to be remembered by."""
    rows: list[LabelledSegment | Flaw] = []
    for file in files:
        if file.name == SEGMENTS:
            rows += read_csv(file)
        elif file.suffix.lower() == ".eaf":
            rows += read_eaf(file, root, tier)
        else:
            rows += read_export(file, {video.name for video in videos}, fps)
    if not rows:
        raise DataError("nothing is labelled in it", file=files[0], cure="Label the videos, and save again.")
    return tuple(rows)


def _annotations(root: Path, files: list[Path]) -> tuple[Path, ...]:
    kinds = {
        SEGMENTS: [path for path in files if path == root / SEGMENTS],
        "ELAN": [path for path in files if path.suffix.lower() == ".eaf"],
        "Label Studio": [path for path in files if path.parent == root and path.suffix.lower() == ".json"],
    }
    kept = {kind: paths for kind, paths in kinds.items() if paths}
    if len(kept) > 1:
        shown = " and ".join(str(paths[0].relative_to(root)) for paths in kept.values())
        raise DataError(f"more than one kind of annotation: {shown}", file=root, cure="Keep one, move the others out.")
    if not kept:
        cure = f"Put {SEGMENTS}, the .eaf files of ELAN or a .json export of Label Studio into it."
        raise DataError("no annotation is here", file=root, cure=cure)
    return tuple(*kept.values())


class _Index:
    """Finds the video that a row names."""

    def __init__(self, root: Path, videos: tuple[Path, ...]) -> None:
        self._root = root
        self._paths = {_plain(video.relative_to(root).as_posix()): video for video in videos}
        self._names: dict[str, list[Path]] = {}
        for video in videos:
            self._names.setdefault(_plain(video.name), []).append(video)

    def find(self, row: LabelledSegment | Flaw) -> tuple[Path, Flaw | None]:
        """The video, or the place where it should be; with the flaw where there is none, or more than one."""
        for name in map(_plain, row.names):
            if name in self._paths:
                return self._paths[name], None
            alike = self._names.get(name, [])
            if len(alike) == 1:
                return alike[0], None
            if alike:
                places = " and ".join(str(video.relative_to(self._root)) for video in alike)
                return self._lost(row, f"{name} is {places}", "Name it with its folder.")
        close = difflib.get_close_matches(row.names[-1], [*self._names, *self._paths], 1)
        cure = f"Did you mean {close[0]}?" if close else "Put it there, or take its rows out."
        return self._lost(row, f"the video {row.names[-1]} is not in the folder", cure)

    def _lost(self, row: LabelledSegment | Flaw, what: str, cure: str) -> tuple[Path, Flaw]:
        place = self._root / row.names[-1].lstrip("/")
        if isinstance(row, Flaw):
            return place, row
        return place, Flaw(row.names, row.user, DataError(what, file=row.file, where=row.row, cure=cure))


def _recording(root: Path, video: Path, said: list[LabelledSegment | Flaw]) -> Recording:
    flaw = next((row.error for row in said if isinstance(row, Flaw)), None)
    segments = tuple(row for row in said if isinstance(row, LabelledSegment))
    try:
        segments = check_together(segments)
    except DataError as error:
        flaw = flaw or error
    person = next((row.user for row in said if row.user), None)
    session = slug(str(video.relative_to(root).with_suffix("")), video)
    return Recording(video, session, slug(person, video) if person else session, person, segments, flaw)


def _check_slugs(recordings: Iterable[Recording]) -> None:
    """DataError where two videos of a user, or two persons, would be one folder. Some disks know no upper case."""
    sessions: dict[tuple[str, str], Recording] = {}
    users: dict[str, Recording] = {}
    for one in recordings:
        other = users.setdefault(one.user.casefold(), one)
        if (other.person, other.user) != (one.person, one.user):
            persons = " and ".join(each.person or f"whoever is in {each.video.name}" for each in (other, one))
            raise DataError(f"{persons} would both be the user {one.user}", file=one.video, cure="Rename one of them.")
        other = sessions.setdefault((one.user, one.session.casefold()), one)
        if other is not one:
            what = f"it and {other.video.name} would both be the session {one.session}"
            raise DataError(what, file=one.video, cure="Rename one of them.")


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _plain(name: str) -> str:
    """A name as it is compared: some systems store accented letters in two parts; `./` says nothing."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")
