"""How a prompt should carry frame numbers, family by family: an experiment, too slow for the suite.

`python tests/frame_numbers.py [family …]` trains each family's toy model from nothing on one task, once for each way of
carrying the numbers: four pairs of frames, one of them white; asked is the stretch that the white pair stands for.
Printed is the share of held-out questions whose freely written answer is exactly right. Who guesses among the four
stretches shown is right in 0.25. About a minute a line on one core.
"""

import argparse
import time
from itertools import pairwise

import numpy as np
import torch
import toy_families

from pipelines.common.vlm.dialogue import Question, frame_lines
from pipelines.common.vlm.encode import Encoder
from pipelines.common.vlm.families import Family, LlavaNextVideo, Qwen2VL, Qwen3VL, Qwen25VL
from pipelines.common.vlm.generate import generate
from pipelines.common.vlm.load import Vlm, keep_frame_size
from pipelines.common.vlm.train import loss_sum

STEPS, BATCH, RATE = 400, 16, 2e-3
ASKED = 8 * BATCH
CPU = torch.device("cpu")


def _all_lines(question: Question) -> str:
    return "".join(frame_lines(question.bounds, question.pairs))


class Qwen2VLListed(Qwen2VL):
    """All lines, then all pairs."""

    def content(self, question, processor):
        pairs = [{"type": "video"} for _ in question.pairs]
        return [{"type": "text", "text": _all_lines(question)}, *pairs, {"type": "text", "text": question.text}]


class Qwen25VLListed(Qwen25VL):
    """All lines, then all pairs."""

    content = Qwen2VLListed.content


class Qwen3VLListed(Qwen3VL):
    """All lines, then all pairs, each with its own time."""

    def content(self, question, processor):
        pairs = processor.video_token * len(question.pairs)
        return [{"type": "text", "text": f"{_all_lines(question)}{pairs}{question.text}"}]


class Qwen3VLTimes(Qwen3VL):
    """No line: each pair with its own time alone."""

    def content(self, question, processor):
        return [{"type": "text", "text": processor.video_token * len(question.pairs) + question.text}]


class LlavaNextVideoListed(LlavaNextVideo):
    """All lines, then all pairs."""

    content = Qwen3VLListed.content


WAYS: dict[str, dict[str, Family]] = {
    "qwen2_vl": {"line before each pair": Qwen2VL(), "all lines first": Qwen2VLListed()},
    "qwen2_5_vl": {"line before each pair": Qwen25VL(), "all lines first": Qwen25VLListed()},
    "qwen3_vl": {
        "line before each pair": Qwen3VL(),
        "all lines first": Qwen3VLListed(),
        "own times alone": Qwen3VLTimes(),
    },
    "llava_next_video": {"line before each pair": LlavaNextVideo(), "all lines first": LlavaNextVideoListed()},
}


def sample(rng: np.random.Generator) -> tuple[Question, str]:
    bounds = (0, *sorted((6 * rng.choice(np.arange(1, 20), 3, replace=False)).tolist()), 125)
    pairs = []
    for low, high in pairwise(bounds):
        first = int(rng.integers(low, high - 2))
        pairs.append((first, first + int(rng.integers(1, 3))))
    white = int(rng.integers(4))
    videos = tuple(np.full((2, 56, 56, 3), 255 * (i == white), np.uint8) for i in range(4))
    return Question(videos, bounds, tuple(pairs), "What is done?"), f"{bounds[white]} to {bounds[white + 1]}"


def learned(name: str, family: Family) -> float:
    """Share of right answers after training."""
    torch.manual_seed(0)
    model, processor = toy_families.FAMILIES[name]()
    keep_frame_size(processor)
    vlm, rng = Vlm(model.train(), Encoder(processor, family), CPU), np.random.default_rng(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98))
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 50) * (1 - step / STEPS)
        questions, answers = zip(*(sample(rng) for _ in range(BATCH)), strict=True)
        rows = vlm.encoder.encode(questions, answers)
        (loss_sum(model, vlm.encoder, rows, CPU) / sum(len(row.ids) - row.prompt for row in rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    rng, right = np.random.default_rng(1), 0
    for _ in range(ASKED // BATCH):
        questions, wanted = zip(*(sample(rng) for _ in range(BATCH)), strict=True)
        most = max(len(vlm.encoder.ids(text)) for text in wanted)
        right += sum(map(str.__eq__, generate(vlm, questions, most), wanted))
    return right / ASKED


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare ways of carrying frame numbers in a prompt.")
    parser.add_argument("families", nargs="*", help=f"of {', '.join(WAYS)}; all by default")
    torch.set_num_threads(1)
    toy_families.TEXT["initializer_range"] = toy_families.EYES["initializer_range"] = 0.08  # quiet enough to learn
    for name in parser.parse_args().families or WAYS:
        for way, family in WAYS[name].items():
            started = time.perf_counter()
            share = learned(name, family)
            print(f"{name}, {way}: {share:.2f} right ({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
