"""What an answer to a clip is: scored with posteriors, or written freely. Light: no torch, no model.

Belongs here: from the codes of a model's answer to native classes and the brief's names. Who answers (`predict`) does
not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines.common.posteriors import most_probable
from pipelines.common.vlm.dialogue import Question, conclude, parse_answer
from pipelines.openpack.clip_plan import Target
from pipelines.openpack.prompt import brief_answer
from pipelines.openpack.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipelines.common.vlm.score import Scored
    from pipelines.openpack.calibrate import Calibration


@dataclass(frozen=True)
class Prediction:
    """One clip's answer in the ids of `taxonomy`; `start`, `end` half-open frames of the clip.

    `what` and `next_share` are posteriors over native ids, `span` over the segments that were possible, `seen` has one
    of each stretch that was shown, over native ids. `raw` is the same as the model itself had it, where this one is
    calibrated; `seen` is not calibrated.
    """

    clip_id: str
    operation: int
    start: int
    end: int
    next: int
    seen: dict[tuple[int, int], dict[int, float]]
    what: dict[int, float]
    span: dict[tuple[int, int], float]
    next_share: dict[int, float]
    taxonomy: Taxonomy
    raw: Prediction | None = None

    @classmethod
    def of(cls, clip_id: str, scored: Scored, taxonomy: Taxonomy) -> Prediction:
        """From scored codes, which must be those of `taxonomy`."""

        def native(shares: dict[str, float]) -> dict[int, float]:
            return {taxonomy.by_code(code).id: share for code, share in shares.items()}

        operation, following = (taxonomy.by_code(most_probable(one)).id for one in (scored.what, scored.next))
        seen = {stretch: native(shares) for stretch, shares in scored.seen.items()}
        posteriors = seen, native(scored.what), scored.span, native(scored.next)
        return cls(clip_id, operation, *most_probable(scored.span), following, *posteriors, taxonomy)

    @property
    def confidence(self) -> float:
        """Posterior of the answered operation, by its name in the answer: classes that share the name count with it."""
        name = self.taxonomy.brief_name(self.operation)
        return sum(share for op_id, share in self.what.items() if self.taxonomy.brief_name(op_id) == name)

    def brief(self) -> dict[str, Any]:
        """The brief's JSON, exactly its five keys."""
        answer = brief_answer(self.taxonomy, self.clip_id, self.operation, self.start, self.end, self.next)
        return {**answer, "confidence": round(min(1.0, self.confidence), 4)}

    def as_json(self) -> dict[str, Any]:
        """Everything but `taxonomy` and `raw`, for `of_json`."""
        return {
            "clip_id": self.clip_id,
            "answer": [self.operation, self.start, self.end, self.next],
            "seen": [[*stretch, _texts(shares)] for stretch, shares in self.seen.items()],
            "what": _texts(self.what),
            "span": [[*span, share] for span, share in self.span.items()],
            "next_share": _texts(self.next_share),
        }

    @classmethod
    def of_json(cls, row: Mapping[str, Any], taxonomy: Taxonomy) -> Prediction:
        """The same, to the last bit."""
        return cls(
            row["clip_id"],
            *row["answer"],
            seen={(start, end): _numbers(shares) for start, end, shares in row["seen"]},
            what=_numbers(row["what"]),
            span={(start, end): share for start, end, share in row["span"]},
            next_share=_numbers(row["next_share"]),
            taxonomy=taxonomy,
        )

    def calibrated(self, calibration: Calibration) -> Prediction:
        """The answer of the calibrated posteriors; the segment stays."""
        what, following = calibration.apply(self.what, self.next_share)
        answer = {"operation": most_probable(what), "next": most_probable(following)}
        return replace(self, **answer, what=what, next_share=following, raw=self)


@dataclass(frozen=True)
class Generated:
    """What a model wrote for a clip by itself. `target` is what that says, None where it is not exactly an answer that
    is possible: other text than the asked JSON, a letter of no class, or more or fewer of them than stretches."""

    clip_id: str
    text: str
    target: Target | None

    def as_json(self) -> dict[str, Any]:
        return {"clip_id": self.clip_id, "text": self.text, "target": self.target and self.target.model_dump()}

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> Generated:
        return cls(row["clip_id"], row["text"], row["target"] and Target(**row["target"]))

    @classmethod
    def of(cls, clip_id: str, text: str, question: Question, taxonomy: Taxonomy) -> Generated:
        said = parse_answer(text)
        if said is None or not {*said.seen, said.next} <= set(taxonomy.codes) or len(said.seen) != len(question.pairs):
            return cls(clip_id, text, None)
        found = conclude(said.seen, question.bounds)
        operation, following = (taxonomy.by_code(code).id for code in (found.what, found.next or said.next))
        return cls(clip_id, text, Target(operation=operation, start=found.start, end=found.end, next=following))


def _texts(shares: Mapping[int, float]) -> dict[str, float]:
    return {str(op_id): share for op_id, share in shares.items()}


def _numbers(shares: Mapping[str, float]) -> dict[int, float]:
    return {int(op_id): share for op_id, share in shares.items()}
