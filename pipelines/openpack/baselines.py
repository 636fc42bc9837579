"""Answers that need no picture: what any model has to beat before its figures mean something.

Belongs here: three arms, fitted on training clips' labels alone: the whole clip, the majority class, and a transition
table from one operation to the next. What is true of a clip that they answer for they never see, except that the table
is given an operation, by a model or, as an upper bound, by the annotation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipelines.openpack.clip_plan import Clip, Target
from pipelines.openpack.records import BriefLabels, NativeLabels, Reading, reading
from pipelines.openpack.taxonomy import Taxonomy

Name = TypeVar("Name", int, str)


@dataclass(frozen=True)
class Baselines:
    """What was counted in training clips. `following` is native id → most frequent next id."""

    taxonomy: Taxonomy
    native: NativeLabels
    brief: BriefLabels
    following: dict[int, int]

    def answers(self, clip: Clip, operation: int) -> dict[str, Reading]:
        """What each says of a clip, by arm; the table after `operation`, a model's, and again after the true one."""
        return {
            "whole_clip": self.whole_clip(clip.n_frames),
            "majority_class": self.majority_class(),
            "transition_table": self.transition_table(operation),
            "transition_table_true": self.transition_table(clip.target.operation),
        }

    def whole_clip(self, n_frames: int) -> Reading:
        """All `n_frames` frames, and nothing of operations."""
        return reading(self.taxonomy, segment=(0, n_frames))

    def majority_class(self) -> Reading:
        """The most frequent operation and the most frequent next one, of each label set its own: names that several
        classes share may be most frequent where none of these classes is."""
        return Reading(start=None, end=None, native=self.native, brief=self.brief)

    def transition_table(self, operation: int) -> Reading:
        """The next operation after `operation` (native id); the most frequent next of all after one never seen."""
        return reading(self.taxonomy, following=self.following.get(operation, self.native.next))


def fit(targets: Iterable[Target], taxonomy: Taxonomy) -> Baselines:
    """Counts training clips' targets; equal counts go to the smaller id or name. ValueError without any target."""
    targets = list(targets)
    if not targets:
        raise ValueError("baselines need at least one training clip")
    seen = {target.operation for target in targets}
    operations, following = ([getattr(target, name) for target in targets] for name in ("operation", "next"))
    return Baselines(
        taxonomy,
        native=NativeLabels(operation=_most_frequent(operations), next=_most_frequent(following)),
        brief=BriefLabels(
            operation=_most_frequent([taxonomy.brief_name(op_id) for op_id in operations]),
            next=_most_frequent([taxonomy.brief_name(op_id) for op_id in following]),
        ),
        following={
            op_id: _most_frequent([target.next for target in targets if target.operation == op_id])
            for op_id in sorted(seen)
        },
    )


def _most_frequent(values: Sequence[Name]) -> Name:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
