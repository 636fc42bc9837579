"""Stage `shards`: packs clips into WebDataset tars, one folder a split, with a manifest that finds any sample.

Belongs here: which clips enter which split, and the format. Reading it back (`loader`) does not.

Format of `<out>/`: `<split>/shard-000000.tar` and so on for `train`, `val`, `test`. A sample's key is its `clip_id`;
its members are

    0.jpg … 7.jpg   the shown frames in shown order
    prompt.txt      what the model is asked
    target.json     the answer in the brief's form and names, without confidence
    clip.json       the `Clip`: true frame numbers, native operation ids

`manifest.json`: `version`, `settings`, `set_aside` (session → reason), `outside` (users in no split), `data` and
`splits`. `data` says where the clips come from: [{source: simulated or local, view, sessions, operations, seconds}], as
the stage raw_session beside the clips tells; `unknown` where that is not there. For each split

    users, persons, sessions, kinds, operations and next (each {native: {name: clips}, brief: {name: clips}})
    shards    [{file, digest, bytes, samples}]
    samples   by key: [{key, shard: number of the shard, members: {name: [byte offset in the tar, bytes]}}]

The same clips and settings give the same bytes: sorted samples, no times, no owners.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.common.errors import DataError
from pipelines.common.files import atomic_folder, digest, file_digest, read_json, write_json
from pipelines.common.incremental import RECORD, Record, read_records
from pipelines.openpack import taxonomy
from pipelines.openpack.clip_plan import Clip
from pipelines.openpack.clips import CLIPS, frame_file, read_clips
from pipelines.openpack.loader import MANIFEST
from pipelines.openpack.prompt import brief_answer, prompt_text
from pipelines.openpack.settings import STAGE_VERSIONS, ShardSettings, load_settings
from pipelines.openpack.sources import SESSION, read_session
from pipelines.openpack.splits import SPLITS, check_disjoint, person, split_of

VERSION = STAGE_VERSIONS["shards"]


@dataclass(frozen=True)
class _CutClip:
    """A clip and its session's folder; `digests` are what the stage clips wrote down of the files in it."""

    clip: Clip
    folder: Path
    digests: dict[str, str]

    @property
    def frame_files(self) -> list[Path]:
        return [frame_file(self.folder, self.clip.start_frame + frame) for frame in self.clip.keyframes.frames]


def write_shards(clips_root: Path, out: Path, settings: ShardSettings) -> dict[str, Any]:
    """Packs the clips below `<clips_root>/<user>/<session>/` into `out`, replacing it in one step; the manifest.

    DataError where no clip belongs to a split, where one person would be in two splits, or where a file is not what
    the stage clips wrote; `out` then stays as it was.
    """
    users = sorted(path.name for path in clips_root.glob("*") if path.is_dir() and not path.name.startswith("."))
    splits: dict[str, list[str]] = {name: [user for user in users if split_of(user) == name] for name in SPLITS}
    check_disjoint(splits)
    records = {user: read_records(clips_root / user) for user in users}
    with atomic_folder(out) as folder:
        contents = {}
        for split, members in splits.items():
            clips = [clip for user in members for clip in _cut_clips(clips_root / user, records[user])]
            contents[split] = _write_split(folder, split, clips, settings)
        if not any(content["samples"] for content in contents.values()):
            what = f"no clip of {', '.join(users) or 'any user'} belongs to a split"
            cure = "Materialise clips of U0101 to U0108 from sessions with annotations; other users are in no split."
            raise DataError(what, file=clips_root, cure=cure)
        bad = [(f"{user}/{one.name}", one.reason) for user in users for one in records[user] if not one.ok]
        manifest = {
            "version": VERSION,
            "settings": settings.model_dump(mode="json"),
            "set_aside": dict(bad),
            "outside": [user for user in users if split_of(user) is None],
            "data": _origins(clips_root, contents),
            "splits": contents,
        }
        write_json(folder / MANIFEST, manifest)
    return manifest


def _cut_clips(user: Path, records: Iterable[Record]) -> list[_CutClip]:
    clips = []
    for record in records:
        if record.ok:
            folder = user / record.name
            _read_checked(folder / CLIPS, folder, record.outputs)
            clips += [_CutClip(clip, folder, record.outputs) for clip in read_clips(folder)]
    return clips


def _write_split(folder: Path, split: str, clips: list[_CutClip], settings: ShardSettings) -> dict[str, Any]:
    """Writes a split's shards into `folder`; returns its part of the manifest."""
    clips = sorted(clips, key=lambda one: one.clip.clip_id)
    total = sum(path.stat().st_size for one in clips for path in one.frame_files if path.is_file())
    n = min(len(clips), max(settings.least_shards, -(-total // settings.target_bytes)))
    shards, samples = [], []
    for number in range(n):
        path = folder / split / f"shard-{number:06d}.tar"
        _write_tar(path, clips[number::n])  # dealt out in turn: each shard holds every user, for who reads it alone
        places = _places(path)
        samples += [{"key": key, "shard": number, "members": members} for key, members in places.items()]
        name, size = str(path.relative_to(folder)), path.stat().st_size
        shards.append({"file": name, "digest": file_digest(path), "bytes": size, "samples": len(places)})
    contents = _contents([one.clip for one in clips])
    return {**contents, "shards": shards, "samples": sorted(samples, key=lambda sample: sample["key"])}


def _write_tar(path: Path, cut: list[_CutClip]) -> None:
    from webdataset.writer import TarWriter  # brings torch along, which readers of this module's names do not need

    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream, TarWriter(stream, user="", group="", mode=0o644, encoder=False, mtime=0) as writer:
        for one in cut:
            writer.write({"__key__": one.clip.clip_id, **_members(one)})


def _members(one: _CutClip) -> dict[str, bytes]:
    clip, target = one.clip, one.clip.target
    answer = brief_answer(clip.clip_id, target.operation, target.start, target.end, target.next)
    return {
        **{f"{shown}.jpg": _read_checked(path, one.folder, one.digests) for shown, path in enumerate(one.frame_files)},
        "prompt.txt": prompt_text(clip.keyframes).encode(),
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


def _contents(clips: list[Clip]) -> dict[str, Any]:
    users = sorted({clip.user for clip in clips})
    return {
        "users": users,
        "persons": sorted({person(user) for user in users}),
        "sessions": sorted({f"{clip.user}/{clip.session}" for clip in clips}),
        "kinds": dict(sorted(Counter(clip.kind for clip in clips).items())),
        "operations": _label_counts([clip.target.operation for clip in clips]),
        "next": _label_counts([clip.target.next for clip in clips]),
    }


def _origins(clips_root: Path, contents: dict[str, Any]) -> list[dict[str, Any]]:
    """What the packed sessions are, simulated or recorded and in which view, with how much there is of each."""
    origins: dict[tuple[str, str], dict[str, float]] = {}
    for name in sorted(name for content in contents.values() for name in content["sessions"]):
        folder = clips_root.with_name("raw_session") / name
        origin, summary = ("unknown", "unknown"), {}
        if (folder / SESSION).is_file():
            stream = read_session(folder).stream
            # only a simulated session holds its own release, so only there the stream lies inside the folder
            origin = "local" if Path(stream.path).is_absolute() else "simulated", stream.kind
            summary = read_json(folder / RECORD)["summary"]
        total = origins.setdefault(origin, {"sessions": 0, "operations": 0, "seconds": 0.0})
        total["sessions"] += 1
        total["operations"] += summary.get("operations", 0)
        total["seconds"] = round(total["seconds"] + summary.get("seconds", 0), 3)
    return [{"source": source, "view": view, **total} for (source, view), total in sorted(origins.items())]


def _label_counts(op_ids: list[int]) -> dict[str, dict[str, int]]:
    operations = [taxonomy.by_id(op_id) for op_id in sorted(op_ids)]
    return {
        "native": dict(Counter(operation.name for operation in operations)),
        "brief": dict(Counter(operation.brief for operation in operations)),
    }


def _read_checked(path: Path, folder: Path, digests: dict[str, str]) -> bytes:
    """A file of a session's folder, which must still be what its record says."""
    data = path.read_bytes() if path.is_file() else None
    if data is None or digest(data) != digests.get(str(path.relative_to(folder))):
        what = "the file is missing" if data is None else "the file is not what the stage clips wrote"
        raise DataError(what, file=path, cure=f"Delete {folder} and run the stage clips again for this user.")
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description="Packs clips into WebDataset shards by split: the stage shards.")
    parser.add_argument("clips", type=Path, help="folder of the stage clips, for example data/clips")
    parser.add_argument("out", type=Path, help="for example data/shards; what lies there is replaced")
    parser.add_argument("--settings", type=Path, help="a TOML file, section [shards]; by default settings.toml")
    options = parser.parse_args()
    manifest = write_shards(options.clips, options.out, load_settings(options.settings).shards)
    for split, content in manifest["splits"].items():
        print(split, f"{len(content['samples'])} clips in {len(content['shards'])} shards", content["users"])


if __name__ == "__main__":
    main()
