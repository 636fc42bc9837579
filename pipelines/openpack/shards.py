"""Stage `shards`: packs clips into WebDataset tars, one folder a split, with a manifest that finds any sample.

Belongs here: which clips enter which split, and the format. Reading it back (`loader`) does not.

Format of `<out>/`: `<split>/shard-000000.tar` and so on for `train`, `val`, `test`. A sample's key is its `clip_id`;
its members are

    0.jpg … 7.jpg   the shown frames in shown order
    prompt.txt      what the model is asked
    target.json     the answer in the brief's form and names, without confidence
    clip.json       the `Clip`: true frame numbers, native operation ids
    uniform.0.jpg … uniform.7.jpg   outside of training: evenly spaced frames, for a control arm

`labels.json` is the `Taxonomy` of all of them, `preparation.json` the `Preparation`, `sessions.jsonl` what is done in
their whole sessions (`sequences`). `manifest.json`: `version`, `settings`, `preparation` (digest of that file's
content), `set_aside` (session → reason), `outside` (users in no split), `data` and `splits`. `data` says where the
clips come from: [{source, view, sessions, operations, seconds}]. For each split

    persons (user → person), sessions, kinds, operations and next (each {native: {name: clips}, brief: {name: clips}})
    shards    [{file, digest, bytes, samples}]
    samples   by key: [{key, shard: number of the shard, members: {name: [byte offset in the tar, bytes]}}]

The same clips and settings give the same bytes: sorted samples, no times, no owners.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.common.console import run
from pipelines.common.errors import DataError
from pipelines.common.files import atomic_folder, digest, file_digest, write_json
from pipelines.common.incremental import Record, read_records
from pipelines.common.locks import output_lock
from pipelines.openpack.clip_plan import Clip
from pipelines.openpack.clips import CLIPS, frame_file, read_clips
from pipelines.openpack.effective import in_effect
from pipelines.openpack.loader import MANIFEST, UNIFORM
from pipelines.openpack.preparation import PREPARATION, Preparation, read_preparation, require_same
from pipelines.openpack.prompt import brief_answer, prompt_text
from pipelines.openpack.sequences import OPERATIONS, SESSIONS, LabelledSession, read_sequence, write_sessions
from pipelines.openpack.settings import STAGE_VERSIONS, ShardSettings
from pipelines.openpack.sources import read_taxonomy
from pipelines.openpack.splits import SPLITS, Split, check_disjoint
from pipelines.openpack.taxonomy import LABELS, Taxonomy

VERSION = STAGE_VERSIONS["shards"]


@dataclass(frozen=True)
class _Session:
    """A session that the stage clips has cut."""

    user: str
    folder: Path
    record: Record

    @property
    def name(self) -> str:
        return f"{self.user}/{self.folder.name}"

    @property
    def split(self) -> str | None:
        return self.record.summary["split"]

    @property
    def person(self) -> str:
        return self.record.summary["person"]

    def read(self, path: Path) -> bytes:
        """A file of its folder, which must still be what its record says."""
        data = path.read_bytes() if path.is_file() else None
        if data is None or digest(data) != self.record.outputs.get(str(path.relative_to(self.folder))):
            what = "the file is missing" if data is None else "the file is not what the stage clips wrote"
            cure = f"Delete {self.folder} and run the stage clips again for this user."
            raise DataError(what, file=path, cure=cure)
        return data

    def labelled(self, split: Split) -> LabelledSession:
        self.read(self.folder / OPERATIONS)
        return LabelledSession(self.user, self.folder.name, split, read_sequence(self.folder / OPERATIONS))

    def clips(self) -> list[_CutClip]:
        self.read(self.folder / CLIPS)
        return [_CutClip(clip, self) for clip in read_clips(self.folder)]


@dataclass(frozen=True)
class _CutClip:
    clip: Clip
    session: _Session

    @property
    def pictures(self) -> dict[str, Path]:
        """Member name → file."""
        clip, folder = self.clip, self.session.folder
        shown = {name: choice.frames for name, choice in (("", clip.keyframes), (UNIFORM, clip.uniform)) if choice}
        return {
            f"{prefix}{place}.jpg": frame_file(folder, clip.start_frame + frame)
            for prefix, frames in shown.items()
            for place, frame in enumerate(frames)
        }


def write_shards(clips_root: Path, out: Path, settings: ShardSettings) -> dict[str, Any]:
    """Packs the clips below `<clips_root>/<user>/<session>/` into `out`, replacing it in one step; the manifest.

    DataError where no clip belongs to a split, where one person would be in two splits, where clips were prepared in
    different ways, or where a file is not what the stage clips wrote; `out` then stays as it was. Waits while
    another process writes there.
    """
    with output_lock(out):
        return _write_shards(clips_root, out, settings)


def _write_shards(clips_root: Path, out: Path, settings: ShardSettings) -> dict[str, Any]:
    users = sorted(path.name for path in clips_root.glob("*") if path.is_dir() and not path.name.startswith("."))
    records = [(user, record) for user in users for record in read_records(clips_root / user)]
    sessions = [_Session(user, clips_root / user / one.name, one) for user, one in records if one.ok]
    splits = {split: [session for session in sessions if session.split == split] for split in SPLITS}
    check_disjoint({split: {one.user: one.person for one in members} for split, members in splits.items()})
    taxonomy = _one_taxonomy(sessions, clips_root)
    preparation = _one_preparation(sessions)
    with atomic_folder(out) as folder:
        contents = {
            split: _write_split(folder, split, members, taxonomy, settings) for split, members in splits.items()
        }
        if not any(content["samples"] for content in contents.values()):
            what = f"no clip of {', '.join(users) or 'any user'} belongs to a split"
            cure = "Materialise clips of users of a split (OpenPack: U0101 to U0108) from sessions with annotations."
            raise DataError(what, file=clips_root, cure=cure)
        write_json(folder / LABELS, taxonomy.as_json())
        preparation.save(folder / PREPARATION)
        write_sessions(folder / SESSIONS, [one.labelled(split) for split in SPLITS for one in splits[split]])
        manifest = {
            "version": VERSION,
            "settings": settings.model_dump(mode="json"),
            "preparation": preparation.digest(),
            "set_aside": {f"{user}/{one.name}": one.reason for user, one in records if not one.ok},
            "outside": sorted({session.user for session in sessions if session.split is None}),
            "data": _origins(sessions, contents),
            "splits": contents,
        }
        write_json(folder / MANIFEST, manifest)
    return manifest


def _one_taxonomy(sessions: Sequence[_Session], clips_root: Path) -> Taxonomy:
    """That of all sessions. DataError where they differ, since an id or a letter would mean two things."""
    if not sessions:
        cure = "Run the stage clips first, and look at what it set aside."
        raise DataError("no session has been cut into clips", file=clips_root, cure=cure)
    first = read_taxonomy(sessions[0].folder)
    for session in sessions[1:]:
        if read_taxonomy(session.folder) != first:
            what = f"its labels are not those of {sessions[0].name}"
            raise DataError(what, file=session.folder / LABELS, cure="Run raw_session and clips again for all users.")
    return first


def _one_preparation(sessions: Sequence[_Session]) -> Preparation:
    """That of all sessions. DataError where they differ, since a frame number or a picture would mean two things."""
    made = [(session, read_preparation(session.folder, "clips")) for session in sessions]
    first, preparation = made[0]
    for session, other in made[1:]:
        cure = "Run the stages normalized_video and clips again for all users, with the same settings."
        what = f"it was prepared in another way than {first.name}"
        require_same(preparation, other, what, session.folder / PREPARATION, cure)
    return preparation


def _write_split(
    folder: Path, split: str, sessions: Iterable[_Session], taxonomy: Taxonomy, settings: ShardSettings
) -> dict[str, Any]:
    """Writes a split's shards into `folder`; returns its part of the manifest."""
    clips = sorted((clip for session in sessions for clip in session.clips()), key=lambda one: one.clip.clip_id)
    total = sum(path.stat().st_size for one in clips for path in one.pictures.values() if path.is_file())
    n = min(len(clips), max(settings.least_shards, -(-total // settings.target_bytes)))
    shards, samples = [], []
    for number in range(n):
        path = folder / split / f"shard-{number:06d}.tar"
        _write_tar(path, clips[number::n], taxonomy)  # dealt out in turn: each shard holds every user
        places = _places(path)
        samples += [{"key": key, "shard": number, "members": members} for key, members in places.items()]
        name, size = str(path.relative_to(folder)), path.stat().st_size
        shards.append({"file": name, "digest": file_digest(path), "bytes": size, "samples": len(places)})
    contents = _contents(clips, taxonomy)
    return {**contents, "shards": shards, "samples": sorted(samples, key=lambda sample: sample["key"])}


def _write_tar(path: Path, cut: list[_CutClip], taxonomy: Taxonomy) -> None:
    from webdataset.writer import TarWriter  # brings torch along, which readers of this module's names do not need

    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream, TarWriter(stream, user="", group="", mode=0o644, encoder=False, mtime=0) as writer:
        for one in cut:
            writer.write({"__key__": one.clip.clip_id, **_members(one, taxonomy)})


def _members(one: _CutClip, taxonomy: Taxonomy) -> dict[str, bytes]:
    clip, target = one.clip, one.clip.target
    answer = brief_answer(taxonomy, clip.clip_id, target.operation, target.start, target.end, target.next)
    return {
        **{name: one.session.read(path) for name, path in one.pictures.items()},
        "prompt.txt": prompt_text(clip.keyframes, taxonomy).encode(),
        "target.json": json.dumps(answer, ensure_ascii=False).encode(),
        "clip.json": json.dumps(clip.model_dump(mode="json"), ensure_ascii=False).encode(),
    }


def _places(path: Path) -> dict[str, dict[str, list[int]]]:
    """Key → member name → [offset, bytes], read from the tar itself."""
    places: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, name = member.name.split(".", 1)
            places.setdefault(key, {})[name] = [member.offset_data, member.size]
    return places


def _contents(cut: Sequence[_CutClip], taxonomy: Taxonomy) -> dict[str, Any]:
    clips = [one.clip for one in cut]
    return {
        "persons": dict(sorted({one.session.user: one.session.person for one in cut}.items())),
        "sessions": sorted({one.session.name for one in cut}),
        "kinds": dict(sorted(Counter(clip.kind for clip in clips).items())),
        "operations": _label_counts([clip.target.operation for clip in clips], taxonomy),
        "next": _label_counts([clip.target.next for clip in clips], taxonomy),
    }


def _origins(sessions: Sequence[_Session], contents: dict[str, Any]) -> list[dict[str, Any]]:
    """What the packed sessions are, simulated or recorded and in which view, with how much there is of each."""
    origins: dict[tuple[str, str], dict[str, float]] = {}
    packed = {name for content in contents.values() for name in content["sessions"]}
    for summary in (session.record.summary for session in sessions if session.name in packed):
        place = summary["source"], summary["view"]
        total = origins.setdefault(place, {"sessions": 0, "operations": 0, "seconds": 0.0})
        total["sessions"] += 1
        total["operations"] += summary["annotated"]
        total["seconds"] = round(total["seconds"] + summary["seconds"], 3)
    return [{"source": source, "view": view, **total} for (source, view), total in sorted(origins.items())]


def _label_counts(op_ids: list[int], taxonomy: Taxonomy) -> dict[str, dict[str, int]]:
    operations = [taxonomy.by_id(op_id) for op_id in sorted(op_ids)]
    return {
        "native": dict(Counter(operation.name for operation in operations)),
        "brief": dict(Counter(operation.brief for operation in operations)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Packs clips into WebDataset shards by split: the stage shards.")
    parser.add_argument("clips", type=Path, help="folder of the stage clips, for example data/clips")
    parser.add_argument("out", type=Path, help="for example data/shards; what lies there is replaced")
    parser.add_argument("--settings", type=Path, help="a TOML file, section [shards]; by default settings.toml")
    options = parser.parse_args()
    settings = in_effect("shards", path=options.settings).shards
    manifest = write_shards(options.clips, options.out, settings)
    for split, content in manifest["splits"].items():
        print(split, f"{len(content['samples'])} clips in {len(content['shards'])} shards", sorted(content["persons"]))


if __name__ == "__main__":
    run(main)
