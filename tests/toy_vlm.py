"""A real Qwen2-VL at toy size with random weights, and questions for it; used by the tests of models and training."""

import numpy as np
import torch

from pipelines.common.vlm import dialogue, tiny
from pipelines.common.vlm.dialogue import Answer, Question
from pipelines.common.vlm.encode import Encoder
from pipelines.common.vlm.load import Vlm
from pipelines.common.vlm.settings import TinySettings

SIZE = TinySettings(image=56, hidden=32, layers=2, vision_hidden=32, vision_layers=1)
PHRASES = (*dialogue.FRAME_PHRASES, *dialogue.ANSWER_PHRASES, *tiny.CHAT_PHRASES, "What is done?")
CODES = "ABCD"


def make(seed: int = 0) -> Vlm:
    torch.manual_seed(seed)
    processor = tiny.processor(PHRASES, SIZE)
    return Vlm(tiny.model(processor.tokenizer, SIZE).eval(), Encoder(processor), torch.device("cpu"))


def question(seed: int, text: str = "What is done?", bounds: tuple[int, ...] = (0, 40, 80, 125)) -> Question:
    rng = np.random.default_rng(seed)
    pairs = tuple((low + 1, low + 2) for low in bounds[:-1])
    videos = tuple(rng.integers(0, 255, (2, 56, 56, 3), dtype=np.uint8) for _ in pairs)
    return Question(videos, bounds, pairs, text)


def answer(seed: int) -> Answer:
    rng = np.random.default_rng(seed)
    *seen, following = map(str, rng.choice(list(CODES), 4))
    return Answer(tuple(seen), following)
