"""The grammar of operations: boxes, counts, least lengths, and the probability of an order."""

from itertools import pairwise
from math import log2
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.openpack.annotations import read_operations
from pipelines.openpack.boxes import Stretch, boxes, joined, within, works
from pipelines.openpack.grammar import Grammar, learn
from pipelines.openpack.sequences import sequence
from pipelines.openpack.taxonomy import NULL_ID, OPENPACK, Taxonomy

OWN = Taxonomy.own(["a", "b", "c", "d"])
A, B, C, D, NULL = (operation.id for operation in OWN.operations)


def stretches(*operations: int, frames: int = 50) -> list[Stretch]:
    return [Stretch(op_id, frames * i, frames * (i + 1)) for i, op_id in enumerate(operations)]


def test_an_operation_goes_on_after_a_pause():
    done = works(stretches(A, NULL, A, B, NULL))
    assert [(one.operation, one.start, one.end, one.frames) for one in done] == [(A, 0, 150, 100), (B, 150, 200, 50)]


def test_a_box_begins_with_the_first_operation_and_ends_where_the_next_begins():
    found = boxes(stretches(C, A, B, NULL, A, NULL, B, C), A, last={C})
    assert [(one.number, one.operations, one.start, one.end, one.finished) for one in found] == [
        (1, (A, B), 50, 200, True),
        (2, (A, B, C), 200, 400, True),
    ]
    assert not boxes(stretches(A, B), A, last={C})[0].finished
    assert boxes(stretches(B, C), A, last={C}) == []


def test_stretches_are_cut_and_joined():
    assert within(stretches(A, B, C), 25, 100) == [Stretch(A, 25, 50), Stretch(B, 50, 100)]
    assert joined(stretches(A, A, B)) == [Stretch(A, 0, 100), Stretch(B, 100, 150)]


def test_what_training_sessions_do_is_counted():
    made = learn([stretches(A, B, C, A, NULL, B, A, B, C), stretches(A, B, B, NULL, C)], OWN)
    assert (made.first, made.boxes) == (A, 4)
    assert made.containing == {A: 4, B: 4, C: 3, D: 0}
    assert made.repeated == {A: 0, B: 0, C: 0, D: 0}
    assert made.order == {A: {B: 4}, B: {A: 1, C: 3}, C: {A: 1}}
    assert made.stretches[A] == {B: 3, NULL: 1}
    assert made.last == {B, C}
    assert made.why
    shares = made.transitions[A]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[B] > shares[NULL] > shares[D] > 0


def test_the_least_length_is_a_low_quantile_and_of_the_unseen_the_shortest_of_all():
    lengths = range(10, 110)
    session, at = [], 0
    for i, frames in enumerate(lengths):
        session.append(Stretch((A, B)[i % 2], at, at := at + frames))
    made = learn([session], OWN)
    assert made.least_frames == {A: 14, B: 15, C: 14, D: 14, NULL: 14}


def test_the_cycle_begins_with_what_most_sessions_begin_with():
    assert learn([stretches(NULL, B, C), stretches(B, C), stretches(A, B)], OWN).first == B
    with pytest.raises(ValueError, match="at least one labelled operation"):
        learn([stretches(NULL)], OWN)


def test_an_order_costs_the_bits_of_its_steps():
    made = learn([stretches(A, B, C, A, B, C)], OWN)
    assert made.bits([A]) == 0
    assert made.bits([A, B, C]) < 2 < made.bits([A, C, B])
    with_steps = sum(made.bits(pair) for pair in pairwise([A, C, B, A]))
    assert made.bits([A, C, B, A]) == pytest.approx(with_steps)
    # two of A's steps, and one more spread as 1 + 5 steps over four operations: B follows two of them
    assert made.bits([A, B]) == pytest.approx(-log2((2 + 3 / 9) / 3))


@given(st.lists(st.lists(st.sampled_from([A, B, C, D, NULL]), min_size=1, max_size=12), min_size=1, max_size=4))
def test_any_labels_give_a_grammar_that_is_read_as_it_was_written(tmp_path_factory, sessions):
    labelled = [joined(stretches(*one)) for one in sessions]
    if not any(works(one) for one in labelled):
        return
    made = learn(labelled, OWN)
    path = tmp_path_factory.mktemp("grammar") / "grammar.json"
    made.save(path)
    assert Grammar.load(path) == made
    assert all(box.operations[0] == made.first for one in labelled for box in made.boxes_of(one))
    assert all(sum(row.values()) == pytest.approx(1) for row in made.transitions.values())


def test_in_openpack_the_cycle_begins_with_picking(sample: Path):
    table = next(sample.rglob("annotation/openpack-operations/S0500.csv"))
    timeline = read_operations(table)
    made = learn([sequence(timeline, timeline.start_ms, 10**6, 25)], OPENPACK)
    assert OPENPACK.by_id(made.first).name == "Picking"
    assert made.boxes >= 19
    assert NULL_ID not in made.containing
