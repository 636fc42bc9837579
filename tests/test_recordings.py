"""One's own videos with one's own labels: what the folder must hold, and the whole way to a trained adapter."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from annotation_files import Stretch, write_csv, write_eaf, write_export
from media_samples import run_ffmpeg

from pipelines.common.errors import DataError, SetupError
from pipelines.common.incremental import Record
from pipelines.openpack.annotations import read_operations
from pipelines.openpack.loader import ShardReader, read_manifest
from pipelines.openpack.recordings import OPERATIONS, RecordingsSource, main
from pipelines.openpack.recordings_folder import draw_splits, read_folder, slug
from pipelines.openpack.settings import RecordingsSettings
from pipelines.openpack.sources import SESSION, read_session, read_taxonomy
from pipelines.openpack.taxonomy import LABELS, Taxonomy

SECONDS = 30
FILMS = {"take 1.mp4": "25", "take2.mkv": "15", "take3.avi": "30000/1001"}  # name → frames a second
USERS = {"take 1.mp4": "worker 1", "take2.mkv": "worker 2", "take3.avi": "worker 3"}
NAMES = {"fold", "tape", "stick label"}


def cycle(first: int) -> list[Stretch]:
    """Half a minute of work from millisecond `first` on: each label three times over, and a pause after the first."""
    lengths = [("fold", 2520), ("tape", 3000), ("stick label", 2760)] * 3
    stretches, now = [], first
    for number, (label, length) in enumerate(lengths):
        now += 1000 if number == 3 else 0
        stretches.append((now, now + length, label))
        now += length
    return stretches


LABELLED = {name: cycle(40 * number) for number, name in enumerate(FILMS)}


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name, rate in FILMS.items():
        pattern = f"testsrc2=size=160x120:rate={rate}:duration={SECONDS}"
        codec = ("-c:v", "mpeg4") if name.endswith(".avi") else ("-c:v", "libx264", "-preset", "ultrafast")
        run_ffmpeg("-f", "lavfi", "-i", pattern, *codec, "-pix_fmt", "yuv420p", folder / name)
    return folder


@pytest.fixture
def root(films: Path, tmp_path: Path) -> Path:
    """A folder of three videos without annotations."""
    folder = tmp_path / "own"
    shutil.copytree(films, folder, copy_function=os.link)
    return folder


def fetch(root: Path, user: str, **settings: object) -> dict[str, Record]:
    source = RecordingsSource(root, RecordingsSettings.model_validate(settings))
    return {record.name: record for record in source.fetch(user, root.parent / "raw" / user, workers=1)}


def users(root: Path) -> list[str]:
    return RecordingsSource(root, RecordingsSettings()).users()


@pytest.fixture(scope="module")
def shards(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three persons: one trains, one validates, one tests."""
    from pipelines.common.keyframes import KeyframeSettings
    from pipelines.openpack import clips, normalise
    from pipelines.openpack.settings import ClipSettings, NormaliseSettings, ShardSettings
    from pipelines.openpack.shards import write_shards

    folder = tmp_path_factory.mktemp("stages")
    root = folder / "own"
    shutil.copytree(films, root, copy_function=os.link)
    write_csv(root / "segments.csv", LABELLED, USERS)
    source = RecordingsSource(root, RecordingsSettings(val=("worker 2",), test=("worker-3",)))
    for user in source.users():
        raw, normalised, cut = (folder / stage / user for stage in ("raw", "normalised", "clips"))
        for records in (
            source.fetch(user, raw, workers=1),
            normalise.run_user(user, raw, normalised, NormaliseSettings(), workers=1),
            clips.run_user(user, normalised, raw, cut, ClipSettings(), KeyframeSettings(), workers=1),
        ):
            assert [record.reason for record in records] == [None]
    write_shards(folder / "clips", folder / "shards", ShardSettings())
    return folder / "shards"


def test_every_person_is_in_the_split_that_the_settings_give(shards: Path):
    manifest = read_manifest(shards)
    assert {name: split["persons"] for name, split in manifest["splits"].items()} == {
        "train": {"worker-1": "worker-1"},
        "val": {"worker-2": "worker-2"},
        "test": {"worker-3": "worker-3"},
    }
    (data,) = manifest["data"]
    assert (data["source"], data["view"], data["operations"]) == ("recordings", "video", 27)


def test_prompts_answers_and_next_operations_are_in_the_own_names(shards: Path):
    from pipelines.openpack import baselines
    from pipelines.openpack.prompt import prompt_text

    taxonomy = Taxonomy.read(shards / LABELS)
    assert set(taxonomy.names) == set(taxonomy.brief) == NAMES | {"Null"}
    reader = ShardReader(shards, "train")
    samples = [reader.sample(index) for index in range(len(reader))]
    assert samples[0].prompt == prompt_text(samples[0].clip.keyframes, taxonomy)
    assert all(f": {name}. " in samples[0].prompt for name in NAMES)
    assert {sample.target["dominant_operation"] for sample in samples} == NAMES
    for sample in samples:
        names = [taxonomy.by_id(op_id).name for op_id in (sample.clip.target.operation, sample.clip.target.next)]
        assert [sample.target["dominant_operation"], sample.target["anticipated_next_operation"]] == names
    table = baselines.fit([sample.clip.target for sample in samples], taxonomy)
    following = {taxonomy.by_id(now).name: taxonomy.by_id(then).name for now, then in table.following.items()}
    assert following == {"fold": "tape", "tape": "stick label", "stick label": "fold"}


def test_the_embedded_model_is_trained_on_the_own_names(shards: Path, toy_base: Path, tmp_path: Path):
    from transformers import AutoProcessor

    from pipelines.common.vlm.encode import Encoder
    from pipelines.common.vlm.settings import LoopSettings, LoraSettings
    from pipelines.openpack.finetune import finetune, read_adapter
    from pipelines.openpack.predict import model_size, sample_answer, sample_question
    from pipelines.openpack.settings import FinetuneSettings

    taxonomy, sample = Taxonomy.read(shards / LABELS), ShardReader(shards, "train").sample(0)
    processor = AutoProcessor.from_pretrained(toy_base)
    question = sample_question(sample, taxonomy, model_size(processor))
    (encoded,) = Encoder(processor).encode([question], [sample_answer(sample, taxonomy).text()])
    text = processor.tokenizer.decode(encoded.ids)
    assert all(f": {name}. " in text for name in NAMES)
    loop = LoopSettings(steps=2, batch_size=2, gradient_accumulation_steps=1, save_steps=2, threads=1)
    finetune(
        toy_base, shards, tmp_path / "adapter", FinetuneSettings(loop=loop, lora=LoraSettings(rank=4)), lambda _: None
    )
    assert len(read_adapter(tmp_path / "adapter").losses) == 2
    assert Taxonomy.read(tmp_path / "adapter" / LABELS) == taxonomy


def test_a_session_is_the_user_s_own_file_from_unix_time_zero_on(root: Path):
    write_csv(root / "segments.csv", LABELLED, USERS)
    record = fetch(root, "worker-1")["take-1"]
    assert record.summary["operations"] == 9
    assert record.summary["seconds"] == pytest.approx(SECONDS - 1 / 25)
    folder = root.parent / "raw" / "worker-1" / "take-1"
    raw, taxonomy = read_session(folder), read_taxonomy(folder)
    assert (raw.source, raw.user, raw.person, raw.session) == ("recordings", "worker-1", "worker-1", "take-1")
    assert (raw.stream.kind, raw.stream.path, raw.stream.start_ms) == ("video", str(root / "take 1.mp4"), 0)
    assert (raw.first_ms, raw.last_ms, raw.n_frames) == (0, 1000 * SECONDS - 40, 25 * SECONDS)
    timeline = read_operations(folder / OPERATIONS, taxonomy)
    told = [(one.start_ms, one.end_ms, taxonomy.by_id(one.op_id).name) for one in timeline.segments]
    assert told.pop(3) == (8280, 9280, "Null")
    assert told == LABELLED["take 1.mp4"]


def test_three_ways_to_annotate_give_the_same_timelines(root: Path, tmp_path: Path):
    exact = {name: LABELLED[name] for name in ("take 1.mp4",)}
    written = []
    for way in ("csv", "elan", "label studio"):
        folder = tmp_path / way
        shutil.copytree(root, folder, copy_function=os.link)
        if way == "csv":
            write_csv(folder / "segments.csv", exact)
        elif way == "elan":
            write_eaf(folder / "anything.eaf", "take 1.mp4", {"work": exact["take 1.mp4"]}, origin=-300)
        else:
            write_export(folder / "project-7.json", exact, fps=25)
        record = fetch(folder, "take-1")["take-1"]
        assert record.ok
        assert "person of its own" in record.summary["note"]
        written.append((tmp_path / "raw" / "take-1" / "take-1" / OPERATIONS).read_bytes())
        assert ("own rate, 25.000 a second" in record.summary["note"]) == (way == "label studio")
        shutil.rmtree(tmp_path / "raw")
    assert written[0] == written[1] == written[2]


def test_label_studio_s_frames_are_those_of_the_project_s_rate_where_it_is_told(root: Path):
    write_export(root / "export.json", {"take3.avi": [(0, 1000, "fold"), (1000, 2000, "tape")]}, fps=24)
    record = fetch(root, "take3", label_studio_fps=24)["take3"]
    assert "own rate" not in record.summary["note"]
    folder = root.parent / "raw" / "take3" / "take3"
    assert [one.end_ms for one in read_operations(folder / OPERATIONS, read_taxonomy(folder)).segments] == [1000, 2000]


def test_what_is_wrong_with_one_video_sets_that_one_aside(root: Path):
    whole = (root / "take2.mkv").read_bytes()
    (root / "take2.mkv").unlink()  # a link to the film of all tests
    (root / "take2.mkv").write_bytes(whole[: len(whole) // 2])
    rows = ["take 1.mp4,5,4,fold", "take2.mkv,0,9,fold", "take3.avi,0,9,fold", "x/y.mp4,0,1,fold"]
    (root / "segments.csv").write_text("video,start,end,label\n" + "\n".join(rows))
    records = {user: next(iter(fetch(root, user).values())) for user in ("take-1", "take2", "x-y")}
    assert {record.status for record in records.values()} == {"set_aside"}
    assert "segments.csv, row 2: the end 4 is not after the start 5" in (records["take-1"].reason or "")
    assert "take2.mkv: the film is cut short" in (records["take2"].reason or "")
    assert "row 5: the video x/y.mp4 is not in the folder. Put it there" in (records["x-y"].reason or "")


def test_a_misspelled_video_is_told_which_one_was_perhaps_meant(root: Path):
    (root / "segments.csv").write_text("video,start,end,label,user\ntake3.aiv,9,11,tape,x\ntake2.mkv,0,9,fold,x\n")
    records = fetch(root, "x")
    assert records["take2"].ok
    reason = records["take3"].reason or ""
    assert "row 2: the video take3.aiv is not in the folder. Did you mean take3.avi?" in reason


def test_a_video_shorter_than_its_labels_keeps_its_good_part(root: Path, tmp_path: Path):
    from pipelines.common.keyframes import KeyframeSettings
    from pipelines.openpack import clips, normalise
    from pipelines.openpack.settings import ClipSettings, NormaliseSettings

    run_ffmpeg("-i", root / "take 1.mp4", "-t", "12", "-c", "copy", root / "short.mp4")
    for name in FILMS:
        (root / name).unlink()
    write_csv(root / "segments.csv", {"short.mp4": cycle(0)})
    record = fetch(root, "short")["short"]
    assert record.summary["seconds_outside"] == pytest.approx(25.84 - 12, abs=0.001)
    assert "13.840 labelled seconds lie after the video's end" in record.summary["note"]
    raw, normalised, cut = tmp_path / "raw" / "short", tmp_path / "normalised", tmp_path / "clips"
    normalise.run_user("short", raw, normalised, NormaliseSettings(), workers=1)
    clips.run_user("short", normalised, raw, cut, ClipSettings(), KeyframeSettings(), workers=1)
    found = clips.read_clips(cut / "short")
    assert found
    assert all(clip.start_frame + 125 <= 12 * 25 for clip in found)


def test_labels_that_all_lie_after_the_video_s_end_set_it_aside(root: Path):
    write_csv(root / "segments.csv", {"take 1.mp4": [(31_000, 40_000, "fold")]})
    record = fetch(root, "take-1")["take-1"]
    assert "row 2: the first label starts after the video's end at 30.000 s" in (record.reason or "")


def test_a_video_without_labels_goes_on_and_says_that_it_gives_no_clips(root: Path):
    write_csv(root / "segments.csv", {"take 1.mp4": cycle(0)})
    record = fetch(root, "take2")["take2"]
    assert record.ok
    assert "no annotations: it is normalised and gives no clips" in record.summary["note"]
    raw = read_session(root.parent / "raw" / "take2" / "take2")
    assert (raw.annotation, raw.split, raw.n_operations) == (None, None, 0)


def test_videos_are_found_in_subfolders_and_by_their_name_where_only_one_has_it(root: Path):
    for folder in ("monday", "tuesday"):
        (root / folder).mkdir()
        os.link(root / "take 1.mp4", root / folder / "cam.mp4")
    (root / "take 1.mp4").rename(root / "monday" / "lid.MP4")
    rows = ["monday/cam.mp4,0,1,a", "tuesday\\cam.mp4,0,1,b", "lid.MP4,0,1,a", "cam.mp4,2,3,a"]
    (root / "segments.csv").write_text("video,start,end,label\n" + "\n".join(rows))
    folder = read_folder(root, RecordingsSettings())
    labels = {one.session: [segment.label for segment in one.segments] for one in folder.recordings if one.segments}
    assert labels == {"monday-cam": ["a"], "tuesday-cam": ["b"], "monday-lid": ["a"]}
    lost = next(one for one in folder.recordings if one.session == "cam")
    assert "row 5: cam.mp4 is monday/cam.mp4 and tuesday/cam.mp4. Name it with its folder." in str(lost.flaw)


def test_the_folder_itself_must_be_of_one_kind(root: Path):
    def refused(kind: type[DataError] = DataError) -> str:
        with pytest.raises(kind) as caught:
            read_folder(root, RecordingsSettings())
        return str(caught.value)

    assert "no annotation is here. Put segments.csv" in refused()
    (root / "segments.csv").write_text("video,start,end,label\n")
    assert "a header and no row" in refused()
    write_eaf(root / "take2.eaf", "take2.mkv", {"work": []})
    assert "more than one kind of annotation: segments.csv and take2.eaf" in refused()
    (root / "segments.csv").unlink()
    assert "nothing is labelled in it" in refused()
    (root / "take2.eaf").unlink()
    (root / "session.json").write_text("{}")
    assert "task 1: the task names no video" in refused()
    for name in FILMS:
        (root / name).unlink()
    assert "no video is here" in refused(SetupError)
    shutil.rmtree(root)
    assert "the folder is missing. Set OPENPACK_ROOT" in refused(SetupError)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["take2.mkv,0,1,Tape,", "take3.avi,0,1,tape,"], "row 3: the label 'tape' is 'Tape' in row 2 of segments.csv"),
        ([f"take2.mkv,{n},{n + 1},label {n}," for n in range(26)], "26 different labels"),
        (["take2.mkv,0,1,null,"], "0 different labels"),
        (["take2.mkv,0,1,a,x y", "take3.avi,0,1,a,X-Y"], "X-Y and x y would both be the user x-y"),
        (["take2.mkv,0,1,a,take3"], "take3 and whoever is in take3.avi would both be the user take3"),
        (["take2.mkv,0,1,a,x", "take2!.mkv,0,1,a,x"], "would both be the session take2"),
        (["take2.mkv,0,1,a,?!"], "take2.mkv: the name '?!' has no letter or digit"),
    ],
)
def test_names_must_be_told_apart(root: Path, rows: list[str], says: str):
    (root / "segments.csv").write_text("video,start,end,label,user\n" + "\n".join(rows))
    with pytest.raises(DataError) as caught:
        fetch(root, "take2")
    assert says in str(caught.value)


def test_what_no_video_of_a_folder_has_is_said_once(root: Path):
    for name in FILMS:
        write_eaf((root / name).with_suffix(".eaf"), name, {"work": cycle(0), "talk": cycle(0)})
    with pytest.raises(DataError, match="several tiers have annotations: 'work', 'talk'"):
        fetch(root, "take2")
    assert fetch(root, "take2", tier="work")["take2"].ok


def test_slugs_keep_letters_of_all_languages():
    assert [slug(name) for name in ("Größe M. ", "a__b", "打包 2", "x/y.z")] == ["Größe-M", "a-b", "打包-2", "x-y-z"]


def test_persons_are_drawn_by_their_names_alone_and_a_tenth_is_kept():
    def sizes(count: int) -> tuple[int, ...]:
        splits = draw_splits([f"person-{number}" for number in range(count)], RecordingsSettings())
        return tuple(list(splits.values()).count(split) for split in ("train", "val", "test"))

    assert [sizes(count) for count in (0, 2, 3, 10, 19, 20)] == [
        (0, 0, 0), (2, 0, 0), (1, 1, 1), (8, 1, 1), (17, 1, 1), (16, 2, 2),
    ]  # fmt: skip
    assert draw_splits(["a", "b", "c"], RecordingsSettings()) == draw_splits(["c", "a", "b"], RecordingsSettings())


def test_persons_that_the_settings_name_are_kept_and_no_others():
    splits = draw_splits(["a", "b", "c"], RecordingsSettings(test=("b",)))
    assert splits == {"a": "train", "b": "test", "c": "train"}
    with pytest.raises(SetupError, match=r"names d, who is not there\. The users are a, b"):
        draw_splits(["a", "b"], RecordingsSettings(val=("d",), test=("a",)))
    with pytest.raises(SetupError, match="has a in val and in test"):
        draw_splits(["a", "b"], RecordingsSettings(val=("a",), test=("a",)))


def test_a_person_kept_for_scoring_whose_video_is_unusable_stops_nobody_else(root: Path):
    table = "video,start,end,label,user\ntake 1.mp4,0,9,fold,a\ntake2.mkv,9,0,fold,b\n"
    (root / "segments.csv").write_text(table)
    assert not fetch(root, "b", test=("b",))["take2"].ok
    assert fetch(root, "a", test=("b",))["take-1"].ok
    assert read_session(root.parent / "raw" / "a" / "take-1").split == "train"


def test_too_few_persons_all_train_and_it_is_said_that_nothing_can_be_evaluated(root: Path):
    write_csv(root / "segments.csv", {name: LABELLED[name] for name in ("take 1.mp4", "take2.mkv")})
    record = fetch(root, "take2")["take2"]
    assert "nobody is in test: nothing can be evaluated" in record.summary["note"]
    assert read_session(root.parent / "raw" / "take2" / "take2").split == "train"


def test_a_change_touches_those_whom_it_concerns(root: Path):
    def prints() -> list[str]:
        source = RecordingsSource(root, RecordingsSettings())
        return [source.fingerprint(user) for user in source.users()]

    def changed(before: list[str]) -> list[bool]:
        return [old != new for old, new in zip(before, prints(), strict=True)]

    table = dict(LABELLED)
    write_csv(root / "segments.csv", table)
    now = prints()
    assert changed(now) == [False, False, False]
    table["take 1.mp4"] = table["take 1.mp4"][1:]  # all rows of the others move up by one
    write_csv(root / "segments.csv", table)
    assert changed(now) == [True, False, False]
    now = prints()
    copy = (root / "take2.mkv").read_bytes()
    (root / "take2.mkv").unlink()
    (root / "take2.mkv").write_bytes(copy)
    assert changed(now) == [False, True, False]
    now = prints()
    table["take3.avi"] = [*table["take3.avi"], (29_000, 30_000, "a new label")]
    write_csv(root / "segments.csv", table)
    assert changed(now) == [True, True, True]


def test_fetching_again_makes_again_only_what_changed(root: Path):
    def made() -> dict[str, int]:
        fetch(root, "x")
        return {path.parent.name: path.stat().st_mtime_ns for path in (root.parent / "raw" / "x").glob(f"*/{SESSION}")}

    users = dict.fromkeys(FILMS, "x")
    table = dict(LABELLED)
    write_csv(root / "segments.csv", table, users)
    before = made()
    assert len(before) == 3
    table["take 1.mp4"] = table["take 1.mp4"][1:]
    write_csv(root / "segments.csv", table, users)
    assert [name for name, time in made().items() if time != before[name]] == ["take-1"]


def test_by_hand(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    write_csv(root / "segments.csv", LABELLED, USERS)
    monkeypatch.chdir(root.parent)
    command = ["recordings", str(root), "worker-2", str(root.parent / "out")]
    monkeypatch.setattr("sys.argv", command)
    main()
    assert "\ntake2 ok {'view': 'video', 'frames': 450," in capsys.readouterr().out  # after the settings
    monkeypatch.setattr("sys.argv", [*command[:2], "worker-9", command[3]])
    with pytest.raises(DataError, match=r"no video of worker-9 is here\. The users are worker-1, worker-2, worker-3"):
        main()


def test_importing_the_source_loads_neither_torch_nor_pandas_nor_a_decoder():
    code = "import sys, pipelines.openpack.recordings; print({'torch', 'pandas', 'decord', 'ffmpeg'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
