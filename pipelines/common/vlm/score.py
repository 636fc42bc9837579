"""Closed-set scoring: how probable the model holds each answer that is possible, instead of one free text.

All answers to a question share its prompt, so the prompt is run once and its key-value cache serves every candidate.
The codes of what is seen are scored stretch by stretch, for the most probable sequences so far (a beam), and after each
whole sequence the code of what comes next. What fills most of the clip, and from where to where, follows from a
sequence (`dialogue.conclude`), so its posterior is the sum over the sequences that say so: start and end are scored
jointly with the operation. Each part of an answer is the most probable one of its own marginal: a metric counts each
part by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TypeVar

import torch

from pipelines.common.errors import DataError
from pipelines.common.vlm.dialogue import ANSWER_PHRASES, Question, conclude
from pipelines.common.vlm.encode import Encoded, Encoder, to_device
from pipelines.common.vlm.features import PairFeatures
from pipelines.common.vlm.load import Vlm
from pipelines.common.vlm.precision import dtype_name
from pipelines.common.vlm.prefix import Prefix, run_prompts

Key = TypeVar("Key")
Stretch = tuple[int, int]


@dataclass(frozen=True)
class Scored:
    """Posteriors of one question, each summing to one: of each stretch [start, end) that is shown, of what fills most
    of the clip, of the stretch that this fills, and of what follows it."""

    seen: dict[Stretch, dict[str, float]]
    what: dict[str, float]
    span: dict[Stretch, float]
    next: dict[str, float]


def score(
    vlm: Vlm,
    questions: Sequence[Question],
    codes: Sequence[str],
    *,
    hypotheses: int = 8,
    features: Callable[[Sequence[Encoded]], list[Encoded]] | None = None,
) -> list[Scored]:
    """Scores all questions as one batch; they must have equally many stretches. `features` does the work of the vision
    tower, by default a `PairFeatures` of its own.

    `codes` are the possible values of all parts, each one token of the tokenizer (ValueError otherwise). `hypotheses`
    is how many of the most probable sequences are followed.
    """
    tokens = _single_tokens(vlm.encoder, codes)
    stretches = len(questions[0].pairs)
    first, and_, to_next, _ = ANSWER_PHRASES
    with torch.inference_mode():
        see = features or PairFeatures(vlm.model, vlm.encoder).fill
        rows = see(vlm.encoder.encode(questions))
        batch = vlm.encoder.collate(rows, left=True, opening=vlm.encoder.ids(first))
        prefix = run_prompts(vlm.model, to_device(batch, vlm.device))
        seen, weight = [], torch.zeros(len(questions), 1, device=vlm.device)
        said = torch.zeros(len(questions), 1, 0, dtype=torch.long, device=vlm.device)
        for stretch in range(stretches):
            joint = weight[..., None] + _log_shares(prefix, tokens)
            seen.append(torch.softmax(joint.flatten(1), 1).view_as(joint).sum(1))
            weight, parent, code = _most_probable(joint, hypotheses)
            prefix.branch(parent)
            said = torch.cat([said.gather(1, parent[..., None].expand(-1, -1, stretch)), code[..., None]], 2)
            phrase = torch.tensor(vlm.encoder.ids(and_ if stretch + 1 < stretches else to_next), device=vlm.device)
            letters = torch.tensor(tokens, device=vlm.device)[code]
            prefix.write(torch.cat([letters[..., None], phrase.expand(*code.shape, -1)], 2))
        following = _log_shares(prefix, tokens).exp()
    return [
        _collect(codes, question.bounds, [one[i] for one in seen], said[i], weight[i].exp(), following[i])
        for i, question in enumerate(questions)
    ]


def average(views: Sequence[Scored]) -> Scored:
    """One clip as seen in several ways, each as likely as the others: the mean of their posteriors.

    Of probabilities, not of their logarithms: what is summed out stays summed out, and one view that is sure of
    something wrong cannot forbid what all others see.
    """

    def mean(posteriors: Sequence[Mapping[Key, float]]) -> dict[Key, float]:
        return {key: fmean(one[key] for one in posteriors) for key in posteriors[0]}

    seen = {stretch: mean([view.seen[stretch] for view in views]) for stretch in views[0].seen}
    return Scored(seen, *(mean([getattr(view, part) for view in views]) for part in ("what", "span", "next")))


def _collect(
    codes: Sequence[str],
    bounds: Sequence[int],
    seen: Sequence[torch.Tensor],
    said: torch.Tensor,
    weight: torch.Tensor,
    following: torch.Tensor,
) -> Scored:
    """One question's: `said` (sequences, stretches) are numbers of codes, `weight` (sequences,) how probable each is,
    `following` (sequences, codes) what comes after it.

    What is not followed, the rest of the weight, counts for the operation by lengths of time and for the next one as
    the most probable sequence does, so that a single sequence is not taken for certain; spans share what is followed.
    """
    shares = {stretch: _named(codes, one) for stretch, one in zip(pairwise(bounds), seen, strict=True)}
    what, after = dict.fromkeys(codes, 0.0), dict.fromkeys(codes, 0.0)
    span = dict.fromkeys(_spans(bounds), 0.0)
    for sequence, probable, row in zip(said.tolist(), weight.tolist(), following, strict=True):
        found = conclude([codes[int(number)] for number in sequence], bounds)
        what[found.what] += probable
        span[found.start, found.end] += probable
        for code, share in _named(codes, row).items() if found.next is None else [(found.next, 1.0)]:
            after[code] += probable * share
    rest = max(0.0, 1 - sum(weight.tolist()))
    for (low, high), stretch in shares.items():
        for code, share in stretch.items():
            what[code] += rest * share * (high - low) / bounds[-1]
    for code, share in _named(codes, following[0]).items():
        after[code] += rest * share
    return Scored(shares, _normalised(what), _normalised(span), _normalised(after))


def _named(codes: Sequence[str], shares: torch.Tensor) -> dict[str, float]:
    return dict(zip(codes, shares.tolist(), strict=True))


def _normalised(shares: Mapping[Key, float]) -> dict[Key, float]:
    total = sum(shares.values())
    return {key: share / total for key, share in shares.items()}


def _log_shares(prefix: Prefix, tokens: list[int]) -> torch.Tensor:
    """(questions, sequences, tokens): how probable each is as the next one, among these tokens.

    DataError where they are no numbers: an overflow in fp16 would otherwise be taken for an answer.
    """
    shares = torch.log_softmax(prefix.logits[..., tokens].float(), -1)
    if not bool(torch.isfinite(shares).all()):
        what = f"the model's outputs are no numbers, computed in {dtype_name(prefix.logits.dtype)}"
        raise DataError(what, cure="Answer on a GPU with bfloat16, or on a CPU; or train with a lower learning rate.")
    return shares


def _most_probable(joint: torch.Tensor, hypotheses: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The most probable of `joint` (questions, sequences, codes): their log probability, the sequence that each goes on
    from and its code, all (questions, kept)."""
    _, before, codes = joint.shape
    best = joint.flatten(1).topk(min(hypotheses, before * codes), 1)
    return best.values, best.indices // codes, best.indices % codes


def _single_tokens(encoder: Encoder, codes: Sequence[str]) -> list[int]:
    ids = [encoder.ids(code) for code in codes]
    long = [code for code, row in zip(codes, ids, strict=True) if len(row) != 1]
    if long:
        raise ValueError(f"codes of more than one token would be scored with a length bias: {long}")
    return [row[0] for row in ids]


def _spans(bounds: Sequence[int]) -> list[Stretch]:
    return [(low, high) for i, low in enumerate(bounds) for high in bounds[i + 1 :]]
