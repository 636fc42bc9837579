"""Shards: what is packed, byte by byte the same, readable by webdataset; the loader's order and its checks."""

import io
import json
import pickle
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import DataError
from pipelines.common.files import folder_digests, read_json, write_json, write_jsonl
from pipelines.common.incremental import Item, run_items
from pipelines.common.keyframes import Keyframes
from pipelines.openpack import sequences
from pipelines.openpack.boxes import Stretch
from pipelines.openpack.clip_plan import Clip, Target, clip_id
from pipelines.openpack.clips import CLIPS, frame_file
from pipelines.openpack.loader import ShardReader, indices, order, read_manifest, verify
from pipelines.openpack.preparation import PREPARATION, Preparation
from pipelines.openpack.prompt import brief_answer, prompt_text
from pipelines.openpack.settings import AllSettings, ShardSettings
from pipelines.openpack.shards import write_shards
from pipelines.openpack.splits import person, split_of
from pipelines.openpack.taxonomy import LABELS, OPENPACK, Taxonomy

USERS = {"U0101": 6, "U0102": 5, "U0107": 3, "U0108": 4, "U0209": 2}  # clips of each
OPERATIONS = (100, 200, 600, 800, 8100)
EVENLY = Keyframes((0, 31, 62, 94, 125), ((15, 16), (46, 47), (78, 79), (109, 110)))


def make_clip(user: str, number: int) -> Clip:
    anchors = (3 + number, 40, 70, 110)
    return Clip(
        clip_id=clip_id(user, "S0100", 75 * number, 25),
        user=user,
        session="S0100",
        start_frame=75 * number,
        n_frames=125,
        kind="boundary",
        target=Target(operation=OPERATIONS[number % 5], start=0, end=80, next=OPERATIONS[(number + 1) % 5]),
        boundaries=(80,),
        operations=(OPERATIONS[number % 5], OPERATIONS[(number + 1) % 5]),
        following=100,
        bounds=(0, 31, 62, 93, 125),
        pairs=tuple((anchor, anchor + 1) for anchor in anchors),
        uniform=None if split_of(user) == "train" else EVENLY,
    )


DONE = (Stretch(100, 25, 150), Stretch(200, 150, 700))


def cut(payload: tuple[str, int], folder: Path) -> dict[str, Any]:
    """What the stage clips leaves of one session."""
    clips = [make_clip(payload[0], number) for number in range(payload[1])]
    write_jsonl(folder / CLIPS, [clip.model_dump(mode="json") for clip in clips])
    sequences.write_sequence(folder / sequences.OPERATIONS, DONE)
    frame_file(folder, 0).parent.mkdir()
    shown = {clip.start_frame + frame for clip in clips for frame in (*clip.keyframes.frames, *EVENLY.frames)}
    for frame in sorted(shown):
        grey = np.random.default_rng(frame).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(grey).save(frame_file(folder, frame), "JPEG")
    write_json(folder / LABELS, OPENPACK.as_json())
    Preparation.of(AllSettings()).save(folder / PREPARATION)
    user = payload[0]
    origin = {"source": "simulated", "view": "video", "split": split_of(user), "person": person(user)}
    return {**origin, "annotated": 7, "seconds": 60.0, "clips": len(clips)}


def refuse(payload: object, folder: Path) -> dict[str, int]:
    raise DataError("no frame in it", cure="Add the frames.")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for user, count in USERS.items():
        run_items([Item("S0100", {}, (user, count))], cut, root / user, "test")
    run_items([Item("S0200", {}, None)], refuse, root / "U0103", "test")
    return root


@pytest.fixture
def shards(clips: Path, tmp_path: Path) -> Path:
    write_shards(clips, tmp_path / "shards", ShardSettings())
    return tmp_path / "shards"


def test_what_is_done_in_whole_sessions_is_packed_too(shards: Path, tmp_path: Path):
    for split, users in (("train", ["U0101", "U0102"]), ("val", ["U0107"]), ("test", ["U0108"])):
        labelled = sequences.read_sessions(shards, split)
        assert [one.name for one in labelled] == [f"{user}/S0100" for user in users]
        assert all(one.stretches == DONE for one in labelled)
    (tmp_path / "sessions.jsonl").write_text(
        '{"user": "U1", "session": "S1", "split": "val", "operations": [{"id": 1}]}'
    )
    with pytest.raises(
        DataError, match=r"sessions\.jsonl: a line is no stretch .*Run the stages clips and shards again"
    ):
        sequences.read_sessions(tmp_path, "val")


def test_every_clip_enters_the_split_of_its_user_and_nothing_is_hidden(shards: Path):
    manifest = verify(shards)
    content = manifest["splits"]
    assert {split: len(part["samples"]) for split, part in content.items()} == {"train": 11, "val": 3, "test": 4}
    assert content["train"]["persons"] == {"U0101": "U0101", "U0102": "U0102"}
    assert content["test"]["sessions"] == ["U0108/S0100"]
    assert content["test"]["operations"] == {
        "native": {"Picking": 1, "Relocate Item Label": 1, "Attach Box Label": 1, "Attach Shipping Label": 1},
        "brief": {"Unknown": 1, "Inner Packing": 1, "Label": 2},
    }
    assert manifest["outside"] == ["U0209"]
    assert manifest["set_aside"] == {"U0103/S0200": "no frame in it. Add the frames."}


def test_a_sample_is_the_clip_its_frames_prompt_and_answer(shards: Path, clips: Path):
    reader = ShardReader(shards, "test")
    assert reader.keys == [f"U0108_S0100_t{3 * number:04d}" for number in range(4)]
    sample, clip = reader.sample(2), make_clip("U0108", 2)
    assert (sample.key, sample.clip, sample.prompt) == (clip.clip_id, clip, prompt_text(clip.keyframes, OPENPACK))
    files = [frame_file(clips / "U0108/S0100", 150 + frame) for frame in (5, 6, 40, 41, 70, 71, 110, 111)]
    assert sample.jpegs == tuple(file.read_bytes() for file in files)
    evenly = [frame_file(clips / "U0108/S0100", 150 + frame) for frame in EVENLY.frames]
    assert sample.uniform == tuple(file.read_bytes() for file in evenly)
    assert sample.target == brief_answer(OPENPACK, clip.clip_id, 600, 0, 80, 800)
    assert sample.target == {
        "clip_id": "U0108_S0100_t0006",
        "dominant_operation": "Label",
        "temporal_segment": {"start_frame": 0, "end_frame": 80},
        "anticipated_next_operation": "Label",
    }


def test_training_samples_hold_what_training_reads_and_no_more(shards: Path):
    splits = read_manifest(shards)["splits"]
    told = {"prompt.txt", "target.json", "clip.json"} | {f"{shown}.jpg" for shown in range(8)}
    assert all(set(sample["members"]) == told for sample in splits["train"]["samples"])
    told |= {f"uniform.{shown}.jpg" for shown in range(8)}
    assert all(set(sample["members"]) == told for split in ("val", "test") for sample in splits[split]["samples"])
    for split, has in (("train", False), ("test", True)):
        sample = splits[split]["samples"][0]
        offset, size = sample["members"]["clip.json"]
        shard = shards / splits[split]["shards"][sample["shard"]]["file"]
        assert ("uniform" in json.loads(shard.read_bytes()[offset : offset + size])) == has


def test_the_library_reads_the_same_samples(shards: Path):
    import webdataset

    tars = sorted(str(path) for path in (shards / "train").glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    theirs = {sample["__key__"]: sample for sample in dataset}
    reader = ShardReader(shards, "train")
    assert sorted(theirs) == reader.keys
    for ours in map(reader.sample, range(len(reader))):
        sample = theirs[ours.key]
        assert tuple(sample[f"{shown}.jpg"] for shown in range(8)) == ours.jpegs
        assert sample["prompt.txt"].decode() == ours.prompt
        assert json.loads(sample["target.json"]) == ours.target
        assert Clip.model_validate_json(sample["clip.json"]) == ours.clip
        assert Image.open(io.BytesIO(ours.jpegs[0])).size == (24, 24)


def test_the_same_clips_give_the_same_bytes(clips: Path, shards: Path, tmp_path: Path):
    write_shards(clips, tmp_path / "again", ShardSettings())
    assert folder_digests(shards) == folder_digests(tmp_path / "again")
    write_shards(clips, shards, ShardSettings())  # over what lies there
    assert folder_digests(shards) == folder_digests(tmp_path / "again")


def test_shards_are_about_as_large_as_asked_and_never_too_few(clips: Path, tmp_path: Path):
    def shard_sizes(settings: ShardSettings) -> list[int]:
        manifest = write_shards(clips, tmp_path / "shards", settings)
        return [shard["samples"] for shard in manifest["splits"]["train"]["shards"]]

    assert shard_sizes(ShardSettings(least_shards=2)) == [6, 5]
    assert shard_sizes(ShardSettings(least_shards=4)) == [3, 3, 3, 2]
    assert shard_sizes(ShardSettings(least_shards=99)) == [1] * 11  # no shard is empty
    assert len(shard_sizes(ShardSettings(least_shards=2, target_bytes=20_000))) > 3
    users = [sample["key"][:5] for sample in verify(tmp_path / "shards")["splits"]["train"]["samples"]]
    assert set(users) == {"U0101", "U0102"}


def test_one_person_in_two_splits_is_refused(clips: Path, tmp_path: Path):
    told = _change_record(clips, tmp_path / "clips", person="U0108")
    with pytest.raises(DataError, match=r"U0108, the same person as U0102,"):
        write_shards(told, tmp_path / "shards", ShardSettings())
    assert not (tmp_path / "shards").exists()


def test_sessions_of_different_labels_are_refused(clips: Path, tmp_path: Path):
    other = shutil.copytree(clips, tmp_path / "clips")
    write_json(other / "U0102/S0100" / LABELS, Taxonomy.own(["pick", "tape"]).as_json())
    with pytest.raises(DataError, match=r"U0102/S0100/labels\.json: its labels are not those of U0101/S0100"):
        write_shards(other, tmp_path / "shards", ShardSettings())


def _change_record(clips: Path, copy: Path, **summary: str) -> Path:
    shutil.copytree(clips, copy)
    file = copy / "U0102/S0100/record.json"
    record = read_json(file)
    write_json(file, {**record, "summary": {**record["summary"], **summary}})
    return copy


def test_a_frame_that_changed_since_clips_is_refused_and_the_old_shards_stay(clips: Path, shards: Path, tmp_path: Path):
    before = folder_digests(shards)
    copy = tmp_path / "clips"
    run_items([Item("S0100", {}, ("U0101", 2))], cut, copy / "U0101", "test")
    file = frame_file(copy / "U0101/S0100", 40)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(
        DataError, match=r"000040\.jpg: the file is not what the stage clips wrote.*run the stage clips"
    ):
        write_shards(copy, shards, ShardSettings())
    file.unlink()
    with pytest.raises(DataError, match=r"000040\.jpg: the file is missing"):
        write_shards(copy, shards, ShardSettings())
    assert folder_digests(shards) == before


def test_no_clip_in_any_split_is_an_error(tmp_path: Path):
    run_items([Item("S0500", {}, ("U0209", 2))], cut, tmp_path / "clips/U0209", "test")
    with pytest.raises(DataError, match="no clip of U0209 belongs to a split"):
        write_shards(tmp_path / "clips", tmp_path / "shards", ShardSettings())
    run_items([Item("S0100", {}, ("U0101", 2))], cut, tmp_path / "clips/U0101", "test")
    write_shards(tmp_path / "clips", tmp_path / "shards", ShardSettings())
    with pytest.raises(DataError, match="the split test has no samples"):
        ShardReader(tmp_path / "shards", "test")


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_shard_is_named_with_its_cure(shards: Path, damage: str):
    path = shards / "train/shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.unlink()
    if damage != "delete":
        path.write_bytes(data if damage == "flip" else data[:-512])
    with pytest.raises(DataError, match=r"train/shard-000001\.tar.*Run the stage shards again"):
        ShardReader(shards, "train")
    ShardReader(shards, "test")  # the others are whole


def test_an_epoch_shows_each_sample_once_and_the_next_in_another_order():
    first, second = order(50, seed=7, epoch=0), order(50, seed=7, epoch=1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() == order(50, seed=7, epoch=0).tolist() != second.tolist()
    assert first.tolist() != order(50, seed=8, epoch=0).tolist()
    assert list(islice(indices(50, 7), 100)) == [*first, *second]


def test_the_order_does_not_depend_on_workers_and_goes_on_where_it_stopped(shards: Path):
    reader = ShardReader(shards, "train")

    def keys(count: int, position: int = 0, workers: int = 1) -> list[str]:
        return [sample.key for sample in islice(reader.stream(seed=3, position=position, workers=workers), count)]

    whole = keys(40)
    assert whole == [reader.keys[number] for number in islice(indices(11, 3), 40)]
    assert keys(40, workers=5) == whole
    for position in (1, 10, 11, 29):
        assert keys(40 - position, position, workers=3) == whole[position:]
    assert pickle.loads(pickle.dumps(reader)).sample(4) == reader.sample(4)
