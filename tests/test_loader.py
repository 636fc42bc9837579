"""The loader's promise: one order for any number of workers, and after a kill just what is still to come."""

import random
import shutil
import threading
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from kills import run_and_kill

from pipelines.common.files import read_json, write_json
from pipelines.openpack.loader import Sample, ShardReader, read_manifest

SEED = 11
WORKERS = (1, 8, 3, 5)  # of one run after the other; the toy shards are two
EPOCHS = 4


@pytest.fixture(scope="module")
def undisturbed(toy_shards: Path) -> list[str]:
    """The keys of some epochs in the order in which one process reads them that nobody disturbs."""
    reader = ShardReader(toy_shards, "train")
    return [sample.key for sample in islice(reader.stream(SEED), EPOCHS * len(reader))]


def read_on(shards: Path, root: Path, run: int) -> None:
    """Reads without end from the position that was written down last, and writes down each sample and position."""
    position = read_json(root / "position") if (root / "position").exists() else 0
    with (root / f"read-{run}").open("w", buffering=1) as log:
        for sample in ShardReader(shards, "train").stream(SEED, position, WORKERS[run]):
            log.write(f"{sample.key}\n")
            position += 1
            write_json(root / "position", position)


def test_killed_in_the_middle_of_epochs_it_loses_and_repeats_nothing(
    toy_shards: Path, undisturbed: list[str], tmp_path: Path
):
    n, rng = len(undisturbed) // EPOCHS, random.Random("kills of a reader")
    read, position = [], 0
    for run in range(len(WORKERS)):
        # each sample is three events: a position's file is created, filled and put in place
        run_and_kill(rng.randrange(n, 3 * n), read_on, toy_shards, tmp_path, run, root=tmp_path)
        keys, before, position = (
            (tmp_path / f"read-{run}").read_text().split(),
            position,
            read_json(tmp_path / "position"),
        )
        assert position % n != 0
        assert len(keys) - (position - before) in (0, 1)  # the last may not have been written down yet
        read += keys[: position - before]
    assert n < len(read) == position < len(undisturbed)
    rest = ShardReader(toy_shards, "train").stream(SEED, position, workers=2)
    read += [sample.key for sample in islice(rest, len(undisturbed) - position)]
    assert read == undisturbed
    for epoch in range(EPOCHS):
        assert set(Counter(read[epoch * n : (epoch + 1) * n]).values()) == {1}
        assert len(set(read[epoch * n : (epoch + 1) * n])) == n


@pytest.mark.parametrize("workers", [1, 2, 3, 16])
def test_any_number_of_workers_gives_the_same_samples_in_the_same_order(
    toy_shards: Path, undisturbed: list[str], workers: int
):
    reader = ShardReader(toy_shards, "train")
    samples = list(islice(reader.stream(SEED, workers=workers), len(undisturbed)))
    assert [sample.key for sample in samples] == undisturbed
    assert samples[0] == reader.sample(reader.keys.index(undisturbed[0]))


def test_more_workers_than_shards_all_read_at_once(toy_shards: Path):
    """A worker is not bound to a shard, so none idles."""
    workers = 6
    together, met = threading.Barrier(workers), set[int]()

    class Waiting(ShardReader):
        def sample(self, index: int) -> Sample:
            if threading.get_ident() not in met:
                met.add(threading.get_ident())
                together.wait(timeout=20)  # raises unless all of them come
            return super().sample(index)

    assert len(read_manifest(toy_shards)["splits"]["train"]["shards"]) < workers
    reader = Waiting(toy_shards, "train")
    assert len(list(islice(reader.stream(SEED, workers=workers), workers))) == workers


def test_a_position_may_lie_epochs_ahead(toy_shards: Path, undisturbed: list[str]):
    reader = ShardReader(toy_shards, "train")
    for position in (1, len(reader) - 1, len(reader), 3 * len(reader) + 5):
        stream = reader.stream(SEED, position, workers=2)
        assert [sample.key for sample in islice(stream, 4)] == undisturbed[position : position + 4]


def test_the_manifest_tells_all_without_a_shard(toy_shards: Path, tmp_path: Path):
    alone = shutil.copytree(toy_shards, tmp_path / "shards", ignore=shutil.ignore_patterns("*.tar"))
    assert not list(alone.rglob("*.tar"))
    manifest = read_manifest(alone)
    for split in ("train", "test"):
        told, reader = manifest["splits"][split], ShardReader(toy_shards, split)
        assert [sample["key"] for sample in told["samples"]] == reader.keys
        assert sum(shard["samples"] for shard in told["shards"]) == len(reader)
        clips = [reader.sample(index).clip for index in range(len(reader))]
        assert sum(told["operations"]["native"].values()) == len(clips)
        assert told["kinds"] == Counter(clip.kind for clip in clips)
        sizes = {shard["file"]: shard["bytes"] for shard in told["shards"]}
        assert sizes == {name: (toy_shards / name).stat().st_size for name in sizes}
