"""The question about a packing clip and the way from a target to the model's answer and back.

The model answers with the native class (a letter, see `taxonomy`), since both label sets follow from it; the second
set's names are put in by `brief_answer`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pipelines.common.intervals import overlap
from pipelines.common.keyframes import Keyframes
from pipelines.common.vlm.dialogue import Answer, frame_lines
from pipelines.openpack.clip_plan import Clip
from pipelines.openpack.taxonomy import NULL_ID, Taxonomy

ASKED = "Which packing operation is done in each stretch of this clip, and which one follows the last? "
FORM = 'Answer with JSON: {"seen": [letter of each stretch], "next": letter}.'


def instruction(taxonomy: Taxonomy) -> str:
    """What is asked after the pictures, with the letters that stand for operations."""
    return ASKED + "".join(f"{one.code}: {one.name}. " for one in taxonomy.operations) + FORM


def prompt_text(keyframes: Keyframes, taxonomy: Taxonomy) -> str:
    """The whole prompt as a person reads it, `<frames>` where two pictures stand."""
    lines = frame_lines(keyframes.bounds, keyframes.pairs)
    return "".join(f"{line}<frames>\n" for line in lines) + instruction(taxonomy)


def target_answer(taxonomy: Taxonomy, clip: Clip) -> Answer:
    """What the model shall learn to write for a clip: the code of the operation that fills most of each stretch, and of
    the one that follows the last operation in the clip; Null's, where the session ends."""
    edges = list(pairwise((0, *clip.boundaries, clip.n_frames)))
    longest = [max(range(len(edges)), key=lambda i, one=one: overlap(edges[i], one)) for one in pairwise(clip.bounds)]
    seen = tuple(taxonomy.by_id(clip.operations[place]).code for place in longest)
    return Answer(seen, taxonomy.by_id(NULL_ID if clip.following is None else clip.following).code)


def brief_answer(
    taxonomy: Taxonomy, clip_id: str, operation: int, start: int, end: int, following: int
) -> dict[str, Any]:
    """The brief's JSON (without the confidence, which a target has not); frames half-open."""
    return {
        "clip_id": clip_id,
        "dominant_operation": taxonomy.brief_name(operation),
        "temporal_segment": {"start_frame": start, "end_frame": end},
        "anticipated_next_operation": taxonomy.brief_name(following),
    }
