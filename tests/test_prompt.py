"""What the model is taught to answer for a clip."""

import pytest

from pipelines.common.vlm.dialogue import Answer
from pipelines.openpack.clip_plan import Clip, Target
from pipelines.openpack.prompt import target_answer
from pipelines.openpack.taxonomy import OPENPACK


def clip(boundaries: tuple[int, ...], operations: tuple[int, ...], following: int | None, *cuts: int) -> Clip:
    bounds = (0, *cuts, 125)
    return Clip(
        clip_id="U0101_S0100_t0000",
        user="U0101",
        session="S0100",
        start_frame=0,
        n_frames=125,
        kind="boundary",
        target=Target(operation=operations[0], start=0, end=125, next=200),  # not what the answer is made of
        boundaries=boundaries,
        operations=operations,
        following=following,
        bounds=bounds,
        pairs=tuple((low + 1, low + 2) for low in bounds[:-1]),
    )


@pytest.mark.parametrize(
    ("boundaries", "operations", "following", "cuts", "answer"),
    [
        ((), (300,), 400, (30, 60, 90), Answer(("C", "C", "C", "C"), "D")),
        ((60,), (300, 400), 500, (30, 58, 90), Answer(("C", "C", "D", "D"), "E")),
        ((60,), (300, 400), 500, (20, 40, 80), Answer(("C", "C", "C", "D"), "E")),  # half of a stretch: the earlier
        ((60, 70), (300, 400, 500), 600, (30, 58, 90), Answer(("C", "C", "E", "E"), "F")),  # too short to be seen
        ((60,), (300, 400), None, (30, 58, 90), Answer(("C", "C", "D", "D"), "K")),  # the session ends: Null
    ],
)
def test_each_stretch_is_named_by_what_fills_most_of_it(
    boundaries: tuple[int, ...],
    operations: tuple[int, ...],
    following: int | None,
    cuts: tuple[int, ...],
    answer: Answer,
):
    assert target_answer(OPENPACK, clip(boundaries, operations, following, *cuts)) == answer
