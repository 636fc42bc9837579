"""Baselines: what they count in training clips, and what they then say."""

import pytest

from pipelines.openpack import baselines as module
from pipelines.openpack.baselines import Baselines
from pipelines.openpack.clip_plan import Target
from pipelines.openpack.taxonomy import OPENPACK


def fit(counted: list[Target]) -> Baselines:
    return module.fit(counted, OPENPACK)


def targets(*pairs: tuple[int, int]) -> list[Target]:
    return [Target(operation=operation, start=0, end=125, next=following) for operation, following in pairs]


# 700 goes on in two dialects; Label (600, 800) is the most frequent name though 100 is the most frequent class
TRAINING = targets(
    *[(100, 200)] * 4, *[(600, 700)] * 3, *[(800, 900)] * 2, *[(700, 800)] * 1, *[(700, 1000)] * 2, *[(900, 1000)] * 2
)


def test_the_table_holds_the_most_frequent_next_of_each_operation():
    baselines = fit(TRAINING)
    assert baselines.following == {100: 200, 600: 700, 700: 1000, 800: 900, 900: 1000}
    said = baselines.transition_table(700)
    assert (said.native.next, said.brief.next) == (1000, "Final Check")
    assert (said.segment, said.native.operation, said.brief.operation) == (None, None, None)


def test_after_an_operation_that_training_lacks_comes_the_most_frequent_next_of_all():
    assert fit(TRAINING).transition_table(8100).native.next == 200


def test_the_majority_is_counted_in_each_label_set():
    said = fit(TRAINING).majority_class()
    assert (said.native.operation, said.native.next) == (100, 200)  # 4 of 14; next: 200 and 1000 four times each
    assert (said.brief.operation, said.brief.next) == ("Label", "Final Check")  # 5 of 14; 700 and 1000: 7 of 14
    assert said.segment is None


def test_the_whole_clip_says_nothing_of_operations():
    said = fit(TRAINING).whole_clip(125)
    assert said.segment == (0, 125)
    assert {said.native.operation, said.native.next, said.brief.operation, said.brief.next} == {None}


def test_equal_counts_do_not_depend_on_the_order():
    pairs = [(100, 300), (100, 200), (700, 1000), (700, 800)]
    forwards, backwards = fit(targets(*pairs)), fit(targets(*pairs[::-1]))
    assert forwards == backwards
    assert forwards.following == {100: 200, 700: 800}
    assert forwards.native.operation == 100


def test_nothing_to_count_is_refused():
    with pytest.raises(ValueError, match="at least one training clip"):
        fit([])
