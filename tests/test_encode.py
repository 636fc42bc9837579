"""Questions and answers as text and as tensors."""

import json

import numpy as np
import pytest
import torch
from toy_vlm import answer, make, question

from pipelines.common.vlm.dialogue import Answer, Conclusion, conclude, frame_lines, parse_answer
from pipelines.common.vlm.encode import IGNORED


def test_an_answer_is_plain_json_and_reads_back():
    given = Answer(("D", "E", "E"), "F")
    assert given.text() == json.dumps({"seen": ["D", "E", "E"], "next": "F"})
    assert parse_answer(given.text()) == given


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E",
        '{"seen": ["E"]}',
        '{"seen": "E", "next": "F"}',
        '{"seen": ["E", 1], "next": "F"}',
        '{"seen": ["E"], "next": null}',
        '{"next": "F", "seen": ["E"]}',
        '{"seen": ["E"], "next": "F", "what": "E"}',
        "[1, 2]",
    ],
)
def test_anything_else_is_no_answer(text: str):
    assert parse_answer(text) is None


def test_what_fills_most_of_a_clip_follows_from_what_is_seen():
    bounds = (0, 40, 62, 100, 125)
    assert conclude("DEEF", bounds) == Conclusion("E", 40, 100, "F")
    assert conclude("DDDD", bounds) == Conclusion("D", 0, 125, None)
    assert conclude("DDEE", bounds) == Conclusion("E", 62, 125, None)  # 63 of 125 frames
    assert conclude("DDEE", (0, 40, 60, 100, 120)) == Conclusion("D", 0, 60, "E")  # the earlier of two alike
    assert conclude("DEDD", (0, 50, 70, 80, 125)) == Conclusion("D", 70, 125, None)  # one stretch, not the sum of two


def test_each_pair_is_announced_with_its_true_frame_numbers():
    assert frame_lines((0, 47, 125), ((20, 22), (60, 61))) == [
        "Frames 0 to 47, seen at 20 and 22:\n",
        "Frames 47 to 125, seen at 60 and 61:\n",
    ]


def test_numbers_and_phrases_are_single_tokens_and_any_text_survives():
    encoder = make().encoder
    assert len(encoder.ids("125")) == len(encoder.ids("7")) == len(encoder.ids(", seen at ")) == 1
    text = "Größe 126 – ok?"
    assert encoder.tokenizer.decode(encoder.ids(text)) == text


def test_labels_are_the_answer_and_nothing_else():
    encoder = make().encoder
    answers = [answer(seed).text() for seed in range(3)]
    rows = encoder.encode([question(seed) for seed in range(3)], answers)
    labels, batch = encoder.labels(rows), encoder.collate(rows)
    assert labels.shape == batch["input_ids"].shape
    for row, text in zip(labels, answers, strict=True):
        kept = row[row != IGNORED]
        assert encoder.tokenizer.decode(kept[:-1]) == text
        assert kept[-1] == encoder.end
    shifted = batch["input_ids"][:, 1:]
    counted = labels[:, :-1] != IGNORED
    assert torch.equal(labels[:, :-1][counted], shifted[counted])  # each position predicts the token after it


def test_cached_vision_features_stand_in_for_pixels():
    vlm = make()
    rows = vlm.encoder.encode([question(1), question(2)], [answer(1).text(), answer(2).text()])
    with torch.inference_mode():
        plain = vlm.model(**vlm.encoder.collate(rows)).logits
        cached = []
        for row in rows:
            features = vlm.model.get_video_features(row.pixels, row.grid).pooler_output
            cached.append(row.with_features(torch.cat(features)))
        again = vlm.model(**vlm.encoder.collate(cached)).logits
    torch.testing.assert_close(plain, again)


def test_the_model_sees_which_pair_stands_where():
    vlm = make()
    one = question(1)
    swapped = type(one)((one.videos[1], one.videos[0], *one.videos[2:]), one.bounds, one.pairs, one.text)
    with torch.inference_mode():
        logits = [vlm.model(**vlm.encoder.collate(vlm.encoder.encode([q]))).logits[0, -1] for q in (one, swapped)]
    assert not np.allclose(*[row.numpy() for row in logits], atol=1e-4)
