"""The question about a packing clip and the way from a target to the model's answer and back.

The model answers with the native class (a letter, see `taxonomy`), since both label sets follow from it; the second
set's names are put in by `brief_answer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.common.intervals import iou
from pipelines.common.keyframes import Keyframes
from pipelines.common.vlm.dialogue import Answer, frame_lines
from pipelines.openpack.taxonomy import Taxonomy

ASKED = "Which packing operation fills most of this clip, from which frame to which, and which operation follows it? "
FORM = 'Answer with JSON: {"what": letter, "start": first frame, "end": frame after the last, "next": letter}.'


def instruction(taxonomy: Taxonomy) -> str:
    """What is asked after the pictures, with the letters that stand for operations."""
    return ASKED + "".join(f"{one.code}: {one.name}. " for one in taxonomy.operations) + FORM


def prompt_text(keyframes: Keyframes, taxonomy: Taxonomy) -> str:
    """The whole prompt as a person reads it, `<frames>` where two pictures stand."""
    lines = frame_lines(keyframes.bounds, keyframes.pairs)
    return "".join(f"{line}<frames>\n" for line in lines) + instruction(taxonomy)


def nearest_span(bounds: Sequence[int], start: int, end: int) -> tuple[int, int]:
    """The span between two bounds with the largest IoU: what can be answered from the segments that are shown."""
    spans = [(low, high) for i, low in enumerate(bounds) for high in bounds[i + 1 :]]
    return max(spans, key=lambda span: (iou(span, (start, end)), span))


def target_answer(
    taxonomy: Taxonomy, operation: int, start: int, end: int, following: int, bounds: Sequence[int]
) -> Answer:
    """What the model shall learn to write for a clip: native ids in, codes and bounds out."""
    low, high = nearest_span(bounds, start, end)
    return Answer(taxonomy.by_id(operation).code, low, high, taxonomy.by_id(following).code)


def brief_answer(
    taxonomy: Taxonomy, clip_id: str, operation: int, start: int, end: int, following: int
) -> dict[str, Any]:
    """The brief's JSON (without the confidence, which a target has not); frames half-open at 25 fps."""
    return {
        "clip_id": clip_id,
        "dominant_operation": taxonomy.brief_name(operation),
        "temporal_segment": {"start_frame": start, "end_frame": end},
        "anticipated_next_operation": taxonomy.brief_name(following),
    }
