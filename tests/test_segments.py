"""Reading what people annotate with: segments.csv, ELAN, Label Studio, each with its own ways of being wrong."""

import json
import string
from itertools import pairwise
from pathlib import Path

import pytest
from annotation_files import Stretch, minimal, task, timeline, write_csv, write_eaf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.common.errors import DataError
from pipelines.openpack.elan import read_eaf
from pipelines.openpack.label_studio import read_export
from pipelines.openpack.segments import Flaw, LabelledSegment, check_together, read_csv

# all on frames of 25 a second, beside which Label Studio knows none
STRETCHES: list[Stretch] = [(0, 4000, "fold"), (4000, 9520, "tape"), (12_000, 15_240, "stick label")]
VIDEOS = ["take 1.mp4", "take2.mp4"]


def stretches(rows: list[LabelledSegment | Flaw], fps: float = 1.0) -> list[Stretch]:
    for row in rows:
        assert isinstance(row, LabelledSegment), row
    return [(*row.in_ms(fps), row.label) for row in rows if isinstance(row, LabelledSegment)]


def flaw(rows: list[LabelledSegment | Flaw]) -> str:
    (only,) = [row for row in rows if isinstance(row, Flaw)]
    return str(only.error)


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "segments.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    return path


def test_a_table_is_read_with_byte_order_mark_other_columns_and_blank_rows(tmp_path: Path):
    rows = ',a.mp4," tape, long ",1.5,2.25, worker 1 \r\n,,,,,\r\n,a.mp4,fold,0,1,\r\n'
    text = "\ufeffnote,video, label ,start,end,user\r\n" + rows
    first, second = read_csv(table(tmp_path, text))
    assert isinstance(first, LabelledSegment)
    assert isinstance(second, LabelledSegment)
    assert (first.names, first.start, first.end) == (("a.mp4",), 1.5, 2.25)
    assert (first.label, first.user) == ("tape, long", "worker 1")
    assert (second.row, second.user) == ("row 4", None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("video,start,end,label\n", "a header and no row"),
        ("video,start,end\na.mp4,0,1\n", "row 1: the column label is missing"),
        ("video;start;end;label\na.mp4;0;1;x\n", "divided by commas"),
        ("video,start,end,label\na.mp4,0,1\n", "row 2: 3 cells where the header has 4"),
        ("video,start,end,label\n,0,1,x\n", "row 2: the video is not named"),
        ('video,start,end,label\n"a.mp4,0,1,x\n', "not a readable CSV file"),
        ("video,start,end,label\na.mp4,0,1,\udcff\n", r"not a readable CSV file .*utf-8"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str, says: str):
    with pytest.raises(DataError, match=says):
        read_csv(table(tmp_path, text))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("x,2,tape", "row 2: the time 'x' is not a number. Write it with a decimal point"),
        ("0:05,2,tape", "the time '0:05' is not a number"),
        ("nan,2,tape", "the time 'nan' is not a number"),
        ("0,inf,tape", "the time 'inf' is not a number"),
        ("-1,2,tape", "row 2: the start -1 is negative"),
        ("2,2,tape", "row 2: the end 2 is not after the start 2"),
        ("1.0001,1.0003,tape", "is not after the start"),
        ("0,2,  ", "row 2: the label is empty"),
    ],
)
def test_a_wrong_row_is_a_flaw_of_its_video_alone(tmp_path: Path, row: str, says: str):
    rows = read_csv(table(tmp_path, f"video,start,end,label\na.mp4,{row}\nb.mp4,0,1,fold\n"))
    assert says in flaw(rows)
    assert isinstance(rows[1], LabelledSegment)


def test_rows_that_overlap_or_name_two_users_are_refused_with_both_rows(tmp_path: Path):
    def check(text: str) -> None:
        check_together(row for row in read_csv(table(tmp_path, text)) if isinstance(row, LabelledSegment))

    with pytest.raises(DataError, match=r"row 2: it starts before row 3 ends"):
        check("video,start,end,label\na.mp4,4.9,6,fold\na.mp4,0,5,tape\n")
    with pytest.raises(DataError, match="row 3: the user is y, and x in row 2"):
        check("video,start,end,label,user\na.mp4,0,1,fold,x\na.mp4,1,2,tape,y\n")
    check("video,start,end,label\na.mp4,5,6,fold\na.mp4,0,5,tape\n")


def test_elan_gives_the_tier_with_its_participant_and_offset(tmp_path: Path):
    path = write_eaf(tmp_path / "a.eaf", "take 1.mp4", {"work": STRETCHES}, participant="worker 1", origin=-700)
    rows = read_eaf(path, tmp_path, None)
    assert stretches(rows) == STRETCHES
    first = rows[0]
    assert isinstance(first, LabelledSegment)
    assert (first.user, first.row) == ("worker 1", "annotation a1 of tier work")
    assert first.names[0] == "take 1.mp4"


def test_elan_finds_a_video_in_another_folder_by_its_relative_link_or_its_name(tmp_path: Path):
    (tmp_path / "labels").mkdir()
    path = write_eaf(tmp_path / "labels" / "a.eaf", "../films/take%201.mp4", {"work": STRETCHES})
    names = read_eaf(path, tmp_path, None)[0].names
    assert names[0] == "films/take%201.mp4"
    assert "take 1.mp4" in names


def test_elan_asks_which_of_several_tiers(tmp_path: Path):
    path = write_eaf(tmp_path / "a.eaf", "a.mp4", {"work": STRETCHES, "talk": [(100, 200, "hm")], "empty": []})
    says = flaw(read_eaf(path, tmp_path, None))
    assert "several tiers have annotations: 'work', 'talk'. Set [recordings] tier" in says
    assert stretches(read_eaf(path, tmp_path, "work")) == STRETCHES
    assert read_eaf(path, tmp_path, "empty") == []
    assert "no tier 'wrok'. Tiers with annotations: 'work', 'talk'" in flaw(read_eaf(path, tmp_path, "wrok"))


def test_elan_refuses_a_tier_without_times_of_its_own(tmp_path: Path):
    path = write_eaf(tmp_path / "a.eaf", "a.mp4", {"work": STRETCHES})
    referring = '<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="r" ANNOTATION_REF="a1"/></ANNOTATION>'
    tier = f'<TIER TIER_ID="notes">{referring}</TIER></ANNOTATION_DOCUMENT>'
    path.write_text(path.read_text().replace("</ANNOTATION_DOCUMENT>", tier))
    assert stretches(read_eaf(path, tmp_path, None)) == STRETCHES
    assert "'notes' has no times of its own" in flaw(read_eaf(path, tmp_path, "notes"))


def test_elan_says_which_annotation_has_no_time_or_no_text(tmp_path: Path):
    path = write_eaf(tmp_path / "a.eaf", "a.mp4", {"work": [(0, 1000, "fold"), (1000, 2000, "")]})
    assert "annotation a2 of tier work: the label is empty" in flaw(read_eaf(path, tmp_path, None))
    path.write_text(path.read_text().replace(' TIME_VALUE="0"', ""))
    first, _ = read_eaf(path, tmp_path, None)
    assert isinstance(first, Flaw)
    assert "annotation a1 of tier work: the time None is not a number" in str(first.error)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[:300], "not a readable ELAN file"),
        (lambda text: "", "not a readable ELAN file"),
        (lambda text: text.replace("ANNOTATION_DOCUMENT", "HTML"), "not an ELAN annotation document"),
        (lambda text: text.replace('"milliseconds"', '"PAL-frames"'), "in PAL-frames, not milliseconds"),
        (lambda text: text.replace("a.mp4", "a.wav"), "it links no video"),
        (lambda text: text.replace(" RELATIVE", ' TIME_ORIGIN="soon" RELATIVE'), "TIME_ORIGIN 'soon' is not a number"),
    ],
)
def test_elan_files_that_cannot_be_used_are_a_flaw_of_the_video_of_their_name(tmp_path: Path, change, says: str):
    path = write_eaf(tmp_path / "a.eaf", "a.mp4", {"work": STRETCHES})
    path.write_text(change(path.read_text()))
    rows = read_eaf(path, tmp_path, None)
    assert says in flaw(rows)
    assert "a.mp4" in rows[0].names


@pytest.mark.parametrize(
    "dtd",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">',
    ],
)
def test_elan_files_may_neither_grow_nor_name_other_files(tmp_path: Path, dtd: str):
    path = write_eaf(tmp_path / "a.eaf", "a.mp4", {"work": STRETCHES}, before=dtd)
    assert "it has a DTD" in flaw(read_eaf(path, tmp_path, None))


def export(tmp_path: Path, *tasks: object) -> Path:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(list(tasks)), encoding="utf-8")
    return path


def annotation(fps: float = 25, **more: bool) -> dict[str, object]:
    return {"result": timeline(STRETCHES, fps), "was_cancelled": False, "ground_truth": False, **more}


def test_label_studio_s_frames_count_from_one_and_both_ends_belong_to_the_range(tmp_path: Path):
    value = {"ranges": [{"start": 1, "end": 25}], "timelinelabels": ["fold"]}
    path = export(tmp_path, task(1, "take2.mp4", {"result": [{"value": value}]}))
    assert stretches(read_export(path, VIDEOS, 25)) == [(0, 1000, "fold")]
    rows = read_export(path, VIDEOS, None)
    assert rows[0].names == ("take2.mp4",)
    assert stretches(rows, fps=50) == [(0, 500, "fold")]


def test_label_studio_s_two_forms_say_the_same(tmp_path: Path):
    full = read_export(export(tmp_path, task(1, "take2.mp4", annotation())), VIDEOS, None)
    short = read_export(export(tmp_path, minimal(1, "take2.mp4", STRETCHES, 25)), VIDEOS, None)
    assert stretches(full, 25) == stretches(short, 25) == STRETCHES


def test_label_studio_s_labels_on_the_sound_are_in_seconds(tmp_path: Path):
    value = {"start": 1.5, "end": 4.25, "channel": 0, "labels": ["tape"]}
    path = export(
        tmp_path, task(1, "take2.mp4", {"result": [{"type": "labels", "original_length": 9, "value": value}]})
    )
    assert stretches(read_export(path, VIDEOS, None)) == [(1500, 4250, "tape")]


def test_label_studio_s_ranges_drawn_edge_to_edge_share_no_frame(tmp_path: Path):
    ends = [("fold", 1, 100), ("tape", 100, 200), ("fold", 200, 200)]
    values = [{"value": {"ranges": [{"start": s, "end": e}], "timelinelabels": [label]}} for label, s, e in ends]
    rows = read_export(export(tmp_path, task(1, "take2.mp4", {"result": values})), VIDEOS, 25)
    assert stretches(rows) == [(0, 3960, "fold"), (3960, 7960, "tape"), (7960, 8000, "fold")]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/data/upload/7/0a1b2c3d-take2.mp4", "take2.mp4"),
        ("/data/upload/7/0a1b2c3d-take_1.mp4", "take 1.mp4"),  # a blank is stored as an underscore
        ("/data/upload/7/0a1b2c3d-other.mp4", "other.mp4"),  # not there: asked for by the name it had
        ("/data/local-files/?d=films/take%201.mp4", "take 1.mp4"),
        ("s3://bucket/films/take2.mp4", "take2.mp4"),
        ("https://example.org/films/take%201.mp4?signature=a%2Fb.mp3", "take 1.mp4"),
    ],
)
def test_label_studio_s_video_is_found_by_the_name_it_had(tmp_path: Path, text: str, name: str):
    path = export(tmp_path, {"id": 1, "data": {"video_url": text, "note": "[//x"}, "annotations": [annotation()]})
    assert read_export(path, VIDEOS, None)[0].names == (name,)


def test_label_studio_s_user_is_what_the_task_s_data_says(tmp_path: Path):
    row = read_export(export(tmp_path, task(1, "take2.mp4", annotation(), user="worker 1")), VIDEOS, None)[0]
    assert row.user == "worker 1"


def test_label_studio_s_cancelled_annotations_do_not_count_and_the_ground_truth_does(tmp_path: Path):
    other = {"result": timeline([(0, 1000, "tape")], 25)}
    cancelled = {**other, "was_cancelled": True}
    path = export(tmp_path, task(1, "take2.mp4", cancelled, annotation()))
    assert stretches(read_export(path, VIDEOS, 25)) == STRETCHES
    path = export(tmp_path, task(1, "take2.mp4", other, annotation(ground_truth=True), cancelled))
    assert stretches(read_export(path, VIDEOS, 25)) == STRETCHES
    path = export(tmp_path, task(1, "take2.mp4", cancelled))
    assert read_export(path, VIDEOS, 25) == []


def test_label_studio_s_several_annotations_of_a_task_are_never_chosen_between(tmp_path: Path):
    rows = read_export(export(tmp_path, task(4, "take2.mp4", annotation(), annotation())), VIDEOS, 25)
    assert "task 4: 2 annotations, 0 of them marked as ground truth" in flaw(rows)
    twice = minimal(4, "take2.mp4", STRETCHES, 25)
    first, second = read_export(export(tmp_path, twice, twice), VIDEOS, 25)
    assert isinstance(first, Flaw)
    assert isinstance(second, Flaw)
    assert "task 4: it has several annotations" in str(first.error)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"ranges": [{"start": None, "end": 4}], "timelinelabels": ["x"]}, "the time None is not a number"),
        ({"ranges": [{"start": 9, "end": 4}], "timelinelabels": ["x"]}, "task 1, region 1: the end"),
        ({"ranges": [{"start": 1, "end": 4}], "timelinelabels": []}, "task 1, region 1: the label is empty"),
        ({"ranges": [{"start": 1, "end": 4}], "timelinelabels": ["x", "y"]}, "task 1: region 1 has 2 labels"),
        ({"ranges": [{"begin": 1}], "timelinelabels": ["x"]}, "not of Label Studio's form"),
        ({"ranges": 5}, "not of Label Studio's form"),
    ],
)
def test_label_studio_s_unusable_ranges_are_a_flaw_of_their_video(tmp_path: Path, value: object, says: str):
    tasks = task(1, "take2.mp4", {"result": [{"value": value}]}), task(2, "take 1.mp4", annotation())
    rows = read_export(export(tmp_path, *tasks), VIDEOS, None)
    assert says in flaw(rows)
    assert rows[0].names == ("take2.mp4",)
    assert len(rows) == 1 + len(STRETCHES)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not a readable JSON file"),
        ('[{"id": 1', "not a readable JSON file"),
        ("[]", "not an export of Label Studio"),
        ("[3]", "not an export of Label Studio"),
        ('{"images": [], "annotations": []}', "not an export of Label Studio"),
        ('[{"id": 3, "data": {"image": "a.jpg"}, "annotations": []}]', "task 3: the task names no video"),
        (
            '[{"id": 3, "data": {"a": "a.mp4", "b": "b.mp4"}, "annotations": []}]',
            "task 3: the task names several videos",
        ),
    ],
)
def test_a_json_file_of_another_kind_is_refused(tmp_path: Path, content: str, says: str):
    path = tmp_path / "export.json"
    path.write_text(content)
    with pytest.raises(DataError, match=says):
        read_export(path, VIDEOS, None)


LABELS = st.text(string.ascii_letters + string.digits + " ,;\"'&<>äé_-", min_size=1, max_size=12).filter(
    lambda label: label == label.strip()
)


@st.composite
def tables(draw: st.DrawFn) -> list[Stretch]:
    """Stretches of a video that do not overlap, some of them touching."""
    times = sorted(draw(st.sets(st.integers(0, 10_000_000), min_size=2, max_size=12)))
    spans = [span for span in pairwise(times) if draw(st.booleans())] or [(times[0], times[1])]
    return [(start, end, draw(LABELS)) for start, end in spans]


@settings(deadline=None)  # a busy machine is no fault of the reader
@given(tables(), st.integers(-3000, 3000))
def test_any_table_survives_being_written_as_csv_and_as_elan(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Stretch], origin: int
):
    folder = tmp_path_factory.mktemp("table")
    read = read_csv(write_csv(folder / "segments.csv", {"a.mp4": rows}))
    assert stretches(read) == rows
    assert [*check_together(row for row in read if isinstance(row, LabelledSegment))] == read
    path = write_eaf(folder / "a.eaf", "a.mp4", {"work": rows}, origin=-abs(origin))
    assert stretches(read_eaf(path, folder, None)) == rows


@settings(deadline=None)  # a busy machine is no fault of the reader
@given(tables())
def test_any_table_survives_label_studio_at_a_thousand_frames_a_second(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Stretch]
):
    folder = tmp_path_factory.mktemp("export")
    path = export(folder, task(1, "take2.mp4", {"result": timeline(rows, 1000)}))
    assert stretches(read_export(path, VIDEOS, 1000)) == rows
