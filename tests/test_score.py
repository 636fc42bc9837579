"""Closed-set scoring over one shared prefix equals scoring every answer by itself."""

import pytest
import torch
from toy_vlm import CODES, make, question

from pipelines.common.vlm.dialogue import ANSWER_PHRASES, Answer
from pipelines.common.vlm.score import Scored, average, score


def naive(vlm, asked, text: str) -> torch.Tensor:
    """Log probabilities of the tokens of `text` after the prompt, run as one sequence without any cache."""
    (row,) = vlm.encoder.encode([asked])
    ids = vlm.encoder.ids(text)
    batch = vlm.encoder.collate([row], opening=ids)
    with torch.inference_mode():
        logits = torch.log_softmax(vlm.model(**batch).logits[0].float(), -1)
    return logits[len(row.ids) - 1 : -1].gather(1, torch.tensor(ids)[:, None])[:, 0]


def code_tokens(vlm) -> list[int]:
    return [vlm.encoder.ids(code)[0] for code in CODES]


def test_scores_equal_naive_scoring():
    vlm, asked = make(), question(3)
    (made,) = score(vlm, [asked], CODES, operations=len(CODES))
    head, start, end, following, _ = ANSWER_PHRASES
    what = torch.tensor([naive(vlm, asked, f"{head}{code}")[-1] for code in CODES])
    expected = torch.softmax(what, 0)
    torch.testing.assert_close(torch.tensor([made.what[code] for code in CODES]), expected, atol=1e-5, rtol=1e-4)

    spans = [(0, 40), (0, 80), (0, 125), (40, 80), (40, 125), (80, 125)]
    joint, conditional = [], []
    for code, share in zip(CODES, torch.log_softmax(what, 0), strict=True):
        for low, high in spans:
            text = f"{head}{code}{start}{low}{end}{high}{following}"
            skip = len(vlm.encoder.ids(f"{head}{code}"))
            joint.append(share + naive(vlm, asked, text)[skip:].sum())
            each = torch.tensor([naive(vlm, asked, text + other)[-1] for other in CODES])
            conditional.append(torch.softmax(each, 0))
    weight = torch.softmax(torch.stack(joint), 0)
    by_span = weight.view(len(CODES), -1).sum(0)
    torch.testing.assert_close(torch.tensor([made.span[span] for span in spans]), by_span, atol=1e-5, rtol=1e-4)
    by_next = (weight[:, None] * torch.stack(conditional)).sum(0)
    torch.testing.assert_close(torch.tensor(list(made.next.values())), by_next, atol=1e-5, rtol=1e-4)


def test_a_batch_with_prompts_of_unlike_length_equals_one_by_one():
    vlm = make()
    asked = [question(1), question(2, text="What is done? And a much longer text that pads the other one.")]
    together = score(vlm, asked, CODES)
    alone = [score(vlm, [one], CODES)[0] for one in asked]
    for a, b in zip(together, alone, strict=True):
        assert a.answer == b.answer
        assert a.what == pytest.approx(b.what, abs=1e-5)
        assert a.next == pytest.approx(b.next, abs=1e-5)


def test_posteriors_sum_to_one_and_the_answer_is_their_maximum():
    vlm = make()
    for made in score(vlm, [question(seed) for seed in range(4)], CODES):
        assert sum(made.what.values()) == pytest.approx(1, abs=1e-5)
        assert sum(made.span.values()) == pytest.approx(1, abs=1e-5)
        assert sum(made.next.values()) == pytest.approx(1, abs=1e-5)
        assert made.answer.what == max(made.what, key=lambda code: made.what[code])
        assert (made.answer.start, made.answer.end) == max(made.span, key=lambda span: made.span[span])


def test_codes_of_several_tokens_are_refused():
    with pytest.raises(ValueError, match="length bias"):
        score(make(), [question(1)], ["A", "Tape"])


def test_views_are_averaged_and_the_answer_is_that_of_the_mean():
    def view(what: float, first: float, following: float) -> Scored:
        span = {(0, 40): first, (40, 125): 1 - first}
        return Scored(Answer("", 0, 0, ""), {"A": what, "B": 1 - what}, span, {"A": following, "B": 1 - following})

    made = average([view(0.6, 0.1, 0.4), view(0.6, 0.2, 0.4), view(0.0, 0.9, 1.0)])
    assert made.what == pytest.approx({"A": 0.4, "B": 0.6})
    assert made.span == pytest.approx({(0, 40): 0.4, (40, 125): 0.6})
    assert made.next == pytest.approx({"A": 0.6, "B": 0.4})
    assert made.answer == Answer("B", 40, 125, "A")
