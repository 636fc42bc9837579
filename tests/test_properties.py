"""What holds for any input: intervals, times, tables of operations, keyframes, the order of training.

Properties that only one module's tests need stand beside them; here are those that other code counts on unseen.
"""

from bisect import bisect_right
from fractions import Fraction
from itertools import islice, pairwise
from math import ceil
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.common.errors import DataError
from pipelines.common.frame_times import hold_mapping
from pipelines.common.intervals import iou, length
from pipelines.common.keyframes import SHORTEST, KeyframeSettings, Method, Signal, choose
from pipelines.openpack.annotations import COLUMNS, COLUMNS_1HZ, Timeline, read_operations
from pipelines.openpack.loader import indices, order

# --- intervals ---

frames = st.integers(-200, 400)
intervals = st.tuples(frames, st.integers(1, 200)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(intervals, intervals, frames)
def test_iou_knows_no_place_and_is_bound_by_the_lengths(a, b, by):
    moved = tuple((start + by, end + by) for start, end in (a, b))
    assert iou(*moved) == iou(a, b)
    assert 0 <= iou(a, b) <= min(length(a), length(b)) / max(length(a), length(b))
    assert iou(a, a) == 1


@given(intervals, intervals, intervals)
def test_one_minus_iou_is_a_distance(a, b, c):
    """So two predictions that are near the truth are near each other."""
    assert (1 - iou(a, c)) <= (1 - iou(a, b)) + (1 - iou(b, c)) + 1e-12


# --- times ---

UNIT = Fraction(1, 1024)  # seconds; a float holds sums of it exactly


@st.composite
def times(draw) -> list[Fraction]:
    """Strictly increasing times in seconds, from a burst to minutes apart, the first anywhere."""
    steps = draw(st.lists(st.one_of(st.integers(1, 100), st.integers(1, 200_000)), max_size=40))
    first = draw(st.integers(-(2**40), 2**40))
    return [UNIT * (first + sum(steps[:n])) for n in range(len(steps) + 1)]


@given(times(), st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_a_frame_is_the_last_whose_time_has_come_and_the_last_is_held_as_usual(source: list[Fraction], fps: int):
    mapping = hold_mapping(np.array([float(time) for time in source]), fps)
    begins = [time - source[0] for time in source]
    usual = median(b - a for a, b in pairwise(begins)) if len(begins) > 1 else Fraction(1, fps)
    assert len(mapping) == ceil((begins[-1] + usual) * fps)
    wanted = [bisect_right(begins, Fraction(n, fps)) - 1 for n in range(len(mapping))]
    assert mapping.tolist() == wanted
    assert (np.diff(mapping) >= 0).all()
    if all((b - a) * fps >= 1 for a, b in pairwise(begins)):  # no faster than the new rate
        assert set(wanted) == set(range(len(begins)))  # none is lost


@given(times(), st.integers(-(2**40), 2**40), st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_only_time_since_the_first_frame_counts(source: list[Fraction], by: int, fps: int):
    here, there = (np.array([float(time + shift) for time in source]) for shift in (0, by * UNIT))
    np.testing.assert_array_equal(hold_mapping(here, fps), hold_mapping(there, fps))


# --- tables of operations ---

EVENTS = (
    (*COLUMNS,),
    ("a", "U0101", "S0100", "1", "100", "Picking", "2021-10-14 11:25:34.500+09:00", "2021-10-14 11:25:44+09:00", ""),
    ("b", "U0101", "S0100", "1", "200", "", "2021-10-14 11:25:44+09:00", "2021-10-14 11:25:50.250+09:00", "x;y"),
    ("c", "U0101", "S0100", "", "8100", "Null", "2021-10-14 11:25:52+09:00", "2021-10-14 11:26:00+09:00", ""),
)
SECONDS = ((*COLUMNS_1HZ,), *((str(1634178334000 + 1000 * n), "U0101", "S0100", "1", "100") for n in range(4)))
# what people, spreadsheets and broken disks write into a cell
cells = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"-?[0-9_]{0,20}(\.[0-9]*)?(e[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(["nan", "inf", "", " 100", "100.0", "٣", "²", "NULL", '"', "a\nb", "\0", "﻿100", "8100 "]),
    st.datetimes().map(str),
    st.datetimes(timezones=st.timezones()).map(str),
    st.sampled_from(["0001-01-01 00:00:00+14:00", "9999-12-31 23:59:59.999999-12:00", "2021-10-14", "2021-W41-4"]),
)


@st.composite
def spoiled_tables(draw) -> str:
    rows = [list(row) for row in draw(st.sampled_from([EVENTS, SECONDS]))]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.sampled_from(rows))
        place = draw(st.integers(0, len(row)))
        row[place : place + draw(st.sampled_from([0, 1, 1, 1, 1]))] = draw(st.lists(cells, min_size=1, max_size=1))
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(",".join(row) for row in rows) + "\n"
    at = draw(st.integers(0, len(text)))
    return draw(st.sampled_from([text, text, text[:at], text[:at] + draw(st.text(max_size=3)) + text[at:]]))


def read(path: Path) -> Timeline | DataError:
    try:
        return read_operations(path)
    except DataError as error:
        return error


def assert_timeline_or_sentence(path: Path) -> None:
    """The two things that may come of a file; any other exception would stop all sessions."""
    found = read(path)
    if isinstance(found, DataError):
        assert found.file == path
        assert found.cure
    else:
        assert found.segments
        assert all(segment.start_ms < segment.end_ms for segment in found.segments)
        assert all(a.end_ms == b.start_ms for a, b in pairwise(found.segments))


@given(text=spoiled_tables())
@settings(max_examples=400, deadline=None)
def test_a_spoiled_table_gives_a_timeline_or_a_sentence(tmp_path_factory, text: str):
    path = tmp_path_factory.getbasetemp() / "spoiled.csv"
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    assert_timeline_or_sentence(path)


@given(data=st.binary(max_size=200), whole=st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_a_timeline_or_a_sentence(tmp_path_factory, data: bytes, whole: bool):
    path = tmp_path_factory.getbasetemp() / "bytes.csv"
    path.write_bytes(b"\n".join(",".join(row).encode() for row in EVENTS[: 2 * whole]) + data)
    assert_timeline_or_sentence(path)


# --- keyframes ---


@st.composite
def signals(draw) -> Signal:
    """Any values at all: still, jumping, all zero, of one cell or some."""
    n, cells = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    values = arrays(np.float32, (n, cells), elements=st.floats(0, 255, width=32), fill=st.floats(0, 255, width=32))
    fresh = draw(arrays(bool, n))
    fresh[0] = True
    return Signal(draw(values), draw(values), fresh)


@given(signals(), st.sampled_from(get_args(Method)), st.integers(2, 6), st.integers(SHORTEST, 20), st.integers(0, 8))
@settings(max_examples=300, deadline=None)
def test_a_clip_is_divided_without_gap_and_each_pair_lies_in_its_part(
    signal: Signal, method: Method, anchors: int, least: int, passage: int
):
    wanted = KeyframeSettings(method=method, anchors=anchors, min_segment=least, passage=passage)
    if len(signal) < anchors * SHORTEST:
        with pytest.raises(DataError, match="too few"):
            choose(signal, wanted)
        return
    chosen = choose(signal, wanted)
    assert (chosen.bounds[0], chosen.bounds[-1], len(chosen.pairs)) == (0, len(signal), anchors)
    assert len(chosen.segments) == anchors
    for (low, high), (first, second) in zip(chosen.segments, chosen.pairs, strict=True):
        assert low <= first <= second < high
        if method in ("entropy", "motion"):
            assert high - low >= min(least, len(signal) // anchors)


# --- the order of training ---


@given(st.integers(1, 300), st.integers(0, 2**32), st.integers(0, 50))
def test_an_epoch_is_a_permutation(n: int, seed: int, epoch: int):
    assert sorted(order(n, seed, epoch).tolist()) == list(range(n))


@given(st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 200), st.integers(0, 100))
@settings(deadline=None)
def test_a_resumed_order_is_the_rest_of_the_whole_one(n: int, seed: int, position: int, more: int):
    whole = list(islice(indices(n, seed), position + more))
    assert list(islice(indices(n, seed, position), more)) == whole[position:]
    for start in range(0, len(whole) - n + 1, n):
        assert sorted(whole[start : start + n]) == list(range(n))
