"""Operation tables: the real one in full, what bad ones say, and timelines made of any."""

import csv
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.common.errors import DataError
from pipelines.openpack.annotations import (
    COLUMNS,
    GAP_MS,
    Segment,
    Timeline,
    read_operations,
    write_operations,
    write_operations_1hz,
)
from pipelines.openpack.taxonomy import NULL_ID, OPENPACK

T0 = 1648531522143  # 2022-03-29 14:25:22.143+09:00, the first operation of the sample
LINES = (
    "uuid,user,session,box,id,operation,start,end,actions",
    "a,U0101,S0100,1,100,Picking,2021-10-14 11:25:34.500000+09:00,2021-10-14 11:25:44+09:00,",
    "b,U0101,S0100,1,200,Relocate Item Label,2021-10-14 11:25:44+09:00,2021-10-14 11:25:50.250000+09:00,x;y",
    "c,U0101,S0100,1,300,Assemble Box,2021-10-14 11:25:50.250000+09:00,2021-10-14 11:26:00+09:00,",
)


@pytest.fixture
def table(tmp_path):
    def write(*lines, end="\n"):
        path = tmp_path / "S0100.csv"
        path.write_text("\n".join(lines) + end)
        return path

    return write


def edit(row, old, new):
    lines = list(LINES)
    assert old in lines[row - 1]
    lines[row - 1] = lines[row - 1].replace(old, new)
    return lines


def test_the_real_session_loads_in_full(sample):
    timeline = read_operations(sample / "U0209/annotation/openpack-operations/S0500.csv")
    assert (timeline.user, timeline.session) == ("U0209", "S0500")
    assert len(timeline.operations) == 193
    gaps = [s for s in timeline.segments if s.op_id == NULL_ID]
    assert [s.end_ms - s.start_ms for s in gaps] == [2798, 3394, 2016, 2684, 3706]
    assert all(s.box is None for s in gaps)
    assert timeline.segments[0] == Segment(100, T0, T0 + 8161, 1)
    assert {s.box for s in timeline.operations} == set(range(1, 21))


def test_the_real_session_survives_writing(sample, tmp_path):
    real = sample / "U0209/annotation/openpack-operations/S0500.csv"
    timeline = read_operations(real)
    ours = tmp_path / "S0500.csv"
    write_operations(ours, timeline.user, timeline.session, timeline.operations)
    with real.open() as a, ours.open() as b:
        skip = {"uuid", "actions"}
        rows = [[{k: v for k, v in row.items() if k not in skip} for row in csv.DictReader(f)] for f in (a, b)]
    assert rows[0] == rows[1]
    assert ours.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert read_operations(ours) == timeline


def test_the_one_hertz_table_is_the_real_one(sample, tmp_path):
    folder = sample / "U0209/annotation"
    timeline = read_operations(folder / "openpack-operations/S0500.csv")
    write_operations_1hz(tmp_path / "S0500.csv", "U0209", "S0500", timeline.segments)
    real = (folder / "openpack-operations-1hz/S0500.csv").read_text().splitlines()
    ours = (tmp_path / "S0500.csv").read_text().splitlines()
    assert ours[: len(real)] == real
    assert len(ours) - len(real) <= 3  # the release's table ends three seconds before the last operation does


def test_openpack_toolkit_reads_the_one_hertz_table(tmp_path):
    from openpack_toolkit import OPENPACK_OPERATIONS
    from openpack_toolkit.activity import ActSet
    from openpack_toolkit.data.dataloader import load_and_resample_operation_labels

    segments = [Segment(100, 10_000, 20_000, 1), Segment(200, 20_000, 30_000, 1)]
    write_operations_1hz(tmp_path / "S0100.csv", "U0101", "S0100", segments)
    times = np.array([10_500, 15_000, 25_000])
    loaded = load_and_resample_operation_labels(tmp_path / "S0100.csv", times, ActSet(OPENPACK_OPERATIONS))
    assert loaded["act_id"].tolist() == [100, 100, 200]


def test_times_with_and_without_fraction_and_rows_in_any_order(table):
    timeline = read_operations(table(LINES[0], LINES[2], LINES[3], LINES[1]))
    assert timeline.start_ms == 1634178334500
    assert [s.end_ms - s.start_ms for s in timeline.segments] == [9500, 6250, 9750]


@pytest.mark.parametrize(
    ("lines", "row", "words"),
    [
        (edit(3, "200", "250"), 3, "unknown operation id 250"),
        (edit(3, "1,200", "one,200"), 3, "cannot be read"),
        (edit(3, "1,200", "1.5,200"), 3, "no whole number"),
        (edit(2, "2021-10-14 11:25:44+09:00", "yesterday"), 2, "yesterday"),
        (edit(2, "11:25:44+09:00", "11:25:44"), 2, "lacks its offset"),
        (edit(2, "11:25:44+", "11:25:34+"), 2, "is not after the start"),
        (edit(3, "11:25:44+", "11:25:43.900+"), 3, "starts 100 ms before row 2 ends"),
        (edit(3, ",x;y", ""), 3, "8 cells where the header has 9"),
        (edit(1, "start", "begin"), 1, "column start is missing"),
        (["user,session,box,id", "U0209,S0500,1,100"], 1, "start, end is missing"),
        (["unixtime,user,session,box,label", "1648531522000,U0209,S0500,1,100"], 1, "operation is missing"),
    ],
)
def test_a_bad_row_is_named_with_its_cure(table, lines, row, words):
    path = table(*lines)
    with pytest.raises(DataError, match=words) as caught:
        read_operations(path)
    assert (caught.value.file, caught.value.where) == (path, f"row {row}")
    assert caught.value.cure


def test_a_bad_file_is_named_with_its_cure(tmp_path, table):
    bad = {
        "missing": tmp_path / "nowhere.csv",
        "empty": tmp_path / "empty.csv",
        "not a readable CSV": tmp_path / "binary.csv",
        "no row below its header": tmp_path / "header.csv",
        "more than one session": table(*edit(3, "S0100", "S0200")),
    }
    bad["empty"].write_text("\n")
    bad["not a readable CSV"].write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    bad["no row below its header"].write_text(LINES[0] + "\n")
    for words, path in bad.items():
        with pytest.raises(DataError, match=words) as caught:
            read_operations(path)
        assert caught.value.file == path
        assert caught.value.cure


def test_a_file_cut_anywhere_is_refused_or_ends_with_a_whole_row(table):
    """Only a cut between two rows cannot be seen; then every row read is one of the file's own."""
    text = "\n".join(LINES) + "\n"
    whole = read_operations(table(text, end="")).segments
    for length in range(len(text)):
        path = table(text[:length], end="")
        if text[:length].endswith("\n") and length > len(LINES[0]) + 1:
            segments = read_operations(path).segments
            assert segments == whole[: len(segments)]
        else:
            with pytest.raises(DataError):
                read_operations(path)


def test_gaps_become_null_and_slits_are_closed(tmp_path):
    rows = [
        Segment(100, 0, 1000, 1),
        Segment(200, 1000 + GAP_MS - 1, 2000, 1),  # after a slit
        Segment(300, 2000 + GAP_MS, 3000, 1),  # after a gap
        Segment(NULL_ID, 5000, 6000, 1),  # a gap before an annotated Null: one pause, not two
        Segment(400, 8000, 9000, 2),
        Segment(NULL_ID, 9000, 9100, 2),
        Segment(NULL_ID, 9700, 9800, 2),
    ]
    write_operations(tmp_path / "S0100.csv", "U0101", "S0100", rows)
    assert read_operations(tmp_path / "S0100.csv").segments == (
        Segment(100, 0, 1499, 1),
        Segment(200, 1499, 2000, 1),
        Segment(NULL_ID, 2000, 2500, None),
        Segment(300, 2500, 3000, 1),
        Segment(NULL_ID, 3000, 8000, 1),
        Segment(400, 8000, 9000, 2),
        Segment(NULL_ID, 9000, 9800, 2),
    )


def test_questions_by_time():
    timeline = Timeline("U0101", "S0100", (Segment(100, 1000, 3000, 1), Segment(200, 3000, 3020, 1)))
    assert timeline.at(999) is None
    assert [timeline.at(ms).op_id for ms in (1000, 2999, 3000, 3019)] == [100, 100, 200, 200]
    assert timeline.at(3020) is None


def test_questions_by_frame():
    parts = (Segment(100, 1000, 3000, 1), Segment(200, 3000, 3020, 1), Segment(300, 3020, 9000, 1))
    timeline = Timeline("U0101", "S0100", parts)
    spans = [(s.op_id, s.start_frame, s.end_frame, s.next_op_id) for s in timeline.frames(800, 25, 125)]
    assert spans == [(100, 5, 55, 200), (200, 55, 56, 300), (300, 56, 125, None)]
    assert [s.op_id for s in timeline.frames(2990, 25, 10)] == [100, 300]  # 200 lies between two frames
    assert timeline.frames(9000, 25, 125) == []


operations = [op.id for op in OPENPACK.operations if op.id != NULL_ID]


@st.composite
def segment_lists(draw, ids=(*operations, NULL_ID)):
    steps = st.tuples(st.integers(0, 3 * GAP_MS), st.integers(1, 40_000), st.sampled_from(ids), st.integers(1, 20))
    segments, time = [], draw(st.integers(0, 2 * T0))
    for gap, duration, op_id, box in draw(st.lists(steps, min_size=1, max_size=12)):
        segments.append(Segment(op_id, time + gap, time + gap + duration, box))
        time += gap + duration
    return segments


@given(segments=segment_lists())
def test_any_table_becomes_a_timeline_that_survives_writing(tmp_path_factory, segments):
    path = tmp_path_factory.mktemp("table") / "S0100.csv"
    write_operations(path, "U0101", "S0100", segments)
    timeline = read_operations(path)
    assert all(a.end_ms == b.start_ms for a, b in pairwise(timeline.segments))
    assert (timeline.start_ms, timeline.end_ms) == (segments[0].start_ms, segments[-1].end_ms)
    for segment in segments:
        assert timeline.at(segment.start_ms).op_id == segment.op_id
        assert timeline.at(segment.end_ms - 1).op_id == segment.op_id
    for a, b in pairwise(segments):
        if b.start_ms - a.end_ms >= GAP_MS:
            assert timeline.at(a.end_ms).op_id == NULL_ID
        elif a.op_id != NULL_ID and b.op_id != NULL_ID and a.end_ms < b.start_ms:
            assert timeline.at(a.end_ms).op_id == a.op_id
    write_operations(path, "U0101", "S0100", timeline.segments)
    assert read_operations(path) == timeline


@given(segments=segment_lists(), offset=st.integers(-6000, 60_000), fps=st.sampled_from([15, 25, 30]))
def test_spans_say_for_every_frame_what_its_time_says(segments, offset, fps):
    parts = tuple(segments)
    timeline = Timeline("U0101", "S0100", parts)
    start_ms = timeline.start_ms + offset
    by_frame = [None] * 50
    for span in timeline.frames(start_ms, fps, 50):
        assert 0 <= span.start_frame < span.end_frame <= 50
        by_frame[span.start_frame : span.end_frame] = [span.op_id] * (span.end_frame - span.start_frame)
    for frame, op_id in enumerate(by_frame):
        time = start_ms + frame * 1000 / fps
        holding = next((s.op_id for s in parts if s.start_ms <= time < s.end_ms), None)
        assert op_id == holding
