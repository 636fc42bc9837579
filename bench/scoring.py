"""`scoring_vs_naive`: closed-set scoring over one shared prefix against running every candidate answer by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.vlm import dialogue, tiny
from pipelines.common.vlm.dialogue import ANSWER_PHRASES, Question
from pipelines.common.vlm.encode import Encoder
from pipelines.common.vlm.load import Vlm
from pipelines.common.vlm.score import score
from pipelines.common.vlm.settings import TinySettings
from pipelines.openpack.prompt import instruction
from pipelines.openpack.taxonomy import OPENPACK

CODES, INSTRUCTION = OPENPACK.codes, instruction(OPENPACK)
CLIPS, ROUNDS, HYPOTHESES = 8, 3, 8
BOUNDS, PAIRS = (0, 30, 60, 90, DEFAULT_FORMAT.frames), ((10, 11), (40, 42), (70, 71), (100, 102))


def run() -> dict[str, Any]:
    """Clips a second of both sides, the embedded model's size with random weights: speed does not depend on them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    phrases = (*dialogue.FRAME_PHRASES, *dialogue.ANSWER_PHRASES, *tiny.CHAT_PHRASES, INSTRUCTION)
    processor = tiny.processor(phrases, TinySettings())
    model = tiny.model(processor.tokenizer, TinySettings()).eval()
    vlm = Vlm(model, Encoder(processor), torch.device("cpu"))
    rng = np.random.default_rng(0)
    asked = []
    for _ in range(CLIPS):
        videos = tuple(rng.integers(0, 255, (2, 84, 84, 3), dtype=np.uint8) for _ in PAIRS)
        asked.append(Question(videos, BOUNDS, PAIRS, INSTRUCTION))
    ours = _rate(lambda: score(vlm, asked, CODES, hypotheses=HYPOTHESES))
    other = _rate(lambda: [_naive(vlm, question) for question in asked])
    return {"ours": ours, "other": other, "unit": "clips/s", "ratio": round(ours / other, 2)}


def _naive(vlm: Vlm, question: Question) -> None:
    """The same candidates, each as a whole text with its prompt: every sequence that is followed, stretch by stretch,
    and what comes after it."""
    first, and_, to_next, _ = ANSWER_PHRASES
    kept, texts = CODES[:HYPOTHESES], [first]
    for place, phrase in enumerate((*[and_] * (len(PAIRS) - 1), to_next), 1):
        texts += [first + and_.join([code] * place) + phrase for code in kept]
    (row,) = vlm.encoder.encode([question])
    with torch.inference_mode():
        for text in texts:
            vlm.model(**vlm.encoder.collate([row], opening=vlm.encoder.ids(text)))


def _rate(work: Callable[[], object]) -> float:
    work()
    best = min(_seconds(work) for _ in range(ROUNDS))
    return round(CLIPS / best, 2)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
