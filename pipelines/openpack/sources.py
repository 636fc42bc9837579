"""Stage `raw_session`: finds sessions, checks their files, and writes down what each one is made of.

Belongs here: the two sources, a release folder on disk and the simulation, and the inspection that both go through.
The layout (`release`), decoding (`streams`) and drawing (`simulate`) do not.

Format of `<out>/<session>/`:

    session.json    one `RawSession`
    labels.json     its `Taxonomy`
    <user>/…        of a simulated session: the release that was written for it, annotation/… and video/…
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.common.console import run
from pipelines.common.errors import DataError
from pipelines.common.files import digest, file_digest, read_json, write_json
from pipelines.common.incremental import Item, Record, Told, run_items, untold
from pipelines.openpack import release
from pipelines.openpack.annotations import GAP_MS, Timeline, read_operations
from pipelines.openpack.effective import in_effect
from pipelines.openpack.settings import STAGE_VERSIONS, SimulationSettings, View
from pipelines.openpack.splits import SPLITS, Split, person, split_of
from pipelines.openpack.taxonomy import LABELS, OPENPACK, Taxonomy

VERSION = STAGE_VERSIONS["raw_session"]
SESSION = "session.json"

SourceName = Literal["simulated", "local", "zenodo", "recordings"]


class Stream(BaseModel):
    """One visual stream: a file (video, keypoints) or a folder of frames (rgb, depth).

    `path` is absolute, or relative to the session's folder: `folder / path` is right for both. `digest` is the
    content's for a file; for a folder of frames it covers names, sizes and times of change. `start_ms` is the unix time
    of a video's first frame, and None where every frame tells its own time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: View
    path: str
    start_ms: int | None
    digest: str


class RawSession(BaseModel):
    """What a session is made of. Times are unix milliseconds; `annotation` is a path as in `Stream`, None without.

    `person` is the same for all ids of one person; `split` is None for who is in none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceName
    user: str
    person: str
    split: Split | None
    session: str
    annotation: str | None
    annotation_digest: str | None
    stream: Stream
    n_operations: int  # annotated, Null not counted
    n_frames: int
    first_ms: int
    last_ms: int


class Source(Protocol):
    """Where sessions come from."""

    def users(self) -> list[str]:
        """Ids of the users that it has, sorted."""
        ...

    def fingerprint(self, user: str) -> str:
        """Changes whenever `fetch` would find something else for this user; cheap, reads no content."""
        ...

    def fetch(self, user: str, out: Path, workers: int | None = None, progress: Told = untold) -> list[Record]:
        """Brings `<out>/<session>/` up to date, one record a session; sessions with bad files are set aside.

        `progress(record, computed)` is called once a session.
        """
        ...


@dataclass(frozen=True)
class LocalSource:
    """A release folder on this machine, seen through one of its streams; `name` says who put it there."""

    root: Path
    view: View
    name: SourceName = "local"

    def users(self) -> list[str]:
        return release.find_users(self.root)

    def fingerprint(self, user: str) -> str:
        return digest([VERSION, self.view, [[item.name, dict(item.inputs)] for item in self._items(user)]])

    def fetch(self, user: str, out: Path, workers: int | None = None, progress: Told = untold) -> list[Record]:
        """As `Source.fetch`. DataError where the user's folder is of no known layout, or holds no session at all."""
        records = run_items(
            self._items(user), _inspect_local, out, f"{VERSION}+{self.view}", workers=workers, progress=progress
        )
        release.check_layout(self.root, user)
        return records

    def _items(self, user: str) -> list[Item]:
        root = self.root.resolve()  # written into session.json, which is read from other working directories
        items = []
        for session, views in release.find_sessions(root, user).items():
            stream = release.stream_files(root, user, session, self.view)
            annotation = release.annotation_file(root, user, session)
            inputs = {
                "source": self.name,
                "root": str(root),
                "views": ",".join(views),
                "annotation": release.stat_digest(root, [annotation] if annotation.exists() else []),
                "stream": release.stat_digest(root, stream),
            }
            items.append(Item(session, inputs, (self.name, root, user, session, self.view, views)))
        return items


@dataclass(frozen=True)
class SimulatedSource:
    """Drawn sessions of the users of the brief's split; each session's folder is a release folder of its own."""

    settings: SimulationSettings

    def users(self) -> list[str]:
        return sorted(user for users in SPLITS.values() for user in users)

    def fingerprint(self, user: str) -> str:
        return digest([self._recipe(), self.settings.sessions, user])

    def fetch(self, user: str, out: Path, workers: int | None = None, progress: Told = untold) -> list[Record]:
        from pipelines.openpack.simulate import sessions  # loads the drawing code, so only where it is used

        items = [Item(name, {"user": user}, (user, name, self.settings)) for name in sessions(self.settings)]
        return run_items(items, _simulate, out, self._recipe(), workers=workers, progress=progress)

    def _recipe(self) -> str:
        # the number of sessions says which are drawn, not how: one more leaves the others as they are
        return f"{VERSION}+{digest(self.settings.model_dump(mode='json', exclude={'sessions'}))}"


def read_taxonomy(folder: Path) -> Taxonomy:
    """The names of a session's operations, from the folder that a source or the stage clips left."""
    return Taxonomy.read(folder / LABELS)


def read_session(folder: Path) -> RawSession:
    """The session that a source left in `folder`. DataError where it was set aside or is not of this version."""
    try:
        return RawSession.model_validate(read_json(folder / SESSION))
    except ValidationError as error:
        cure = "Run the stage raw_session again."
        raise DataError(
            f"{error.error_count()} fields are not of this version", file=folder / SESSION, cure=cure
        ) from None


def _simulate(payload: tuple[str, str, SimulationSettings], folder: Path) -> dict[str, Any]:
    from pipelines.openpack.simulate import write_session

    user, session, settings = payload
    write_session(folder, user, session, settings)
    summary = _inspect("simulated", folder, user, session, "video", ["video"], folder)
    return {**summary, "settings": settings.model_dump(mode="json")}


def _inspect_local(payload: tuple[SourceName, Path, str, str, View, list[View]], folder: Path) -> dict[str, Any]:
    return _inspect(*payload, folder)


def _inspect(
    source: SourceName, root: Path, user: str, session: str, view: View, views: list[View], folder: Path
) -> dict[str, Any]:
    """Checks one session's files in the release `root`, writes session.json into `folder`, returns its summary."""
    place = release.stream_place(root, user, session, view)
    annotation = release.annotation_file(root, user, session)
    timeline = _timeline(annotation, user, session) if annotation.exists() else None
    times = _frame_times(place, view, views)
    start_ms = times[0] if view == "video" else None
    inside = root == folder  # what was written into the folder moves with it

    def name(path: Path) -> str:
        return str(path.relative_to(folder) if inside else path)

    raw = RawSession(
        source=source,
        user=user,
        person=person(user),
        split=split_of(user),
        session=session,
        annotation=name(annotation) if timeline else None,
        annotation_digest=file_digest(annotation) if timeline else None,
        stream=Stream(kind=view, path=name(place), start_ms=start_ms, digest=release.stream_digest(place, view)),
        n_operations=len(timeline.operations) if timeline else 0,
        n_frames=len(times),
        first_ms=times[0],
        last_ms=times[-1],
    )
    write_json(folder / SESSION, raw.model_dump(mode="json"))
    write_json(folder / LABELS, OPENPACK.as_json())
    return {
        "view": view,
        "frames": len(times),
        "seconds": round((times[-1] - times[0]) / 1000, 3),
        "operations": raw.n_operations,
        "note": _note(timeline, times),
    }


def _timeline(path: Path, user: str, session: str) -> Timeline:
    timeline = read_operations(path)
    if (timeline.user, timeline.session) != (user, session):
        what = f"its rows are of {timeline.user} {timeline.session}"
        raise DataError(what, file=path, where="row 2", cure=f"Put the file of {user} {session} here.")
    return timeline


def _frame_times(place: Path, view: View, views: list[View]) -> list[int]:
    """Unix ms of every frame; DataError that points to the views that there are where this one has no frame."""
    times = release.frame_times(place, view) if view in views else []
    if not times:
        others = [other for other in views if other != view]
        cure = "Add the frames, or leave the session out."
        if others:
            cure = f"Set OPENPACK_VIEW to {' or '.join(others)}, which it has."
        raise DataError(f"the session has no frame in the view {view}", file=place, cure=cure)
    return times


def _note(timeline: Timeline | None, times: list[int]) -> str | None:
    """What a person should know of a session that gives no clips, or fewer than its labels promise; None of others."""
    if timeline is None:
        return "no annotations: it is normalised and gives no clips"
    if times[-1] < timeline.start_ms or times[0] >= timeline.end_ms:
        return "no frame lies within the annotated time: it is normalised and gives no clips"
    done = timeline.operations
    outside = sum(one.start_ms < times[0] or one.end_ms > times[-1] + GAP_MS for one in done)
    return (
        f"{outside} of {len(done)} operations lie outside of the recorded time, wholly or in part" if outside else None
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Finds and checks a user's sessions: the stage raw_session.")
    parser.add_argument("user", help="for example U0209")
    parser.add_argument("out", type=Path, help="folder of this user's sessions, for example data/raw_session/U0209")
    parser.add_argument("--root", type=Path, help="the release folder; without it sessions are simulated")
    parser.add_argument("--view", choices=get_args(View), help="the stream to take from the release folder")
    parser.add_argument("--settings", type=Path, help="a TOML file, section [simulation]; by default settings.toml")
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    options = parser.parse_args()
    if (options.root is None) != (options.view is None):
        parser.error("--root and --view go together")
    settings = in_effect("simulation", path=options.settings).simulation
    source = LocalSource(options.root, options.view) if options.root else SimulatedSource(settings)
    for record in source.fetch(options.user, options.out, options.workers):
        print(record.name, record.status, record.reason or record.summary)


if __name__ == "__main__":
    run(main)
