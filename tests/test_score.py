"""Closed-set scoring over one shared prefix equals scoring every answer by itself."""

from collections import Counter
from itertools import product
from math import prod

import pytest
import torch
from toy_vlm import CODES, make, question

from pipelines.common.errors import DataError
from pipelines.common.vlm import prefix
from pipelines.common.vlm.dialogue import ANSWER_PHRASES, conclude
from pipelines.common.vlm.prefix import CopiedPrefix, SharedPrefix
from pipelines.common.vlm.score import Scored, average, score


def alone(vlm, asked, text: str) -> torch.Tensor:
    """Logits at the prompt's end and after each token of `text`, run as one sequence without any cache."""
    (row,) = vlm.encoder.encode([asked])
    with torch.inference_mode():
        batch = vlm.encoder.collate([row], opening=vlm.encoder.ids(text))
        return vlm.model(**batch).logits[0, len(row.ids) - 1 :].float()


PLACES = (1, 3, 5, 7)  # of these logits that are before a code: phrases and codes are one token each


def test_scores_equal_naive_scoring():
    """Of every sequence, each run by itself."""
    vlm, asked = make(), question(3, bounds=(0, 40, 80, 125))
    (made,) = score(vlm, [asked], CODES, hypotheses=len(CODES) ** 3)
    first, and_, to_next, _ = ANSWER_PHRASES
    tokens = [vlm.encoder.ids(code)[0] for code in CODES]
    seen = [dict.fromkeys(CODES, 0.0) for _ in range(3)]
    what, span, after = (Counter() for _ in range(3))
    for sequence in product(CODES, repeat=3):
        logits = alone(vlm, asked, first + and_.join(sequence) + to_next)
        shares = [torch.softmax(row[tokens], -1).tolist() for row in logits]
        probable = [dict(zip(CODES, shares[place], strict=True)) for place in PLACES]
        share = prod(row[code] for row, code in zip(probable, sequence, strict=False))
        for stretch, code in zip(seen, sequence, strict=True):
            stretch[code] += share
        found = conclude(sequence, asked.bounds)
        what[found.what] += share
        span[found.start, found.end] += share
        for code, one in probable[3].items() if found.next is None else [(found.next, 1.0)]:
            after[code] += share * one
    close = {"abs": 1e-5, "rel": 1e-4}
    for stretch, expected in zip(made.seen.values(), seen, strict=True):
        assert stretch == pytest.approx(expected, **close)
    assert made.what == pytest.approx(what, **close)
    assert {one: share for one, share in made.span.items() if share} == pytest.approx(span, **close)
    assert made.next == pytest.approx(after, **close)


def test_a_row_a_sequence_as_recurrent_layers_need_it_scores_the_same(monkeypatch):
    vlm = make()
    asked = [question(1), question(2, text="What is done? And a much longer text that pads the other one.")]
    together = score(vlm, asked, CODES)
    monkeypatch.setattr(prefix, "SharedPrefix", CopiedPrefix)
    for one, other in zip(together, score(vlm, asked, CODES), strict=True):
        assert one.what == pytest.approx(other.what, abs=1e-5)
        assert one.next == pytest.approx(other.next, abs=1e-5)
        assert one.span == pytest.approx(other.span, abs=1e-5)


def test_the_prompt_is_held_once_however_many_sequences_are_followed(monkeypatch):
    """The cache has a row a question, the prompt's tokens, and those that were written."""
    caches = []

    class Watched(SharedPrefix):
        def __init__(self, model, mask, output) -> None:
            super().__init__(model, mask, output)
            caches.append((mask.shape, output.past_key_values))

    monkeypatch.setattr(prefix, "SharedPrefix", Watched)
    for hypotheses in (1, 4):
        score(make(), [question(1), question(2)], CODES, hypotheses=hypotheses)
        (rows, prompt), cache = caches.pop()
        assert cache.layers[0].keys.shape[0] == rows == 2
        assert cache.layers[0].keys.shape[2] == prompt + 3 * 2 * hypotheses  # a letter and a phrase each time


def test_what_is_not_followed_keeps_its_share():
    """Every operation has one, even where a single sequence is followed, and the followed ones are not made surer."""
    (made,) = score(make(), [question(3)], CODES, hypotheses=1)
    assert min(made.what.values()) > 0
    assert min(made.next.values()) > 0
    assert max(made.what.values()) < 0.9


def test_a_batch_with_prompts_of_unlike_length_equals_one_by_one():
    vlm = make()
    asked = [question(1), question(2, text="What is done? And a much longer text that pads the other one.")]
    together = score(vlm, asked, CODES)
    alone = [score(vlm, [one], CODES)[0] for one in asked]
    for a, b in zip(together, alone, strict=True):
        assert a.what == pytest.approx(b.what, abs=1e-5)
        assert a.next == pytest.approx(b.next, abs=1e-5)


def test_posteriors_sum_to_one():
    vlm = make()
    for made in score(vlm, [question(seed) for seed in range(4)], CODES):
        assert sum(made.what.values()) == pytest.approx(1, abs=1e-5)
        assert sum(made.span.values()) == pytest.approx(1, abs=1e-5)
        assert sum(made.next.values()) == pytest.approx(1, abs=1e-5)
        assert all(sum(stretch.values()) == pytest.approx(1, abs=1e-5) for stretch in made.seen.values())
        assert list(made.seen) == [(0, 40), (40, 80), (80, 125)]


def test_codes_of_several_tokens_are_refused():
    with pytest.raises(ValueError, match="length bias"):
        score(make(), [question(1)], ["A", "Tape"])


def test_views_are_averaged():
    def view(what: float, first: float, following: float) -> Scored:
        span = {(0, 40): first, (40, 125): 1 - first}
        named = [{"A": share, "B": 1 - share} for share in (first, what, following)]
        return Scored({(0, 125): named[0]}, named[1], span, named[2])

    made = average([view(0.6, 0.1, 0.4), view(0.6, 0.2, 0.4), view(0.0, 0.9, 1.0)])
    assert made.what == pytest.approx({"A": 0.4, "B": 0.6})
    assert made.span == pytest.approx({(0, 40): 0.4, (40, 125): 0.6})
    assert made.next == pytest.approx({"A": 0.6, "B": 0.4})
    assert made.seen[0, 125] == pytest.approx({"A": 0.4, "B": 0.6})


def test_outputs_that_are_no_numbers_are_no_answer():
    vlm = make()
    with torch.no_grad():
        vlm.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="no numbers, computed in float32"):
        score(vlm, [question(1)], CODES)
