"""Closed-set scoring: how probable the model holds each answer that is possible, instead of one free text.

All answers to a question share its prompt, so the prompt is run once and its key-value cache serves every candidate.
First the code of what happens is scored; then, for the most probable ones, all spans between bounds in one batch, whose
last position gives the next code. The posteriors are marginals of that joint distribution, and each part of the answer
is the most probable one of its own marginal: a metric counts each part by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import torch

from pipelines.common.posteriors import most_probable
from pipelines.common.vlm.dialogue import ANSWER_PHRASES, Answer, Question
from pipelines.common.vlm.encode import Encoder, to_device
from pipelines.common.vlm.load import Vlm

Key = TypeVar("Key")


@dataclass(frozen=True)
class Scored:
    """Posteriors of one question, each summing to one, and an answer of the most probable parts."""

    answer: Answer
    what: dict[str, float]
    span: dict[tuple[int, int], float]
    next: dict[str, float]


def score(vlm: Vlm, questions: Sequence[Question], codes: Sequence[str], *, operations: int = 2) -> list[Scored]:
    """Scores all questions as one batch.

    `codes` are the possible values of `what` and `next`, each one token of the tokenizer (ValueError otherwise).
    `operations` is for how many of the most probable codes spans and next codes are scored: their share of the
    posterior is what the marginals stand on.
    """
    tokens = _single_tokens(vlm.encoder, codes)
    with torch.inference_mode():
        prefix = _Prefix(vlm, questions, ANSWER_PHRASES[0])
        what = torch.log_softmax(prefix.logits[:, tokens].float(), -1)
        best = what.topk(min(operations, len(codes)), -1).indices
        spans = [_spans(question.bounds) for question in questions]
        texts = [
            [_continuation(codes[int(index)], span) for index in best[i] for span in spans[i]]
            for i in range(len(questions))
        ]
        joint, following = prefix.score(texts, tokens)
    made = []
    for i in range(len(questions)):
        count = len(spans[i])
        weights = what[i, best[i]][:, None] + joint[i].view(-1, count)
        made.append(_collect(codes, best[i], spans[i], what[i], weights, following[i].view(-1, count, len(codes))))
    return made


def average(views: Sequence[Scored]) -> Scored:
    """One clip as seen in several ways, each as likely as the others: the mean of their posteriors.

    Of probabilities, not of their logarithms: what is summed out stays summed out, and one view that is sure of
    something wrong cannot forbid what all others see.
    """

    def mean(posteriors: Sequence[Mapping[Key, float]]) -> dict[Key, float]:
        return {key: fmean(one[key] for one in posteriors) for key in posteriors[0]}

    return _scored(*(mean([getattr(view, part) for view in views]) for part in ("what", "span", "next")))


def _collect(
    codes: Sequence[str],
    best: torch.Tensor,
    spans: list[tuple[int, int]],
    what: torch.Tensor,
    weights: torch.Tensor,
    following: torch.Tensor,
) -> Scored:
    """`weights` (operations, spans) are log joint, `following` (operations, spans, codes) log conditional on them."""
    share = torch.softmax(weights.flatten(), 0).view_as(weights)
    next_share = (share[..., None] * following.exp()).sum((0, 1))
    return _scored(
        dict(zip(codes, what.exp().tolist(), strict=True)),
        dict(zip(spans, share.sum(0).tolist(), strict=True)),
        dict(zip(codes, next_share.tolist(), strict=True)),
    )


def _scored(what: dict[str, float], span: dict[tuple[int, int], float], following: dict[str, float]) -> Scored:
    answer = Answer(most_probable(what), *most_probable(span), most_probable(following))
    return Scored(answer, what, span, following)


class _Prefix:
    """Prompts of a batch, run once. `logits` (batch, vocabulary) are those after `opening`."""

    def __init__(self, vlm: Vlm, questions: Sequence[Question], opening: str) -> None:
        self._vlm = vlm
        rows = vlm.encoder.encode(questions)
        batch = to_device(vlm.encoder.collate(rows, left=True, opening=vlm.encoder.ids(opening)), vlm.device)
        self._mask = batch["attention_mask"]
        output = vlm.model(**batch, use_cache=True, logits_to_keep=1)
        self.logits: torch.Tensor = output.logits[:, -1]
        self._cache: Any = output.past_key_values
        self._offset = rope_offset(vlm.model)

    def score(self, texts: list[list[str]], tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, candidates) log probability of each text, and (batch, candidates, codes) of each code after it.

        Uses up the cache: call once.
        """
        count = len(texts[0])
        ids = [self._vlm.encoder.ids(text) for row in texts for text in row]
        width = max(len(row) for row in ids)
        pad = self._vlm.encoder.tokenizer.pad_token_id
        inputs = torch.tensor([row + [pad] * (width - len(row)) for row in ids], device=self._vlm.device)
        own = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=self._vlm.device)
        self._cache.batch_repeat_interleave(count)
        mask = torch.cat([self._mask.repeat_interleave(count, 0), own], 1)
        logits = self._vlm.model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=self._positions(mask, width, count),
            past_key_values=self._cache,
            use_cache=True,
        ).logits.float()
        first = self.logits.repeat_interleave(count, 0).float()[:, None]
        steps = torch.log_softmax(torch.cat([first, logits[:, :-1]], 1), -1)
        written = steps.gather(-1, inputs[..., None])[..., 0] * own
        last = logits[torch.arange(len(ids)), own.sum(1) - 1]
        following = torch.log_softmax(last[:, tokens], -1)
        # the code itself was scored among the codes; here only what follows it counts
        return written[:, 1:].sum(1).view(-1, count), following.view(-1, count, len(tokens))

    def _positions(self, mask: torch.Tensor, width: int, count: int) -> torch.Tensor:
        positions = (mask.long().cumsum(-1) - 1)[:, -width:]
        if self._offset is None:
            return positions
        return (positions + self._offset.repeat_interleave(count, 0).to(mask.device))[None].expand(3, -1, -1)


def rope_offset(model: Any) -> torch.Tensor | None:
    """M-RoPE's difference between a token's index and its position after vision tokens; None for other families."""
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            return module.rope_deltas
    return None


def _single_tokens(encoder: Encoder, codes: Sequence[str]) -> list[int]:
    ids = [encoder.ids(code) for code in codes]
    long = [code for code, row in zip(codes, ids, strict=True) if len(row) != 1]
    if long:
        raise ValueError(f"codes of more than one token would be scored with a length bias: {long}")
    return [row[0] for row in ids]


def _spans(bounds: Sequence[int]) -> list[tuple[int, int]]:
    return [(low, high) for i, low in enumerate(bounds) for high in bounds[i + 1 :]]


def _continuation(code: str, span: tuple[int, int]) -> str:
    _, start, end, following, _ = ANSWER_PHRASES
    return f"{code}{start}{span[0]}{end}{span[1]}{following}"
