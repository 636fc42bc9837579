"""Reading shards back: the manifest, its check, single samples by number, and the order of training.

Belongs here: what a trainer on another machine needs to read samples, without torch, video or webdataset. Writing
them (`shards`) and turning a sample into tensors do not.

The order of training is a function of seed and position alone, so a run that stopped after `position` samples goes on
with just the sample that it would have seen next, with any number of workers.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.common.errors import DataError
from pipelines.common.files import file_digest, read_json
from pipelines.common.keyframes import Keyframes
from pipelines.openpack.clip_plan import Clip
from pipelines.openpack.preparation import read_preparation
from pipelines.openpack.splits import Split

MANIFEST = "manifest.json"
UNIFORM = "uniform."  # before the names of the evenly spaced pictures of a sample
_CURE = "Run the stage shards again, or copy the folder again if it came from another machine."


@dataclass(frozen=True)
class Sample:
    """One clip as it is trained on: the shown frames as JPEG in shown order, the prompt, the answer, the clip.

    `target` is the brief's JSON in the brief's names; `clip.target` has OpenPack's own ids. `uniform` are the frames
    of `clip.uniform`, none for training clips. `fps` is the rate at which all its frame numbers count.
    """

    key: str
    jpegs: tuple[bytes, ...]
    prompt: str
    target: dict[str, Any]
    clip: Clip
    fps: int
    uniform: tuple[bytes, ...] = ()


def read_manifest(shards: Path) -> dict[str, Any]:
    """The manifest of a folder of shards, as written down in `shards`; DataError where it is missing or damaged."""
    return read_json(shards / MANIFEST)


def verify(shards: Path, splits: tuple[Split, ...] = ("train", "val", "test")) -> dict[str, Any]:
    """Reads every shard of these splits and returns the manifest where all are as it says.

    DataError that names the first shard that is missing, cut short or changed, and the cure.
    """
    manifest = read_manifest(shards)
    for split in splits:
        for shard in manifest["splits"][split]["shards"]:
            _verify_shard(shards / shard["file"], shard)
    return manifest


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of sample numbers 0…n-1 that one epoch goes through; int64 (n,)."""
    return np.random.default_rng((seed, epoch)).permutation(n)


def indices(n: int, seed: int, position: int = 0) -> Iterator[int]:
    """Sample numbers in training order, epoch after epoch without end, from the `position`-th (0 = the first) on."""
    skipped = position % n
    for epoch in count(position // n):
        yield from map(int, order(n, seed, epoch)[skipped:])
        skipped = 0


class ShardReader:
    """The samples of one split, by number in the order of their keys. Holds no open file, so it can be pickled.

    Opening it checks the split's shards against the manifest: DataError for a damaged one, for a split without
    samples, and where it is not said how clips were prepared: `preparation`.
    """

    def __init__(self, shards: Path, split: Split) -> None:
        content = verify(shards, (split,))["splits"][split]
        if not content["samples"]:
            cure = "Materialise clips of a user of this split, then run the stage shards again."
            raise DataError(f"the split {split} has no samples", file=shards / MANIFEST, cure=cure)
        self._files = [shards / shard["file"] for shard in content["shards"]]
        self._samples = content["samples"]
        self.preparation = read_preparation(shards, "shards")
        self.keys: list[str] = [sample["key"] for sample in self._samples]

    def __len__(self) -> int:
        return len(self.keys)

    def sample(self, index: int) -> Sample:
        """Sample number `index`, read at once from its place in its shard; IndexError outside of 0…len-1."""
        entry = self._samples[index]
        places = entry["members"]
        first, last = (pick(places.values()) for pick in (min, max))  # a sample's members lie side by side
        with self._files[entry["shard"]].open("rb") as stream:
            stream.seek(first[0])
            data = stream.read(last[0] + last[1] - first[0])
        members = {name: data[offset - first[0] :][:size] for name, (offset, size) in places.items()}
        clip = Clip.model_validate_json(members["clip.json"])
        return Sample(
            key=entry["key"],
            jpegs=_pictures(members, "", clip.keyframes),
            prompt=members["prompt.txt"].decode(),
            target=json.loads(members["target.json"]),
            clip=clip,
            fps=self.preparation.clip_format.fps,
            uniform=_pictures(members, UNIFORM, clip.uniform),
        )

    def stream(self, seed: int, position: int = 0, workers: int = 1) -> Iterator[Sample]:
        """Samples in the order of `indices`, without end; `workers` threads read ahead and change nothing else.

        There may be more of them than shards, since none is bound to one: each sample is read from its place.
        """
        numbers = indices(len(self), seed, position)
        with ThreadPoolExecutor(workers) as pool:
            ahead = deque(pool.submit(self.sample, number) for number in islice(numbers, 2 * workers))
            for number in numbers:
                yield ahead.popleft().result()
                ahead.append(pool.submit(self.sample, number))


def _pictures(members: dict[str, bytes], prefix: str, shown: Keyframes | None) -> tuple[bytes, ...]:
    return tuple(members[f"{prefix}{place}.jpg"] for place in range(len(shown.frames))) if shown else ()


def _verify_shard(path: Path, entry: dict[str, Any]) -> None:
    if not path.is_file():
        raise DataError("the shard is missing", file=path, cure=_CURE)
    if path.stat().st_size != entry["bytes"]:
        what = f"the shard has {path.stat().st_size} bytes where the manifest has {entry['bytes']}"
        raise DataError(what, file=path, cure=_CURE)
    if file_digest(path) != entry["digest"]:
        raise DataError("the shard's digest is not that of the manifest", file=path, cure=_CURE)
