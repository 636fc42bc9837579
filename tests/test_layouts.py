"""Every public form of a release through the source `local`: events, seconds, and folders that have no known form."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_samples import START_MS, frame_path
from PIL import Image

from pipelines.common.clip_format import ClipFormat
from pipelines.common.errors import DataError, SetupError
from pipelines.common.incremental import Record
from pipelines.common.keyframes import KeyframeSettings
from pipelines.openpack import clips, release
from pipelines.openpack.annotations import Segment, read_operations, write_operations
from pipelines.openpack.normalise import run_user
from pipelines.openpack.settings import ClipSettings, NormaliseSettings
from pipelines.openpack.sources import LocalSource, read_session
from pipelines.openpack.taxonomy import NULL_ID, OPENPACK

T0 = 1_634_869_193_000  # 2021-10-22 11:19:53+09:00, a whole second
FORMS = {  # of a table of seconds: where it lies, its columns, how users and sessions are called
    "v1.0.0": ("openpack-operations-1hz", "unixtime,user,session,box,id", ("U0102", "S0500"), ""),
    "v0.3.1": ("activity-1s", "unixtime,user,session,box,operation,action", ("U0102", "S0500"), ",8101"),
    "v0.2.0": ("openpack-operations", "unixtime,user,session,box,operation", ("U0102", "S0500"), ""),
    "2022": ("openpack-operations", "unixtime,user,session,box,operation", ("102", "500"), ""),
}


def write_seconds(root: Path, form: str, seconds: list[tuple[int, int | str, object]], t0: int = T0) -> Path:
    """A table of U0102 S0500 in one form, from (second, box, operation)."""
    folder, header, names, more = FORMS[form]
    path = root / "U0102" / "annotation" / folder / "S0500.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{t0 + 1000 * second},{','.join(names)},{box},{operation}{more}" for second, box, operation in seconds]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def write_keypoints(root: Path, times: range | list[int], session: str = "S0500") -> Path:
    """A worker who sways, at these unix ms."""
    path = release.stream_place(root, "U0102", session, "keypoints")
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    for ms in times:
        x = 500 + ms // 20 % 300
        entries.append({"image_id": ms, "keypoints": [[x + 9 * j, 150 + 30 * j, 0.9] for j in range(release.JOINTS)]})
    path.write_text(json.dumps({"annotations": entries}))
    return path


def fetch(root: Path, view: str = "keypoints") -> Record:
    [record] = LocalSource(root, view).fetch("U0102", root.parent / "out", workers=1)
    return record


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_keypoints(tmp_path / "release", range(T0, T0 + 900, 66))
    return tmp_path / "release"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_seconds_becomes_one_timeline(root: Path, form: str) -> None:
    seconds = [(0, 1, 100), (1, 1, 100), (2, 1, 200), (5, 1, 200), (6, 1, NULL_ID), (7, 2, NULL_ID), (8, 2, 100)]
    write_seconds(root, form, seconds)
    record = fetch(root)
    assert record.ok, record.reason
    assert record.summary["operations"] == 4
    folder = root.parent / "out" / "S0500"
    raw = read_session(folder)
    assert (raw.user, raw.session, raw.person) == ("U0102", "S0500", "U0102")
    assert raw.annotation is not None
    timeline = read_operations(folder / raw.annotation)
    assert (timeline.user, timeline.session) == ("U0102", "S0500")
    assert timeline.segments == tuple(
        Segment(op_id, T0 + 1000 * start, T0 + 1000 * end, box)
        for op_id, start, end, box in [
            (100, 0, 2, 1),
            (200, 2, 3, 1),
            (NULL_ID, 3, 5, None),  # two seconds are missing
            (200, 5, 6, 1),
            (NULL_ID, 6, 8, None),  # one pause, although the boxes are two
            (100, 8, 9, 2),
        ]
    )


def test_operations_may_be_names(root: Path) -> None:
    named = [(second, 1, operation.name) for second, operation in enumerate(OPENPACK.operations)]
    path = write_seconds(root, "v0.3.1", named)
    assert [segment.op_id for segment in read_operations(path).segments] == [o.id for o in OPENPACK.operations]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ([(0, 1, 100), (1, 1, 100), (1, 1, 200)], "row 4: its second is that of row 3"),
        ([(0, 1, 100), (2, 1, 100), (1, 1, 200)], "row 4: its second comes before that of row 3"),
        ([(0, 1, 100), (0.5, 1, 100)], "row 3: a cell cannot be read"),
        ([(0, 1, 100), (1, 1, "Wrapping")], "row 3: unknown operation 'Wrapping'"),
        ([(0, 1, 100), (1, 1, 150)], "row 3: unknown operation id 150"),
        ([(0, 1, 100), (1, "", ""), (2, 1, 100)], "row 3: unknown operation ''"),
        ([(0, "first", 100)], "row 2: a cell cannot be read"),
    ],
)
def test_a_bad_second_sets_the_session_aside_with_its_row(root: Path, seconds: list, words: str) -> None:
    path = write_seconds(root, "v0.3.1", seconds)
    record = fetch(root)
    assert record.status == "set_aside"
    assert record.reason is not None
    assert f"{path}, {words}" in record.reason


@given(st.data())
def test_any_table_of_seconds_says_for_each_what_its_row_says(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    known = st.sampled_from([operation.id for operation in OPENPACK.operations])
    told = data.draw(st.dictionaries(st.integers(0, 40), st.tuples(st.integers(1, 2), known), min_size=1, max_size=30))
    form = data.draw(st.sampled_from(sorted(FORMS)))
    root = tmp_path_factory.mktemp("release")
    path = write_seconds(root, form, [(second, box, op_id) for second, (box, op_id) in sorted(told.items())])
    timeline = read_operations(path)
    assert (timeline.start_ms, timeline.end_ms) == (T0 + 1000 * min(told), T0 + 1000 * max(told) + 1000)
    for second in range(min(told), max(told) + 1):
        for ms in (0, 999):
            segment = timeline.at(T0 + 1000 * second + ms)
            box, op_id = told.get(second, (None, NULL_ID))
            assert segment is not None
            assert (segment.op_id, segment.box) == (op_id, None if op_id == NULL_ID else box)
    for one, other in pairwise(timeline.segments):
        assert one.end_ms == other.start_ms
        assert (one.op_id, one.box) != (other.op_id, other.box)


def test_a_table_of_seconds_cut_anywhere_is_refused_or_ends_with_a_whole_row(root: Path) -> None:
    path = write_seconds(root, "v0.3.1", [(0, 1, 100), (1, 1, 200), (2, 1, 1000)])
    text = path.read_text()
    header = text.index("\n") + 1
    for length in range(len(text)):
        path.write_text(text[:length])
        if length > header and text[:length].endswith("\n"):
            assert len(read_operations(path).segments) == text[header:length].count("\n")
        else:
            with pytest.raises(DataError):
                read_operations(path)


def test_times_in_seconds_are_not_taken_for_milliseconds(root: Path) -> None:
    path = write_seconds(root, "2022", [(0, 1, 100)])
    path.write_text(path.read_text().replace(str(T0), str(T0 // 1000)))
    assert "1634869193 is no whole second in milliseconds" in str(fetch(root).reason)


def test_a_table_of_another_user_is_refused(root: Path) -> None:
    path = write_seconds(root, "2022", [(0, 1, 100)])
    path.write_text(path.read_text().replace(",102,", ",103,"))
    assert "its rows are of U0103 S0500" in str(fetch(root).reason)


def test_the_best_table_wins(root: Path) -> None:
    def boundary() -> int:
        assert fetch(root).ok
        folder = root.parent / "out" / "S0500"
        return read_operations(folder / str(read_session(folder).annotation)).segments[0].end_ms - T0

    write_seconds(root, "v0.3.1", [(0, 1, 100), (1, 1, 200)])
    assert boundary() == 1000
    write_seconds(root, "v1.0.0", [(0, 1, 100), (1, 1, 100), (2, 1, 200)])
    assert boundary() == 2000
    events = [Segment(100, T0, T0 + 1743, 1), Segment(200, T0 + 1743, T0 + 3000, 1)]
    write_operations(root / "U0102/annotation/openpack-operations/S0500.csv", "U0102", "S0500", events)
    assert boundary() == 1743


def test_real_seconds_are_the_real_events_to_a_second(sample: Path) -> None:
    folder = sample / "U0209/annotation"
    events = read_operations(folder / "openpack-operations/S0500.csv")
    seconds = read_operations(folder / "openpack-operations-1hz/S0500.csv")
    assert (seconds.user, seconds.session) == ("U0209", "S0500")
    assert [(s.op_id, s.box) for s in seconds.operations] == [(s.op_id, s.box) for s in events.operations]
    off = [ours.start_ms - true.start_ms for ours, true in zip(seconds.operations, events.operations, strict=True)]
    assert min(off) > -1000
    assert max(off) <= 0  # the second in which it begins is the operation's


@pytest.mark.parametrize("form", ["v0.3.1", "2022"])
def test_an_old_release_of_the_real_session_goes_through_to_clips(sample: Path, tmp_path: Path, form: str) -> None:
    real = (sample / "U0209/annotation/openpack-operations-1hz/S0500.csv").read_text().splitlines()[1:60]
    cells = [line.split(",") for line in real]
    first = int(cells[0][0])
    root = tmp_path / "release"
    write_seconds(root, form, [((int(c[0]) - first) // 1000, c[3], c[4]) for c in cells], first)
    write_keypoints(root, range(first, first + 45_000, 66))
    data = [tmp_path / stage for stage in ("raw", "normalised", "clips")]
    LocalSource(root, "keypoints").fetch("U0102", data[0], workers=1)
    tiny = ClipFormat(size=56)
    run_user("U0102", data[0], data[1], NormaliseSettings(), workers=1, clip_format=tiny)
    recipe = ClipSettings(), KeyframeSettings()
    [record] = clips.run_user("U0102", data[1], data[0], data[2], *recipe, workers=1, clip_format=tiny)
    assert record.ok, record.reason
    made = clips.read_clips(data[2] / "S0500")
    assert {clip.kind for clip in made} == {"boundary", "transition", "inside"}
    assert {clip.target.operation for clip in made} <= {int(c[4]) for c in cells}


def test_a_root_of_another_layout_says_what_is_there_and_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "v0.3.1" / "U0102").mkdir(parents=True)
    (tmp_path / "readme.txt").touch()
    with pytest.raises(SetupError) as caught:
        LocalSource(tmp_path, "keypoints").users()
    assert "but readme.txt, v0.3.1" in str(caught.value)
    assert all(line in str(caught.value) for line in release.LAYOUTS)


def test_a_user_of_another_layout_says_what_is_there_and_what_is_known(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / "U0102" / f"camera{number:02}").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        fetch(tmp_path)
    said = str(caught.value)
    assert "no session of this user is here, but camera00, camera01" in said
    assert "camera07 and more" in said
    assert "Unpack U0102.zip" in said
    assert all(line in said for line in release.LAYOUTS)


def test_annotations_of_another_layout_are_not_passed_over(root: Path) -> None:
    folder = root / "U0102" / "annotation"
    (folder / "openpack-actions").mkdir(parents=True)
    with pytest.raises(DataError, match="annotations of an unknown layout, but openpack-actions") as caught:
        fetch(root)
    assert caught.value.file == folder
    (folder / "openpack-actions").rmdir()
    folder.rmdir()
    assert "no annotations" in fetch(root).summary["note"]


@pytest.mark.parametrize("moved", ["2022/03/29/14/26", "2022/03/29/14", "2022/04", "."])
def test_folders_that_tell_another_time_than_the_name_are_an_error(tmp_path: Path, moved: str) -> None:
    place = release.stream_place(tmp_path, "U0102", "S0500", "rgb")
    for ms in (0, 67):
        path = frame_path(place, ms, ".jpg")
        Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(path)
    target = place / moved / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    record = fetch(tmp_path, "rgb")
    if moved in ("2022/03/29/14", "."):  # nothing in this contradicts the name
        assert record.ok, record.reason
        assert read_session(tmp_path.parent / "out" / "S0500").last_ms == START_MS + 67
    else:
        assert record.status == "set_aside"
        assert f"{target}: its folder tells another time, {moved}" in str(record.reason)
        assert "It belongs into 2022/03/29/14/25" in str(record.reason)


def test_the_real_images_lie_where_their_names_say(sample: Path) -> None:
    for view in ("rgb", "depth"):
        times = release.frame_times(release.stream_place(sample, "U0209", "S0500", view), view)
        assert all(66 <= later - time <= 67 for time, later in pairwise(times))
